"""What every Ray Train worker runs: the jobs, one after the other, each from its newest checkpoint.

Ray starts a failed group of workers again, which is right for a machine that was lost and useless for input that was refused.
A refusal is therefore returned, not raised, and is kept by an actor that outlives the group (`notices`). The same actor is told
of their steps, and tells the workers that the command was sent a signal: they end after the step that they are in.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from pipelines.runs.job import AnyJob, Training
from pipelines.runs.machine import Machine
from pipelines.runs.record import Record
from pipelines.runs.worker_log import WorkerLog
from pipelines.training.launch import REFUSED
from pipelines.training.loop import run
from pipelines.training.on_ray.gauges import Gauges
from pipelines.training.on_ray.notices import Member, Refusal
from pipelines.training.session import Session, WorkOf
from pipelines.training.watch.divergence import DivergedError
from pipelines.training.watch.halt import Halted
from pipelines.training.watch.progress import show

__all__ = ["Assignment", "Outcome", "average", "train_worker", "wrapped"]

REFUSAL_SECONDS = 10.0
BUCKET_MB = 25


@dataclass(frozen=True)
class Outcome:
    """How the workers ended: without a refusal every job has taken its last step, unless the command wanted them to stop.

    Args:
        refusal: What they do not try again.
        moves: Whether they ended to begin again on other machines.
        restarts: How often workers began again before these did.
    """

    refusal: Refusal | None = None
    moves: bool = False
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is told; it is pickled.

    Args:
        jobs: Trained one after the other.
        work: work(job, session) -> what the loop is given of a job; a function of a module.
        threads: Of a worker; 0 shares the machine's cores among its workers.
        notices: Handle of the actor `Notices`.
    """

    jobs: Sequence[AnyJob]
    work: WorkOf
    threads: int
    notices: Any


def train_worker(config: dict[str, Any]) -> Outcome:
    """What every Ray Train worker runs.

    Args:
        config: A reference to the assignment, under the name "assignment": Ray passes nothing but a dict.
    """
    context = ray.train.get_context()
    assignment: Assignment = ray.get(config["assignment"])
    notices = assignment.notices
    if refused := ray.get(notices.all.remote()):  # by one of the workers before this one
        return Outcome(refused[0])
    rank, world = context.get_world_rank(), context.get_world_size()
    stopped, restarts = _joined(notices, rank, world)
    if stopped:  # all begin, or none does
        return Outcome()
    torch.set_num_threads(assignment.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    gauges = Gauges(rank, world, restarts)
    with Machine(os.environ["MLFLOW_TRACKING_URI"]) as machine:
        session = Session(
            rank=rank,
            world=world,
            device=device,
            average=lambda vector: average(vector, world),
            agree=broadcast_from_rank_zero,
            stopping=lambda training, step: ray.get(notices.stopping.remote(training.directory.name, step)),
            wrap=lambda model: wrapped(model, device, world),
            begins=lambda training, model: None,
            publish=lambda training, record: _publish(training, record, gauges, machine if rank == 0 else None),
            checkpointed=_report,
            say=lambda line: ray.get(notices.say.remote(line)) if rank == 0 else None,
        )
        try:
            for job in assignment.jobs:
                if rank == 0:
                    ray.get(notices.turn.remote())
                with WorkerLog(job.directory, rank, world, orderly=Halted):
                    run(assignment.work(job, session), session)
        except Halted:
            return Outcome(moves=ray.get(notices.moves.remote()))
        except REFUSED as error:
            return Outcome(_refused(notices, world, error))
    return Outcome(restarts=restarts)


def _joined(notices: Any, rank: int, world: int) -> tuple[bool, int]:
    """Joins the group; returns whether its workers need not begin, and how many groups began before."""
    here = ray.get_runtime_context()
    ray.get(notices.join.remote(rank, world, Member.of(here.current_actor, here.get_node_id())))
    begun: Any = ray.get(notices.begin.remote()) if rank == 0 else None
    return cast(tuple[bool, int], broadcast_from_rank_zero(begun))


def _publish(training: Training, record: Record, gauges: Gauges, machine: Machine | None) -> None:
    """Tells of a record: the worker's log by printing it, Ray's metrics, and, by rank 0, whose machine is sampled."""
    show(training, record)
    gauges.show(training.directory.name, record)
    if machine:
        machine.follow(training.directory)


def _report(training: Training, place: Path, record: Record) -> None:
    """Tells Ray of a checkpoint, with the latest figures; the checkpoint's files stay where they are."""
    ray.train.report({"run": training.directory.name, "step": record.step, "phase": record.phase, **record.figures()})


def _refused(notices: Any, world: int, error: Exception) -> Refusal:
    """Hands a refusal to the actor, and returns it if all workers have the same one.

    Raises:
        Exception: the error, where it is this worker's alone and the others wait for it. That ends the group; the group that
            Ray starts in its place finds the refusal with the actor, and returns it.
    """
    trace, diverged = "".join(traceback.format_exception(error)), isinstance(error, DivergedError)
    refusal = Refusal(" ".join(str(error).split()), trace, diverged)
    ray.get(notices.add.remote(refusal))
    deadline = time.monotonic() + REFUSAL_SECONDS
    while time.monotonic() < deadline:
        if len(ray.get(notices.all.remote())) >= world:
            return refusal
        time.sleep(0.2)
    raise error


def wrapped(model: torch.nn.Module, device: torch.device, world: int) -> torch.nn.Module:
    """A model whose gradients are the means over the ranks.

    They are summed in buckets as backward makes them. On CPUs, which have nothing idle to sum with meanwhile, the small bucket
    that PyTorch begins with by default costs more than it hides: there a small network has one bucket.
    """
    if world == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        bucket_cap_mb=BUCKET_MB if device.type == "cpu" else None,
        gradient_as_bucket_view=True,
    )


def average(vector: torch.Tensor, world: int) -> torch.Tensor:
    """The mean of a vector over the ranks, in its place."""
    if world > 1:
        torch.distributed.all_reduce(vector)
    return vector / world
