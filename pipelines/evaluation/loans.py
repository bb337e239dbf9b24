"""Rows of data in the object store, which the tasks of an evaluation share.

Rows are put there when the first task that needs them is begun, and serve the others too. They leave with the last task
that needs them, and before that where the rows that no task at work needs come to more than `SPARE_BYTES`: the oldest
go, and are put again when they are needed. So the store holds the rows of the tasks at work and `SPARE_BYTES` beside
them, however large the data are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ray

from pipelines.evaluation.plan import Plan, Span

__all__ = ["Loans"]

SPARE_BYTES = 64 * 2**20


class Loans:
    """The rows that are lent.

    Args:
        plan: Whose rows they are.
        needed: By span, how many tasks will need it.
    """

    def __init__(self, plan: Plan, needed: Counter[Span]) -> None:
        self.plan, self.left, self.at_work = plan, needed, Counter[Span]()
        self.lent: dict[Span, ray.ObjectRef] = {}  # the one used last is the last one
        self.bytes: dict[Span, int] = {}

    def lend(self, spans: Sequence[Span]) -> list[ray.ObjectRef]:
        """References to the rows of a task that begins."""
        for span in spans:
            if span in self.lent:
                self.lent[span] = self.lent.pop(span)
            else:
                rows = self.plan.rows(span).numpy()
                self.lent[span], self.bytes[span] = ray.put(rows), rows.nbytes
            self.at_work[span] += 1
        return [self.lent[span] for span in spans]

    def give_back(self, spans: Sequence[Span], *, done: bool = True) -> None:
        """The rows of a task that is at work no more.

        Args:
            done: Else it will begin again.
        """
        for span in spans:
            self.at_work[span] -= 1
        if done:
            self.forget(spans)
        self._spare()

    def forget(self, spans: Sequence[Span]) -> None:
        """The rows of a task that does not need them any more."""
        for span in spans:
            self.left[span] -= 1
            if self.left[span] <= 0:
                self.lent.pop(span, None)

    def _spare(self) -> None:
        """Lets go of the oldest rows that no task at work needs, beyond `SPARE_BYTES`."""
        idle = [span for span in self.lent if self.at_work[span] <= 0]
        spare = sum(self.bytes[span] for span in idle)
        for span in idle:
            if spare <= SPARE_BYTES:
                break
            del self.lent[span]
            spare -= self.bytes[span]
