"""What the figures of a report are: each in a line, with its unit and its estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.evaluation.measurement import Result
from pipelines.evaluation.measurements.collages import CollageResult
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results.legend import CANVASES, COST, MEANINGS
from pipelines.reporting.page.parts import Meanings, Section
from pipelines.reporting.tables import Run

__all__ = ["definitions"]

ESTIMATORS: dict[type[Result], str] = {
    NllResult: "Estimator: the ODE solved on each row, with the residual at t_min; right up to the solver's tolerance",
    NelboResult: "Estimator: the mean over draws of time and noise, with the residual at t_min; unbiased for the bound",
    GapResult: "Estimator: the difference of the two on the same rows",
    DistancesResult: "No unit; of n samples it is too large by about 1/n, which the figure at infinite n is without",
    CollageResult: "No unit; biased as FD is, so that it stands beside the FD of as many samples; ± over canvases",
}
BITS = "bits/dim: nats per row and dimension over log 2, of the discrete levels (a bound from above, by dequantisation)"
NATS = "nats/dim: nats per row and dimension of the vectors as they are in the source, a standardisation undone"
ERROR = (
    "±: one standard error: of the estimator on these test rows, from replicates with fresh noise; the one over rows says what "
    "another test set would change"
)
NFE = "evaluations: evaluations of the score that a sample takes (NFE)"
KERNEL = (
    "kernel distance: squared maximum mean discrepancy in the same features, polynomial kernel; unbiased at every n"
)


def definitions(runs: Sequence[Run]) -> Section:
    """The terms that the tables of these runs use."""
    pairs = []
    for line in _lines(runs):
        term, _, meaning = line.partition(": ")
        pairs.append((term, f"{meaning}."))
    return Section(title="What the numbers mean", parts=[Meanings(terms=pairs)] if pairs else [])


def _lines(runs: Sequence[Run]) -> Iterator[str]:
    shown = [kind for kind in MEANINGS if any(run.of(kind) for run in runs)]
    for kind in shown:
        yield f"{MEANINGS[kind]}. {ESTIMATORS[kind]}"
    if shown:
        yield from (BITS if runs[0].spec.levels else NATS, ERROR, COST)
    if CollageResult in shown:
        yield from CANVASES
    if any(run.compared for run in runs):
        yield from (NFE, KERNEL)
