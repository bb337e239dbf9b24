"""What actors do to measure canvases: draw some of them and look at their pieces, and look at real pieces."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from indm_core.collage import joints, jumps, pieces_at, random_pieces, real_jumps
from indm_core.draw import Canvas, draw_canvases
from indm_core.errors import ConvergenceError
from indm_core.noise import seeded
from indm_core.sampling import Sampling
from pipelines.evaluation.collages.canvases import borders_of, canvas_of
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.measurement import Bench, Task
from pipelines.evaluation.plan import Span
from pipelines.evaluation.sampling import Drawn, shown

__all__ = ["BATCH", "SHOWN", "CanvasBatch", "Canvases", "Pieces", "places"]

BATCH = 20
"""Canvases of a task."""
SHOWN = 8
"""Canvases that are kept themselves, the first ones."""
PLACES = 9
"""The most factors whose pieces are compared with data one by one."""
CROPS = 2**40
"""What is added to a canvas's seed for the place of its random piece."""


class CanvasBatch(NamedTuple):
    """Canvases of one task, as far as they are measured.

    Args:
        features, logits: Of one random piece each, (n, d) and (n, classes).
        at: Features of the pieces at some factors, (n, factors, d).
        jumps: At seams, inside and where the ends meet, (n, 3), nan where there are no such neighbours.
        along: The mean over all axes but the last, (n, width).
        shown: The canvases of the first seeds.
        evaluations: Of the score, by a canvas on average; nan where the sampler failed.
        seconds: It took.
        diverged: Canvases that had left the data's range.
    """

    features: Tensor
    logits: Tensor
    at: Tensor
    jumps: Tensor
    along: Tensor
    shown: Tensor
    evaluations: float
    seconds: float
    diverged: int


@final
@dataclass(frozen=True, kw_only=True)
class Canvases(Task[CanvasBatch]):
    """The canvases of some seeds, and what is measured of them.

    Args:
        seeds: One per canvas, in a row.
        layout: How they are made of pieces.
        sampling: How they are drawn.
    """

    model: int
    seeds: range
    layout: Layout
    sampling: Sampling

    def run(self, bench: Bench) -> CanvasBatch:
        model, spec = bench.model(self.model)
        canvas = canvas_of(model, self.layout)
        drawn, seconds = self._drawn(canvas)
        x, diverged = shown(drawn.x, spec)
        at = pieces_at(x, canvas.graph)
        features, logits = bench.seen(self._random(x, at, canvas, model.window_step))
        return CanvasBatch(
            features=features,
            logits=logits,
            at=torch.stack([bench.seen(at[j])[0] for j in places(len(at))], 1),
            jumps=self._jumps(x, canvas, model.window_step),
            along=along(x),
            shown=x[: max(0, SHOWN - self.seeds.start)].to(torch.int32 if spec.levels else x.dtype),
            evaluations=drawn.evaluations,
            seconds=seconds,
            diverged=diverged,
        )

    def _drawn(self, canvas: Canvas) -> tuple[Drawn, float]:
        """The canvases, and the seconds that they took."""
        began = time.monotonic()
        try:
            drawn = draw_canvases(canvas, self.seeds, self.sampling)
        except ConvergenceError:  # one sampler that fails does not cost the table
            drawn = Drawn(torch.full((len(self.seeds), *canvas.shape), math.nan), math.nan)
        return Drawn(drawn.x.cpu(), drawn.evaluations), time.monotonic() - began

    def _random(self, x: Tensor, at: list[Tensor], canvas: Canvas, step: int) -> Tensor:
        """One random piece of each canvas; of a cube one of its loops."""
        crops = seeded([CROPS + seed for seed in self.seeds])
        if self.layout.collage != "cube":
            return random_pieces(x, canvas.graph.factors[0].index.shape, step, crops)
        chosen = [int(torch.randint(len(at), (), generator=one)) for one in crops]
        return torch.stack([at[j][i] for i, j in enumerate(chosen)])

    def _jumps(self, x: Tensor, canvas: Canvas, step: int) -> Tensor:
        """At seams, inside and where the ends meet."""
        found = joints(canvas.graph, step, borders_of(self.layout, canvas.graph, canvas.model.shape[-1]))
        return torch.stack([jumps(x, canvas.graph, kind) for kind in (found.seam, found.inside, found.closing)], 1)

    def __str__(self) -> str:
        return f"canvases of seeds {self.seeds.start} to {self.seeds.stop - 1}"

    def pack(self, outcome: CanvasBatch) -> dict[str, Tensor]:
        tensors = {name: value.clone() for name, value in outcome._asdict().items() if isinstance(value, Tensor)}
        cost = [outcome.evaluations, outcome.seconds, outcome.diverged]
        return tensors | {"cost": torch.tensor(cost, dtype=torch.float64)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> CanvasBatch:
        evaluations, seconds, diverged = tensors["cost"].tolist()
        parts = {name: value for name, value in tensors.items() if name != "cost"}
        return CanvasBatch(**parts, evaluations=evaluations, seconds=seconds, diverged=int(diverged))


@final
@dataclass(frozen=True, kw_only=True)
class Pieces(Task[tuple[Tensor, Tensor]]):
    """Of rows of the reference: their jumps (m, axes, step), and the means along their last axis (m, width).

    Args:
        rows: Which.
        axes: How many axes graphs cut.
        step: Of phases.
    """

    rows: Span
    axes: int
    step: int

    def needs(self) -> tuple[Span, ...]:
        return (self.rows,)

    def run(self, bench: Bench) -> tuple[Tensor, Tensor]:
        x = bench.rows(self.rows)
        return real_jumps(x.double(), self.axes, self.step), along(x)

    def pack(self, outcome: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"jumps": outcome[0], "along": outcome[1]}

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["jumps"], tensors["along"]


def along(x: Tensor) -> Tensor:
    """The means over all axes but the first and the last, (n, width), float64."""
    return x.double().reshape(len(x), -1, x.shape[-1]).mean(1)


def places(num: int) -> list[int]:
    """At most `PLACES` factors of a number, evenly spread, both ends and the middle among them."""
    return sorted({round(k * (num - 1) / (PLACES - 1)) for k in range(PLACES)})
