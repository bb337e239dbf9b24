"""What a sweep takes beside the options of its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.config.terminal.cli import WHOLE
from pipelines.config.terminal.device import check_device_of_workers
from pipelines.evaluation.sampling.rows import parse_rows
from pipelines.evaluation.settings import BRIEF_SETTINGS, Settings
from pipelines.storage.outputs import check_name
from pipelines.training.launch import Launch

__all__ = ["Metric", "Options"]

Metric = Literal["nll", "nelbo", "fd"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a sweep takes.

    Args:
        space: FIELD=VALUES: a field of the recipe and what it is set to, 0.1,0.3,0.5 or log:1e-4..1e-2, uniform:0..1, int:1..8.
            May be given several times.
        search: Every point of a grid; random ones; or optuna, the points that its sampler suggests by what the others gave.
        num_trials: Of random and optuna; 0 is 10. A grid has all its points.
        scheduler: Who ends trials before their last step, by their NELBO on held-out rows: nobody; asha, which lets the better
            half go on at a quarter and at half of the steps; or median, which ends what is worse than the median of the others.
        metric: By which a trial is the best.
        trial_steps: Optimiser steps of a trial. The recipe's pre-training keeps its share of them.
        concurrent: Trials at the same time; 0: as many as there are cores, or GPUs, for.
        search_seed: Of random points and of Optuna.
        samplers: By which Frechet distances are measured too, as compare.py takes them, for instance "pc:1000 em:1000": a
            model that samples from a share of t_max takes that share of the steps. The first one's is the metric fd.
        evaluation: How trials are measured.
        register: Name of the best model in MLflow's registry, under the alias `best`; the sweep's name where it is empty.
        name: Directory of the sweep, directly below the output directory, and the beginning of its runs' names; the recipe's
            name and the space's where it is empty.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        workers: Ray Train workers of a trial; its batch is divided among them.
        cpus_per_worker: Logical CPUs of a worker.
        threads: Threads of a worker.
        device: cpu, or cuda, where each worker has a GPU; auto takes GPUs where there are enough of them.
        max_failures: How often a trial's workers are started again, from the last checkpoint, after one is lost.
        network_interface: GLOO_SOCKET_IFNAME of the workers, where host names do not resolve.
        traceback: Show where an error came from.
    """

    space: str = ""
    search: Literal["grid", "random", "optuna"] = "grid"
    num_trials: int = 0
    scheduler: Literal["none", "asha", "median"] = "none"
    metric: Metric = "nll"
    trial_steps: int = 600
    concurrent: int = 0
    search_seed: int = 0
    samplers: str = ""
    evaluation: Settings = field(default=BRIEF_SETTINGS, metadata=WHOLE)
    register: str = ""
    name: str = ""
    out: str = ""
    workers: int = 1
    cpus_per_worker: float = 1.0
    threads: int = 1
    device: str = "auto"
    max_failures: int = 3
    network_interface: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.trial_steps < 2:
            raise ValueError(f"trial_steps={self.trial_steps} must be at least 2")
        if self.num_trials < 0 or self.concurrent < 0 or self.search_seed < 0:
            raise ValueError("num_trials, concurrent and search_seed must not be negative")
        if self.search == "grid" and self.num_trials:
            raise ValueError(f"num_trials={self.num_trials}: a grid has all its points; give --search random or optuna")
        check_device_of_workers(self.device)
        if self.samplers and not parse_rows(self.samplers):
            raise ValueError(f"samplers={self.samplers!r} names no sampler")
        if self.metric == "fd" and not (self.samplers or self.evaluation.samples):
            raise ValueError("metric=fd needs samples: give --evaluation.samples NUMBER, or --samplers")
        if self.evaluation.collages:
            raise ValueError("evaluation.layout.collage: a sweep measures pieces; evaluate.py measures canvases")
        self.launch("trial")

    def launch(self, name: str) -> Launch:
        """How a trial of a name is carried out; ValueError where it cannot be."""
        return Launch(
            name=name,
            workers=self.workers,
            cpus_per_worker=self.cpus_per_worker,
            threads=self.threads,
            device=self.device,
            max_failures=self.max_failures,
            network_interface=self.network_interface,
        )
