"""Rows for a Ray worker: Ray Data reads them, in the run's order.

Read tasks fetch and decode the row groups that the worker needs (`stream.tasks`) ahead of the training, in parallel; Ray
delivers them in order, and the worker deals them out to its batches. A data set of Ray has its blocks made before its first row
comes, so that a run is a sequence of data sets of `SEGMENT` tasks: nothing is made of the run's length, and the stream begins
as quickly for a million tasks as for one. The next of them begins when half of one is delivered, so that there is no pause
between them or between epochs.

A worker reads the row groups of its own streams (data/order.py), a W-th of the data. The batch of step k is the same for every
number of workers, and a run goes on with another number of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import RayError

from pipelines.data.shards import Rows, read_groups
from pipelines.data.share import Share
from pipelines.runs.job import Job
from pipelines.training.stream import share_of, tasks

__all__ = ["READ_CPUS", "ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task: Ray Data needs some beside the workers'."""
TASKS_AHEAD = 2
SEGMENT = 64
"""Tasks of a data set: a hundredth of a second to make, and a GiB of images."""


def ray_rows(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """This rank's rows {x, label, row} from a row of the run on, in chunks of its share of a batch.

    Args:
        job: The run.
        first_row: Rows of the run that are already trained on (step * batch_size).
        rank, world: Of the worker.
    """
    share = share_of(job, first_row, rank, world)
    return share.batches(_parts(job.data, share))


def _parts(directory: Path, share: Share) -> Iterator[Rows]:
    """The rows of each task.

    Raises:
        ValueError: what a read task raised; of it Ray keeps the text only.
    """
    wanted = tasks(share)
    segments = iter(lambda: list(islice(wanted, SEGMENT)), [])
    streams = (_stream(directory, share, segment) for segment in segments)
    try:
        with ThreadPoolExecutor(1) as ahead:
            current, following = _begun(streams), None
            while current is not None:
                for delivered, part in enumerate(current, start=1):
                    if delivered == SEGMENT // 2:
                        following = ahead.submit(_begun, streams)
                    yield part
                current, following = following.result() if following else _begun(streams), None
    except RayError as error:
        raised = re.findall(r"^ValueError: (.+)$", str(error), flags=re.MULTILINE)
        raise ValueError(raised[0]) if raised else error from error


def _stream(directory: Path, share: Share, segment: list[tuple[int, ...]]) -> Iterator[Rows]:
    """A data set of some tasks, whose rows come task by task."""
    card, split = share.order.card, share.order.split

    def read(batch: dict[str, np.ndarray]) -> Rows:
        return read_groups(directory, card, split, segment[int(batch["id"][0])])

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
    """The next stream, whose first rows have been read; None after the last."""
    stream = next(streams, None)
    return None if stream is None else chain(list(islice(stream, 1)), stream)
