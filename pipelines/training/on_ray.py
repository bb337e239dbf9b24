"""Training by Ray Train workers: the driver's side."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.cluster.session import Refusals, check_resources, connect
from pipelines.runs import tracking
from pipelines.runs.job import Job, finished
from pipelines.training.launch import Launch
from pipelines.training.progress import Ticker
from pipelines.training.ray_stream import READ_CPUS
from pipelines.training.worker import train_worker

__all__ = ["train_on_ray"]


def train_on_ray(jobs: Sequence[Job], launch: Launch, root: Path) -> None:
    """Trains the jobs one after the other in one group of Ray Train workers.

    Raises:
        ValueError: what a worker refused, or more workers than the cluster can give.
    """
    if all(finished(job) for job in jobs):
        for job in jobs:
            print(f"{job.directory.name}: complete, {job.run.train.steps} steps in {job.directory}")
        return
    for job in jobs:
        job.directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as aside:
        opened = aside.submit(lambda: [tracking.open_run(job, root) for job in jobs])
        print(f"starting {connect(launch.workers, launch.cpus_per_worker)} ...", flush=True)
        opened.result()
    use_gpu = launch.gpu == "true" or (launch.gpu == "auto" and ray.cluster_resources().get("GPU", 0) >= launch.workers)
    check_resources(launch.min_workers or launch.workers, launch.cpus_per_worker, READ_CPUS, use_gpu)
    with Ticker(jobs):
        _fit(jobs, launch, root, use_gpu)


def _fit(jobs: Sequence[Job], launch: Launch, root: Path, use_gpu: bool) -> None:
    refusals = ray.remote(num_cpus=0)(Refusals).remote()
    variables = tracking.environment(root)
    if launch.network_interface:
        variables["GLOO_SOCKET_IFNAME"] = launch.network_interface
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"jobs": list(jobs), "threads": launch.threads, "refusals": refusals},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(launch.min_workers, launch.workers) if launch.min_workers else launch.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": launch.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=f"{jobs[0].directory.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(root / "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            worker_runtime_env={"env_vars": variables},
        ),
    )
    try:
        refused = trainer.fit().return_value or {}
    except TrainingFailedError as error:
        raise ValueError(f"training stopped: {_cause(error)}; the same command goes on") from error
    if refused and launch.traceback:
        print(refused["trace"], file=sys.stderr)
    if refused:
        raise ValueError(refused["reason"])


def _cause(error: BaseException) -> str:
    """The innermost line of a failed worker's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died)\w*: ", line)]
    return (named or lines or [type(error).__name__])[-1]
