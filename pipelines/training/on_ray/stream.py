"""Rows for a Ray worker: Ray Data reads them, in the run's order.

Tasks fetch and decode the row groups that the worker needs (`stream.tasks`) ahead of the training, in parallel; they are
delivered in order (cluster/ordered.py), without a pause between epochs, and the worker deals them out to its batches.

What the first batch is made of the worker reads itself, for Ray Data takes seconds to begin.

A worker reads the row groups of its own streams (data/order.py), a W-th of the data. The batch of step k is the same for every
number of workers, and a run goes on with another number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path

from indm_core.model import GenerativeModel
from pipelines.cluster.ordered import ordered
from pipelines.data.shards import Rows, read_groups
from pipelines.data.share import Share
from pipelines.runs.job import Job
from pipelines.training.dataset import work_on_rows
from pipelines.training.session import Session, Work
from pipelines.training.stream import ahead, share_of, tasks

__all__ = ["READ_CPUS", "parts_on_ray", "ray_rows", "work_on_ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task: Ray Data needs some beside the workers'."""
TASKS_AHEAD = 2
OWN_TASKS = 4
"""That a worker reads itself at most, 64 MiB: more of them Ray Data's tasks read sooner, though they take seconds to begin."""


def work_on_ray_rows(job: Job, session: Session) -> Work[GenerativeModel]:
    """A model on its data set, whose rows Ray Data reads."""
    return work_on_rows(job, lambda job, first_row: ray_rows(job, first_row, session.rank, session.world), session)


def ray_rows(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """This rank's rows {x, label, row} from a row of the run on, in chunks of its share of a batch.

    Args:
        job: The run.
        first_row: Rows of the run that are already trained on (step * batch_size).
        rank, world: Of the worker.
    """
    share = share_of(job, first_row, rank, world)
    parts = _Parts(job.data, share)
    batches = share.batches(parts)
    yield from islice(batches, 1)
    parts.hand_over()
    yield from ahead(batches, share)


def parts_on_ray(directory: Path, share: Share, read: Callable[..., Rows] = read_groups) -> Iterator[Rows]:
    """The row groups that a worker reads, task by task, in the order in which it takes them.

    Args:
        directory: Of the prepared data set.
        share: What the worker reads of it.
        read: Carried out by the tasks, called as `read_groups` is.
    """
    return _by_tasks(directory, share, read, tasks(share))


def _by_tasks(
    directory: Path, share: Share, read: Callable[..., Rows], wanted: Iterator[tuple[int, ...]]
) -> Iterator[Rows]:
    return ordered(wanted, partial(_groups, read, directory, share), tasks=TASKS_AHEAD, cpus=READ_CPUS)


def _groups(read: Callable[..., Rows], directory: Path, share: Share, task: tuple[int, ...]) -> Iterator[Rows]:
    yield read(directory, share.order.card, share.order.split, task)


class _Parts(Iterator[Rows]):
    """`parts_on_ray`, of which the worker reads the first itself: until `hand_over`, and at most `OWN_TASKS`.

    Ray Data begins in a thread, and its first part is taken there.
    """

    def __init__(self, directory: Path, share: Share) -> None:
        self._directory, self._share, self._wanted = directory, share, tasks(share)
        self._own, self._aside = 0, ThreadPoolExecutor(1)
        self._rest: Future[Iterator[Rows]] | None = None

    def __next__(self) -> Rows:
        if self._rest is None and self._own == OWN_TASKS:
            self.hand_over()
        if self._rest is not None:
            return next(self._rest.result())
        self._own += 1
        return read_groups(self._directory, self._share.order.card, self._share.order.split, next(self._wanted))

    def hand_over(self) -> None:
        """From here on tasks read."""
        if self._rest is None:
            rest = _by_tasks(self._directory, self._share, read_groups, self._wanted)
            self._rest = self._aside.submit(lambda: chain(list(islice(rest, 1)), rest))
