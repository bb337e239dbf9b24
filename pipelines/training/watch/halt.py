"""Ending a training between two steps: all ranks at the same step, from which it then goes on to the bit."""

from __future__ import annotations

import time

import torch

from pipelines.runs.job import Training
from pipelines.training.session import Session

__all__ = ["Halt", "Halted"]

ASK_SECONDS = 0.25
MOST_STEPS = 1000


class Halted(Exception):
    """The session wanted the training to end, and it has left what it needs to go on."""


class Halt:
    """Whether the ranks end at a step. Rank 0 knows; the others learn it, each time, with how many steps later to ask again.

    Asking takes an exchange between the ranks, so that it is done every `ASK_SECONDS` or every step, whichever is longer.

    Args:
        session: Of this rank.
        training: That the steps are of.
    """

    def __init__(self, session: Session, training: Training) -> None:
        self.session, self.training = session, training
        self.asked, self.when, self.steps = 0, 0.0, 0

    def due(self, step: int) -> bool:
        """Every rank calls it at every step: whether to end there."""
        if step < self.asked + self.steps:
            return False
        told = torch.zeros(2, device=self.session.device)
        if self.session.rank == 0:
            stopping = self.session.stopping(self.training, step)
            told += torch.tensor([float(stopping), float(self._until_next(step))]).to(told)
        told = self.session.average(told) * self.session.world
        self.asked, self.steps = step, round(told[1].item())
        return round(told[0].item()) > 0

    def _until_next(self, step: int) -> int:
        """How many steps take `ASK_SECONDS`, by those since the last time."""
        now = time.monotonic()
        since, self.when = now - self.when, now
        return max(
            1, min(MOST_STEPS, 2 * max(1, self.steps), int((step - self.asked) * ASK_SECONDS / max(since, 1e-6)))
        )
