"""What tasks of Ray Data make of items, in the items' order: `ordered`, for columns of rows, and `ordered_objects`.

The items travel to the tasks, and what is made of them comes back while the next ones are being made. A data set of Ray has its
blocks made before its first row comes, so that a sequence of items is a sequence of data sets of some of them: nothing is made
of the sequence's length, and the stream begins as quickly for a million items as for one. The next data set begins when half of
one is delivered, so that there is no pause between them. What waits to be taken is bounded by Ray's object store.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import ray
from ray.exceptions import RayError

__all__ = ["Columns", "ordered", "ordered_objects"]

T = TypeVar("T")
U = TypeVar("U")
Columns = dict[str, np.ndarray]
"""Columns of equal length."""
SEGMENT = 64
"""Items of a data set: a hundredth of a second to make, and a GiB of images."""
TURNS = 4
"""Items of a data set that each of very many tasks has at least."""


def ordered(
    items: Iterator[T], make: Callable[[T], Iterator[Columns]], *, tasks: int, cpus: float
) -> Iterator[Columns]:
    """What is made of items, in their order.

    Args:
        items: They travel to the tasks.
        make: Carried out by the tasks. Where it gives several columns of one item, they may come joined.
        tasks: At most as many at a time.
        cpus: Logical CPUs of each.

    Raises:
        ValueError: what `make` raised of that kind, with the same text; of it Ray keeps the text only.
    """
    size = max(SEGMENT, TURNS * tasks)
    segments = iter(lambda: list(islice(items, size)), [])
    streams = (_stream(segment, make, tasks, cpus) for segment in segments)
    try:
        with ThreadPoolExecutor(1) as ahead:
            current, following = _begun(streams), None
            while current is not None:
                for delivered, part in enumerate(current, start=1):
                    if delivered == size // 2:
                        following = ahead.submit(_begun, streams)
                    yield part
                current, following = following.result() if following else _begun(streams), None
    except RayError as error:
        raised = re.findall(r"^ValueError: (.+)$", str(error), flags=re.MULTILINE)
        raise ValueError(raised[0]) if raised else error from error


def ordered_objects(items: Iterator[T], make: Callable[[T], Iterator[U]], *, tasks: int, cpus: float) -> Iterator[U]:
    """`ordered`, where what is made of an item are objects of any kind, each delivered for itself."""

    def columns(item: T) -> Iterator[Columns]:
        for made in make(item):
            column = np.empty(1, object)
            column[0] = made
            yield {"made": column}

    for part in ordered(items, columns, tasks=tasks, cpus=cpus):
        yield from part["made"]


def _stream(segment: list[T], make: Callable[[T], Iterator[Columns]], tasks: int, cpus: float) -> Iterator[Columns]:
    """A data set of some items."""

    def each(batch: Columns) -> Iterator[Columns]:
        yield from make(segment[int(batch["id"][0])])

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every data set
    ids = [{"id": item} for item in range(len(segment))]  # not data.range, whose tasks want a whole CPU each
    dataset = ray.data.from_items(ids, override_num_blocks=len(ids)).map_batches(
        each,  # pyright: ignore[reportArgumentType]
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        compute=ray.data.TaskPoolStrategy(size=min(tasks, len(segment))),
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="numpy"))  # pyright: ignore[reportReturnType]


def _begun(streams: Iterator[Iterator[Columns]]) -> Iterator[Columns] | None:
    """The next stream, whose first part has been made; None after the last."""
    stream = next(streams, None)
    return None if stream is None else chain(list(islice(stream, 1)), stream)
