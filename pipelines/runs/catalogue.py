"""What MLflow shows of a run beside its learning curves: source, data set, kept checkpoints as models, and later measurements.

A kept checkpoint is a LoggedModel of the run: its averaged weights with config.json, as `load` reads them. Figures that are
measured later are linked to the model and to the data set that they are of. RUN/mlflow.json keeps the models' ids, so that a
checkpoint is logged once, and what commands made of the run until the store has it. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_GIT_DIRTY, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE
from torch import Tensor

from pipelines.config.history import Command
from pipelines.config.provenance import MADE_OF
from pipelines.config.store import CONFIG, write_weights
from pipelines.data.card import CARD, Card, load_card
from pipelines.runs.kept import Ended, Kept, Made, finished_at
from pipelines.storage import checkpoint

__all__ = [
    "data_set",
    "experiment_address",
    "inputs",
    "log_end",
    "log_figures",
    "log_made",
    "log_models",
    "source_tags",
]

REASON = "reason"
"""The tag that says why a run has failed."""
LONGEST = 5000
"""Characters of a tag."""


def source_tags(command: Command) -> dict[str, str]:
    """The tags of a command that trains a run; those that MLflow has names for, its pages show."""
    program = command.line.partition(" ")[0]  # its page shows what stands behind the last / of a whole command
    tags = {MLFLOW_SOURCE_NAME: program, MLFLOW_SOURCE_TYPE: "LOCAL", "command": command.line[:LONGEST]}
    if command.commit:
        tags |= {MLFLOW_GIT_COMMIT: command.commit, MLFLOW_GIT_DIRTY: str(bool(command.changed)).lower()}
        tags["code"] = command.code  # its page has no place for changes
    return tags | {f"version.{name}": version for name, version in command.versions.items()}


def data_set(card: Card) -> Dataset:
    """A prepared data set as MLflow knows one."""
    profile = {
        "shape": list(card.shape),
        "levels": card.levels,
        "classes": card.num_classes,
        **{f"{name} rows": split.count for name, split in card.splits.items()},
    }
    return Dataset(
        name=card.name,
        digest=card.digest,
        source_type="local",
        source=json.dumps({"uri": card.source}),
        profile=json.dumps(profile),
    )


def inputs(card: Card, context: str) -> list[DatasetInput]:
    """The data set as an input of a run, in a context such as training."""
    return [DatasetInput(data_set(card), [InputTag("mlflow.data.context", context)])]


def log_models(directory: Path, uri: str) -> None:
    """Logs the kept checkpoints of a run that are not logged yet, each with its NELBO on training and on held-out rows.

    Raises:
        MlflowException: the store refuses.
    """
    client, kept = MlflowClient(uri), Kept.read(directory)
    own, models = kept.run_id, dict(kept.models)
    run = client.get_run(own)
    for place in checkpoint.checkpoints(directory):
        step = int(place.name.removeprefix("step-"))
        if step in models:
            continue
        tensors, numbers = checkpoint.read(place)
        name = re.sub(r"[^\w-]", "_", f"{directory.name}-step-{step}")
        tags = {"recipe": str(numbers.get("recipe", "")), "step": str(step), "weights": "averaged"}
        model = client.create_logged_model(run.info.experiment_id, name, own, tags, model_type="safetensors")
        with tempfile.TemporaryDirectory() as folder:
            _export(directory, tensors, numbers, Path(folder))
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(own, [LoggedModelOutput(model.model_id, step)])
        for name, key in (("train/nelbo", "nelbo"), ("validation/nelbo", "validation_nelbo")):
            if math.isfinite(figure := float(numbers.get(key, math.nan))):
                client.log_metric(own, name, figure, step=step, model_id=model.model_id)
        models[step] = model.model_id
        replace(kept, models=models).write(directory)


def _export(directory: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], folder: Path) -> None:
    """What `load` reads: config.json, the averaged weights and what they are made of."""
    shutil.copy(directory / CONFIG, folder)
    averaged = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    made_of = {name: numbers[name] for name in MADE_OF if name in numbers}
    write_weights(folder, averaged, numbers["step"], made_of)


def log_figures(directory: Path, uri: str, made: Made, card: Card | None = None) -> None:
    """Figures and files that a later command made of a run, linked to the model and to the data that they are of.

    Args:
        directory: Of the run; nothing is done where it has no MLflow run.
        made: The figures and files.
        card: The data set that was measured on.

    Raises:
        MlflowException: the store refuses.
    """
    kept = Kept.read(directory)
    own, models = kept.run_id, kept.models
    if not own:
        return
    client, now, step = MlflowClient(uri), int(time.time() * 1000), made.step or max(models, default=0)
    data = data_set(card) if card else None
    metrics = [
        Metric(
            name,
            float(value),
            now,
            step,
            model_id=models.get(step),
            dataset_name=data.name if data else None,
            dataset_digest=data.digest if data else None,
        )
        for name, value in made.figures.items()
    ]
    if card:
        client.log_inputs(own, inputs(card, "evaluation"))
    for first in range(0, len(metrics), 500):
        client.log_batch(own, metrics=metrics[first : first + 500])
    for file in map(Path, made.files):
        if file.is_file() and not file.is_symlink():  # a link may lead out of the run
            client.log_artifact(own, str(file), made.folder or None)


def log_made(directory: Path, uri: str) -> None:
    """Logs what commands made of a run and the store does not have yet, in the order in which it was made.

    Raises:
        MlflowException: the store refuses.
    """
    while (kept := Kept.read(directory)).waiting:
        made, *later = kept.waiting
        card = load_card(made.data) if made.data and (Path(made.data) / CARD).is_file() else None
        log_figures(directory, uri, made, card)
        replace(kept, waiting=tuple(later)).write(directory)


def log_end(directory: Path, uri: str) -> None:
    """Logs that a run has ended, and how, where the store has it as running. A run that has its last weights is finished.

    Raises:
        MlflowException: the store refuses.
    """
    kept, client = Kept.read(directory), MlflowClient(uri)
    finished = finished_at(directory)
    ended = Ended(status="FINISHED", time=finished, reason="") if finished else kept.ended
    status = client.get_run(kept.run_id).info.status if ended else ""
    if ended and status != ended.status and (finished or status == "RUNNING"):
        if ended.reason:
            client.set_tag(kept.run_id, REASON, ended.reason[:LONGEST])
        client.set_terminated(kept.run_id, ended.status, ended.time)
    if kept.ended:
        replace(kept, ended=None).write(directory)


def experiment_address(uri: str, name: str, server: str) -> str:
    """The page of an experiment in the mode of model training, which the tag of its kind alone does not open."""
    try:
        found = MlflowClient(uri).get_experiment_by_name(name)
    except (MlflowException, OSError):
        found = None
    return f"{server}/#/experiments/{found.experiment_id}?workflowType=machine_learning" if found else server
