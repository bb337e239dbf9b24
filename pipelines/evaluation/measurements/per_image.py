r"""Estimators of likelihoods on test images, as tasks: replicates by chunks of images, as many as it takes.

An estimator is evaluated on every image, in replicates: the same images, fresh dequantisation, times and noise. With
values v_ri of R replicates and n images

    mean = mean_ri v,    se^2 = Var_r(mean_i v_ri)/R,    se_images^2 = Var_i(mean_r v_ri)/n:

`se` is the estimator's error on these very images, `se_images` adds what another test set would change. The draws of a
replicate and a chunk of images are those of its seed alone: models are compared on the same draws, image by image.

**Stopping.** With a wanted standard error, an estimate is looked at after whole replicates, from the fourth on, or,
where there is one replicate, after every four chunks of images, whose order is then drawn by the seed; it ends with the
first look at which its error (`se`, of one replicate `se_images`) is small enough. Which tasks were done first, and
which were done beyond, does not count. Looking at the error again and again favours moments at which it is estimated
too small: see `docs/likelihoods.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import cast, final

import torch
from torch import Tensor

from indm_core.likelihood import Solver, nelbo, nll
from indm_core.model import Bridge, GenerativeModel
from indm_core.training import step_seed
from pipelines.evaluation.measurement import Bench, Done, Running, Task
from pipelines.evaluation.plan import Span
from pipelines.evaluation.results.estimates import Estimate
from pipelines.evaluation.settings import FIRST_LOOK

__all__ = ["Bound", "Estimator", "FlowNll", "Likelihoods", "OdeNll", "PerImage", "Took"]

CHUNKS = 4
"""Chunks of images from one look at the standard error to the next."""


class Estimator(ABC):
    """-log p of images, of a conditional model given their labels y, nats (b,); a frozen dataclass."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is called where actors' time is shared."""

    @property
    def draws(self) -> int:
        """Of (t, noise) in one evaluation of an image."""
        return 1

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
        rtol, atol, solver, nfe, tolerance: As of `likelihood.nll`.
    """

    residual: bool
    exact: bool
    num_probes: int
    rtol: float
    atol: float
    solver: Solver = "rk45"
    nfe: int = 0
    tolerance: float = 3e-2

    @property
    def kind(self) -> str:
        return "NLL" if self.residual else "NLL before correction"

    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor:
        return nll(
            model,
            x,
            residual=self.residual,
            exact_divergence=self.exact,
            num_probes=self.num_probes,
            rtol=self.rtol,
            atol=self.atol,
            solver=self.solver,
            nfe=self.nfe,
            tolerance=self.tolerance,
            generator=generator,
            y=y,
        )


@final
@dataclass(frozen=True, kw_only=True)
class Bound(Estimator):
    """The variational bound (`likelihood.nelbo`)."""

    residual: bool
    num_draws: int

    @property
    def kind(self) -> str:
        return "NELBO" if self.residual else "NELBO without the residual"

    @property
    def draws(self) -> int:
        return self.num_draws

    def __call__(
        self, model: GenerativeModel, x: Tensor, generator: torch.Generator, y: Tensor | None = None
    ) -> Tensor:
        return nelbo(model, x, residual=self.residual, num_draws=self.num_draws, generator=generator, y=y)


@final
@dataclass(frozen=True, kw_only=True)
class FlowNll(Estimator):
    """Of a bridge's second data set under its flow and prior. Only runs with a partner have one, and these are bridges."""

    @property
    def kind(self) -> str:
        return "NLL of the flow"

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

    @property
    def kind(self) -> str:
        return self.estimator.kind

    def needs(self) -> tuple[Span, ...]:
        return (self.images,) if self.labels is None else (self.images, self.labels)

    def run(self, bench: Bench) -> Tensor:
        model, spec = bench.model(self.model)
        x = spec.to_model(bench.rows(self.images), torch.Generator().manual_seed(self.seed))
        generator = torch.Generator(bench.device).manual_seed(step_seed(self.seed, 1, 0))
        y = None if self.labels is None else bench.rows(self.labels).to(bench.device)
        return spec.in_unit(self.estimator(model, x.to(bench.device), generator, y).cpu())


