"""Canvases of a model's pieces: how far their pieces are from training data, at random and at each place; seams; correlations.

FD+ is the Frechet distance of one random piece of each canvas: the thesis's FID+, with pieces of the model's own shape. What a
seam and a correlation are is said in `indm_core.collage.statistics`. All are of values as data are, levels where these have
levels, and so are the figures of training rows that they are compared with.

References: Zhang 2023 (thesis), section 4.5.1 and Fig. 4.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from indm_core.collage import joints, jump_ratio, lag_correlations
from indm_core.sampling import Sampling
from pipelines.evaluation.collages.canvases import borders_of, remark_of, unseen_regions
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.collages.tasks import BATCH, SHOWN, CanvasBatch, Canvases, Pieces, places
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurement import Done, Measurement, Result, Running
from pipelines.evaluation.measurements.distances import Compared, compared, evaluations_of, running_distance
from pipelines.evaluation.measurements.real import Features, RealFeatures
from pipelines.evaluation.plan import REFERENCE_CHUNK, Plan
from pipelines.evaluation.results.estimates import FrechetResult, ReferenceFeatures, frechet, with_error

__all__ = ["CollageResult", "Collages", "Lag", "Place", "RatioResult", "lags_of"]


@final
@dataclass(frozen=True, kw_only=True)
class RatioResult:
    """A mean jump of canvases over that of data with its standard error; nan where there are no such neighbours."""

    value: float
    se: float

    def __str__(self) -> str:
        return with_error(self.value, self.se)


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """The Frechet distance of the pieces under one factor."""

    factor: str
    frechet: FrechetResult


@final
@dataclass(frozen=True, kw_only=True)
class Lag:
    """The correlation of the columns' means at a distance, and that of data where a piece is longer; with standard errors."""

    lag: int
    value: float
    se: float
    of_data: float = math.nan
    of_data_se: float = math.nan

    def __str__(self) -> str:
        data = "" if math.isnan(self.of_data) else f" (data {with_error(self.of_data, self.of_data_se)})"
        return f"{self.lag}: {with_error(self.value, self.se)}{data}"


@final
@dataclass(frozen=True, kw_only=True)
class CollageResult(Result):
    """What canvases of a model's pieces are like, with all that it depends on.

    Args:
        distances: FD+: of one random piece of each canvas, in the features of the reference.
        places: The distances of the pieces under some factors, at most nine.
        seam, inside, closing: Jumps at joints, elsewhere, and where the ends of a loop or the faces of a cube meet.
        lags: Correlations along the width; none of a cube.
        canvases: How many.
        shape: Of a canvas.
        layout, sampling: How canvases are made of pieces and drawn.
        reference: What pieces were compared with.
        evaluations: Of the score, by a canvas; nan where the sampler failed.
        seconds: By a canvas.
        diverged: Canvases that had left the data's range; they are counted in.
        unseen: Separators or tiles, without channels, that the model was not trained on.
    """

    distances: Compared
    places: tuple[Place, ...]
    seam: RatioResult
    inside: RatioResult
    closing: RatioResult
    lags: tuple[Lag, ...]
    canvases: int
    shape: tuple[int, ...]
    layout: Layout
    sampling: Sampling
    reference: Reference
    evaluations: float = math.nan
    seconds: float = math.nan
    diverged: int = 0
    unseen: tuple[tuple[int, ...], ...] = ()

    @property
    def plus(self) -> FrechetResult:
        """FD+."""
        return self.distances.frechet

    def lines(self) -> list[str]:
        kernel, by_place = (
            self.distances.kernel,
            "; ".join(f"{place.factor}: {with_error(place.frechet.value, place.frechet.se)}" for place in self.places),
        )
        lost = f" ({self.diverged} diverged)" if self.diverged else ""
        figures = [
            f"FD+: {with_error(self.plus.value, self.plus.se)} (n = {self.plus.n:,}){lost}",
            f"at infinite n: {with_error(self.plus.at_infinity, self.plus.at_infinity_se)}",
            f"kernel distance: {with_error(kernel.value, kernel.se, '.4g', '.2g')}",
        ]
        jumps = {"seam": self.seam, "inside": self.inside, "closing": self.closing}
        ratios = [f"{name}: {ratio}" for name, ratio in jumps.items() if not math.isnan(ratio.value)]
        lags = [f"correlation at lag {'; '.join(map(str, self.lags))}"] if self.lags else []
        return ["; ".join(figures), f"FD by place: {by_place}", "; ".join(ratios), *lags, *self._made()]

    def _made(self) -> list[str]:
        cost = "" if math.isnan(self.evaluations) else f", {self.evaluations:.1f} evaluations of the score"
        size = " x ".join(map(str, self.shape))
        made = (
            f"{self.canvases:,} canvases of {size}: {self.layout}, by {self.sampling}{cost} and {self.seconds:.2g} s each; "
            f"compared with {self.reference}"
        )
        if not self.unseen:
            return [made]
        return [made, remark_of(self.layout, self.unseen)]

    def metrics(self) -> dict[str, float]:
        found = {"frechet": self.plus.value, "frechet_se": self.plus.se, "frechet_samples": self.plus.n}
        found |= {"frechet_at_infinity": self.plus.at_infinity, "frechet_at_infinity_se": self.plus.at_infinity_se}
        for name, ratio in (("seam", self.seam), ("inside", self.inside), ("closing", self.closing)):
            found |= {name: ratio.value, f"{name}_se": ratio.se}
        for lag in self.lags:
            found |= {f"lag_{lag.lag}": lag.value, f"lag_{lag.lag}_se": lag.se}
        return {f"collage/{name}": value for name, value in found.items()} | {"collage/diverged": self.diverged}


