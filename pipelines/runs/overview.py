"""The runs below an output directory and their checkpoints, as they lie there: what `show.py` prints.

Documents are read and no tensors, so that a table of many runs is there at once; torch is not imported. Whether the tensors of
a checkpoint are those that were written is found out where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.config.weights import kept_by
from pipelines.runs.record import Record, RecordReader
from pipelines.storage import checkpoint
from pipelines.storage.along import FIGURES, Measured, read_measured
from pipelines.storage.locks import is_held
from pipelines.storage.manifest import DamagedError, read_manifest
from pipelines.storage.reading import read_json

__all__ = ["CheckpointFigures", "RunFigures", "checkpoint_lines", "checkpoints_of", "run_lines", "runs_below"]

State = Literal["training", "stopped", "finished", "damaged"]


@dataclass(frozen=True, kw_only=True)
class CheckpointFigures:
    """A checkpoint of a run.

    Args:
        name: By which commands take it.
        nelbo: On training rows; nan where there is none.
        held_out, se: On held-out rows, with its standard error; nan where it was not measured.
        measured: What was measured of it beside the training; None: nothing.
        size: Of its files, bytes.
        remarks: last, best, end of the pre-training.
    """

    name: str
    nelbo: float
    held_out: float
    se: float
    measured: Measured | None
    size: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """A run.

    Args:
        name: Of its directory.
        recipe: '' where that cannot be read; of a run with labels it says so.
        state: training: a process writes it; stopped: the same command goes on; finished: it has its last weights; damaged: its
            config.json cannot be read, or no checkpoint is what was written.
        step: Of its newest record or checkpoint.
        steps: Of the whole run.
        last: Its last record.
        held_out: The last NELBO on held-out rows; None where it was never measured.
        checkpoints: How many it has.
        size: Of all its files, bytes.
    """

    name: str
    recipe: str
    state: State
    step: int
    steps: int
    last: Record | None
    held_out: Record | None
    checkpoints: int
    size: int


def runs_below(root: Path) -> Iterator[RunFigures]:
    """The runs directly below an output directory, by name."""
    for directory in sorted(path for path in root.iterdir() if (path / "config.json").is_file()):
        yield _figures(directory)


def checkpoints_of(run: Path) -> list[CheckpointFigures]:
    """The checkpoints of a run, oldest first, the end of its pre-training among them."""
    kept = sorted(checkpoint.kept(run).items())
    figures = {step: _content(place) for step, place in kept}
    measured = checkpoint.figures_by(run, kept_by(run))
    best = min(measured, key=lambda step: (measured[step], -step), default=None)
    along = {record.checkpoint: record for record in read_measured(run)}
    found = []
    for step, place in kept:
        remarks = {
            "last": step == kept[-1][0],
            "best": step == best and math.isfinite(measured[step]),
            "end of the pre-training": place.name == "pretrained",
        }
        found.append(
            CheckpointFigures(
                name=f"{run.name}@{step}",
                nelbo=_number(figures[step].get("nelbo")),
                held_out=_number(figures[step].get("validation_nelbo")),
                se=_number(figures[step].get("validation_se")),
                measured=along.get(checkpoint.digest_of(place)),
                size=_size(place),
                remarks=tuple(name for name, holds in remarks.items() if holds),
            )
        )
    return found


def run_lines(runs: Sequence[RunFigures]) -> list[str]:
    """A table of runs, with how to take their weights."""
    head = ("run", "state", "step", "training NELBO", "held-out NELBO", "checkpoints", "size", "recipe")
    return _aligned(head, [_run_cells(run) for run in runs])


def checkpoint_lines(checkpoints: Sequence[CheckpointFigures]) -> list[str]:
    """A table of checkpoints."""
    names = [name for name in FIGURES if any(c.measured and name in c.measured.figures for c in checkpoints)]
    head = ("weights", "training NELBO", "held-out NELBO", *names, "size", "")
    rows = [
        (
            *(c.name, _shown(c.nelbo), _with_error(c.held_out, c.se)),
            *(_taken(c.measured, name) for name in names),
            *(_bytes(c.size), ", ".join(c.remarks)),
        )
        for c in checkpoints
    ]
    return _aligned(head, rows)


def _figures(directory: Path) -> RunFigures:
    records = RecordReader(directory / "metrics.jsonl").read()
    trained = [record for record in records if record.terms]
    steps, recipe = _configured(directory)
    kept = checkpoint.kept(directory)
    step = max([*kept, *(record.step for record in records[-1:])], default=0)
    return RunFigures(
        name=directory.name,
        recipe=recipe,
        state=_state(directory, steps, len(kept)),
        step=step,
        steps=steps,
        last=trained[-1] if trained else None,
        held_out=next((record for record in reversed(records) if record.held_out), None),
        checkpoints=len(kept),
        size=_size(directory),
    )


def _configured(directory: Path) -> tuple[int, str]:
    """Steps and recipe in a config.json; (0, '') where it has none."""
    try:
        run = read_json(directory / "config.json")["run"]
        labels = " (with labels)" if run.get("model", {}).get("conditional") is True else ""
        return int(run["train"]["steps"]), f"{run['recipe']}{labels}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, ""


def _state(directory: Path, steps: int, kept: int) -> State:
    if is_held(directory / ".writing"):
        return "training"
    if not steps or (not kept and any((directory / "checkpoints").glob("step-*"))):
        return "damaged"
    try:
        if not (directory / "model.safetensors").is_file():
            return "stopped"
        if not (directory / "model.json").is_file():  # before there were checksums
            return "finished"
        return "finished" if read_manifest(directory / "model.json").content.get("step") == steps else "stopped"
    except (DamagedError, ValueError, OSError):
        return "damaged"


def _content(place: Path) -> dict[str, Any]:
    try:
        return checkpoint.read_state(place).content
    except (DamagedError, ValueError, OSError):
        return {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _run_cells(run: RunFigures) -> tuple[str, ...]:
    last = f"{next(iter(run.last.terms.values())):.3f} {run.last.unit}" if run.last else "-"
    point = run.held_out.held_out if run.held_out else None
    held_out = f"{_with_error(point.nelbo, point.se)} @{run.held_out.step}" if run.held_out and point else "-"
    steps = f"{run.step:,}/{run.steps:,}"
    return run.name, run.state, steps, last, held_out, str(run.checkpoints), _bytes(run.size), run.recipe


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _with_error(value: float, error: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f} +- {error:.3f}"


def _taken(measured: Measured | None, name: str) -> str:
    taken = measured.figures.get(name) if measured else None
    return _with_error(taken.value, taken.se) if taken else "-"


def _bytes(size: int) -> str:
    power = next((power for power in (3, 2, 1) if size >= 1000**power), 0)
    return f"{size / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}" if power else f"{size} B"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