@final
@dataclass(frozen=True, kw_only=True)
class Took:
    """How far an estimate was taken that was to stop when it is precise enough.

    Args:
        until_se: The standard error at which it stops.
        se: That at which it did.
        replicates, images: What it took.
        draws: Of (t, noise) in a replicate of an image.
        most_replicates, most_images: What it would have taken at most.
    """

    until_se: float
    se: float
    replicates: int
    images: int
    draws: int
    most_replicates: int
    most_images: int

    def __str__(self) -> str:
        draws = f" ({self.replicates * self.draws:,} draws)" if self.draws > 1 else ""
        size = (
            f"{self.replicates} of {self.most_replicates} replicates{draws}"
            if self.most_replicates > 1
            else f"{self.images:,} of {self.most_images:,} images{draws}"
        )
        if self.se <= self.until_se:
            return f"{size} were enough for a standard error of {self.se:.2g} <= {self.until_se:g}"
        more = "replicates" if self.most_replicates > 1 else "images"
        return f"{size}: a standard error of {self.se:.2g} > {self.until_se:g}, not precise enough; allow more {more}"


@final
@dataclass(frozen=True)
class PerImage:
    """The tasks of an estimator on all images, by replicate.

    Args:
        replicates: Of each its tasks, chunks of images in their order.
        until_se: The standard error, in the unit of the data, at which it is precise enough; 0: all of it is done.
    """

    replicates: Sequence[Sequence[Likelihoods]]
    until_se: float = 0.0

    @staticmethod
    def of(
        estimator: Estimator,
        model: int,
        spans: Sequence[Span],
        replicates: int,
        seed: int,
        labelled: bool = False,
        until_se: float = 0.0,
    ) -> PerImage:
        def task(r: int, images: Span) -> Likelihoods:
            labels = replace(images, of="test labels") if labelled else None
            of_images = {"images": images, "seed": step_seed(seed, r, images.first), "labels": labels}
            return Likelihoods(estimator=estimator, model=model, **of_images)

        return PerImage([[task(r, images) for images in spans] for r in range(replicates)], until_se)

    @property
    def estimator(self) -> Estimator:
        return self.replicates[0][0].estimator

    @property
    def num_images(self) -> int:
        return sum(task.images.stop - task.images.first for task in self.replicates[0])

    def tasks(self) -> list[Likelihoods]:
        return [task for replicate in self.replicates for task in replicate]

    def values(self, done: Done) -> Tensor:
        """(replicates, images), float64."""
        return torch.stack([torch.cat([task.of(done) for task in r]) for r in self.replicates]).double()

    def precise(self, done: Done) -> PerImage:
        """Its shortest beginning whose standard error is small enough; all of it where there is none, or none yet.

        Beginnings are looked at in a fixed order: whole replicates, from the `FIRST_LOOK`th on; of a single replicate every
        `CHUNKS` chunks of images. Whatever else is done does not count, so that the result follows from the seed alone.
        """
        there = self._beginning(done)
        if not self.until_se or there is None:
            return self
        values = there.values(done)
        if len(self.replicates) > 1:
            for r in range(FIRST_LOOK, len(values) + 1):
                if Estimate.of(values[:r]).error <= self.until_se:
                    return replace(self, replicates=self.replicates[:r])
            return self
        for c in range(CHUNKS, len(there.replicates[0]) + 1, CHUNKS):
            part = replace(self, replicates=[self.replicates[0][:c]])
            if Estimate.of(values[:, : part.num_images]).error <= self.until_se:
                return part
        return self

    def took(self, done: Done) -> Took:
        """How far it was taken, when what is wanted of it is done."""
        part = self.precise(done)
        return Took(
            until_se=self.until_se,
            se=Estimate.of(part.values(done)).error,
            replicates=len(part.replicates),
            images=part.num_images,
            draws=self.estimator.draws,
            most_replicates=len(self.replicates),
            most_images=self.num_images,
        )

    def running(self, done: Done, name: str, label: str) -> list[Running]:
        """Its estimate from whole replicates, before there are two from the images seen; its error is that over images until
        there are `FIRST_LOOK`, because the spread of fewer says little."""
        there = self.precise(done)._beginning(done)
        if there is not None and len(there.replicates) > 1:
            values = there.values(done)
        else:
            seen = [task.of(done) for task in self.replicates[0] if task in done]
            values = torch.cat(seen).double().unsqueeze(0) if seen else torch.zeros(1, 0)
        if values.shape[1] < 2:
            return []
        found, count = Estimate.of(values), values.numel()
        se = found.error if len(values) >= FIRST_LOOK else found.se_images
        return [Running(name=name, label=label, value=found.mean, se=se, count=count, of="images")]

    def _beginning(self, done: Done) -> PerImage | None:
        """Its longest beginning that is done: whole replicates, or chunks of a single one; None where there is none."""
        if len(self.replicates) > 1:
            whole = takewhile(lambda tasks: all(task in done for task in tasks), self.replicates)
            found = list(whole)
        else:
            found = [tasks for tasks in [list(takewhile(lambda task: task in done, self.replicates[0]))] if tasks]
        return replace(self, replicates=found) if found else None
