"""Rows for a Ray worker: one stream for the whole run, in the run's order.

The run's tasks (`stream.tasks`) are Ray tasks. A few of them read ahead of the training, in parallel, each keeping and decoding
the rows of its rank; their results are taken in the order in which they were given out. A task is given out when one is taken,
so that nothing is made of the run's length: the stream begins as quickly for a million tasks as for one, nothing larger than a
few tasks is ever in memory, and there is no pause between epochs.

Every rank reads each window's row groups and keeps 1/world of the rows: that is what makes the global batch of step k the same
for every number of workers, and lets a run go on with another number of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np
import ray
from ray.exceptions import RayTaskError

from pipelines.runs.job import Job
from pipelines.training.stream import Rows, in_shares, read_task, tasks

__all__ = ["READ_CPUS", "ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task, beside the workers'."""
TASKS_AHEAD = 2


def ray_rows(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """This rank's rows {x, label, row} from a row of the run on, in chunks of its share of a batch.

    Args:
        job: The run.
        first_row: Rows of the run that are already trained on (step * batch_size).
        rank, world: Of the worker.
    """
    return in_shares(_parts(job, first_row, rank, world), job.run.train.batch_size // world)


def _parts(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """The rows of each task.

    Raises:
        ValueError: what a task raised.
    """
    card, grouped = tasks(job, first_row)
    # DEFAULT: not within the resources of the worker that asks
    read = ray.remote(read_task).options(num_cpus=READ_CPUS, scheduling_strategy="DEFAULT")
    there = ray.put(card)
    given = (read.remote(job.data, there, windows, rank, world) for windows in grouped)
    ahead = deque(islice(given, TASKS_AHEAD))
    while ahead:
        try:
            part: Rows = ray.get(ahead.popleft())
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ValueError) else error from None
        ahead.extend(islice(given, 1))
        yield {
            name: np.array(column) for name, column in part.items()
        }  # its own: the store's arrays cannot be written to
