"""Whether a training has diverged: its weights are worth nothing then, and it ends with an error instead of a model.

It has where more than half of the last 100 steps were skipped, because their loss or gradient was not finite; and where, at the
end of a phase, the bound is above its value before the first step.

The validation curve says that where it has both points: above means by more than 5 sqrt(se^2 + se^2). Else the steps do: more
than half of the last 100 were skipped or had a bound above that of the first step, which is taken before any update. The bound
of a step is noisy: it is of few rows, times and draws. Above means therefore by more than 10 standard errors of the first, told
badly by a few rows, and of most steps: training that learns nothing does not come near that by chance, and one spike does not
count. By its steps, a training of fewer than 100 is not judged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from indm_core.training import StepReport
from pipelines.config.run import Train
from pipelines.runs.record import HeldOut, Unit
from pipelines.storage import checkpoint
from pipelines.storage.messages import FailedError
from pipelines.training.session import Session

__all__ = ["DivergedError", "Watch", "left_behind", "risen"]

WINDOW, ERRORS, HELD_OUT_ERRORS = 100, 10.0, 5.0
BOUND = "nelbo"
"""The term of the losses that is a bound."""


class DivergedError(FailedError):
    """The training has diverged; the message names the step, what to change, and what is left."""


class Watch:
    """The last steps of a training, and its first.

    Args:
        first: NELBO at the first step, and what errors allow it to be, in nats, of a training that goes on; () where
            they are not known.
        begun: Whether steps were taken before.
        session: Of this rank.
    """

    def __init__(self, first: Sequence[float], begun: bool, session: Session) -> None:
        self.first, self.most = first or (math.nan, math.nan)
        self.begun, self.session = begun, session
        self._steps: deque[Tensor | None] = deque(maxlen=WINDOW)

    def add(self, report: StepReport) -> None:
        """Takes a step; of the first one all ranks share the value."""
        unknown = torch.tensor(math.nan, device=self.session.device)
        bound = report.terms.get(BOUND, unknown).detach().float()
        self._steps.append(None if report.skipped else bound)
        if not self.begun:
            variance = report.variances.get(BOUND, unknown).detach().float()
            mean, variance = self.session.average(torch.stack([bound, variance])).tolist()
            self.first, self.begun = mean, True
            self.most = mean + ERRORS * math.sqrt(variance / self.session.world)

    def skipping(self) -> str:
        """Says that too many steps were skipped; '' where they were not."""
        skipped = sum(step is None for step in self._steps)
        if len(self._steps) < WINDOW or skipped <= WINDOW / 2:
            return ""
        return f"{skipped} of the last {WINDOW} steps were skipped, because their loss or gradient was not finite"

    def rising(self, unit: Unit) -> str:
        """Says that the bound is above its first value; '' where it is not. Every rank calls it."""
        taken = [step for step in self._steps if step is not None]
        if len(self._steps) < WINDOW or not taken:
            return ""
        bounds = self.session.average(torch.stack(taken))
        bad = len(self._steps) - len(taken) + int((bounds > self.most).sum())
        if bad <= WINDOW / 2:
            return ""
        first = f"{unit.of(BOUND, torch.tensor(self.first)):.3f} {unit.name}"
        return f"{bad} of the last {WINDOW} steps had a NELBO above that of the first, {first}, by {ERRORS:g} of its errors"


def risen(first: HeldOut, last: HeldOut, unit: str) -> str:
    """Says that the bound on held-out rows is above its first value; '' where it is not."""
    most = first.nelbo + HELD_OUT_ERRORS * math.hypot(first.se, last.se)
    if last.nelbo <= most:
        return ""
    of = "of the paths" if last.others else "on held-out rows"
    if math.isnan(last.nelbo):
        return f"the NELBO {of} is nan"
    return (
        f"the NELBO {of}, {last.nelbo:.3f} {unit}, is above that of the first step, {first.nelbo:.3f}, by more "
        f"than {HELD_OUT_ERRORS:g} standard errors"
    )


def left_behind(run: Path, train: Train, step: int, reason: str, first: float, suspect: str) -> str:
    """Removes what a diverged training has left after its last good checkpoint, and says what is left and what to change.

    Args:
        step: That it had come to.
        reason: Why it has diverged.
        first: NELBO at the first step, in the unit of the checkpoints' figures; nan where it is not known.
        suspect: What else to change or to look at.
    """
    good = checkpoint.newest_below(run, first)
    checkpoint.discard_after(run, checkpoint.read_state(good).content["step"] if good else 0)
    trained = {name: settings for name, settings in train.optimisers.items() if name not in train.frozen}
    rates = " or ".join(f"--{name}.lr ({settings.lr:g})" for name, settings in trained.items())
    kept = f"the last good checkpoint is {good}, for --start-from" if good else "there is no good checkpoint"
    return (
        f"{run.name} has diverged at step {step:,}: {reason}; lower {rates} or the clip, or {suspect}, under another "
        f"--name; {kept}"
    )
