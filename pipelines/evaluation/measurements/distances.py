"""Distances of samples from the training data: Frechet, kernel and, in Inception's features, its score.

A distance says what it takes to have it again: samples, sampler and evaluations, weights, and the reference with its
features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.metrics import frechet_from_samples, inception_score, kernel_distance
from indm_core.sampling import Sampling
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurement import Bench, Done, Measurement, Result, Running, Task
from pipelines.evaluation.measurements.real import RealFeatures
from pipelines.evaluation.plan import Of, Plan, Span
from pipelines.evaluation.results.estimates import FEWEST, FrechetResult, ReferenceFeatures, frechet, with_error
from pipelines.evaluation.sampling import Drawn, draw_by, shown

__all__ = [
    "Compared",
    "Distances",
    "DistancesResult",
    "KernelResult",
    "SampleBatch",
    "Samples",
    "ScoreResult",
    "compared",
    "evaluations_of",
    "running_distance",
]

INCEPTION_CLASSES = 1008
SHOWN = 2000
"""Samples that are kept themselves, the first ones; of the others their features are."""
MOST_RUNNING = 256
"""Features of a distance that is computed again and again as samples come."""


class SampleBatch(NamedTuple):
    """Samples of one task with their features.

    Args:
        features, logits: (n, d) and (n, classes).
        shown: Those of the first `SHOWN` seeds, levels or vectors.
        evaluations: Of the score, by a sample on average; nan where the sampler failed.
        seconds: It took.
        diverged: Samples that had left the data's range (`sampling.shown`).
    """

    features: Tensor
    logits: Tensor
    shown: Tensor
    evaluations: float
    seconds: float
    diverged: int

    def pack(self) -> dict[str, Tensor]:
        """As tensors."""
        cost = torch.tensor([self.evaluations, self.seconds, self.diverged], dtype=torch.float64)
        return {"features": self.features, "logits": self.logits, "shown": self.shown, "cost": cost}

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor]) -> SampleBatch:
        """The inverse of `pack`."""
        evaluations, seconds, diverged = tensors["cost"].tolist()
        shown = tensors.get("shown", torch.zeros(0))
        return SampleBatch(tensors["features"], tensors["logits"], shown, evaluations, seconds, int(diverged))


@final
@dataclass(frozen=True, kw_only=True)
class Samples(Task[SampleBatch]):
    """The samples of some seeds, and their features.

    Args:
        seeds: One per sample, in a row.
        start: What sampling starts from: the model's law, or data, of which the sample of seed i takes the row i.
        strength: The share of the model's time up to which such data are noised.
        labelled: Whether the model is given labels: those of the rows that it starts from, else as frequent as in the data.
    """

    model: int
    seeds: range
    sampling: Sampling
    start: Literal["prior", "data"] = "prior"
    strength: float = 1.0
    labelled: bool = False

    def needs(self) -> tuple[Span, ...]:
        spans = [self._span("starts")] if self.start == "data" else []
        return (*spans, self._labels()) if self.labelled else tuple(spans)

    def _labels(self) -> Span:
        return self._span("start labels" if self.start == "data" else "drawn labels")

    def _span(self, of: Of) -> Span:
        return Span(of=of, first=self.seeds.start, stop=self.seeds.stop)

    def run(self, bench: Bench) -> SampleBatch:
        model, spec = bench.model(self.model)
        data = bench.rows(self._span("starts")) if self.start == "data" else None
        label = bench.rows(self._labels()) if self.labelled else None
        began = time.monotonic()
        try:
            drawn = draw_by(model, self.seeds, self.sampling, data, label, strength=self.strength)
        except ConvergenceError:  # one sampler that fails does not cost the table
            drawn = Drawn(torch.full((len(self.seeds), *spec.shape), math.nan), math.nan)
        drawn, seconds = Drawn(drawn.x.cpu(), drawn.evaluations), time.monotonic() - began
        values, diverged = shown(drawn.x, spec)
        features, logits = bench.seen(values)
        first = values[: max(0, SHOWN - self.seeds.start)]
        first = first.to(torch.uint8 if spec.levels <= 256 else torch.int32) if spec.levels else first
        return SampleBatch(features, logits, first, drawn.evaluations, seconds, diverged)

    def __str__(self) -> str:
        return f"samples of seeds {self.seeds.start} to {self.seeds.stop - 1}"

    def pack(self, outcome: SampleBatch) -> dict[str, Tensor]:
        return outcome.pack()

    def unpack(self, tensors: Mapping[str, Tensor]) -> SampleBatch:
        return SampleBatch.unpack(tensors)


@final
@dataclass(frozen=True, kw_only=True)
class KernelResult:
    """A kernel distance of n samples, unbiased, with its standard error."""

    value: float
    se: float
    n: int


@final
@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """An Inception Score with its standard error."""

    value: float
    se: float


@final
@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far samples are from a reference."""

    frechet: FrechetResult
    kernel: KernelResult
    inception_score: ScoreResult | None = None


def compared(features: Tensor, logits: Tensor, reference: ReferenceFeatures, seed: int) -> Compared:
    """The distances of samples from a reference.

    Args:
        features, logits: Of the samples, (n, d) and (n, classes).
        seed: Of the kernel's subsets.

    Raises:
        ValueError: fewer than three samples.
    """
    if not features.isfinite().all():
        nothing = KernelResult(value=math.nan, se=math.nan, n=len(features))
        return Compared(frechet=FrechetResult.nothing(len(features)), kernel=nothing)
    distance = frechet(features, reference)
    kid = kernel_distance(features, reference.features, generator=torch.Generator().manual_seed(seed))
    kernel = KernelResult(value=float(kid.mean), se=float(kid.standard_error), n=len(features))
    if logits.shape[1] != INCEPTION_CLASSES:
        return Compared(frechet=distance, kernel=kernel)
    score = inception_score(logits)
    found = ScoreResult(value=float(score.mean), se=float(score.standard_error))
    return Compared(frechet=distance, kernel=kernel, inception_score=found)


