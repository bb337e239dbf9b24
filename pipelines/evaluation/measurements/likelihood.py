r"""Likelihoods of test images: NLL by the ODE, NELBO, their gap, the NLL of a bridge's second data set, and paired
differences.

An estimator is evaluated on every image, in replicates: the same images, fresh dequantisation, times and noise. With
values v_ri of R replicates and n images

    mean = mean_ri v,    se^2 = Var_r(mean_i v_ri)/R,    se_images^2 = Var_i(mean_r v_ri)/n:

`se` is the estimator's error on these very images, `se_images` adds what another test set would change. The draws of a
replicate and a chunk of images are those of its seed alone: models are compared on the same draws, image by image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar, cast, final

import torch
from torch import Tensor

from indm_core.likelihood import nelbo, nll
from indm_core.model import Bridge, GenerativeModel
from indm_core.training import step_seed
from pipelines.config.run import same_but_seed
from pipelines.evaluation.measurement import Bench, Done, Measurement, Result, Task
from pipelines.evaluation.plan import Plan, Span
from pipelines.evaluation.results.estimates import Estimate, gap

__all__ = [
    "DifferenceResult",
    "Differences",
    "Gap",
    "GapResult",
    "Likelihood",
    "LikelihoodResult",
    "Nelbo",
    "NelboResult",
    "NllResult",
    "PartnerNll",
    "PartnerResult",
]

Divergence = Literal["probes", "exact"]
R = TypeVar("R", bound=Result)
L = TypeVar("L", bound="LikelihoodResult")


class Estimator(ABC):
    """-log p of images, of a conditional model given their labels y, nats (b,); a frozen dataclass."""

    @abstractmethod
    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor: ...


@final
@dataclass(frozen=True, kw_only=True)
class OdeNll(Estimator):
    """By the probability-flow ODE (`likelihood.nll`).

    Args:
        exact: The divergence is exact, where it has no error of probes and costs a backward pass for each dimension.
    """

    residual: bool
    exact: bool
    num_probes: int
    rtol: float
    atol: float

    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor:
        options = {"exact_divergence": self.exact, "num_probes": self.num_probes, "rtol": self.rtol, "atol": self.atol}
        return nll(model, x, residual=self.residual, generator=generator, y=y, **options)


@final
@dataclass(frozen=True, kw_only=True)
class Bound(Estimator):
    """The variational bound (`likelihood.nelbo`)."""

    residual: bool
    num_draws: int

    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor:
        return nelbo(model, x, residual=self.residual, num_draws=self.num_draws, generator=generator, y=y)


@final
@dataclass(frozen=True, kw_only=True)
class FlowNll(Estimator):
    """Of a bridge's second data set under its flow and prior. Only runs with a partner have one, and these are bridges."""

    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            return cast(Bridge, model).partner_nll(x, generator)


@final
@dataclass(frozen=True, kw_only=True)
class Likelihoods(Task[Tensor]):
    """An estimator on some images, in the unit of the data, (b,); the draws depend on the seed alone.

    Args:
        labels: Those of the images, where the model is given them.
    """

    estimator: Estimator
    model: int
    images: Span
    seed: int
    labels: Span | None = None

    def needs(self) -> tuple[Span, ...]:
        return (self.images,) if self.labels is None else (self.images, self.labels)

    def run(self, bench: Bench) -> Tensor:
        model, spec = bench.model(self.model)
        x = spec.to_model(bench.rows(self.images), torch.Generator().manual_seed(self.seed))
        generator = torch.Generator(bench.device).manual_seed(step_seed(self.seed, 1, 0))
        y = None if self.labels is None else bench.rows(self.labels).to(bench.device)
        return spec.in_unit(self.estimator(model, x.to(bench.device), generator, y).cpu())


@final
@dataclass(frozen=True)
class PerImage:
    """The tasks of an estimator on all images, by replicate."""

    replicates: Sequence[Sequence[Likelihoods]]

    @staticmethod
    def of(
        estimator: Estimator, model: int, spans: Sequence[Span], replicates: int, seed: int, labelled: bool = False
    ) -> PerImage:
        def task(r: int, images: Span) -> Likelihoods:
            labels = replace(images, of="test labels") if labelled else None
            of_images = {"images": images, "seed": step_seed(seed, r, images.first), "labels": labels}
            return Likelihoods(estimator=estimator, model=model, **of_images)

        return PerImage([[task(r, images) for images in spans] for r in range(replicates)])

    def tasks(self) -> list[Likelihoods]:
        return [task for replicate in self.replicates for task in replicate]

    def values(self, done: Done) -> Tensor:
        """(replicates, images), float64."""
        return torch.stack([torch.cat([task.of(done) for task in r]) for r in self.replicates]).double()


