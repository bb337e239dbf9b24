"""The rows of a run, without Ray: what both `--local` and the stream of a Ray worker are made of.

The order of rows is a function of the run (data/order.py), and so are the row groups that a worker reads, each once in an epoch
(data/share.py). A task reads a few of them, about `TASK_BYTES`: many epochs of a small set, one row group of a large one. Tasks
are fetched ahead of the training; the worker deals out what they bring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipelines.data.card import load_card
from pipelines.data.order import Order, Streams, Windows
from pipelines.data.shards import Rows, read_groups
from pipelines.data.share import Share
from pipelines.runs.job import Job

__all__ = ["RowStream", "Rows", "ahead", "local_rows", "order_of", "read_rows", "share_of", "tasks"]

RowStream = Callable[[Job, int], Iterator[Rows]]
"""rows(job, first_row) -> this rank's rows from a row of the run on, in chunks of its share of a batch."""
TASK_ROWS, TASK_BYTES = 32_768, 1 << 24
TASKS_AHEAD = 4
AHEAD_BATCHES, AHEAD_BYTES = 64, 1 << 24
"""Batches that are made ahead at most, and their bytes: they bridge the beginning of an epoch, which lays out a pool."""
ORDERS = {"streams": Streams, "windows": Windows}


def order_of(job: Job) -> Order:
    """The order in which a run sees its training rows.

    Raises:
        ValueError: no prepared data, or a batch larger than the training split.
    """
    train = job.run.train
    return ORDERS[train.order](card=load_card(job.data), split="train", batch_size=train.batch_size, seed=train.seed)


def share_of(job: Job, first_row: int, rank: int = 0, world: int = 1) -> Share:
    """What a worker trains on from a row of the run on, to the run's end.

    Args:
        job: The run.
        first_row: Rows of the run that are trained on, a multiple of the batch.
        rank, world: Of the worker.

    Raises:
        ValueError: as `order_of`, or a batch that the workers cannot share.
    """
    train = job.run.train
    step, rest = divmod(first_row, train.batch_size)
    if rest:
        raise ValueError(f"first_row={first_row}: not a multiple of batch_size={train.batch_size}")
    return Share(order=order_of(job), rank=rank, world=world, first=step, last=train.steps)


def tasks(share: Share) -> Iterator[tuple[int, ...]]:
    """The row groups that a worker reads, some at a time, made as they are asked for: the first task does not wait for the
    length of the run."""
    bounds, card = share.order.bounds, share.order.card
    limit = max(1, min(TASK_ROWS, TASK_BYTES // card.row_bytes))
    task: list[int] = []
    rows = 0
    for group in share.reads():
        task.append(group)
        rows += int(bounds[group + 1] - bounds[group])
        if rows >= limit:
            yield tuple(task)
            task, rows = [], 0
    if task:
        yield tuple(task)


def local_rows(job: Job, first_row: int) -> Iterator[Rows]:
    """The rows of a single process; a thread reads ahead."""
    return read_rows(job.data, share_of(job, first_row))


def read_rows(directory: Path, share: Share) -> Iterator[Rows]:
    """A worker's batches, without Ray; a thread reads ahead."""
    order = share.order
    read = partial(read_groups, directory, order.card, order.split)
    return ahead(share.batches(_made_ahead(map(read, tasks(share)), TASKS_AHEAD)), share)


def ahead(batches: Iterator[Rows], share: Share) -> Iterator[Rows]:
    """A worker's batches, made in a thread while it trains on those before."""
    fitting = AHEAD_BYTES // (share.size * share.order.card.row_bytes)
    return _made_ahead(batches, max(1, min(AHEAD_BATCHES, fitting)))


def _made_ahead(parts: Iterator[Rows], num: int) -> Iterator[Rows]:
    """The same in the same order, `num` of them being made in a thread or waiting."""
    maker = ThreadPoolExecutor(1)
    try:
        made = deque(maker.submit(next, parts, None) for _ in range(num))
        while (part := made.popleft().result()) is not None:
            made.append(maker.submit(next, parts, None))
            yield part
    finally:
        maker.shutdown(cancel_futures=True)
