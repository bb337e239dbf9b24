"""What a sweep found: an outcome for each trial, kept as it comes, and all of them in one document and one table.

    SWEEP/trials/003.json   the outcome of the trial whose run is SWEEP-003; without it the trial is not done
    SWEEP/sweep.json        what is searched and how, and all outcomes

Whatever ends the command, the same command goes on: a trial that has an outcome is not trained again, one without goes on from
its run's last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.evaluation.results.document import read_document, write_document
from pipelines.evaluation.results.estimates import with_error
from pipelines.storage.along import Figure
from pipelines.storage.outputs import is_run

__all__ = ["Figure", "Outcome", "Sweep", "best_of", "table"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial has ended.

    Args:
        index: Its number.
        point: The values that it has, by dimension.
        run: The name of its run; of a sampler the run is one of MLflow alone.
        state: measured; stopped by the scheduler before its last step; or failed, by itself: it diverged, or was refused.
        step: That it came to; of a sampler 0.
        seconds: Of the process that ended it: training and measurement.
        reason: Why it was stopped or has failed.
        held_out: The last NELBO on held-out rows.
        figures: What was measured of the model: nll, nelbo, fd, and by row of samplers `fd ROW` and `seconds ROW`; of a sampler
            fd, kernel and `evaluations` of the score by a sample.
    """

    index: int
    point: dict[str, str]
    run: str
    state: Literal["measured", "stopped", "failed"]
    step: int = 0
    seconds: float = 0.0
    reason: str = ""
    held_out: Figure | None = None
    figures: dict[str, Figure] = field(default_factory=dict)

    @staticmethod
    def place(sweep: Path, index: int) -> Path:
        """The file of a trial's outcome."""
        return sweep / "trials" / f"{index:03d}.json"

    @staticmethod
    def read(sweep: Path, index: int) -> Outcome | None:
        """The outcome of a trial; None where it is not done.

        Raises:
            ValueError: a file that is none.
        """
        file = Outcome.place(sweep, index)
        return read_document(Outcome, file, lambda document: document) if file.is_file() else None

    def write(self, sweep: Path) -> None:
        file = Outcome.place(sweep, self.index)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_document(self, file)

    def objective(self, metric: str) -> float:
        """What is minimised; nan where it was not measured."""
        figure = self.figures.get(metric)
        return figure.value if figure else math.nan


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All that a sweep found.

    Args:
        name: Of the sweep.
        asked: What makes it this sweep, by name, as text: the same command has the same.
        metric: By which a trial is the best.
        unit: Of likelihoods.
        trials: The outcomes so far.
        waiting: Points of trials that are not done.
        shared: Steps of pre-training that several trials began from, by the name of its run.
        best: The run of the best trial; '' where none was measured.
        model: Its address in MLflow's registry.
        seconds: Of the command that wrote it.
    """

    name: str
    asked: dict[str, str]
    metric: str
    unit: str
    trials: tuple[Outcome, ...] = ()
    waiting: tuple[dict[str, str], ...] = ()
    shared: dict[str, int] = field(default_factory=dict)
    best: str = ""
    model: str = ""
    seconds: float = 0.0

    @staticmethod
    def read(directory: Path) -> Sweep | None:
        """The document of a sweep's directory; None where there is none.

        Raises:
            ValueError: a file that is none.
        """
        file = directory / "sweep.json"
        return read_document(Sweep, file, lambda document: document) if file.is_file() else None

    def write(self, directory: Path) -> None:
        write_document(self, directory / "sweep.json")


def refuse_another(directory: Path, asked: Mapping[str, str]) -> None:
    """Refuses a directory that holds something else than what a sweep was begun with.

    Args:
        asked: As of `Sweep`.

    Raises:
        ValueError: a run, or another sweep; what differs.
    """
    if is_run(directory):
        raise ValueError(f"{directory} holds a run; give the sweep another --name")
    there = Sweep.read(directory)
    if there and (changed := [what for what, text in asked.items() if there.asked.get(what) != text]):
        raise ValueError(
            f"{directory} holds a sweep with another {' and '.join(changed)}; give the options that it was begun with, or "
            "another --name"
        )


def best_of(outcomes: Sequence[Outcome], metric: str) -> Outcome | None:
    """The outcome of the least metric; None where it was measured of none."""
    measured = [outcome for outcome in outcomes if math.isfinite(outcome.objective(metric))]
    return min(measured, key=lambda outcome: outcome.objective(metric), default=None)


def table(sweep: Sweep) -> str:
    """The outcomes as text, a line each, every figure with its standard error; the best is marked by *."""
    if not sweep.trials:
        return f"{sweep.name}: no trial is done"
    names = list(dict.fromkeys(name for outcome in sweep.trials for name in outcome.figures))
    names = [name for name in names if name != "fd" or not any(other.startswith("fd ") for other in names)]
    titles = [f"{name} {sweep.unit}" if name in ("nll", "nelbo") else name for name in names]
    trained = any(outcome.step for outcome in sweep.trials)
    head = ["trial", *sweep.trials[0].point, *(["steps", "held out"] if trained else []), *titles, "s"]
    rows = [head] + [_row(outcome, names, sweep.best, trained) for outcome in sweep.trials]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [f"{outcome.run}: {outcome.reason}" for outcome in sweep.trials if outcome.state == "failed"]
    return "\n".join([*lines, *reasons])


def _row(outcome: Outcome, names: Sequence[str], best: str, trained: bool) -> list[str]:
    marked = f"{outcome.run}{' *' if outcome.run == best else ''}"
    steps = f"{outcome.step}{'' if outcome.state == 'measured' else f' ({outcome.state})'}"
    training = [steps, _shown(outcome.held_out)] if trained else []
    figures = [_shown(outcome.figures.get(name)) for name in names]
    return [marked, *outcome.point.values(), *training, *figures, f"{outcome.seconds:.0f}"]


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return with_error(figure.value, figure.se) if math.isfinite(figure.se) else f"{figure.value:.3g}"
