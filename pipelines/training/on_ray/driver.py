"""Training by Ray Train workers: the driver's side.

Ray's processes take seconds to start, and so do the imports of MLflow and of Ray Train and the first use of a tracking store:
MLflow is imported and the run is opened in a thread while Ray starts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import check_resources, connect, uses_gpus
from pipelines.runs.job import AnyJob, finished
from pipelines.storage.messages import one_line
from pipelines.storage.signals import Stop
from pipelines.training.launch import Workers
from pipelines.training.on_ray.stream import READ_CPUS, work_on_ray_rows
from pipelines.training.session import WorkOf
from pipelines.training.watch.divergence import DivergedError
from pipelines.training.watch.summary import summary

if TYPE_CHECKING:
    from pipelines.evaluation.settings import Settings

__all__ = ["train_on_ray"]


def train_on_ray(
    jobs: Sequence[AnyJob],
    launch: Workers,
    root: Path,
    stop: Stop,
    along: Settings | None = None,
    work: WorkOf = work_on_ray_rows,
) -> None:
    """Trains the jobs one after the other in one group of Ray Train workers.

    Args:
        work: What the loop is given of a job.
        along: How checkpoints are measured beside the training; None: they are not.

    Raises:
        ValueError: what a worker refused, or more workers than the cluster can give.
        DivergedError: a training has diverged.
        Stopped: a signal has come; a checkpoint of the last step is there.
    """
    for job in jobs:
        job.directory.mkdir(parents=True, exist_ok=True)
    try:
        _train(jobs, launch, root, stop, along, work)
    except BaseException as error:
        from pipelines.runs.tracking import close_runs

        killed = stop.requested or isinstance(error, KeyboardInterrupt)
        reason = stop.word if killed else one_line(error)
        close_runs([job.directory for job in jobs], root, "KILLED" if killed else "FAILED", reason)
        raise


def _train(
    jobs: Sequence[AnyJob], launch: Workers, root: Path, stop: Stop, along: Settings | None, work: WorkOf
) -> None:
    with ThreadPoolExecutor(1) as aside:
        opened = aside.submit(_open, next(job for job in jobs if not finished(job.training)), root)
        print(f"training in {connect(launch.workers, launch.cpus_per_worker)} ...", flush=True)
        opened.result()
    use_gpu = uses_gpus(launch.device, launch.workers)
    for job in jobs:
        where = "a GPU each" if use_gpu else "the CPU"
        print(
            f"{job.directory.name}: {launch.workers} worker{'s' * (launch.workers > 1)} on {where}; outputs in {job.directory}"
        )
    check_nodes(root, dict.fromkeys(place for job in jobs for place in job.places))
    check_resources(launch.min_workers or launch.workers, launch.cpus_per_worker, READ_CPUS, use_gpu)
    from pipelines.training.on_ray.attended import train_attended  # Ray Train from here on

    outcome = train_attended(jobs, launch, root, stop, along, work)
    if outcome.refusal and launch.traceback:
        print(outcome.refusal.trace, file=sys.stderr)
    if outcome.refusal:
        raise (DivergedError if outcome.refusal.diverged else ValueError)(outcome.refusal.reason)
    for job in jobs:
        print(summary(job.training, outcome.restarts), flush=True)


def _open(job: AnyJob, root: Path) -> None:
    """Opens the MLflow run of the first training, which finds out whether the store answers; those of the others are opened
    when their training begins."""
    from pipelines.runs.tracking import open_run

    open_run(job, root)
