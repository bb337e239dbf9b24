"""Tasks of several kinds, between which the time of actors is shared fairly.

Kinds of work have tasks of very different lengths. One after the other, the last kinds show nothing for hours; in turn,
the kind of the longest tasks takes nearly all of the time. Here the next task is one of the kind that has used the
least time so far, where a task at work counts for the mean of those of its kind that are done. All kinds that still
have tasks get equal shares, whatever their tasks take, and a kind of little work is done early.

A long task that is begun last leaves the other actors idle. So near the end, when the tasks that wait are worth less
than `END` of the longest ones for every actor, the longest go first and short ones fill the gaps (Graham's rule: the
time is at most 4/3 of the shortest that there is). Where only long ones are left, the end may wait for one of them.

A task whose actor was lost is repeated behind all others, so that one which ends its actor every time costs the others
nothing.

References: Graham 1969, "Bounds on multiprocessing timing anomalies", Theorem 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["FairQueue", "K"]

K = TypeVar("K", bound=Hashable)
"""What names a task."""
END = 2


@dataclass(kw_only=True)
class _Kind(Generic[K]):
    """The tasks of one kind.

    Args:
        waiting: In their order.
        at_work: How many.
        done, seconds: How many have told their time, and the sum.
    """

    waiting: deque[K]
    at_work: int = 0
    done: int = 0
    seconds: float = 0.0

    @property
    def each(self) -> float:
        """The mean time of a task; 0 where none is known."""
        return self.seconds / self.done if self.done else 0.0

    @property
    def used(self) -> float:
        """Its time, with what the tasks at work will take."""
        return self.seconds + self.at_work * self.each


class FairQueue(Generic[K]):
    """Which task is done next; a plain object that knows neither actors nor a clock.

    Args:
        kinds: The tasks' keys by kind, each kind in the order in which it is done.
        actors: How many work at once.
    """

    def __init__(self, kinds: Mapping[Any, Iterable[K]], actors: int = 1) -> None:
        self.kinds = {kind: _Kind(waiting=deque(keys)) for kind, keys in kinds.items()}
        self.kind_of = {key: kind for kind in self.kinds.values() for key in kind.waiting}
        self.undone, self.lost, self.actors = set(self.kind_of), deque[K](), actors

    def __len__(self) -> int:
        """Tasks that are wanted and not done, those at work among them."""
        return len(self.undone)

    def take(self) -> K | None:
        """The next task, which counts as at work from now on; None where none waits."""
        having = [kind for kind in self.kinds.values() if kind.waiting]
        if not having:
            return self._begun(self.lost.popleft()) if self.lost else None
        first = self._longest if self._ends(having) else self._least_used
        return self._begun(first(having).waiting.popleft())

    def done(self, key: K) -> None:
        """A task at work is done."""
        self.kind_of[key].at_work -= 1
        self.undone.discard(key)

    def took(self, key: K, seconds: float) -> None:
        """The time of a task that is done."""
        kind = self.kind_of[key]
        kind.done, kind.seconds = kind.done + 1, kind.seconds + seconds

    def back(self, key: K) -> None:
        """A task at work was lost: it waits behind all others."""
        self.kind_of[key].at_work -= 1
        if key in self.undone:
            self.lost.append(key)

    def drop(self, keys: Collection[K]) -> None:
        """Tasks that are not wanted any more; those at work are not waited for."""
        gone = self.undone.intersection(keys)
        if not gone:
            return
        self.undone -= gone
        for kind in self.kinds.values():
            kind.waiting = deque(key for key in kind.waiting if key not in gone)
        self.lost = deque(key for key in self.lost if key not in gone)

    def seconds_left(self) -> float:
        """About how long what is left will take; a kind of which nothing is known counts as the mean of the others."""
        kinds = self.kinds.values()
        mean = sum(kind.seconds for kind in kinds) / max(1, sum(kind.done for kind in kinds))
        tasks = [(kind.each if kind.done else mean, len(kind.waiting) + kind.at_work) for kind in kinds]
        lost = sum(self.kind_of[key].each for key in self.lost)
        return (sum(each * num for each, num in tasks) + lost) / self.actors

    def _begun(self, key: K) -> K:
        self.kind_of[key].at_work += 1
        return key

    def _ends(self, having: list[_Kind[K]]) -> bool:
        """Whether the end is near; never before every kind that waits has told its time."""
        if not all(kind.done for kind in having):
            return False
        longest = max(kind.each for kind in having)
        return sum(kind.each * len(kind.waiting) for kind in having) <= END * self.actors * longest

    @staticmethod
    def _longest(having: list[_Kind[K]]) -> _Kind[K]:
        return max(having, key=lambda kind: kind.each)

    @staticmethod
    def _least_used(having: list[_Kind[K]]) -> _Kind[K]:
        return min(having, key=lambda kind: (kind.used, kind.at_work))
