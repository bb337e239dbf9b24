"""Where and how a run is carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

from indm_core.errors import ConvergenceError
from pipelines.config.terminal.cli import WHOLE
from pipelines.config.terminal.device import check_device, check_device_of_workers
from pipelines.storage.messages import FailedError
from pipelines.storage.outputs import check_name
from pipelines.storage.remote import store_at

__all__ = ["REFUSED", "Along", "Launch", "Workers"]

REFUSED = (ValueError, ConvergenceError, FailedError)
"""Errors of the input: a worker reports them and does not try again."""


@dataclass(frozen=True, kw_only=True)
class Along:
    """How checkpoints are measured beside the training; `Train.measure_every` says which.

    Args:
        images: Test images that NLL and NELBO of a checkpoint are taken on; 0 takes the whole split.
        samples: Samples of its Frechet distance; 0 leaves that out.
        sampler: How they are drawn, as compare.py names a sampler: pc:500, em:200:stop=1e-3.
        inception_weights: File of the Inception weights; without it a small classifier of the data gives the features.
    """

    images: int = 64
    samples: int = 500
    sampler: str = "ode:rtol=1e-3,atol=1e-3"
    inception_weights: str = ""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where and by which workers runs are carried out, whatever is trained.

    Of all this only the number of workers changes a run's numbers, because each worker draws its own noise.

    Args:
        name: Directory of the run, directly below the output directory; the recipe's name where it is empty.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        local: Train in this process, without Ray and MLflow.
        workers: Ray Train workers; the batch is divided among them.
        min_workers: Workers that are enough to train when machines leave, up to `workers` when they come back; 0: always all.
        cpus_per_worker: Logical CPUs of a worker.
        threads: Threads of a worker; 0 shares the machine's cores among its workers.
        device: cpu, cuda (each worker has a GPU) or, with --local, cuda:1; auto takes GPUs where there are enough of them.
        max_failures: How often the workers are started again, from the last checkpoint, after one is lost or stands still.
        stall_seconds: Without a step after which workers stand still and are ended; ten times the longest pause between two
            steps so far where that is longer. 0: they are waited for.
        mirror: A folder of an object store, s3://BUCKET/FOLDER, to which every checkpoint is copied; the same command on a
            machine without the run goes on from there.
        network_interface: GLOO_SOCKET_IFNAME of the workers, where host names do not resolve.
        traceback: Show where an error came from.
    """

    name: str = ""
    out: str = ""
    local: bool = False
    workers: int = 1
    min_workers: int = 0
    cpus_per_worker: float = 1.0
    threads: int = 0
    device: str = "auto"
    max_failures: int = 3
    stall_seconds: float = 600.0
    mirror: str = ""
    network_interface: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.workers < 1 or not 0 <= self.min_workers <= self.workers:
            raise ValueError(
                f"workers={self.workers} must be at least 1, min_workers={self.min_workers} at most workers"
            )
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker={self.cpus_per_worker} must be positive")
        for name in ("threads", "max_failures", "stall_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        store_at(self.mirror, "mirror")
        check_device(self.device)
        if not self.local:
            check_device_of_workers(self.device)


@dataclass(frozen=True, kw_only=True)
class Launch(Workers):
    """Where and how the runs of a recipe are carried out.

    Args:
        seeds: Trainings of the recipe that differ by their seed alone: --train.seed, the next one, ...; of more than one, the
            runs are NAME-seed0, NAME-seed1, ..., and the spread of their figures is printed.
        baseline: A second recipe for comparison. It is trained after the first, by the same workers, from its pre-training.
        start_from: A run, RUN@STEP, RUN@best or the directory of a checkpoint (RUN/pretrained), whose networks start the run.
            Or hf:DIR, hf:OWNER/NAME: weights of diffusers' UNet2DModel in safetensors, which is then the model's backbone.
        config: The config.json of a run, which is trained again, in place of a recipe; options replace what it says.
        evaluate: Measure the trained models briefly and print the table.
        along: How checkpoints are measured beside the training, those of every --measure-every steps.
    """

    seeds: int = 1
    baseline: str = ""
    start_from: str = ""
    config: str = ""
    evaluate: bool = True
    along: Along = field(default_factory=Along, metadata=WHOLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")
