"""What a figure is: rows, each a ratio of two things that were measured side by side.

A script of this folder offers a figure by a function at its top level,

    def figure(quick: bool) -> Iterator[Row | Absent]:
        '''One line, which `python -m benchmarks --list` shows.'''

and `python -m benchmarks` finds it by that name; the figure is called like the script. `quick` asks for sizes that show that
the figure works and little more. What a figure compares with lives in the repository, or is an optional package: where that is
not installed, the row is `Absent`, which says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["AT_LEAST", "AT_MOST", "Absent", "Bound", "Pairs", "Row", "in_turn"]

AT_LEAST, AT_MOST = ">=", "<="


@dataclass(frozen=True)
class Bound:
    """What a ratio should be.

    Args:
        sense: AT_LEAST or AT_MOST.
        value: The bound.
    """

    sense: str
    value: float

    def __str__(self) -> str:
        return f"{self.sense} {self.value:g}"

    def met(self, ratio: float) -> bool:
        """Whether a ratio keeps the bound."""
        return ratio >= self.value if self.sense == AT_LEAST else ratio <= self.value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a figure.

    Args:
        what: Is measured.
        reference: Beside what.
        unit: Of the two measurements.
        ours, theirs: The two, medians.
        ratio: Of the two, as the target reads it: the median of the pairs' ratios.
        low, high: The least and the largest ratio of the pairs.
        target: What the ratio should be; None where there is nothing to reach.
    """

    what: str
    reference: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    target: Bound | None = None


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A row that cannot be measured here, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """Seconds of two things that took turns."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def row(
        self, what: str, reference: str, target: Bound | None = None, *, faster: bool = True, per: float = 1.0
    ) -> Row:
        """The row of these times, in milliseconds.

        Args:
            faster: Whether the ratio is reference / ours, how many times faster ours is; else ours / reference, what it costs.
            per: How many of what is measured one time is of.
        """
        pairs = zip(self.ours, self.theirs, strict=True)
        ratios = [theirs / ours if faster else ours / theirs for ours, theirs in pairs]
        ours, theirs = (1e3 / per * statistics.median(times) for times in (self.ours, self.theirs))
        ratio = statistics.median(ratios)
        return Row(
            what=what,
            reference=reference,
            unit="ms",
            ours=ours,
            theirs=theirs,
            ratio=ratio,
            low=min(ratios),
            high=max(ratios),
            target=target,
        )


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    num_pairs: int = 5,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Pairs:
    """Times two things in pairs; which one is first changes from pair to pair.

    Args:
        num_pairs: Pairs that count.
        warm_up: Pairs before them, which do not.
        clock: The processor's seconds of this process, which other work on the machine moves less than those of the wall.
    """
    acts, times = (ours, theirs), ([], [])
    for pair in range(warm_up + num_pairs):
        for side in (pair % 2, 1 - pair % 2):
            began = clock()
            acts[side]()
            taken = clock() - began
            if pair >= warm_up:
                times[side].append(taken)
    return Pairs(tuple(times[0]), tuple(times[1]))
