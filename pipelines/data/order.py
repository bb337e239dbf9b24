"""The order in which a run sees the rows of a split: random, the same on any machine, resumable at any step.

It is a function of (card, split, B, seed) and nothing else. Epoch e has K = floor(n / B) steps of B rows; the other n - K B
rows are left out of it, other ones in each epoch. Worker k of W takes positions k B / W, ..., (k + 1) B / W - 1 of every batch,
so that for every W the shares, one behind the other, are the same batch.

`Streams` is the order of a run that begins now. Canonical streams (as in MosaicML's StreamingDataset), whose number C does not
depend on W, share the positions of a batch, so that a worker reads what its own positions need and no more:

    tape     the row groups, permuted by pi(seed; e, 0) and laid end to end, the rows of group g permuted by pi(seed; e, 1 + g);
             its last n - K B rows are those that are left out
    stream   s in {0, ..., C - 1} serves positions q_s, ..., q_{s+1} - 1 of every batch, q_s = floor(s B / C), from its piece of
             the tape, the rows q_s K, ..., q_{s+1} K - 1: for W that divides C, a worker's streams are a W-th of the tape
    snake    streams of even s go through their piece forwards, the others backwards: a row group that a cut between two
             pieces divides is wanted by both at the same end of the epoch, and a worker that has both reads it once
    window   a stream takes its piece in windows, which end where row groups do. A window has P / C rows (w P / B, where the
             stream serves w positions) and less than one row group more, permuted by pi(seed; e, 1 + G + its place on the
             tape), G row groups; a piece that is no longer is one window. Of stream s the first window is cut at (s + 1) / C
             of that, so that the streams do not all read at once

P, the pool, are the rows among which those of a step are drawn: 65,536, or 256 MiB where those are fewer, of all streams and
so of all workers together. C is 64, halved until it is at most B, G and the row groups that 256 MiB hold: a set of one row
group is permuted as a whole. Each cut between two workers lies in at most one row group, which both read: W workers read at
most W - 1 row groups more than one does and, where W does not divide C, the streams that two workers share.

`Windows` is the order of runs that began before there were streams: one stream, for which every worker reads every row group.

pi(seed; a, b) sorts the raw 64-bit words of Philox(SeedSequence(seed, spawn_key=(a, b))), which NumPy keeps fixed from
version to version (its `permutation` it does not).

References:
    MosaicML, StreamingDataset: elastic determinism by num_canonical_nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from pipelines.data.card import Card

__all__ = ["Order", "Streams", "Window", "Windows", "group_bounds", "permutation"]


def permutation(seed: int, epoch: int, stream: int, length: int) -> np.ndarray:
    """pi(seed; epoch, stream): a permutation of range(length), int64, the same on any machine and NumPy."""
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, stream))).random_raw(length)
    return np.argsort(words, kind="stable")


def group_bounds(card: Card, split: str) -> np.ndarray:
    """First row of every row group of a split, and the split's count at the end, int64."""
    starts, first = [], 0
    for shard in card.split(split).shards:
        starts.append(np.arange(first, first + shard.rows, card.group_rows))
        first += shard.rows
    return np.concatenate([*starts, [first]]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rows that a stream serves one after the other, shuffled together.

    Args:
        epoch: e.
        column, width: The stream serves positions column, ..., column + width - 1 of every batch.
        begin: Rows of the epoch that the stream serves before.
        length: Rows of the window: row i is at step (begin + i) // width of the epoch, position column + (begin + i) % width.
        groups: The row groups that they lie in.
        skip: Rows of the groups, laid end to end, before those of the window.
        key: b of the permutation pi(seed; e, b) of the window.
    """

    epoch: int
    column: int
    width: int
    begin: int
    length: int
    groups: tuple[int, ...]
    skip: int
    key: int

    @property
    def first_step(self) -> int:
        """Of the epoch that needs it."""
        return self.begin // self.width

    @property
    def last_step(self) -> int:
        """Of the epoch that needs it."""
        return (self.begin + self.length - 1) // self.width


@dataclass(frozen=True, kw_only=True)
class Order(ABC):
    """The order in which a run sees the rows of a split.

    Args:
        card: Of the data set.
        split: Name of the split.
        batch_size: B, rows of one step over all workers.
        seed: >= 0.
        pool_rows, pool_bytes: Rows, and their bytes, that are shuffled together.

    Raises:
        ValueError: no such split, B larger than the split, a negative seed, or an empty pool.
    """

    card: Card
    split: str
    batch_size: int
    seed: int
    pool_rows: int = 65_536
    pool_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        rows = self.card.split(self.split).count
        if not 1 <= self.batch_size <= rows:
            raise ValueError(
                f"batch_size={self.batch_size}: split {self.split!r} of {self.card.name!r} has {rows} rows; "
                f"take 1 to {rows}"
            )
        if self.seed < 0 or self.pool_rows < 1 or self.pool_bytes < 1:
            raise ValueError(
                f"seed={self.seed}, pool_rows={self.pool_rows}, pool_bytes={self.pool_bytes}: must be >= 0, >= 1 and >= 1"
            )

    @property
    def epoch_steps(self) -> int:
        """K = floor(n / B)."""
        return self.card.split(self.split).count // self.batch_size

    @cached_property
    def bounds(self) -> np.ndarray:
        """First row of every row group, and n at the end, (G + 1,)."""
        return group_bounds(self.card, self.split)

    @property
    def pool(self) -> int:
        """Rows that are shuffled together, as far as whole row groups allow."""
        return min(self.pool_rows, self.pool_bytes // self.card.row_bytes)

    @abstractmethod
    def windows(self, epoch: int, first: int, last: int) -> list[Window]:
        """The windows of an epoch whose streams serve positions `first` to `last` - 1 of a batch, in the order of need."""

    @abstractmethod
    def rows(self, window: Window) -> np.ndarray:
        """The rows of the split that a window serves, in the order of the run, (length,); needs no file."""

    def _tape(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The row groups as the epoch lays them (G,), and where on the tape each begins, n at the end, (G + 1,)."""
        sizes = np.diff(self.bounds)
        groups = permutation(self.seed, epoch, 0, len(sizes))
        return groups, np.concatenate([[0], np.cumsum(sizes[groups])])


@dataclass(frozen=True, kw_only=True)
class Streams(Order):
    """C streams, of which a worker reads its own. See the module for the arguments' meaning.

    Args:
        num_streams: C, where B, G and the bytes of the pool allow as many.

    Raises:
        ValueError: as of any order, and no stream.
    """

    num_streams: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_streams < 1:
            raise ValueError(f"num_streams={self.num_streams}: must be >= 1")

    @cached_property
    def columns(self) -> list[int]:
        """q_0, ..., q_C: the positions of a batch at which the streams begin, B at the end."""
        fitting = self.pool_bytes // (self.card.group_rows * self.card.row_bytes)
        most, num = min(self.batch_size, len(self.bounds) - 1, fitting), self.num_streams
        while num > max(1, most):
            num //= 2
        return [stream * self.batch_size // num for stream in range(num + 1)]

    def windows(self, epoch: int, first: int, last: int) -> list[Window]:
        groups, begins = self._tape(epoch)
        windows = []
        for stream, (column, end) in enumerate(pairwise(self.columns)):
            if column < last and end > first:
                low, high = column * self.epoch_steps, end * self.epoch_steps
                pieces, begin = self._cut(begins, low, high, stream), 0
                for start, stop in pieces:
                    inside = slice(int(np.searchsorted(begins, start, "right")) - 1, int(np.searchsorted(begins, stop)))
                    windows.append(
                        Window(
                            epoch=epoch,
                            column=column,
                            width=end - column,
                            begin=begin,
                            length=stop - start,
                            groups=tuple(groups[inside].tolist()),
                            skip=start - int(begins[inside.start]),
                            key=1 + len(groups) + start,
                        )
                    )
                    begin += stop - start
        return sorted(windows, key=lambda window: (window.first_step, window.column))

    def rows(self, window: Window) -> np.ndarray:
        epoch, bounds = window.epoch, self.bounds
        parts = [
            bounds[group] + permutation(self.seed, epoch, 1 + group, int(bounds[group + 1] - bounds[group]))
            for group in window.groups
        ]
        rows = np.concatenate(parts)[window.skip : window.skip + window.length]
        return rows[permutation(self.seed, epoch, window.key, window.length)]

    def _cut(self, begins: np.ndarray, low: int, high: int, stream: int) -> list[tuple[int, int]]:
        """The rows low, ..., high - 1 of the tape as windows [start, stop), in the order in which they are served."""
        inner = begins[np.searchsorted(begins, low, "right") : np.searchsorted(begins, high)]
        size = max(1, self.pool * (high - low) // (self.batch_size * self.epoch_steps))
        wanted = np.arange(max(1, size * (stream + 1) // (len(self.columns) - 1)), high - low, size)
        backwards = stream % 2
        if high - low <= size:
            cuts = inner[:0]
        elif backwards:
            found = np.searchsorted(inner, high - wanted, "right") - 1
            cuts = inner[np.unique(found[found >= 0])]
        else:
            found = np.searchsorted(inner, low + wanted)
            cuts = inner[np.unique(found[found < len(inner)])]
        windows = list(pairwise([low, *cuts.tolist(), high]))
        return windows[::-1] if backwards else windows


@dataclass(frozen=True, kw_only=True)
class Windows(Order):
    """One stream: the tape is cut into windows of whole row groups with at least a pool of rows each (a shorter remainder
    joins the last), and window w is permuted by pi(seed; e, 1 + w)."""

    def windows(self, epoch: int, first: int, last: int) -> list[Window]:
        groups, begins = self._tape(epoch)
        pool = max(self.card.group_rows, self.pool)
        cuts = [0]
        for index, end in enumerate(begins[1:], start=1):
            if end - begins[cuts[-1]] >= pool and begins[-1] - end >= pool:
                cuts.append(index)
        windows, used = [], self.epoch_steps * self.batch_size
        for index, (start, stop) in enumerate(pairwise([*cuts, len(groups)])):
            begin, end = int(begins[start]), min(int(begins[stop]), used)
            if begin < end:
                inside = tuple(groups[start:stop].tolist())
                windows.append(
                    Window(
                        epoch=epoch,
                        column=0,
                        width=self.batch_size,
                        begin=begin,
                        length=end - begin,
                        groups=inside,
                        skip=0,
                        key=1 + index,
                    )
                )
        return windows

    def rows(self, window: Window) -> np.ndarray:
        rows = np.concatenate([np.arange(*self.bounds[group : group + 2]) for group in window.groups])
        return rows[permutation(self.seed, window.epoch, window.key, len(rows))][: window.length]
