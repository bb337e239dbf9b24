"""What a sweep over samplers takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.config.terminal.device import check_device_of_workers
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.evaluation.sampling.rows import parse_row
from pipelines.storage.outputs import check_name

__all__ = ["SamplerOptions"]


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What a sweep over samplers takes.

    Args:
        space: OPTION=VALUES: an option of a sampler, as below, or `sampler` itself, and what it is set to, 0.1,0.2 or
            uniform:0.05..0.3, log:1e-4..1e-2, int:5..50. `start` is prior, the model's law, or data, the diffused latents
            of test data; `strength`, of start=data, is the share of the model's time that these are diffused up to. May be
            given several times.
        row: The sampler that all trials have in common, as compare.py takes one: pc:100, deis:nfe=10,order=2.
        search: Every point of a grid; random ones; or optuna, the points that its sampler suggests by what the others gave.
        num_trials: Of random and optuna; 0 is 10. A grid has all its points.
        metric: By which a trial is the best: fd, the Frechet distance to the training data, or kernel, the kernel distance.
        search_seed: Of random points and of Optuna.
        num_samples: Of each trial; all have the same seeds.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
        actors: Actors; 0 takes one per GPU of the cluster, else one for every two logical CPUs.
        name: Directory of the sweep, directly below the output directory; the run's name and the space's where it is empty.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        device: Of the actors: cpu, or cuda, each with a GPU; auto takes the GPUs where there are any.
        traceback: Show where an error came from.
    """

    space: str = ""
    row: str = "ode"
    search: Literal["grid", "random", "optuna"] = "grid"
    num_trials: int = 0
    metric: Literal["fd", "kernel"] = "fd"
    search_seed: int = 0
    num_samples: int = 1000
    inception_weights: str = ""
    actors: int = 0
    name: str = ""
    out: str = ""
    device: str = "auto"
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.num_trials < 0 or self.search_seed < 0:
            raise ValueError("num_trials and search_seed must not be negative")
        if self.search == "grid" and self.num_trials:
            raise ValueError(f"num_trials={self.num_trials}: a grid has all its points; give --search random or optuna")
        check_device_of_workers(self.device)
        parse_row(self.row)
        self.drawing()

    def drawing(self) -> CompareOptions:
        """How trials are drawn, whatever their rows; ValueError where they cannot be."""
        return CompareOptions(
            num_samples=self.num_samples,
            inception_weights=self.inception_weights,
            actors=self.actors,
            device=self.device,
        )
