"""What the figures of an evaluation are, for whoever reads its table for the first time."""

from __future__ import annotations

from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results.document import Evaluation

__all__ = ["legend"]

MEANINGS = {
    NllResult: "NLL: minus the log-likelihood of test data under the model's probability-flow ODE; lower is better",
    NelboResult: "NELBO: a bound from above on minus the log-likelihood under the model's SDE, what training minimises; lower "
    "is better",
    GapResult: "gap: NELBO - NLL; below 0 it is no error: the NLL is the ODE's, and the NELBO bounds the SDE's",
    DistancesResult: "FD: Frechet distance of samples to training data in the features in brackets; lower is better, and only "
    "figures in the same features and of as many samples can be compared",
}
COST = "cost: evaluations of networks that a training step takes"


def legend(document: Evaluation) -> str:
    """A line for each kind of figure in the table."""
    figures = document.runs.values()
    shown = [line for kind, line in MEANINGS.items() if any(found.of(kind) is not None for found in figures)]
    return "\n".join([*shown, COST])