@final
class Collages(Measurement[CollageResult]):
    """The canvases of one model."""

    def __init__(self, plan: Plan, model: int) -> None:
        s, built = plan.settings, plan.subjects[model].build()
        self.model, self.plan, self.step, self.shape = model, plan, built.window_step, tuple(built.shape)
        self.layout, self.graph = s.layout, s.layout.graph(self.shape, self.step)
        self.unseen = unseen_regions(built, s.layout)
        ends = [(a, min(a + BATCH, s.canvases)) for a in range(0, s.canvases, BATCH)]
        how = {"layout": s.layout, "sampling": s.canvas_sampling}
        self.canvases = [Canvases(model=model, seeds=range(a, b), **how) for a, b in ends]
        rows, axes = plan.spans("train", REFERENCE_CHUNK), len(self.graph.shape)
        self.features = RealFeatures(plan)
        self.real = [Pieces(model=None, rows=span, axes=axes, step=self.step) for span in rows]

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i in range(len(plan.subjects))] if plan.settings.collages else []

    def tasks(self) -> list[Canvases | Features | Pieces]:
        return [*self.canvases, *self.features.tasks(), *self.real]

    def made(self, done: Done) -> list[CanvasBatch]:
        """The canvases in the order of their seeds."""
        return [task.of(done) for task in self.canvases]

    def first(self, done: Done) -> Tensor:
        """The first canvases themselves."""
        return torch.cat([batch.shown for batch in self.made(done)])[:SHOWN]

    def running(self, done: Done) -> Sequence[Running]:
        """FD+ of the canvases that there are."""
        there = [task.of(done).features for task in self.canvases if task in done]
        return running_distance(there, self.features, done, "collage/frechet", "FD+", "canvases")

    def reduce(self, done: Done) -> CollageResult:
        made, plan = self.made(done), self.plan
        data = self.features.of(done)
        pieces, logits = torch.cat([b.features for b in made]), torch.cat([b.logits for b in made])
        sizes = [len(batch.features) for batch in made]
        return CollageResult(
            distances=compared(pieces, logits, data, plan.settings.seed),
            places=self._places(torch.cat([batch.at for batch in made]), data),
            **self._ratios(torch.cat([batch.jumps for batch in made]), done),
            lags=self._lags(torch.cat([batch.along for batch in made]), done),
            canvases=sum(sizes),
            shape=(*self.shape[: len(self.shape) - len(self.graph.shape)], *self.graph.shape),
            layout=self.layout,
            sampling=plan.settings.canvas_sampling,
            reference=plan.reference,
            evaluations=evaluations_of(sizes, [batch.evaluations for batch in made]),
            seconds=sum(batch.seconds for batch in made) / sum(sizes),
            diverged=sum(batch.diverged for batch in made),
            unseen=self.unseen,
        )

    def _places(self, at: Tensor, data: ReferenceFeatures) -> tuple[Place, ...]:
        factors = self.graph.factors
        found = []
        for features, j in zip(at.unbind(1), places(len(factors)), strict=True):
            known = features.isfinite().all()
            distance = frechet(features, data) if known else FrechetResult.nothing(len(features))
            found.append(Place(factor=factors[j].name, frechet=distance))
        return tuple(found)

    def _ratios(self, found: Tensor, done: Done) -> dict[str, RatioResult]:
        real = torch.cat([task.of(done)[0] for task in self.real])
        kinds = joints(self.graph, self.step, borders_of(self.layout, self.graph, self.shape[-1]))
        ratios = {}
        for name, of_kind in zip(("seam", "inside", "closing"), found.unbind(1), strict=True):
            ratio = jump_ratio(of_kind, real, getattr(kinds, name))
            ratios[name] = RatioResult(value=ratio.value, se=ratio.standard_error)
        return ratios

    def _lags(self, along: Tensor, done: Done) -> tuple[Lag, ...]:
        if self.layout.collage == "cube":
            return ()
        width, real = self.shape[-1], torch.cat([task.of(done)[1] for task in self.real])
        chosen = lags_of(width, along.shape[1], self.step)
        own, data = (lag_correlations(x, [lag for lag in chosen if lag < x.shape[1]]) for x in (along, real))
        each = zip(own.lags, own.values.tolist(), own.standard_errors.tolist(), strict=True)
        lags = [Lag(lag=lag, value=value, se=se) for lag, value, se in each]
        of_data = zip(data.values.tolist(), data.standard_errors.tolist(), strict=True)
        for i, (value, se) in enumerate(of_data):  # the first ones: they ascend
            lags[i] = replace(lags[i], of_data=value, of_data_se=se)
        return tuple(lags)


def lags_of(piece: int, canvas: int, step: int) -> list[int]:
    """One step, quarters of a piece, and pieces, as far as the canvas goes; multiples of the step."""
    wanted = [step, *(round(share * piece) // step * step for share in (0.25, 0.5, 0.75, 1, 1.5, 2, 4))]
    return sorted({lag for lag in wanted if 0 < lag < canvas})
