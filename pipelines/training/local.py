"""Training in this process: no Ray, no MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pipelines.runs.job import Job, finished
from pipelines.training.launch import Launch
from pipelines.training.loop import run_job
from pipelines.training.progress import show
from pipelines.training.session import Session
from pipelines.training.stream import local_rows

__all__ = ["train_local"]


def train_local(jobs: Sequence[Job], launch: Launch) -> None:
    """Trains in this process: the same loop with one rank."""
    if launch.workers > 1:
        raise ValueError(f"workers={launch.workers}: --local is one process; leave --local away for several")
    if launch.threads:
        torch.set_num_threads(launch.threads)
    use_gpu = torch.cuda.is_available() and launch.gpu != "false"
    if launch.gpu == "true" and not use_gpu:
        raise ValueError("gpu=true: torch sees no GPU on this machine")
    session = Session(
        rank=0,
        world=1,
        device=torch.device("cuda" if use_gpu else "cpu"),
        rows=local_rows,
        average=lambda vector: vector,
        agree=lambda value: value,
        wrap=lambda model: model,
        publish=lambda job, record: show(job, record),
        publish_picture=lambda job, file: None,
        checkpointed=lambda job, place, record: None,
    )
    for job in jobs:
        if finished(job):
            print(f"{job.directory.name}: complete, {job.run.train.steps} steps in {job.directory}")
        run_job(_drawable(job), session)


def _drawable(job: Job) -> Job:
    """The job, without sample pictures where what draws them is not installed."""
    if job.run.train.sample_every:
        try:
            import pipelines.runs.pictures  # noqa: F401
        except ModuleNotFoundError as error:
            print(f"{job.directory.name}: no sample pictures, {error.name} is not installed")
            return replace(job, run=replace(job.run, train=replace(job.run.train, sample_every=0)))
    return job
