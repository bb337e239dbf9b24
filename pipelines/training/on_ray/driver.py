"""Training by Ray Train workers: the driver's side.

`build_trainer` makes the group of workers, `fit` runs it. A parameter search takes the first with callbacks of its own.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import check_resources, connect
from pipelines.evaluation.settings import Settings
from pipelines.runs.job import AnyJob, finished
from pipelines.runs.shipping import Feed, Shipper
from pipelines.runs.store import environment, tracking_uri
from pipelines.runs.tracking import close_runs, open_run
from pipelines.storage.messages import one_line
from pipelines.storage.signals import Stop
from pipelines.training.launch import Workers
from pipelines.training.on_ray.beside import Beside
from pipelines.training.on_ray.care import Care
from pipelines.training.on_ray.notices import Notices
from pipelines.training.on_ray.stream import READ_CPUS
from pipelines.training.on_ray.worker import Assignment, Outcome, train_worker, work_on_ray_rows
from pipelines.training.session import Session, Work
from pipelines.training.watch.divergence import DivergedError
from pipelines.training.watch.progress import Ticker
from pipelines.training.watch.summary import summary

__all__ = ["build_trainer", "fit", "train_on_ray"]

WATCH_SECONDS = 0.2
WorkOf = Callable[[Any, Session], Work[Any]]
"""work(job, session) -> what the loop is given of a job; a function of a module, since it goes to the workers."""


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
        killed = stop.requested or isinstance(error, KeyboardInterrupt)
        reason = stop.word if killed else one_line(error)
        close_runs([job.directory for job in jobs], root, "KILLED" if killed else "FAILED", reason)
        raise


def _train(
    jobs: Sequence[AnyJob], launch: Workers, root: Path, stop: Stop, along: Settings | None, work: WorkOf
) -> None:
    """Trains them, each with its MLflow run: that of the first is opened here, which finds out whether the store answers, those
    of the others when their training begins."""
    first = next(job for job in jobs if not finished(job.training))
    feeds = [Feed(job.directory, tracking_uri(root), partial(open_run, job, root)) for job in jobs]
    with ThreadPoolExecutor(1) as aside:
        opened = aside.submit(open_run, first, root)
        print(f"training in {connect(launch.workers, launch.cpus_per_worker)} ...", flush=True)
        opened.result()
    for job in jobs:
        where = "a GPU each" if _uses_gpus(launch) else "the CPU"
        print(
            f"{job.directory.name}: {launch.workers} worker{'s' * (launch.workers > 1)} on {where}; outputs in {job.directory}"
        )
    check_nodes(root, dict.fromkeys(place for job in jobs for place in job.places))
    check_resources(launch.min_workers or launch.workers, launch.cpus_per_worker, READ_CPUS, _uses_gpus(launch))
    trainer, trainings = build_trainer(jobs, launch, root, work=work), [job.training for job in jobs]
    with (
        stop.at_boundary(),
        Ticker(trainings),
        Shipper(feeds, tracking_uri(root)),
        Beside(trainings, along, root, launch.device) as beside,
    ):
        outcome = fit(trainer, stop)
        if not outcome.refusal:
            beside.finish(stop)
    if outcome.refusal and launch.traceback:
        print(outcome.refusal.trace, file=sys.stderr)
    if outcome.refusal:
        raise (DivergedError if outcome.refusal.diverged else ValueError)(outcome.refusal.reason)
    for job in jobs:
        print(summary(job.training, outcome.restarts), flush=True)


def build_trainer(
    jobs: Sequence[AnyJob],
    launch: Workers,
    root: Path,
    *,
    work: WorkOf = work_on_ray_rows,
    callbacks: Sequence[UserCallback] = (),
    name: str | None = None,
) -> TorchTrainer:
    """A group of workers that trains the jobs one after the other, in the Ray session that is there.

    Args:
        jobs: Checked by `jobs_for`; the MLflow run of each is opened (`tracking.open_run`).
        launch: How many workers, and what each is given.
        root: The output directory; what Ray keeps of the group lies in root/ray.
        work: What the loop is given of a job.
        callbacks: Of Ray Train: what is told of the group's start, its reports and its end.
        name: Of the group, used once; the first job's name and the time where it is None.
    """
    use_gpu, variables = _uses_gpus(launch), environment(root)
    if launch.network_interface:
        variables["GLOO_SOCKET_IFNAME"] = launch.network_interface
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # as long as the driver
    notices = ray.remote(num_cpus=0)(Notices).options(scheduling_strategy=here).remote(launch.stall_seconds)
    assignment = Assignment(jobs=tuple(jobs), work=work, threads=launch.threads, notices=notices)
    return TorchTrainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
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


def fit(trainer: TorchTrainer, stop: Stop | None = None) -> Outcome:
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

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        assignment: Assignment = (trainer.train_loop_config or {})["assignment"]
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


def _uses_gpus(launch: Workers) -> bool:
    """Whether each worker gets a GPU: as `launch` says, or, for auto, where the cluster has enough of them."""
    return launch.device == "cuda" or (
        launch.device == "auto" and ray.cluster_resources().get("GPU", 0) >= launch.workers
    )


def _cause(error: BaseException) -> str:
    """The innermost line of a failed worker's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died)\w*: ", line)]
    return (named or lines or [type(error).__name__])[-1]
