"""The features of the rows that samples are compared with: those of an earlier evaluation, else by tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pipelines.evaluation.measurement import Bench, Done, Task
from pipelines.evaluation.plan import REFERENCE_CHUNK, Plan, Span
from pipelines.evaluation.results.estimates import ReferenceFeatures

__all__ = ["Features", "RealFeatures"]


@final
@dataclass(frozen=True, kw_only=True)
class Features(Task[Tensor]):
    """Features (n, d) of rows of the reference."""

    rows: Span

    def needs(self) -> tuple[Span, ...]:
        return (self.rows,)

    def run(self, bench: Bench) -> Tensor:
        return bench.seen(bench.rows(self.rows))[0]


@final
class RealFeatures:
    """The features of a plan's reference. Those that were computed are kept for later evaluations."""

    def __init__(self, plan: Plan) -> None:
        self.kept = plan.statistics
        spans = [] if self.kept.found else plan.spans("train", REFERENCE_CHUNK)
        self.parts = [Features(model=None, rows=rows) for rows in spans]

    def tasks(self) -> list[Features]:
        """None where they are known."""
        return self.parts

    def ready(self, done: Done) -> bool:
        """Whether they are there."""
        return self.kept.found is not None or all(task in done for task in self.parts)

    def of(self, done: Done) -> ReferenceFeatures:
        """They."""
        return self.kept.found or self.kept.put(torch.cat([task.of(done) for task in self.parts]))
