"""What MLflow shows of a run beside its learning curves: source, data set, kept checkpoints as models, and later measurements.

A kept checkpoint is a LoggedModel of the run: its averaged weights with config.json, as `load` reads them. Figures that are
measured later are linked to the model and to the data set that they are of. RUN/mlflow.json keeps the models' ids, so that a
checkpoint is logged once, and what commands made of the run until the store has it. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE
from torch import Tensor

from pipelines.config.provenance import MADE_OF
from pipelines.config.store import CONFIG, write_weights
from pipelines.data.card import CARD, Card, load_card
from pipelines.runs.record import VALIDATION
from pipelines.storage import checkpoint
from pipelines.storage.files import write_text
from pipelines.storage.reading import read_json

__all__ = [
    "Kept",
    "Made",
    "data_set",
    "experiment_address",
    "inputs",
    "log_figures",
    "log_made",
    "log_models",
    "run_id",
    "source_tags",
]

FILE = "mlflow.json"
CLONE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a command made of a run, on its way to the store.

    Args:
        figures: By name, finite numbers.
        files: Tables and pictures; those that are absent are left out.
        data: Directory of the prepared data set that the figures are of; '' where there is none.
        finished: Whether the run is finished by this.
        step: Of the checkpoint that it is of; 0: of the run's last weights.
        folder: Among the run's artifacts, where the files go.
    """

    figures: dict[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    data: str = ""
    finished: bool = False
    step: int = 0
    folder: str = ""

    @staticmethod
    def of(document: Any) -> Made:
        """From its JSON."""
        figures = {str(name): float(value) for name, value in dict(document["figures"]).items()}
        files, data = tuple(map(str, document["files"])), str(document["data"])
        step, folder = int(document.get("step", 0)), str(document.get("folder", ""))
        return Made(
            figures=figures, files=files, data=data, finished=bool(document["finished"]), step=step, folder=folder
        )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a run directory remembers of MLflow.

    Args:
        run_id: Of its run; '' where it has none.
        models: Ids of the models that its checkpoints are, by step.
        waiting: What commands made of the run and the store does not have yet, oldest first.
    """

    run_id: str = ""
    models: dict[int, str] = field(default_factory=dict)
    waiting: tuple[Made, ...] = ()

    @staticmethod
    def read(directory: Path) -> Kept:
        """What the directory's mlflow.json says; of a file of another shape, nothing."""
        try:
            document = read_json(directory / FILE)
            models = {int(step): str(model) for step, model in document.get("models", {}).items()}
            waiting = tuple(map(Made.of, document.get("waiting", [])))
            return Kept(run_id=str(document["run_id"]), models=models, waiting=waiting)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return Kept()

    def write(self, directory: Path) -> None:
        waiting = {"waiting": [asdict(made) for made in self.waiting]} if self.waiting else {}
        write_text(directory / FILE, json.dumps({"run_id": self.run_id, "models": self.models} | waiting) + "\n")


def source_tags() -> dict[str, str]:
    """The tags under which MLflow shows what started a run: the command, and the commit of the clone if it is one."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    tags = {MLFLOW_SOURCE_NAME: " ".join(words)[:500], MLFLOW_SOURCE_TYPE: "LOCAL"}
    command = ["git", "-C", str(CLONE), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return tags
    return tags | ({MLFLOW_GIT_COMMIT: found.stdout.strip()} if found.returncode == 0 else {})


def data_set(card: Card) -> Dataset:
    """A prepared data set as MLflow knows one; its digest is of the bytes of all shards."""
    shards = [shard.sha256 for _, split in sorted(card.splits.items()) for shard in split.shards]
    profile = {
        "shape": list(card.shape),
        "levels": card.levels,
        "classes": card.num_classes,
        **{f"{name} rows": split.count for name, split in card.splits.items()},
    }
    return Dataset(
        name=card.name,
        digest=hashlib.sha256("".join(shards).encode()).hexdigest()[:16],
        source_type="local",
        source=json.dumps({"uri": card.source}),
        profile=json.dumps(profile),
    )


def inputs(card: Card, context: str) -> list[DatasetInput]:
    """The data set as an input of a run, in a context such as training."""
    return [DatasetInput(data_set(card), [InputTag("mlflow.data.context", context)])]


def run_id(directory: Path) -> str:
    """The MLflow run of a run directory, '' where it has none."""
    return Kept.read(directory).run_id


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
        for name, key in (("nelbo", "nelbo"), (VALIDATION[0], "validation_nelbo")):
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
        if made.finished:
            MlflowClient(uri).set_terminated(kept.run_id, "FINISHED")
        replace(kept, waiting=tuple(later)).write(directory)


def experiment_address(uri: str, name: str, server: str) -> str:
    """The page of an experiment in the mode of model training, which the tag of its kind alone does not open."""
    try:
        found = MlflowClient(uri).get_experiment_by_name(name)
    except (MlflowException, OSError):
        found = None
    return f"{server}/#/experiments/{found.experiment_id}?workflowType=machine_learning" if found else server
