"""What every training leaves at its end, on a cluster or in one process: learning curves, and the commands that go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.config.modules import used
from pipelines.runs.job import read_metrics

__all__ = ["draw_curves", "what_next"]


def draw_curves(runs: Sequence[Path]) -> None:
    """Draws the learning curves of runs, in one picture, into each: RUN/learning_curve.png.

    Raises:
        ModuleNotFoundError: the package that draws is not installed.
    """
    from pipelines.runs.pictures import learning_curve

    series = {run.name: read_metrics(run) for run in runs}
    unit = next((r.unit for records in series.values() for r in records if r.unit), "")
    for run in runs:
        learning_curve(series, unit, run / "learning_curve.png")


def what_next(runs: Sequence[Path]) -> str:
    """The commands that measure the runs and report them; they import what this one has."""
    own = ",".join(extension.word for extension in used())
    names = " ".join([*map(str, runs), *(["--import", own] if own else [])])
    return f"full measurement: python pipelines/evaluate.py {names}\nreport: python pipelines/report.py {names}"
