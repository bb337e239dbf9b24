"""What the driver and the workers tell each other: an actor on the driver's machine, which outlives each group of workers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle

from pipelines.training.watch.course import Course

__all__ = ["Member", "Notices", "Refusal", "State"]


@dataclass(frozen=True)
class Refusal:
    """What a worker does not try again.

    Args:
        reason: One line that names the culprit and the remedy.
        trace: Where it came from.
        diverged: Whether the training has diverged, instead of never having been possible.
    """

    reason: str
    trace: str
    diverged: bool = False


@dataclass(frozen=True)
class Member:
    """A worker of a group.

    Args:
        pickled: The handle of Ray Train's actor: the actor `Notices` passes it on, and would import Ray Train to read it.
        node: Id of the worker's machine in the cluster.
    """

    pickled: bytes
    node: str

    @staticmethod
    def of(worker: Any, node: str) -> Member:
        """Of a handle."""
        return Member(cloudpickle.dumps(worker), node)  # pyright: ignore[reportPrivateImportUsage]

    @property
    def worker(self) -> Any:
        """The handle."""
        return cloudpickle.loads(self.pickled)


@dataclass(frozen=True, kw_only=True)
class State:
    """How the workers get on.

    Args:
        run, step: What was told last.
        still: Seconds without a step where they stand still, else 0.
        group: Number of the group of workers that takes steps, from 1; 0 while one begins.
        members: The workers of the newest group.
        lines: What the workers have to say, and what restarts that are over have cost, each given once.
    """

    run: str
    step: int
    still: float
    group: int
    members: tuple[Member, ...]
    lines: tuple[str, ...]


class Notices:
    """The actor's work: what workers refused, who they are and what step they have come to; and whether they are to end.

    Args:
        stall_seconds: Of `Course`.
    """

    def __init__(self, stall_seconds: float = 0.0) -> None:
        self.refusals: list[Refusal] = []
        self.num_groups, self.group, self.stop, self.leaving = 0, 0, False, False
        self.course, self.lines = Course(stall_seconds), list[str]()
        self.members: dict[int, Member] = {}

    def add(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def all(self) -> list[Refusal]:
        return self.refusals

    def join(self, rank: int, world: int, member: Member) -> None:
        """Called by every worker that begins; those of a group before it are forgotten, rank by rank."""
        others = {other: known for other, known in self.members.items() if other < world}
        self.members = others | {rank: member}
        self.course.gather(time.monotonic())

    def begin(self) -> tuple[bool, int]:
        """Called by the first of the workers that begin; returns whether they need not, and how many groups began before."""
        self.num_groups, self.group, self.leaving = self.num_groups + 1, 0, False
        self.course.begin(time.monotonic())
        return self.stop, self.num_groups - 1

    def turn(self) -> None:
        """Called by the first worker before each job: its networks are built then, as those of the first were."""
        self.course.gather(time.monotonic())

    def ask_to_stop(self) -> bool:
        """Called by the command; returns whether there are workers who will hear it."""
        self.stop = True
        return self.num_groups > 0

    def ask_to_leave(self) -> None:
        """Called by the command: the workers are to end after the step that they are in, and to begin again elsewhere."""
        self.leaving = True

    def stopping(self, run: str, step: int) -> bool:
        """Called by the first worker every now and then, all having joined; returns whether to end after the step."""
        self.group = self.num_groups
        self.lines += [loss.line() for loss in self.course.tell(run, step, time.monotonic())]
        return self.stop or self.leaving

    def say(self, line: str) -> None:
        """Called by the first worker with a line for the terminal."""
        self.lines.append(line)

    def moves(self) -> bool:
        """Called by a worker that was told to end: whether others begin in its place."""
        return self.leaving and not self.stop

    def state(self) -> State:
        """Called by the command every now and then."""
        lines, self.lines = tuple(self.lines), []
        course = self.course
        return State(
            run=course.run,
            step=course.step,
            still=course.still(time.monotonic()),
            group=self.group,
            members=tuple(self.members.values()),
            lines=lines,
        )