@dataclass(frozen=True, kw_only=True)
class LikelihoodResult(Result):
    """A figure with the residual ("after correction") and, where it was asked for, without it ("before").

    Args:
        after: Of the data.
        before: Of the data fed at t_min as they are.
        labels: Whether the model was given each row's label.
    """

    after: Estimate
    before: Estimate | None = None
    labels: bool = False

    @abstractmethod
    def names(self) -> tuple[str, str]:
        """What it is called in the log, and what the figure before correction is called in a table."""

    def lines(self) -> list[str]:
        """What is given and the figure before correction; that after it stands in the row."""
        given = [f"{self.names()[0].upper()} of each row given its label"] if self.labels else []
        return given + ([] if self.before is None else [f"{self.names()[1]}: {self.before}"])

    def metrics(self) -> dict[str, float]:
        name, _ = self.names()
        return self.after.metrics(name) | ({} if self.before is None else self.before.metrics(f"{name}_before"))


@final
@dataclass(frozen=True, kw_only=True)
class NllResult(LikelihoodResult):
    """NLL by the ODE.

    Args:
        divergence: How it was taken: by Hutchinson probes, or exactly.
    """

    divergence: Divergence = "probes"

    def names(self) -> tuple[str, str]:
        return "nll", "NLL before correction"


@final
@dataclass(frozen=True, kw_only=True)
class NelboResult(LikelihoodResult):
    """The variational bound."""

    def names(self) -> tuple[str, str]:
        return "nelbo", "NELBO without the residual"


@final
@dataclass(frozen=True, kw_only=True)
class GapResult(LikelihoodResult):
    """NELBO - NLL."""

    def names(self) -> tuple[str, str]:
        return "gap", "gap before correction"


@final
@dataclass(frozen=True, kw_only=True)
class PartnerResult(Result):
    """NLL of a bridge's second data set under its flow and prior."""

    nll: Estimate

    def lines(self) -> list[str]:
        return [f"NLL of the second data set under the flow: {self.nll}"]

    def metrics(self) -> dict[str, float]:
        return self.nll.metrics("partner")


@final
@dataclass(frozen=True, kw_only=True)
class DifferenceResult(Result):
    """One run minus another, paired per image on the same draws; its error is the one over images, that of the pairs."""

    first: str
    second: str
    nll: NllResult
    nelbo: NelboResult

    def lines(self) -> list[str]:
        shown = {"NLL": self.nll.after, "NELBO": self.nelbo.after}
        for result in (self.nll, self.nelbo):
            shown |= {} if result.before is None else {result.names()[1]: result.before}
        said = ", ".join(f"{label} {difference.over_images()}" for label, difference in shown.items())
        return [f"{self.first} - {self.second}, paired per image on the same draws: {said}"]

    def metrics(self) -> dict[str, float]:
        return {}


class OnTestImages(Measurement[R]):
    """An estimator on the test images of one model, with the residual and, where it is asked for, without it."""

    def __init__(self, plan: Plan, model: int) -> None:
        self.model, self.labels = model, plan.labelled(model)
        kinds = (True, False) if plan.settings.uncorrected else (True,)
        self.parts = [self.part(plan, model, residual) for residual in kinds]

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i in range(len(plan.subjects))]

    @staticmethod
    @abstractmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        """Its tasks."""

    def tasks(self) -> list[Likelihoods]:
        return [task for part in self.parts for task in part.tasks()]

    def values(self, done: Done) -> list[Tensor]:
        """(replicates, images) after correction and, where there is one, before."""
        return [part.values(done) for part in self.parts]


