"""Rows for a Ray worker: Ray Data streams them, in the run's order.

Read tasks fetch the run's tasks (`stream.tasks`) ahead of the training, in parallel, each keeping and decoding the rows of its
rank; Ray delivers them in order. A data set of Ray has its blocks made before its first row comes, so that a run is a sequence
of data sets of `SEGMENT` tasks: nothing is made of the run's length, and the stream begins as quickly for a million tasks as
for one. The next of them begins when half of one is delivered, so that there is no pause between them or between epochs, and
nothing larger than a few tasks is ever in memory.

Every rank reads each window's row groups and keeps 1/world of the rows: that is what makes the global batch of step k the same
for every number of workers, and lets a run go on with another number of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
import ray
from ray.exceptions import RayError

from pipelines.data.card import Card
from pipelines.data.order import Window
from pipelines.runs.job import Job
from pipelines.training.stream import Rows, in_shares, read_task, tasks

__all__ = ["READ_CPUS", "ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task: Ray Data needs some beside the workers'."""
TASKS_AHEAD = 2
SEGMENT = 64
"""Tasks of a data set: a hundredth of a second to make, and two million rows of small images."""


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
        ValueError: what a read task raised; of it Ray keeps the text only.
    """
    card, grouped = tasks(job, first_row)
    segments = iter(lambda: list(islice(grouped, SEGMENT)), [])
    streams = (_stream(job, card, segment, rank, world) for segment in segments)
    try:
        with ThreadPoolExecutor(1) as ahead:
            current, following = _begun(streams), None
            while current is not None:
                for delivered, part in enumerate(current, start=1):
                    if delivered == SEGMENT // 2:
                        following = ahead.submit(_begun, streams)
                    yield {name: np.array(column) for name, column in part.items()}  # Ray's cannot be written to
                current, following = following.result() if following else _begun(streams), None
    except RayError as error:
        raised = re.findall(r"^ValueError: (.+)$", str(error), flags=re.MULTILINE)
        raise ValueError(raised[0]) if raised else error from error


def _stream(job: Job, card: Card, segment: list[list[Window]], rank: int, world: int) -> Iterator[Rows]:
    """A data set of some tasks, whose rows come task by task."""
    directory = job.data

    def read(batch: dict[str, np.ndarray]) -> Rows:
        return read_task(directory, card, segment[int(batch["id"][0])], rank, world)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    ids = [{"id": task} for task in range(len(segment))]  # not data.range, whose tasks want a whole CPU each
    dataset = ray.data.from_items(ids, override_num_blocks=len(ids)).map_batches(
        read,  # pyright: ignore[reportArgumentType]
        batch_size=1,
        batch_format="numpy",
        num_cpus=READ_CPUS,
        compute=ray.data.TaskPoolStrategy(size=TASKS_AHEAD),
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="numpy"))  # pyright: ignore[reportReturnType]


def _begun(streams: Iterator[Iterator[Rows]]) -> Iterator[Rows] | None:
    """The next stream, whose first rows have been read; None after the last. A task that has none of the rank's rows gives
    nothing."""
    stream = next(streams, None)
    return None if stream is None else chain(list(islice(stream, 1)), stream)
