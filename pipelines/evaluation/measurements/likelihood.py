"""Likelihoods of test images: NLL by the ODE, NELBO, their gap, the NLL of a bridge's second data set, and paired
differences, by estimators that are evaluated on every image (`per_image`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar, final

from torch import Tensor

from pipelines.config.run import same_but_seed
from pipelines.evaluation.measurement import Done, Measurement, Result, Running
from pipelines.evaluation.measurements.per_image import Bound, FlowNll, Likelihoods, OdeNll, PerImage, Took
from pipelines.evaluation.plan import Plan
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


@dataclass(frozen=True, kw_only=True)
class LikelihoodResult(Result):
    """A figure with the residual ("after correction") and, where it was asked for, without it ("before").

    Args:
        after: Of the data.
        before: Of the data fed at t_min as they are.
        labels: Whether the model was given each row's label.
        took: How far either was taken, where they were to stop when they are precise enough.
    """

    after: Estimate
    before: Estimate | None = None
    labels: bool = False
    took: tuple[Took, ...] = ()

    @abstractmethod
    def names(self) -> tuple[str, str]:
        """What it is called in the log, and what the figure before correction is called in a table."""

    def lines(self) -> list[str]:
        """What is given and the figure before correction; that after it stands in the row."""
        given = [f"{self.names()[0].upper()} of each row given its label"] if self.labels else []
        shown = given + ([] if self.before is None else [f"{self.names()[1]}: {self.before}"])
        return shown + [f"{name}: {took}" for name, took in zip(self._titles(), self.took, strict=False)]

    def _titles(self) -> tuple[str, str]:
        name, before = self.names()
        return name.upper(), before

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
    took: Took | None = None

    def lines(self) -> list[str]:
        stopped = f" ({self.took})" if self.took else ""
        return [f"NLL of the second data set under the flow: {self.nll}{stopped}"]

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
        self.name = self.parts[0].estimator.kind

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i in range(len(plan.subjects))]

    @staticmethod
    @abstractmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        """Its tasks."""

    def tasks(self) -> list[Likelihoods]:
        return [task for part in self.parts for task in part.tasks()]

    def wanted(self, done: Done) -> list[Likelihoods]:
        return [task for part in self.parts for task in part.precise(done).tasks()]

    def running(self, done: Done) -> Sequence[Running]:
        """Of the figure after correction."""
        return self.parts[0].running(done, self.name.lower(), self.name)

    def values(self, done: Done) -> list[Tensor]:
        """(replicates, images) after correction and, where there is one, before; as many as are precise enough."""
        return [part.precise(done).values(done) for part in self.parts]

    def took(self, done: Done) -> tuple[Took, ...]:
        """How far they were taken, where they may stop."""
        return tuple(part.took(done) for part in self.parts if part.until_se)


@final
class Likelihood(OnTestImages[NllResult]):
    """NLL by the ODE."""

    @staticmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        s, exact = plan.settings, _divergence(plan) == "exact"
        estimator = OdeNll(
            residual=residual,
            exact=exact,
            num_probes=s.num_probes,
            rtol=s.rtol,
            atol=s.atol,
            solver=s.nll_solver,
            nfe=s.nll_nfe,
            tolerance=s.nll_tolerance,
        )
        spans, labelled = plan.spans("test", s.chunk), plan.labelled(model)
        return PerImage.of(estimator, model, spans, s.nll_replicates, s.seed, labelled, s.stops_nll)

    def __init__(self, plan: Plan, model: int) -> None:
        super().__init__(plan, model)
        self.divergence: Divergence = _divergence(plan)

    def reduce(self, done: Done) -> NllResult:
        found = _result(NllResult, map(Estimate.of, self.values(done)))
        return replace(found, divergence=self.divergence, labels=self.labels, took=self.took(done))


@final
class Nelbo(OnTestImages[NelboResult]):
    """The variational bound."""

    @staticmethod
    def part(plan: Plan, model: int, residual: bool) -> PerImage:
        s = plan.settings
        estimator = Bound(residual=residual, num_draws=s.nelbo_draws)
        spans, labelled = plan.spans("test", s.chunk), plan.labelled(model)
        return PerImage.of(estimator, model, spans, s.nelbo_replicates, s.seed, labelled, s.stops_nelbo)

    def reduce(self, done: Done) -> NelboResult:
        found = _result(NelboResult, map(Estimate.of, self.values(done)))
        return replace(found, labels=self.labels, took=self.took(done))


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

    def wanted(self, done: Done) -> list[Likelihoods]:
        return [*self.nll.wanted(done), *self.nelbo.wanted(done)]

    def reduce(self, done: Done) -> GapResult:
        both = zip(self.nelbo.values(done), self.nll.values(done), strict=True)
        return _result(GapResult, (gap(*_on_same_images(nelbos, nlls)) for nelbos, nlls in both))


@final
class PartnerNll(Measurement[PartnerResult]):
    """NLL of a bridge's second data set under its flow and prior."""

    def __init__(self, plan: Plan, model: int) -> None:
        self.model, s = model, plan.settings
        spans = plan.spans("partner", s.chunk, model)
        self.part = PerImage.of(FlowNll(), model, spans, s.nelbo_replicates, s.seed, False, s.stops_nelbo)

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan, i) for i, subject in enumerate(plan.subjects) if subject.run.data.partner]

    def tasks(self) -> list[Likelihoods]:
        return self.part.tasks()

    def wanted(self, done: Done) -> list[Likelihoods]:
        return self.part.precise(done).tasks()

    def running(self, done: Done) -> Sequence[Running]:
        return self.part.running(done, "partner", "NLL of the second data set")

    def reduce(self, done: Done) -> PartnerResult:
        took = self.part.took(done) if self.part.until_se else None
        return PartnerResult(nll=Estimate.of(self.part.precise(done).values(done)), took=took)


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

    def wanted(self, done: Done) -> list[Likelihoods]:
        return [task for measurement in (*self.nlls, *self.nelbos) for task in measurement.wanted(done)]

    def reduce(self, done: Done) -> DifferenceResult:
        def paired(a: OnTestImages[Any], b: OnTestImages[Any]) -> Iterator[Estimate]:
            for both in zip(a.values(done), b.values(done), strict=True):
                x, y = _on_same_images(*both)
                num = min(len(x), len(y))
                yield Estimate.of(x[:num] - y[:num])

        nll, nelbo = _result(NllResult, paired(*self.nlls)), _result(NelboResult, paired(*self.nelbos))
        nll = replace(nll, divergence=self.nlls[0].divergence)
        return DifferenceResult(first=self.names[0], second=self.names[1], nll=nll, nelbo=nelbo)


def _divergence(plan: Plan) -> Divergence:
    """How the NLLs of a plan take it."""
    return "exact" if plan.subjects[0].spec.num_dims <= plan.settings.exact_dims else "probes"


def _on_same_images(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Values (replicates, images) on the images that both have: the first ones, where one has stopped before the other."""
    num = min(a.shape[1], b.shape[1])
    return a[:, :num], b[:, :num]


def _result(kind: type[L], figures: Iterable[Estimate]) -> L:
    """The result of one figure or two."""
    after, *before = figures
    return kind(after=after, before=next(iter(before), None))