@final
@dataclass(frozen=True, kw_only=True)
class DistancesResult(Result):
    """Distances of a model's samples from training data, with all that they depend on.

    Args:
        distances: In the features of the reference.
        reference: What the samples were compared with.
        sampling: Sampler and options.
        start: What sampling started from: the model's law, or the diffused latents of test data.
        strength: The share of the model's time up to which those were diffused.
        evaluations: Of the score, by a sample; nan where no sample came out.
        weights: Of the networks: averaged over training (EMA), or raw.
        diverged: Samples that had left the data's range; they are counted in.
        labels: Whether they were drawn with labels, as frequent as in the data.
    """

    distances: Compared
    reference: Reference
    sampling: Sampling
    start: Literal["prior", "data"] = "prior"
    strength: float = 1.0
    evaluations: float = math.nan
    weights: Literal["averaged", "raw"] = "averaged"
    diverged: int = 0
    labels: bool = False

    def lines(self) -> list[str]:
        """What stands beside the Frechet distance of the row, and what the distances are of."""
        f, kernel, score = self.distances.frechet, self.distances.kernel, self.distances.inception_score
        figures = [
            f"FD at infinite n: {with_error(f.at_infinity, f.at_infinity_se)}",
            f"kernel distance: {with_error(kernel.value, kernel.se, '.4g', '.2g')}",
            *([] if score is None else [f"Inception Score: {with_error(score.value, score.se)}"]),
        ]
        cost = "" if math.isnan(self.evaluations) else f", {self.evaluations:.1f} evaluations of the score each"
        begun = ", started from data" if self.start == "data" else ""
        begun += f" noised up to {self.strength:g} of the time" if self.strength != 1 else ""
        begun += ", with labels as frequent as in the data" if self.labels else ""
        made = f"{f.n:,} samples by {self.sampling}{begun}{cost}, {self.weights} weights"
        return ["; ".join(figures), f"{made}; compared with {self.reference}"]

    def metrics(self) -> dict[str, float]:
        f, kernel, score = self.distances.frechet, self.distances.kernel, self.distances.inception_score
        found = {"frechet": f.value, "frechet_se": f.se, "frechet_samples": f.n}
        found |= {"frechet_at_infinity": f.at_infinity, "frechet_at_infinity_se": f.at_infinity_se}
        found |= {"kernel": kernel.value, "kernel_se": kernel.se, "kernel_samples": kernel.n}
        found |= {} if score is None else {"inception_score": score.value, "inception_score_se": score.se}
        return found | {"reference_samples": self.reference.size, "diverged": self.diverged}


@final
class Distances(Measurement[DistancesResult]):
    """The distances of one model's samples."""

    def __init__(self, plan: Plan, model: int) -> None:
        self.model, self.plan, s = model, plan, plan.settings
        step = max(s.chunk, 250)
        ends = ((a, min(a + step, s.samples)) for a in range(0, s.samples, step))
        self.labelled = plan.labelled(model)
        self.samples = [
            Samples(model=model, seeds=range(a, b), sampling=plan.sampling(model), labelled=self.labelled)
            for a, b in ends
        ]
        self.real = RealFeatures(plan)

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i in range(len(plan.subjects))] if plan.settings.samples else []

    def tasks(self) -> list[Task[object]]:
        return [*self.samples, *self.real.tasks()]

    def made(self, done: Done) -> list[SampleBatch]:
        """The samples in the order of their seeds."""
        return [task.of(done) for task in self.samples]

    def running(self, done: Done) -> Sequence[Running]:
        """The Frechet distance of the samples that there are; it falls as they become more (its bias is of order 1/n)."""
        there = [task.of(done).features for task in self.samples if task in done]
        return running_distance(there, self.real, done, "frechet", "FD", "samples")

    def reduce(self, done: Done) -> DistancesResult:
        made, plan = self.made(done), self.plan
        features, logits = torch.cat([b.features for b in made]), torch.cat([b.logits for b in made])
        return DistancesResult(
            distances=compared(features, logits, self.real.of(done), plan.settings.seed),
            reference=plan.reference,
            sampling=plan.sampling(self.model or 0),
            evaluations=evaluations_of([len(b.features) for b in made], [b.evaluations for b in made]),
            diverged=sum(batch.diverged for batch in made),
            labels=self.labelled,
        )


def running_distance(
    parts: Sequence[Tensor], real: RealFeatures, done: Done, name: str, label: str, of: str
) -> list[Running]:
    """The Frechet distance of the features that there are; none without the reference or where it costs too much."""
    num = sum(map(len, parts))
    if num < FEWEST or not real.ready(done) or parts[0].shape[1] > MOST_RUNNING:
        return []
    features, moments = torch.cat(list(parts)), real.of(done).moments
    if not features.isfinite().all():
        return []
    found = frechet_from_samples(features, moments.mean, moments.cov)
    return [Running(name=name, label=label, value=found.value, se=found.standard_error, count=num, of=of)]


def evaluations_of(sizes: Sequence[int], evaluations: Sequence[float]) -> float:
    """The mean over parts of given sizes; nan where the sampler failed in every part."""
    each = torch.tensor(evaluations, dtype=torch.float64)
    shares = torch.tensor([size / sum(sizes) for size in sizes], dtype=torch.float64)
    known = each.isfinite()
    return float(shares[known] @ each[known] / shares[known].sum()) if known.any() else math.nan
