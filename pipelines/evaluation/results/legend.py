"""What the figures of an evaluation are, for whoever reads its table for the first time."""

from __future__ import annotations

from pipelines.evaluation.measurements.collages import CollageResult
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
    CollageResult: "FD+: Frechet distance of one random piece of each canvas to training data; else as FD",
}
CANVASES = (
    "seam: mean squared difference of neighbours where a piece begins or ends, over that of neighbours in data; inside: of all "
    "other neighbours; closing: where the ends of a loop or the faces of a cube meet; 1 is as in data",
    "correlation at lag l: of the means of two columns that are l apart, over canvases; in brackets that of training data",
)
COST = "cost: evaluations of networks that a training step takes"


def legend(document: Evaluation) -> str:
    """A line for each kind of figure in the table."""
    figures = document.runs.values()
    shown = [line for kind, line in MEANINGS.items() if any(found.of(kind) is not None for found in figures)]
    shown += CANVASES if any(found.of(CollageResult) is not None for found in figures) else ()
    return "\n".join([*shown, COST])
