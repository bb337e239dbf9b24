"""Training in this process: no Ray, no MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from indm_core.model import Trainable
from pipelines.config.terminal.device import device_of
from pipelines.evaluation.settings import Settings
from pipelines.runs.job import AnyJob, Job, Training, finished
from pipelines.storage.signals import Stop
from pipelines.training.along import measure_due
from pipelines.training.dataset import work_on_rows
from pipelines.training.launch import Workers
from pipelines.training.leave import draw_curves, what_next
from pipelines.training.loop import run
from pipelines.training.session import Session, Work
from pipelines.training.stream import local_rows
from pipelines.training.watch.halt import Halted
from pipelines.training.watch.progress import show
from pipelines.training.watch.summary import summary

__all__ = ["train_here", "train_local"]


J = TypeVar("J", bound=AnyJob)
T = TypeVar("T", bound=Trainable)


def train_local(
    jobs: Sequence[Job], launch: Workers, stop: Stop, root: Path | None = None, along: Settings | None = None
) -> None:
    """Trains models on their data sets (`train_here`), and says what is left.

    Args:
        root: The output directory.
        along: How checkpoints are measured, here between two steps; None: they are not.

    Raises:
        ValueError, DivergedError, Stopped: as of `train_here`.
    """
    measure = _measures(along, root, launch.device)
    train_here(jobs, launch, stop, lambda job, session: work_on_rows(job, local_rows, session), measure)
    _leave(jobs)


def train_here(
    jobs: Sequence[J],
    launch: Workers,
    stop: Stop,
    work: Callable[[J, Session], Work[Any]],
    measure: Callable[[Training], None] = lambda training: None,
) -> None:
    """Trains the jobs one after the other in this process: the same loop as on a cluster, with one rank.

    Args:
        work: work(job, session) -> what the loop is given of a job.
        measure: Called after each checkpoint and at the end of a training.

    Raises:
        ValueError: several workers, a GPU that is not there, or what a training refuses.
        DivergedError: a training has diverged.
        Stopped: a signal has come; a checkpoint of the last step is there.
    """
    if launch.workers > 1:
        raise ValueError(f"workers={launch.workers}: --local is one process; several workers train without --local")
    if launch.threads:
        torch.set_num_threads(launch.threads)
    device = device_of(launch.device)
    session = Session(
        rank=0,
        world=1,
        device=device,
        average=lambda vector: vector,
        agree=lambda value: value,
        stopping=lambda training, step: stop.requested,
        wrap=lambda model: model,
        begins=partial(_announce, device),
        publish=show,
        checkpointed=lambda training, place, record: None if stop.requested else measure(training),
    )
    with stop.at_boundary(), suppress(Halted):
        for job in jobs:
            if finished(job.training):
                print(f"{job.directory.name}: complete, {job.training.train.steps} steps in {job.directory}")
            run(_drawable(work(job, session)), session)
            measure(job.training)


def _leave(jobs: Sequence[Job]) -> None:
    """What is left of the trainings, and how to go on with them."""
    runs = [job.directory for job in jobs]
    try:
        draw_curves(runs)
    except ModuleNotFoundError as error:
        print(f"no learning curves, {error.name} is not installed")
    for job in jobs:
        print(summary(job.training))
    for directory in runs:
        print(f"{directory}: model.safetensors, learning_curve.png, metrics.jsonl")
    print(what_next(runs), flush=True)


def _measures(along: Settings | None, root: Path | None, device: str) -> Callable[[Training], None]:
    """What measures the checkpoints of a training that are due."""
    if along is None or root is None:
        return lambda training: None
    print("checkpoints are measured in this process, between two steps; without --local beside them", flush=True)
    from pipelines.evaluation.checkpoints import (
        CheckpointMeasurer,
    )  # what measures needs more packages than what trains

    measurer = CheckpointMeasurer(along, root, str(device_of(device)))
    return lambda training: measure_due(training, measurer.measure)


def _announce(device: torch.device, training: Training, model: Trainable) -> None:
    """Says what is trained where."""
    num, threads = sum(weights.numel() for weights in model.parameters()), torch.get_num_threads()
    on = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    with_threads = f" ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else f" ({device})"
    name, place = training.directory.name, training.directory
    print(f"{name}: {num / 1e6:.2f}M parameters on {on}{with_threads}; outputs in {place}", flush=True)


def _drawable(work: Work[T]) -> Work[T]:
    """The work; without sample pictures where the packages that draw them are not installed."""
    training = work.training
    if training.train.sample_every:
        try:
            import matplotlib  # noqa: F401

            import pipelines.runs.pictures  # noqa: F401
        except ModuleNotFoundError as error:
            print(f"{training.directory.name}: no sample pictures, {error.name} is not installed")
            return replace(work, training=replace(training, train=replace(training.train, sample_every=0)))
    return work
