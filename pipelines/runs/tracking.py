"""MLflow: where runs are browsed.

The command that trains creates a run once (`open_run`), when its training begins, and keeps its id in RUN/mlflow.json; whoever
logs to it later opens it by that id, so that restarts go on in the same run. While it trains, a thread logs what it leaves
(`shipping`). How it has ended (`close_runs`) and what later commands make of it (`post`) waits in RUN/mlflow.json until the
store has it, and every command on a run logs what is missing there (`deliver`). Nothing is pickled: models are logged as
safetensors and JSON.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipelines.config.history import History
from pipelines.config.store import CONFIG
from pipelines.config.terminal.cli import options
from pipelines.config.weights import Weights
from pipelines.runs.catalogue import REASON, inputs, log_end, log_made, log_models, source_tags
from pipelines.runs.job import AnyJob
from pipelines.runs.kept import Kept, Made, began, end, finished_at, run_id
from pipelines.runs.shipping import Feed
from pipelines.runs.store import named, reach, tracking_uri
from pipelines.storage.locks import is_held

__all__ = [
    "EXPERIMENT",
    "Made",
    "close_lost_runs",
    "close_runs",
    "deliver",
    "experiment",
    "open_missed",
    "open_run",
    "post",
    "store_of",
]

EXPERIMENT = "indm"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the page of an experiment is about."""
CLOSE_SECONDS = 5.0
"""For which the end of a command waits for the store."""
LOST = "its command was ended before it could tell how"


def open_run(job: AnyJob, root: Path, start: int | None = None, parent: str = "") -> str:
    """The id of the job's MLflow run, created with its configuration where there is none yet, or where it was deleted.

    Args:
        job: Whose training begins.
        root: The output directory.
        start: When it has begun, in milliseconds since 1970; None: now.
        parent: The MLflow run that a new one is shown below (`groups`); '' for none.

    Raises:
        ValueError: the store does not answer; found out in seconds.
    """
    uri = tracking_uri(root)
    try:
        reach(uri)
        return _open_run(job, root, MlflowClient(uri), start, parent)
    except Exception as error:  # whatever a store's driver raises
        said = " ".join(str(error).split())[:200]
        given = bool(os.environ.get("MLFLOW_TRACKING_URI"))
        remedy = "mend or unset it" if given else "mend or remove that file, or set MLFLOW_TRACKING_URI"
        shown = f"MLFLOW_TRACKING_URI={named(uri)}" if given else f"{root / 'mlflow.db'}, the tracking store"
        raise ValueError(f"{shown}: {said}; {remedy}, or train without it: --local") from error


def _open_run(job: AnyJob, root: Path, client: MlflowClient, start: int | None, parent: str) -> str:
    if known := run_id(job.directory):
        try:
            active = client.get_run(known).info.lifecycle_stage == "active"
        except MlflowException:  # another store: the run is created there too
            active = False
        if active:
            _go_on(job, client, known)
            return known
    told = History.read(job.directory / CONFIG).commands if start else ()  # by the training that has begun
    tags = {"recipe": job.run.recipe} | source_tags(told[-1] if told else job.command)
    tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    run = client.create_run(experiment(client, root), start, tags, job.directory.name)
    for card, context in zip(job.cards, ("training", "training, second set"), strict=False):
        client.log_inputs(run.info.run_id, inputs(card, context))
    parameters = [Param(o.path, o.shown[:500]) for o in options(job.run)]
    client.log_batch(run.info.run_id, params=parameters, tags=[RunTag("directory", str(job.directory))])
    Kept(run_id=run.info.run_id, waiting=Kept.read(job.directory).waiting).write(job.directory)
    return run.info.run_id


def _go_on(job: AnyJob, client: MlflowClient, known: str) -> None:
    """A run that goes on is of the command that it goes on by, and has not ended."""
    client.update_run(known, status="RUNNING")
    client.log_batch(known, tags=[RunTag(name, value) for name, value in source_tags(job.command).items()])
    if REASON in client.get_run(known).data.tags:
        client.delete_tag(known, REASON)
    replace(Kept.read(job.directory), ended=None).write(job.directory)


