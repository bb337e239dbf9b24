"""What a run's directory remembers of MLflow, RUN/mlflow.json, and when its training began and ended; known without MLflow,
which takes seconds to import.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.config.codec import from_json
from pipelines.config.store import CONFIG, WEIGHTS_STATE
from pipelines.storage.files import write_text
from pipelines.storage.reading import read_json

__all__ = ["Ended", "Kept", "Made", "began", "end", "finished_at", "run_id"]

FILE = "mlflow.json"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a command made of a run, on its way to the store.

    Args:
        figures: By name, finite numbers.
        files: Tables and pictures; those that are absent are left out.
        data: Directory of the prepared data set that the figures are of; '' where there is none.
        step: Of the checkpoint that it is of; 0: of the run's last weights.
        folder: Among the run's artifacts, where the files go.
    """

    figures: dict[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    data: str = ""
    step: int = 0
    folder: str = ""

    @staticmethod
    def of(document: Any) -> Made:
        """From its JSON."""
        figures = {str(name): float(value) for name, value in dict(document["figures"]).items()}
        files, data = tuple(map(str, document["files"])), str(document["data"])
        step, folder = int(document.get("step", 0)), str(document.get("folder", ""))
        return Made(figures=figures, files=files, data=data, step=step, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the training of a run has ended before its last step, on its way to the store.

    Args:
        status: FAILED or KILLED.
        time: When, in milliseconds since 1970.
        reason: Why, in one line.
    """

    status: str
    time: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a run directory remembers of MLflow.

    Args:
        run_id: Of its run; '' where it has none.
        models: Ids of the models that its checkpoints are, by step.
        waiting: What commands made of the run and the store does not have yet, oldest first.
        ended: How its training has ended, where the store does not know it yet.
    """

    run_id: str = ""
    models: dict[int, str] = field(default_factory=dict)
    waiting: tuple[Made, ...] = ()
    ended: Ended | None = None

    @staticmethod
    def read(directory: Path) -> Kept:
        """What the directory's mlflow.json says; of a file of another shape, nothing."""
        try:
            document = read_json(directory / FILE)
            models = {int(step): str(model) for step, model in document.get("models", {}).items()}
            waiting = tuple(map(Made.of, document.get("waiting", [])))
            ended = from_json(Ended, document["ended"]) if "ended" in document else None
            return Kept(run_id=str(document["run_id"]), models=models, waiting=waiting, ended=ended)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return Kept()

    def write(self, directory: Path) -> None:
        waiting = {"waiting": [asdict(made) for made in self.waiting]} if self.waiting else {}
        waiting |= {"ended": asdict(self.ended)} if self.ended else {}
        write_text(directory / FILE, json.dumps({"run_id": self.run_id, "models": self.models} | waiting) + "\n")


def run_id(directory: Path) -> str:
    """The MLflow run of a run directory, '' where it has none."""
    return Kept.read(directory).run_id


def began(directory: Path) -> int:
    """When the training in a directory last began, in milliseconds since 1970: it writes config.json then. 0: never."""
    return _modified(directory / CONFIG)


def finished_at(directory: Path) -> int:
    """When the last weights of a run were written, if that was after its training last began; else 0."""
    written = _modified(directory / WEIGHTS_STATE)
    return written if written >= began(directory) else 0


def end(directory: Path, status: str, reason: str) -> None:
    """Keeps how the training of a run has ended before its last step; `log_end` logs it."""
    kept = Kept.read(directory)
    if kept.run_id:
        ended = Ended(status=status, time=int(time.time() * 1000), reason=reason)
        replace(kept, ended=ended).write(directory)


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0
