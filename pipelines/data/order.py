"""The order in which a run sees the rows of a split: random, the same on any machine, resumable at any row.

It is a function of (card, split, B, seed, window_rows) and nothing else:

    epoch e        the split's row groups are permuted by pi(seed; e, 0), laid end to end, and cut into windows of whole
                   groups with at least `window_rows` rows each (a shorter remainder joins the last window)
    window w       its rows are permuted by pi(seed; e, 1 + w)
    position p     in {0, ..., E - 1}, E = floor(n / B) B: the last n - E rows of the epoch's order are left out,
                   other ones in each epoch. The run's row number r = step * B lies at e = r // E, p = r mod E.
    rank k of W    reads the positions with (p mod B) // (B / W) = k: for every W the union over ranks is the same batch

pi(seed; a, b) sorts the raw 64-bit words of Philox(SeedSequence(seed, spawn_key=(a, b))), which NumPy keeps fixed from
version to version (its `permutation` it does not).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np

from pipelines.data.card import Card

__all__ = ["EpochPlan", "Window", "fitting_window", "group_bounds", "permutation", "window_order"]


def permutation(seed: int, epoch: int, stream: int, length: int) -> np.ndarray:
    """pi(seed; epoch, stream): a permutation of range(length), int64, the same on any machine and NumPy."""
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, stream))).random_raw(length)
    return np.argsort(words, kind="stable")


def fitting_window(card: Card, num_bytes: int = 2**28) -> int:
    """The largest `window_rows` up to 65,536 whose rows fit in `num_bytes` (default 256 MiB), at least one group."""
    return max(card.group_rows, min(65_536, num_bytes // card.row_bytes))


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive positions of one epoch, drawn from whole row groups; small enough to send to another process.

    Args:
        split, batch_size, seed: of the plan.
        epoch: e.
        index: w, the window within the epoch.
        base: position in the epoch of the window's first row.
        start, stop: positions to read, base <= start < stop.
        groups: row groups of the split, in the order in which the epoch lays them.
    """

    split: str
    batch_size: int
    seed: int
    epoch: int
    index: int
    base: int
    start: int
    stop: int
    groups: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The order in which a run sees the rows of a split.

    Args:
        card: of the data set.
        split: name of the split.
        batch_size: B, rows of one step over all ranks.
        seed: >= 0.
        window_rows: rows shuffled together; see `fitting_window` for large images.

    Raises:
        ValueError: no such split, B larger than the split, or a negative seed.
    """

    card: Card
    split: str
    batch_size: int
    seed: int
    window_rows: int = 65_536

    def __post_init__(self) -> None:
        rows = self.card.split(self.split).count
        if not 1 <= self.batch_size <= rows:
            raise ValueError(
                f"batch_size={self.batch_size}: split {self.split!r} of {self.card.name!r} has {rows} rows; "
                f"take 1 to {rows}"
            )
        if self.seed < 0 or self.window_rows < 1:
            raise ValueError(f"seed={self.seed}, window_rows={self.window_rows}: must be >= 0 and >= 1")

    @property
    def epoch_rows(self) -> int:
        """E = floor(n / B) B, the rows that one epoch uses."""
        return self.card.split(self.split).count // self.batch_size * self.batch_size

    def epoch_windows(self, epoch: int) -> tuple[Window, ...]:
        """The windows that cover positions 0, ..., E - 1 of an epoch."""
        sizes = np.diff(group_bounds(self.card, self.split))
        order = permutation(self.seed, epoch, 0, len(sizes))
        ends = np.cumsum(sizes[order])
        cuts, base = [0], 0
        for index, end in enumerate(ends, start=1):
            if end - base >= self.window_rows and ends[-1] - end >= self.window_rows:
                cuts.append(index)
                base = end
        cuts.append(len(order))
        windows = []
        for index, (first, last) in enumerate(pairwise(cuts)):
            start = int(ends[first - 1]) if first else 0
            stop = min(int(ends[last - 1]), self.epoch_rows)
            if start < stop:
                groups = tuple(int(group) for group in order[first:last])
                windows.append(self._window(epoch, index, start, stop, groups))
        return tuple(windows)

    def windows(self, start: int = 0, stop: int | None = None) -> Iterator[Window]:
        """The windows of a run from its row number `start` = step * B on, epoch after epoch.

        Args:
            start: rows that the run has already consumed.
            stop: the run's row number to end before; None: go on for ever.
        """
        if start < 0:
            raise ValueError(f"start={start}: a run's row number is at least 0")
        for epoch in count(start // self.epoch_rows):
            origin = epoch * self.epoch_rows
            last = self.epoch_rows if stop is None else stop - origin
            if last <= 0:
                return
            for window in self.epoch_windows(epoch):
                first = max(window.start, start - origin)
                if first < min(window.stop, last):
                    yield replace(window, start=first, stop=min(window.stop, last))

    def _window(self, epoch: int, index: int, start: int, stop: int, groups: tuple[int, ...]) -> Window:
        return Window(
            split=self.split,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            index=index,
            base=start,
            start=start,
            stop=stop,
            groups=groups,
        )


def window_order(card: Card, window: Window, rank: int = 0, world: int = 1) -> np.ndarray:
    """Rows of the split that a rank reads from a window, in the order of the run; needs no file.

    Raises:
        ValueError: B is not a multiple of `world`, or `rank` is not below `world`.
    """
    local = _local_order(card, window, rank, world)
    bounds = group_bounds(card, window.split)
    groups = np.asarray(window.groups)
    offsets = np.concatenate([[0], np.cumsum(bounds[groups + 1] - bounds[groups])])
    part = np.searchsorted(offsets, local, side="right") - 1
    return bounds[groups[part]] + local - offsets[part]


def group_bounds(card: Card, split: str) -> np.ndarray:
    """First row of every row group of a split, and the split's count at the end."""
    starts, first = [], 0
    for shard in card.split(split).shards:
        starts.append(np.arange(first, first + shard.rows, card.group_rows))
        first += shard.rows
    return np.concatenate([*starts, [first]]).astype(np.int64)


def _local_order(card: Card, window: Window, rank: int, world: int) -> np.ndarray:
    """Indices into the window's groups laid end to end that the rank reads, in the order of the run."""
    if world < 1 or window.batch_size % world:
        raise ValueError(f"batch_size={window.batch_size}: not a multiple of the {world} workers (world={world})")
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank}: must be in 0 to {world - 1}")
    bounds = group_bounds(card, window.split)
    groups = np.asarray(window.groups)
    rows = int((bounds[groups + 1] - bounds[groups]).sum())
    positions = np.arange(window.start, window.stop)
    mine = positions % window.batch_size // (window.batch_size // world) == rank
    return permutation(window.seed, window.epoch, 1 + window.index, rows)[positions[mine] - window.base]