@final
class Likelihood(OnTestImages[NllResult]):
    """NLL by the ODE."""

    @staticmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        s, exact = plan.settings, _divergence(plan) == "exact"
        estimator = OdeNll(residual=residual, exact=exact, num_probes=s.num_probes, rtol=s.rtol, atol=s.atol)
        return PerImage.of(
            estimator, model, plan.spans("test", s.chunk), s.nll_replicates, s.seed, plan.labelled(model)
        )

    def __init__(self, plan: Plan, model: int) -> None:
        super().__init__(plan, model)
        self.divergence: Divergence = _divergence(plan)

    def reduce(self, done: Done) -> NllResult:
        found = _result(NllResult, map(Estimate.of, self.values(done)))
        return replace(found, divergence=self.divergence, labels=self.labels)


@final
class Nelbo(OnTestImages[NelboResult]):
    """The variational bound."""

    @staticmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        s = plan.settings
        estimator = Bound(residual=residual, num_draws=s.nelbo_draws)
        return PerImage.of(
            estimator, model, plan.spans("test", s.chunk), s.nelbo_replicates, s.seed, plan.labelled(model)
        )

    def reduce(self, done: Done) -> NelboResult:
        return replace(_result(NelboResult, map(Estimate.of, self.values(done))), labels=self.labels)


@final
class Gap(Measurement[GapResult]):
    """NELBO - NLL of one model."""

    def __init__(self, plan: Plan, model: int) -> None:
        self.model, self.nll, self.nelbo = model, Likelihood(plan, model), Nelbo(plan, model)

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i in range(len(plan.subjects))]

    def tasks(self) -> list[Likelihoods]:
        return [*self.nll.tasks(), *self.nelbo.tasks()]

    def reduce(self, done: Done) -> GapResult:
        return _result(GapResult, map(gap, self.nelbo.values(done), self.nll.values(done)))


@final
class PartnerNll(Measurement[PartnerResult]):
    """NLL of a bridge's second data set under its flow and prior."""

    def __init__(self, plan: Plan, model: int) -> None:
        self.model, s = model, plan.settings
        self.part = PerImage.of(FlowNll(), model, plan.spans("partner", s.chunk, model), s.nelbo_replicates, s.seed)

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i, subject in enumerate(plan.subjects) if subject.run.data.partner]

    def tasks(self) -> list[Likelihoods]:
        return self.part.tasks()

    def reduce(self, done: Done) -> PartnerResult:
        return PartnerResult(nll=Estimate.of(self.part.values(done)))


@final
class Differences(Measurement[DifferenceResult]):
    """The first run minus another one, paired per image; of several seeds, the first recipe's run of the other one's seed."""

    def __init__(self, plan: Plan, other: int, first: int = 0) -> None:
        self.names = plan.names[first], plan.names[other]
        self.nlls = Likelihood(plan, first), Likelihood(plan, other)
        self.nelbos = Nelbo(plan, first), Nelbo(plan, other)

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        configs = [subject.run for subject in plan.subjects]
        same = [i for i, config in enumerate(configs) if same_but_seed(config) == same_but_seed(configs[0])]
        of_seed = {configs[i].train.seed: i for i in reversed(same)}
        if len(of_seed) < 2:
            return [cls(plan, j) for j in range(1, len(configs))]
        return [cls(plan, j, of_seed.get(configs[j].train.seed, 0)) for j in range(len(configs)) if j not in same]

    def tasks(self) -> list[Likelihoods]:
        return [task for measurement in (*self.nlls, *self.nelbos) for task in measurement.tasks()]

    def reduce(self, done: Done) -> DifferenceResult:
        def paired(a: OnTestImages[Any], b: OnTestImages[Any]) -> Iterator[Estimate]:
            return map(lambda x, y: Estimate.of(x - y), a.values(done), b.values(done))

        nll, nelbo = _result(NllResult, paired(*self.nlls)), _result(NelboResult, paired(*self.nelbos))
        nll = replace(nll, divergence=self.nlls[0].divergence)
        return DifferenceResult(first=self.names[0], second=self.names[1], nll=nll, nelbo=nelbo)


def _divergence(plan: Plan) -> Divergence:
    """How the NLLs of a plan take it."""
    return "exact" if plan.subjects[0].spec.num_dims <= plan.settings.exact_dims else "probes"


def _result(kind: type[L], figures: Iterable[Estimate]) -> L:
    """The result of one figure or two."""
    after, *before = figures
    return kind(after=after, before=next(iter(before), None))
