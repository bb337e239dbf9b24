"""What one of W workers reads of a data set, and the batches that it makes of that, by the order of a run (order.py).

The worker takes the windows of its streams in the order in which it needs them, and reads each of their row groups once in an
epoch, whole, where the first of them wants it (`reads`). They are fetched ahead of the training (training/stream.py,
training/on_ray/stream.py), and `batches` deals them out. Rows are laid into their window as they come, so that a worker holds

    of each stream    one window: P / C rows and less than a row group more (of `Windows`, two pools or a row group at most)
    besides           the row groups that a cut between two of its streams divides, while only one of the two has had its part,

about P / W rows of a pool of P. Beginning at any step costs the windows of that step, whatever came before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from pipelines.data.order import Order, Window
from pipelines.data.shards import Rows

__all__ = ["Share"]

BLOCK_STEPS, BLOCK_BYTES, BLOCK_PART = 64, 1 << 20, 8
"""Steps whose batches are laid out together, the bytes that these may have, and how many times the pool holds them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a run's rows that a worker trains on.

    Args:
        order: Of the run.
        rank, world: Of the worker.
        first, last: Steps of the run: from `first`, as many as it has taken already, to before `last`.

    Raises:
        ValueError: B is not a multiple of `world`, `rank` is not below it, or `first` is negative.
    """

    order: Order
    rank: int = 0
    world: int = 1
    first: int = 0
    last: int

    def __post_init__(self) -> None:
        if self.world < 1 or self.order.batch_size % self.world:
            raise ValueError(
                f"batch_size={self.order.batch_size}: not a multiple of the {self.world} workers (world={self.world})"
            )
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank}: must be in 0 to {self.world - 1}")
        if self.first < 0:
            raise ValueError(f"first={self.first}: a step of a run is at least 0")

    @property
    def size(self) -> int:
        """B / W, the worker's rows of a batch."""
        return self.order.batch_size // self.world

    @property
    def columns(self) -> range:
        """The worker's positions of a batch."""
        return range(self.rank * self.size, (self.rank + 1) * self.size)

    def reads(self) -> Iterator[int]:
        """The row groups that the worker reads, in the order in which `batches` takes them, epoch after epoch."""
        for epoch, begin, end in self._epochs():
            windows = self.windows(epoch, begin, end)
            yield from dict.fromkeys(group for window in windows for group in window.groups)

    def batches(self, parts: Iterator[Rows]) -> Iterator[Rows]:
        """The worker's batches, B / W rows each, of whole row groups that come in the order of `reads`.

        Args:
            parts: Of them, any number at a time.
        """
        supply = _Supply(parts)
        for epoch, begin, end in self._epochs():
            dealer = _Dealer(self, supply, self.windows(epoch, begin, end), begin, end)
            while dealer.step < end:
                yield from dealer.block()

    def windows(self, epoch: int, begin: int, end: int) -> list[Window]:
        """Those that the worker needs for steps `begin` to `end` - 1 of an epoch, in the order of need."""
        windows = self.order.windows(epoch, self.columns.start, self.columns.stop)
        return [window for window in windows if window.last_step >= begin and window.first_step < end]

    def _epochs(self) -> Iterator[tuple[int, int, int]]:
        """(epoch, first of its steps, last one and one more), as far as the run goes."""
        steps = self.order.epoch_steps
        for epoch in count(self.first // steps):
            begin, end = max(self.first - epoch * steps, 0), min(self.last - epoch * steps, steps)
            if begin >= end:
                return
            yield epoch, begin, end


class _Supply:
    """Row groups one at a time, of parts that hold any number of them."""

    def __init__(self, parts: Iterator[Rows]) -> None:
        self._parts = parts
        self._part: Rows = {}

    def take(self, first: int, rows: int) -> Rows:
        """The next row group.

        Raises:
            ValueError: it is not the one that begins with row `first`, or there is none.
        """
        while not self._part or len(self._part["row"]) < rows:
            more = next(self._parts, None)
            if more is None:
                break
            held = self._part if self._part and len(self._part["row"]) else {}
            self._part = {
                name: np.concatenate([held[name], column]) if held else column for name, column in more.items()
            }
        if not self._part or len(self._part["row"]) < rows or self._part["row"][0] != first:
            raise ValueError(
                f"the data stream does not give rows {first} to {first + rows - 1}; prepare the data again"
            )
        taken = {name: column[:rows] for name, column in self._part.items()}
        self._part = {name: column[rows:] for name, column in self._part.items()}
        return taken


class _Lane:
    """What a worker holds of a stream: the rest of a window, and where its next row goes in the block that is laid out."""

    def __init__(self, columns: range) -> None:
        self.columns, self.filled = columns, 0
        self._held: Rows = {}
        self._used = 0

    def hold(self, rows: Rows) -> None:
        self._held, self._used = rows, 0

    def pour(self, block: Rows, share: int) -> None:
        """Moves rows into a block (steps * share, ...) as far as there are rows, or room."""
        if not self._held:
            return
        width = len(self.columns)
        num = min(len(self._held["row"]) - self._used, len(block["row"]) // share * width - self.filled)
        step, column = np.divmod(np.arange(self.filled, self.filled + num), width)
        into = step * share + self.columns.start + column
        for name, rows in block.items():
            rows[into] = self._held[name][self._used : self._used + num]
        self.filled, self._used = self.filled + num, self._used + num
        if self._used == len(self._held["row"]):
            self._held = {}


class _Dealer:
    """Deals the rows of an epoch out to its batches."""

    def __init__(self, share: Share, supply: _Supply, windows: list[Window], begin: int, end: int) -> None:
        self.step = begin
        self._share, self._supply, self._begin, self._end = share, supply, begin, end
        self._bounds = share.order.bounds
        self._ahead = deque(windows)
        self._wanted = Counter(group for window in windows for group in window.groups)
        self._kept: dict[int, Rows] = {}  # row groups that a window to come wants too
        self._lanes: dict[int, _Lane] = {}
        first, last = share.columns.start, share.columns.stop
        for window in windows:
            start, stop = max(window.column, first), min(window.column + window.width, last)
            self._lanes.setdefault(window.column, _Lane(range(start - first, stop - first)))

    def block(self) -> Iterator[Rows]:
        """The batches of the next steps."""
        order, size = self._share.order, self._share.size
        fitting = min(BLOCK_BYTES // (size * order.card.row_bytes), order.pool // (BLOCK_PART * order.batch_size))
        steps = max(1, min(BLOCK_STEPS, fitting, self._end - self.step))
        block = self._empty(steps * size)
        for lane in self._lanes.values():
            lane.filled = 0
            lane.pour(block, size)
        self.step += steps
        while self._ahead and self._ahead[0].first_step < self.step:
            window = self._ahead.popleft()
            lane = self._lanes[window.column]
            lane.hold(self._laid_out(window))
            lane.pour(block, size)
        for start in range(0, steps * size, size):
            yield {name: rows[start : start + size] for name, rows in block.items()}

    def _laid_out(self, window: Window) -> Rows:
        """The worker's rows of a window, in the order of the run."""
        rows = self._own_rows(window)
        into = self._empty(len(rows))
        order = np.argsort(rows)
        for group in window.groups:
            first, last = int(self._bounds[group]), int(self._bounds[group + 1])
            there = self._group(group, first, last)
            mine = order[slice(*np.searchsorted(rows[order], (first, last)))]
            for name, column in into.items():
                column[mine] = there[name][rows[mine] - first]
        return into

    def _own_rows(self, window: Window) -> np.ndarray:
        """The rows of the split that a window serves to this worker in the steps of this epoch that it takes."""
        step, column = np.divmod(np.arange(window.begin, window.begin + window.length), window.width)
        column += window.column
        columns = self._share.columns
        own = (self._begin <= step) & (step < self._end) & (columns.start <= column) & (column < columns.stop)
        return self._share.order.rows(window)[own]

    def _group(self, group: int, first: int, last: int) -> Rows:
        """A row group: it comes when the first window wants it, and is kept until the last one has had it."""
        self._wanted[group] -= 1
        if group in self._kept:
            return self._kept[group] if self._wanted[group] else self._kept.pop(group)
        there = self._supply.take(first, last - first)
        if self._wanted[group]:
            self._kept[group] = {name: column.copy() for name, column in there.items()}  # not all that came with it
        return there

    def _empty(self, rows: int) -> Rows:
        card = self._share.order.card
        x = np.empty((rows, *card.shape), card.dtype)
        return {"x": x, "label": np.empty(rows, np.int64), "row": np.empty(rows, np.int64)}
