"""A group of Ray Train workers: `build_trainer` makes it, `fit` runs it.

A parameter search takes the first with callbacks of its own. What the workers are told lies in the object store, since Ray
Train's controller, which hands it on, would import for it all that the workers compute with.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.memory import memory_variables
from pipelines.cluster.session import uses_gpus
from pipelines.runs.job import AnyJob
from pipelines.runs.store import environment
from pipelines.storage.signals import Stop
from pipelines.training.launch import Workers
from pipelines.training.on_ray.care import Care
from pipelines.training.on_ray.notices import Notices
from pipelines.training.on_ray.stream import work_on_ray_rows
from pipelines.training.on_ray.worker import Assignment, Outcome, train_worker
from pipelines.training.session import WorkOf

__all__ = ["build_trainer", "fit"]

WATCH_SECONDS = 0.2


def build_trainer(
    jobs: Sequence[AnyJob],
    launch: Workers,
    root: Path,
    *,
    work: WorkOf = work_on_ray_rows,
    callbacks: Sequence[UserCallback] = (),
    name: str | None = None,
) -> DataParallelTrainer:
    """A group of workers that trains the jobs one after the other, in the Ray session that is there.

    Args:
        jobs: Checked by `jobs_for`; the MLflow run of each is opened (`tracking.open_run`).
        launch: How many workers, and what each is given.
        root: The output directory; what Ray keeps of the group lies in root/ray.
        work: What the loop is given of a job.
        callbacks: Of Ray Train: what is told of the group's start, its reports and its end.
        name: Of the group, used once; the first job's name and the time where it is None.
    """
    use_gpu, variables = uses_gpus(launch.device, launch.workers), environment(root)
    if not use_gpu:
        variables |= memory_variables()
    if launch.network_interface:
        variables["GLOO_SOCKET_IFNAME"] = launch.network_interface
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # as long as the driver
    notices = ray.remote(num_cpus=0)(Notices).options(scheduling_strategy=here).remote(launch.stall_seconds)
    assignment = Assignment(jobs=tuple(jobs), work=work, threads=launch.threads, notices=notices)
    # a single worker needs no process group, for which Ray Train's controller would import PyTorch before it starts the worker
    backend = BackendConfig() if launch.workers == 1 else TorchConfig(backend="nccl" if use_gpu else "gloo")
    return DataParallelTrainer(
        train_worker,
        train_loop_config={"assignment": ray.put(assignment)},
        backend_config=backend,
        scaling_config=ScalingConfig(
            num_workers=(launch.min_workers, launch.workers) if launch.min_workers else launch.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": launch.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=name or f"{jobs[0].directory.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(root / "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": variables},
        ),
    )


def fit(trainer: DataParallelTrainer, stop: Stop | None = None) -> Outcome:
    """Trains to the last step of the last job, through the restarts that `launch.max_failures` allows, with `Care`.

    Args:
        trainer: Of `build_trainer`.
        stop: Where a signal has come, the workers end after the step that they are in, or at once where they have not begun.

    Raises:
        ValueError: workers failed more often than that; the message has the cause.
    """
    fitting = _Fitting(trainer)
    care = Care(fitting.notices)
    fitting.start()
    while not fitting.ended.wait(WATCH_SECONDS):
        if stop and stop.requested and not fitting.ask_to_stop():
            stop.check()
        care.look()
    care.look(last=True)
    if isinstance(fitting.error, TrainingFailedError):
        raise ValueError(f"training stopped: {_cause(fitting.error)}; the same command goes on") from fitting.error
    if fitting.error:
        raise fitting.error
    return fitting.outcome


class _Fitting(threading.Thread):
    """The thread that waits for a group of workers: in the main thread Ray Train would take Ctrl-C for itself, and for good."""

    def __init__(self, trainer: DataParallelTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        assignment: Assignment = ray.get((trainer.train_loop_config or {})["assignment"])
        self.notices = assignment.notices
        self.ended = threading.Event()
        self.outcome, self.error = Outcome(), None
        self.asked = self.heard = False

    def run(self) -> None:
        try:
            self.outcome = self.trainer.fit().return_value or Outcome()
            while self.outcome.moves:  # a new group, which is none of the restarts after failures
                self.outcome = self.trainer.fit().return_value or Outcome()
        except BaseException as error:  # raised where it is waited for
            self.error = error
        self.ended.set()

    def ask_to_stop(self) -> bool:
        """Asks the workers once to stop; returns whether there are any who will hear it."""
        if not self.asked:
            self.asked, self.heard = True, bool(ray.get(self.notices.ask_to_stop.remote()))
        return self.heard


def _cause(error: BaseException) -> str:
    """The innermost line of a failed worker's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died)\w*: ", line)]
    return (named or lines or [type(error).__name__])[-1]
