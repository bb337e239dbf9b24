"""A group of workers with what goes on beside it in the driver: the terminal, MLflow, and the measuring of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.evaluation.settings import Settings
from pipelines.runs.job import AnyJob
from pipelines.runs.shipping import Feed, Shipper
from pipelines.runs.store import tracking_uri
from pipelines.runs.tracking import open_run
from pipelines.storage.signals import Stop
from pipelines.training.launch import Workers
from pipelines.training.on_ray.beside import Beside
from pipelines.training.on_ray.group import build_trainer, fit
from pipelines.training.on_ray.worker import Outcome
from pipelines.training.session import WorkOf
from pipelines.training.watch.progress import Ticker

__all__ = ["train_attended"]


def train_attended(
    jobs: Sequence[AnyJob], launch: Workers, root: Path, stop: Stop, along: Settings | None, work: WorkOf
) -> Outcome:
    """Trains the jobs in the session that is there; the arguments are those of `train_on_ray`.

    Raises:
        ValueError: workers failed more often than they may.
        Stopped: a signal has come; a checkpoint of the last step is there.
    """
    trainer, trainings = build_trainer(jobs, launch, root, work=work), [job.training for job in jobs]
    feeds = [Feed(job.directory, tracking_uri(root), partial(open_run, job, root)) for job in jobs]
    with (
        stop.at_boundary(),
        Ticker(trainings),
        Shipper(feeds, tracking_uri(root)),
        Beside(trainings, along, root, launch.device) as beside,
    ):
        outcome = fit(trainer, stop)
        if not outcome.refusal:
            beside.finish(stop)
    return outcome
