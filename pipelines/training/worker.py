"""What every Ray Train worker runs."""

from __future__ import annotations

import os
import time
import traceback
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from pipelines.runs import tracking
from pipelines.training.launch import REFUSED
from pipelines.training.loop import run_job
from pipelines.training.ray_stream import ray_rows
from pipelines.training.session import Session

__all__ = ["train_worker"]


REFUSAL_SECONDS = 10.0


def train_worker(config: dict[str, Any]) -> dict[str, str]:
    """What every Ray Train worker runs; a refusal comes back as {reason, trace}, so that it is not tried again."""
    refusals, context = config["refusals"], ray.train.get_context()
    if refused := ray.get(refusals.all.remote()):  # by one of the workers before this one
        return refused[0]
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"] or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    with tracking.OpenLogs(os.environ["MLFLOW_TRACKING_URI"]) as logs:
        session = Session(
            rank=rank,
            world=world,
            device=device,
            rows=lambda job, first_row: ray_rows(job, first_row, rank, world),
            average=lambda vector: _average(vector, world),
            agree=broadcast_from_rank_zero,
            wrap=lambda model: _wrapped(model, device, world),
            publish=lambda job, record: logs.write(job, lambda log: log.record(record, record["step"])),
            publish_picture=lambda job, file: logs.write(job, lambda log: log.artifact(file, "samples")),
            checkpointed=lambda job, place, record: ray.train.report({"run": job.directory.name, **record}),
        )
        try:
            for job in config["jobs"]:
                run_job(job, session)
        except REFUSED as error:
            return _refused(refusals, world, error)
    return {}


def _refused(refusals: Any, world: int, error: Exception) -> dict[str, str]:
    """A refusal that all workers share; one of this worker alone, for which the others wait, ends their group instead.

    The group is started again, finds what was refused, and returns it.
    """
    refusal = {"reason": " ".join(str(error).split()), "trace": "".join(traceback.format_exception(error))}
    ray.get(refusals.add.remote(refusal))
    deadline = time.monotonic() + REFUSAL_SECONDS
    while time.monotonic() < deadline:
        if len(ray.get(refusals.all.remote())) >= world:
            return refusal
        time.sleep(0.2)
    raise error


def _wrapped(model: torch.nn.Module, device: torch.device, world: int) -> torch.nn.Module:
    if world == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def _average(vector: torch.Tensor, world: int) -> torch.Tensor:
    if world > 1:
        torch.distributed.all_reduce(vector)
    return vector / world
