"""MLflow: where runs are browsed.

The store is MLFLOW_TRACKING_URI, else a sqlite file in the output directory. The driver creates a run once and keeps its id in
RUN/mlflow.json; whoever writes to it later (the rank-0 worker, the evaluation) opens it by that id, so that restarts go on in
the same run. Nothing is pickled: models are logged as safetensors and JSON.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not minutes for each figure
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.cli import options
from pipelines.data.card import load_card
from pipelines.runs.catalogue import Kept, inputs, log_figures, run_id, source_tags
from pipelines.runs.job import Job
from pipelines.runs.record import Record

__all__ = ["EXPERIMENT", "OpenLogs", "RunLog", "environment", "log_files", "log_quietly", "open_run", "tracking_uri"]

EXPERIMENT = "indm"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the page of an experiment is about."""
logging.getLogger("mlflow").setLevel(logging.WARNING)  # its first start narrates the creation of the store
logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else a sqlite store in the output directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def environment(root: Path) -> dict[str, str]:
    """Environment variables that make a worker write to the same store."""
    return {
        "MLFLOW_TRACKING_URI": tracking_uri(root),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def open_run(job: Job, root: Path) -> str:
    """The id of the job's MLflow run, created with its configuration where there is none yet.

    Raises:
        ValueError: the store does not answer.
    """
    try:
        return _open_run(job, root)
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"MLFLOW_TRACKING_URI={tracking_uri(root)}: {said}; mend or unset it") from error


def _open_run(job: Job, root: Path) -> str:
    client = MlflowClient(tracking_uri(root))
    known = run_id(job.directory)
    if known:
        try:
            client.get_run(known)
        except MlflowException:
            pass  # another store: the run is created there too
        else:
            return known
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        experiment_id = experiment.experiment_id
    else:
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlartifacts").resolve().as_uri()
        try:
            experiment_id = client.create_experiment(EXPERIMENT, artifact_location=place, tags=KIND)
        except MlflowException:  # another first run was quicker
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
    tags = {"recipe": job.run.recipe} | source_tags()
    run = client.create_run(experiment_id, run_name=job.directory.name, tags=tags)
    client.log_inputs(run.info.run_id, inputs(load_card(job.data), "training"))
    parameters = [Param(o.path, str(o.value)[:500]) for o in options(job.run)]
    client.log_batch(run.info.run_id, params=parameters, tags=[RunTag("directory", str(job.directory))])
    Kept(run_id=run.info.run_id).write(job.directory)
    return run.info.run_id


def log_files(directory: Path, files: Sequence[Path], root: Path) -> None:
    """Writes files that a command made of a run into its MLflow run, where it has one and MLflow is installed with a store."""
    log_quietly(lambda: log_figures(directory, tracking_uri(root), {}, files), root)


def log_quietly(action: Callable[[], None], root: Path) -> None:
    """Writes to the store of an output directory; where it does not answer, that is said and the work goes on."""
    _attempt(action, tracking_uri(root), aloud=True)


def _attempt(action: Callable[[], None], uri: str, aloud: bool) -> bool:
    try:
        action()
    except (MlflowException, OSError) as error:
        if aloud:
            print(f"not logged to {uri}: {' '.join(str(error).split())[:200]}", flush=True)
        return False
    return True


class RunLog:
    """Writes the figures and pictures of a run to its MLflow run.

    Args:
        directory: Of the run, whose mlflow.json names the MLflow run.
        uri: Of the store.
        system_metrics: Whether this process's machine (CPU, memory, GPU) is sampled into the run while the log is open.
    """

    def __init__(self, directory: Path, uri: str, system_metrics: bool = False) -> None:
        self.run_id = run_id(directory)
        self.client = MlflowClient(uri)
        self.active = system_metrics
        if system_metrics:
            mlflow.set_tracking_uri(uri)
            mlflow.start_run(run_id=self.run_id, log_system_metrics=True)

    def record(self, record: Record) -> None:
        """Every number of a record as a metric, in one call."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, record.step) for name, value in record.figures().items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def artifact(self, file: Path, folder: str | None = None) -> None:
        """A file (a picture, a table, a model's safetensors) of the run."""
        self.client.log_artifact(self.run_id, str(file), folder)

    def close(self, status: str | None = None) -> None:
        """Ends the sampling of the machine and, with a status such as FINISHED, the run."""
        if self.active:
            mlflow.end_run(status or "RUNNING")
        if status:
            self.client.set_terminated(self.run_id, status)


class OpenLogs:
    """The log of the run that is being trained, with its machine's metrics; a context manager that closes it.

    Args:
        uri: Of the store.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.open: dict[Path, RunLog] = {}
        self.failed = False

    def write(self, directory: Path, entry: Callable[[RunLog], None]) -> None:
        """Writes to a run's log. A store that does not answer is said once; training does not wait for it, and
        RUN/metrics.jsonl has every figure."""
        self.failed = not _attempt(lambda: entry(self._of(directory)), self.uri, aloud=not self.failed)

    def _of(self, directory: Path) -> RunLog:
        """The run's log; that of the run before it is closed."""
        if directory not in self.open:
            self._close()
            self.open = {directory: RunLog(directory, self.uri, system_metrics=True)}
        return self.open[directory]

    def __enter__(self) -> OpenLogs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        for log in self.open.values():
            with suppress(MlflowException, OSError):
                log.close()
