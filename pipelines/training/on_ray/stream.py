"""Rows for a Ray worker: Ray Data reads them, in the run's order.

Tasks fetch and decode the row groups that the worker needs (`stream.tasks`) ahead of the training, in parallel; they are
delivered in order (cluster/ordered.py), without a pause between epochs, and the worker deals them out to its batches.

A worker reads the row groups of its own streams (data/order.py), a W-th of the data. The batch of step k is the same for every
number of workers, and a run goes on with another number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipelines.cluster.ordered import ordered
from pipelines.data.shards import Rows, read_groups
from pipelines.data.share import Share
from pipelines.runs.job import Job
from pipelines.training.stream import share_of, tasks

__all__ = ["READ_CPUS", "parts_on_ray", "ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task: Ray Data needs some beside the workers'."""
TASKS_AHEAD = 2


def ray_rows(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """This rank's rows {x, label, row} from a row of the run on, in chunks of its share of a batch.

    Args:
        job: The run.
        first_row: Rows of the run that are already trained on (step * batch_size).
        rank, world: Of the worker.
    """
    share = share_of(job, first_row, rank, world)
    return share.batches(parts_on_ray(job.data, share))


def parts_on_ray(directory: Path, share: Share, read: Callable[..., Rows] = read_groups) -> Iterator[Rows]:
    """The row groups that a worker reads, task by task, in the order in which it takes them.

    Args:
        directory: Of the prepared data set.
        share: What the worker reads of it.
        read: Carried out by the tasks, called as `read_groups` is.
    """
    groups = partial(_groups, read, directory, share)
    return ordered(tasks(share), groups, tasks=TASKS_AHEAD, cpus=READ_CPUS)


def _groups(read: Callable[..., Rows], directory: Path, share: Share, task: tuple[int, ...]) -> Iterator[Rows]:
    yield read(directory, share.order.card, share.order.split, task)
