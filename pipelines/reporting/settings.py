"""How runs were trained and measured, as text that is shown when it is opened."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config.terminal.cli import options
from pipelines.evaluation.measurement import Result
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import NelboResult, NllResult
from pipelines.evaluation.results.document import Evaluation
from pipelines.reporting.hub.card import trained_by
from pipelines.reporting.page.parts import Folded, Listing
from pipelines.reporting.tables import Run

__all__ = ["configurations", "measurements"]

KINDS: tuple[type[Result], ...] = (NllResult, NelboResult, DistancesResult)


def configurations(runs: Sequence[Run]) -> list[Folded]:
    """Of each run its command, with the options that are not the recipe's, and every option."""
    return [
        Folded(
            title=f"Configuration of {run.name}",
            parts=[Listing(text=f"python pipelines/{trained_by(run.config)}"), Listing(text=_listed(run.config))],
        )
        for run in runs
    ]


def measurements(runs: Sequence[Run]) -> list[Folded]:
    """The settings of the measurements whose figures are shown."""
    found: dict[str, Evaluation] = {}
    for run in runs:
        for kind in KINDS:
            if best := run.of(kind):
                found.setdefault(_listed(best.document.settings), best.document)
    return [
        Folded(
            title=f"Settings of the measurement of {', '.join(document.runs)} on {document.images:,} test rows",
            parts=[Listing(text=f"# {document.seconds:.0f} s\n{text}")],
        )
        for text, document in found.items()
    ]


def _listed(configuration: object) -> str:
    return "\n".join(f"{option.path} = {option.plain}" for option in options(configuration))
