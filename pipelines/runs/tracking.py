"""MLflow: where runs are browsed.

The command that trains creates a run once (`open_run`) and keeps its id in RUN/mlflow.json; whoever logs to it later opens it
by that id, so that restarts go on in the same run. While it trains, a thread logs what it leaves (`shipping`). What later
commands make of a run waits in RUN/mlflow.json until the store has it (`post`), and every command on a run logs what is missing
there (`deliver`). Nothing is pickled: models are logged as safetensors and JSON.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.cli import options
from pipelines.config.weights import Weights
from pipelines.data.card import Card, load_card
from pipelines.runs.catalogue import Kept, Made, inputs, log_made, log_models, run_id, source_tags
from pipelines.runs.job import Job
from pipelines.runs.shipping import Feed
from pipelines.runs.store import named, reach, tracking_uri

__all__ = ["EXPERIMENT", "Made", "deliver", "open_run", "post"]

EXPERIMENT = "indm"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the page of an experiment is about."""


def open_run(job: Job, root: Path) -> str:
    """The id of the job's MLflow run, created with its configuration where there is none yet, or where it was deleted.

    Raises:
        ValueError: the store does not answer; found out in seconds.
    """
    uri, card = tracking_uri(root), load_card(job.data)
    try:
        reach(uri)
        return _open_run(job, card, root, MlflowClient(uri))
    except Exception as error:  # whatever a store's driver raises
        said = " ".join(str(error).split())[:200]
        given = bool(os.environ.get("MLFLOW_TRACKING_URI"))
        remedy = "mend or unset it" if given else "mend or remove that file, or set MLFLOW_TRACKING_URI"
        shown = f"MLFLOW_TRACKING_URI={named(uri)}" if given else f"{root / 'mlflow.db'}, the tracking store"
        raise ValueError(f"{shown}: {said}; {remedy}, or train without it: --local") from error


def _open_run(job: Job, card: Card, root: Path, client: MlflowClient) -> str:
    if known := run_id(job.directory):
        try:
            active = client.get_run(known).info.lifecycle_stage == "active"
        except MlflowException:  # another store: the run is created there too
            active = False
        if active:
            client.update_run(known, status="RUNNING")
            return known
    tags = {"recipe": job.run.recipe} | source_tags()
    run = client.create_run(_experiment(client, root), run_name=job.directory.name, tags=tags)
    client.log_inputs(run.info.run_id, inputs(card, "training"))
    parameters = [Param(o.path, str(o.value)[:500]) for o in options(job.run)]
    client.log_batch(run.info.run_id, params=parameters, tags=[RunTag("directory", str(job.directory))])
    Kept(run_id=run.info.run_id, waiting=Kept.read(job.directory).waiting).write(job.directory)
    return run.info.run_id


def _experiment(client: MlflowClient, root: Path) -> str:
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
    figures = {f"raw/{name}" if weights.raw else name: figure for name, figure in made.figures.items()}
    made = replace(made, figures=figures, step=weights.step or 0, folder=weights.folder)
    if kept.run_id and made not in kept.waiting:
        replace(kept, waiting=(*kept.waiting, made)).write(weights.run)


def deliver(directories: Sequence[Path], root: Path) -> None:
    """Logs all that the MLflow runs of some directories lack: figures and pictures of their training, their kept checkpoints,
    and what commands made of them. The store is the one beside a run, where there is one, else that of the output directory. A
    store that does not answer is told, and no error."""
    lacking: dict[str, list[Path]] = {}
    for directory in filter(run_id, directories):
        beside = directory.resolve().parent
        uri = tracking_uri(beside if (beside / "mlflow.db").is_file() else root)
        lacking.setdefault(uri, []).append(directory)
    for uri, known in lacking.items():
        _deliver(known, uri)


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
