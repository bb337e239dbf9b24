"""What compare.py takes."""

from __future__ import annotations

from dataclasses import dataclass

from indm_core.ranges import check_not_negative
from pipelines.config.terminal.device import check_device_of_workers
from pipelines.evaluation.results.estimates import FEWEST, FEWEST_OF_SCORE
from pipelines.evaluation.sampling.rows import parse_rows

__all__ = ["CompareOptions"]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared.

    Args:
        rows: Samplers, separated by blanks: name[:steps][:option=value,...]; table takes a whole set.
        num_samples: Samples per row.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
        actors: Actors; 0 takes one per GPU of the cluster, else one for every two logical CPUs.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        device: Of the actors: cpu, or cuda, each with a GPU; auto takes the GPUs where there are any.
        traceback: Show where an error came from.
    """

    rows: str = "em:10 em:20 em:50 em:100 em:1000"
    num_samples: int = 5000
    inception_weights: str = ""
    actors: int = 0
    out: str = ""
    device: str = "auto"
    traceback: bool = False

    def __post_init__(self) -> None:
        check_device_of_workers(self.device)
        check_not_negative(actors=self.actors)
        fewest = FEWEST_OF_SCORE if self.inception_weights else FEWEST
        if self.num_samples < fewest:
            what = "an Inception Score" if self.inception_weights else "a Frechet distance"
            raise ValueError(
                f"num_samples={self.num_samples}: {what} needs {fewest}; give --num-samples {fewest} or more"
            )
        if not parse_rows(self.rows):
            raise ValueError("rows='': there is nothing to compare; name samplers, or give --rows table")
