"""The rows of a run, window by window, without Ray: what both `--local` and the stream of a Ray worker are made of.

The order of rows is a function of the run (`order.EpochPlan`): windows, epoch after epoch, from the run's position on. A task
is a group of consecutive windows that together have about `TASK_ROWS` rows (many epochs of a small set, one window of a large
one); its rows are those of one rank, in the run's order, so that the concatenation over tasks, cut into shares of a batch, is
what the rank trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipelines.data.card import Card, load_card
from pipelines.data.order import EpochPlan, Window, fitting_window
from pipelines.data.shards import read_window
from pipelines.runs.job import Job

__all__ = ["RowStream", "Rows", "in_shares", "local_rows", "read_task", "tasks"]

Rows = dict[str, np.ndarray]
"""Columns x, label and row of some rows of a data set."""
RowStream = Callable[[Job, int], Iterator[Rows]]
"""rows(job, first_row) -> this rank's rows from a row of the run on, in chunks of its share of a batch."""
TASK_ROWS, TASK_BYTES = 32_768, 1 << 26


def tasks(job: Job, first_row: int) -> tuple[Card, Iterator[list[Window]]]:
    """The card, and the tasks of a run from its row `first_row` (= step * batch_size) to its last, made as they are asked for:
    the first one does not wait for the length of the run.

    Raises:
        ValueError: no prepared data, or a batch larger than the training split.
    """
    card = load_card(job.data)
    train = job.run.train
    plan = EpochPlan(
        card=card, split="train", batch_size=train.batch_size, seed=train.seed, window_rows=fitting_window(card)
    )
    limit = max(1, min(TASK_ROWS, TASK_BYTES // card.row_bytes))
    return card, _grouped(plan.windows(first_row, train.steps * train.batch_size), limit)


def _grouped(windows: Iterator[Window], limit: int) -> Iterator[list[Window]]:
    """Consecutive windows that have `limit` rows together, or a few more."""
    group: list[Window] = []
    rows = 0
    for window in windows:
        group.append(window)
        rows += window.stop - window.start
        if rows >= limit:
            yield group
            group, rows = [], 0
    if group:
        yield group


def read_task(directory: Path, card: Card, windows: list[Window], rank: int, world: int) -> Rows:
    """The rows {x, label, row} of a task that belong to a rank."""
    parts = [read_window(directory, card, window, rank, world) for window in windows]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_shares(parts: Iterator[Rows], share: int) -> Iterator[Rows]:
    """Rows cut anew into chunks of `share` rows."""
    held: Rows | None = None
    for part in parts:
        held = part if held is None else {name: np.concatenate([held[name], part[name]]) for name in part}
        whole = len(held["x"]) // share * share
        for start in range(0, whole, share):
            yield {name: column[start : start + share] for name, column in held.items()}
        held = {name: column[whole:] for name, column in held.items()}


def local_rows(job: Job, first_row: int) -> Iterator[Rows]:
    """The rows of a single process; a thread reads one task ahead."""
    card, grouped = tasks(job, first_row)

    def parts() -> Iterator[Rows]:
        with ThreadPoolExecutor(1) as reader:
            ahead: Future[Rows] | None = None
            for windows in grouped:
                ready, ahead = ahead, reader.submit(read_task, job.data, card, windows, 0, 1)
                if ready:
                    yield ready.result()
            if ahead:
                yield ahead.result()

    return in_shares(parts(), job.run.train.batch_size)
