"""What every training leaves at its end, on a cluster or in one process: learning curves, and the commands that go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.config.modules import used
from pipelines.runs.job import read_metrics
from pipelines.storage.along import read_measured

__all__ = ["draw_curves", "what_next"]


def draw_curves(runs: Sequence[Path]) -> None:
    """Draws the learning curves of runs, in one picture, into each: RUN/learning_curve.png.

    Raises:
        ModuleNotFoundError: the package that draws is not installed.
    """
    from pipelines.runs.pictures import learning_curve

    series = {run.name: read_metrics(run) for run in runs}
    unit = next((r.unit for records in series.values() for r in records if r.unit), "")
    along = {run.name: read_measured(run) for run in runs}
    for run in runs:
        learning_curve(series, unit, run / "learning_curve.png", along)


def what_next(runs: Sequence[Path]) -> str:
    """Which runs were better before their end, and the commands that measure and report them; they import what this one has."""
    own, said = ",".join(extension.word for extension in used()), "".join(_better_before(run) for run in runs)
    names = " ".join([*map(str, runs), *(["--import", own] if own else [])])
    return f"{said}full measurement: python pipelines/evaluate.py {names}\nreport: python pipelines/report.py {names}"


def _better_before(run: Path) -> str:
    """A line on a run whose held-out NELBO has risen, from its least to its last value, by more than the former's error."""
    curve = [(record.held_out, record) for record in read_metrics(run) if record.held_out]
    if not curve:
        return ""
    (least, at), (last, _) = min(curve, key=lambda point: point[0].nelbo), curve[-1]
    if not last.nelbo - least.nelbo > least.se:
        return ""
    return (
        f"{run.name}: the held-out NELBO was {least.nelbo:.3f} +- {least.se:.3f} {at.unit} at step {at.step} and is "
        f"{last.nelbo:.3f} at the end: training rows were learned by heart, it seems; {run}@best has the best that is "
        "kept, and fewer --steps under another --name train less\n"
    )
