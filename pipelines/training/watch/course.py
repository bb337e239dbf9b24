"""How far the workers of a command have come, by what they tell of their steps: whether they stand still, and what a restart
has lost.

A worker tells its step every quarter of a second, or after every step where that is longer (`halt`). All ranks take part in a
step, so that one which is stopped keeps the telling one from telling. With q the seconds since something was told, and p the
longest pause between two steps that this command's workers were seen to take, they stand still where

    q > max(stall_seconds, FACTOR p):

a model whose steps, pictures or validations take long is judged by its own pace. Before its first step a group is given
`BEGIN_SECONDS` at least: networks are built, rows are read and kernels compiled there.

A worker that joins a group counts as a sign of life too: how long its machine was waited for is nobody's standing still.

Of a restart that goes on from step r, where step f had been told, f - r steps are taken again. It is over, and its seconds are
known, when a step beyond f is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Course", "Loss"]

FACTOR = 10.0
BEGIN_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a restart of the workers has cost.

    Args:
        run: Name of the run.
        step: The last one that was told of before.
        since: When it was told.
        resumed: The step that was gone on from; None where the new workers have not told of it yet.
        seconds: From `since` until a step beyond `step` was told.
    """

    run: str
    step: int
    since: float
    resumed: int | None = None
    seconds: float = math.nan

    @property
    def steps(self) -> int:
        """Steps that are taken again."""
        return 0 if self.resumed is None else max(0, self.step - self.resumed)

    def line(self) -> str:
        """What the user is told of it."""
        first = self.step - self.steps + 1
        again = f"steps {first} to {self.step} were taken again" if self.steps else "no step was lost"
        return f"{self.run}: after a restart at step {self.resumed} {again} ({self.steps} steps, {self.seconds:.0f} s)"


class Course:
    """What was told of the steps.

    Args:
        stall_seconds: Without a step after which workers count as standing still; 0: they never do.
    """

    def __init__(self, stall_seconds: float = 0.0) -> None:
        self.stall_seconds = stall_seconds
        self.run, self.step, self.when = "", 0, math.nan
        self.gathered = -math.inf
        self.longest, self.stepped, self.told = 0.0, False, False
        self.open: list[Loss] = []

    def begin(self, now: float) -> None:
        """A group of workers begins."""
        if self.told:
            self.open.append(Loss(run=self.run, step=self.step, since=self.when))
        self.when, self.stepped, self.told = now, False, False

    def gather(self, now: float) -> None:
        """A worker joins a group that is to begin: how long the one before has been gone is no standing still."""
        self.gathered, self.stepped = now, False

    def tell(self, run: str, step: int, now: float) -> list[Loss]:
        """A step was reached.

        Returns:
            The losses whose end that is.
        """
        if self.stepped and run == self.run:
            self.longest = max(self.longest, now - self.when)
        self.stepped = run == self.run and self.told and (self.stepped or step > self.step)
        self.run, self.step, self.when, self.told = run, step, now, True
        resumed = [self._resumed(loss) for loss in self.open]
        over = [loss for loss in resumed if run != loss.run or step > loss.step]
        self.open = [loss for loss in resumed if loss not in over]
        return [replace(loss, seconds=now - loss.since) for loss in over]

    def _resumed(self, loss: Loss) -> Loss:
        """The loss with the step that was gone on from: a run that has ended in between lost nothing."""
        if loss.resumed is not None:
            return loss
        return replace(loss, resumed=self.step if self.run == loss.run else loss.step)

    def still(self, now: float) -> float:
        """Seconds without a step where the workers stand still, else 0."""
        if not self.stall_seconds or math.isnan(self.when):
            return 0.0
        least = self.stall_seconds if self.stepped else max(self.stall_seconds, BEGIN_SECONDS)
        quiet = now - max(self.when, self.gathered)
        return quiet if quiet > max(least, FACTOR * self.longest) else 0.0