def open_missed(jobs: Sequence[AnyJob], root: Path) -> None:
    """Opens the runs of trainings that began and ended while the store was away; where it still is, that is said."""
    for job in jobs:
        if not run_id(job.directory):
            try:
                open_run(job, root, began(job.directory) or None)
            except ValueError as error:
                print(f"{job.directory.name} is not in MLflow: {error}; the same command puts it there", flush=True)


def close_runs(directories: Sequence[Path], root: Path, status: str, reason: str) -> None:
    """Keeps, and logs if the store answers soon, how the runs of a command that trains have ended: those whose training had
    begun and was not finished.

    Args:
        directories: Of the runs.
        root: The output directory.
        status: FAILED or KILLED.
        reason: Why, in one line.
    """
    known = [directory for directory in directories if run_id(directory)]
    for directory in known:
        end(directory, status, reason)
    thread = threading.Thread(target=_log_ends, args=(known, root), daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)


def close_lost_runs(root: Path) -> None:
    """Closes the runs below an output directory that the store has as running and no process trains: a kill -9 ends a command
    before it can tell. A store that does not answer is left as it is."""
    running = _running(root)
    runs = [file.parent for file in sorted(root.glob("*/mlflow.json")) if run_id(file.parent) in running]
    lost = [run for run in runs if not any(is_held(run / lock) for lock in (".lock", ".writing"))]
    for directory in lost:
        if not finished_at(directory) and not Kept.read(directory).ended:
            with suppress(OSError):  # of another user
                end(directory, "KILLED", LOST)
    _log_ends(lost, root)


def _running(root: Path) -> set[str]:
    """The ids of the runs that the store has as running; none where it does not answer."""
    try:
        client = MlflowClient(tracking_uri(root))
        found = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'") if found else []
        return {run.info.run_id for run in runs}
    except Exception:  # whatever a store's driver raises
        return set()


def _log_ends(directories: Sequence[Path], root: Path) -> None:
    uri = tracking_uri(root)
    for directory in directories:
        with suppress(Exception):  # whatever a store's driver raises: the next command on the run logs it
            reach(uri, patience=1.0)
            Feed(directory, uri).ship(whole=True)
            log_end(directory, uri)


def experiment(client: MlflowClient, root: Path) -> str:
    """The id of the experiment; one that was deleted in the browser comes back, as its name stays taken."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if not found:
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlartifacts").resolve().as_uri()
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=place, tags=KIND)
        except MlflowException:  # another first run was quicker
            found = client.get_experiment_by_name(EXPERIMENT)
            if not found:
                raise
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def post(weights: Weights, made: Made) -> None:
    """Keeps what a command made of a run for its MLflow run, where it has one; `deliver` logs it."""
    kept = Kept.read(weights.run)
    made = replace(made, step=weights.step or 0, folder=weights.folder)
    if kept.run_id and made not in kept.waiting:
        replace(kept, waiting=(*kept.waiting, made)).write(weights.run)


def deliver(directories: Sequence[Path], root: Path) -> None:
    """Logs all that the MLflow runs of some directories lack: figures and pictures of their training, their kept checkpoints,
    and what commands made of them. The store is the one beside a run, where there is one, else that of the output directory. A
    store that does not answer is told, and no error."""
    lacking: dict[str, list[Path]] = {}
    for directory in filter(run_id, directories):
        lacking.setdefault(store_of(directory, root), []).append(directory)
    for uri, known in lacking.items():
        _deliver(known, uri)


def store_of(directory: Path, root: Path) -> str:
    """The address of the store that a run is in: the one beside it, where there is one, else that of the output directory."""
    beside = directory.resolve().parent
    return tracking_uri(beside if (beside / "mlflow.db").is_file() else root)


def _deliver(known: Sequence[Path], uri: str) -> None:
    try:
        reach(uri)
        for directory in known:
            Feed(directory, uri).ship(whole=True)
            log_models(directory, uri)
            log_made(directory, uri)
    except Exception as error:  # whatever a store's driver raises
        reason = " ".join(str(error).split())[:200]
        print(
            f"not logged to MLflow at {named(uri)}: {reason}; the next command on the run logs what is missing",
            flush=True,
        )
