"""What is counted of the rows while they are written: those that did not decode, what was done to the others, and the
coordinates' range, mean and standard deviation.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipelines.data.holdout import Routes
from pipelines.data.source import Chunk, Source, SourceSplit

__all__ = ["Bad", "Columns", "Seen"]

MOST_REASONS = 20
"""Different reasons for skipped rows that are told apart in a split."""


class Bad:
    """The rows of a source's split that did not decode: how many in each split of the result, why, and the first of them."""

    def __init__(self, part: SourceSplit, routes: Routes, max_skip: float) -> None:
        self._part, self._routes, self._max_skip = part, routes, max_skip
        self.counts = np.zeros(len(routes.names), np.int64)
        self._first = ""
        self._reasons: list[dict[str, tuple[int, str]]] = [{} for _ in routes.names]

    def add(self, chunk: Chunk) -> None:
        """Counts those of a chunk.

        Raises:
            ValueError: they are more than `max_skip` of the split; the message names the first.
        """
        for row, reason in chunk.bad:
            target, where = self._routes.target[row], self._part.locate(row)
            self.counts[target] += 1
            self._first = self._first or f"{where}: {reason}"
            reasons = self._reasons[target]
            reason = reason if reason in reasons or len(reasons) < MOST_REASONS else "other reasons"
            num, first = reasons.get(reason, (0, where))
            reasons[reason] = (num + 1, first)
        if self.counts.sum() > self._max_skip * self._part.count:
            raise ValueError(
                f"{self._first}; {self.counts.sum()} of {self._part.count} rows are bad, more than "
                f"max_skip={self._max_skip}; repair them or raise --max-skip"
            )

    def reasons(self, target: int) -> tuple[str, ...]:
        """Why rows of a split of the result were skipped, each with its number and the first."""
        return tuple(f"{num}: {reason} (first {first})" for reason, (num, first) in self._reasons[target].items())


class Seen:
    """What was done to the rows that were taken, and whether they have colours."""

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()
        self._colours = False

    def add(self, chunk: Chunk) -> None:
        self._done.update(chunk.done)
        if not self._colours and chunk.x.ndim == 4 and chunk.x.shape[1] == 3:
            self._colours = bool((chunk.x != chunk.x[:, :1]).any())

    def notes(self, found: Source) -> list[str]:
        """A line for each kind of deed, and one for colour images that are grey."""
        notes = [f"{num:,} image{'s' * (num > 1)} {done}" for done, num in sorted(self._done.items())]
        if found.kind == "image" and found.shape[0] == 3 and not self._colours:
            remedy = "--channels grey stores one" if found.images else "store one"
            notes.append(f"all images are grey in three equal channels, each of which counts in bits/dim; {remedy}")
        return notes


class Columns:
    """The range, the mean and the standard deviation of each coordinate in rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._count, self._mean, self._squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, x: np.ndarray) -> None:
        """Takes in more rows; their mean and sum of squares about it are merged with those of the rows before."""
        if not len(x):
            return
        self._low = np.minimum(self._low, x.min(axis=0))
        self._high = np.maximum(self._high, x.max(axis=0))
        mean, before = x.mean(axis=0, dtype=np.float64), self._count
        self._count += len(x)
        apart = mean - self._mean
        self._mean += apart * len(x) / self._count
        self._squares += ((x - mean) ** 2).sum(axis=0) + apart**2 * before * len(x) / self._count

    def standard(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each column or, over all positions, of each channel."""
        positions = tuple(range(1, self._mean.ndim))
        mean = self._mean.mean(axis=positions, keepdims=True)
        variance = (self._squares / self._count + (self._mean - mean) ** 2).mean(axis=positions)
        return tuple(mean.reshape(-1).tolist()), tuple(np.sqrt(variance).tolist())

    def check(self, source: str, found: Source) -> None:
        """Refuses a coordinate that is constant."""
        if (self._low == self._high).any():
            index = tuple(int(i) for i in np.argwhere(self._low == self._high)[0])
            raise ValueError(
                f"{source}{found.place(index)}: the constant {self._low[index]:g} in every row of train "
                "(float32) has no density; remove it"
            )
