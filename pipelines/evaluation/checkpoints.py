"""Checkpoints of a training measured one after the other, in this process: without Ray, and without a pool of actors.

The measurements are those of `evaluate`, on one model, and each checkpoint of a run is measured on the same draws. What
belongs to the data alone, the features of the training rows and the network that gives them, is made once for all
checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.model import GenerativeModel
from pipelines.config.store import check_data
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features.networks import FeatureNetwork
from pipelines.evaluation.measurement import Done, Measurement, Task
from pipelines.evaluation.measurements.distances import Distances
from pipelines.evaluation.measurements.likelihood import Likelihood, Nelbo
from pipelines.evaluation.plan import Plan, Span
from pipelines.evaluation.settings import Settings
from pipelines.storage.along import Figure, Measured
from pipelines.storage.checkpoint import digest_of

__all__ = ["CheckpointMeasurer"]


@final
class CheckpointMeasurer:
    """Measures checkpoints of trainings on the same data.

    Args:
        settings: How.
        root: Output directory, where prepared data and classifiers are kept.
        device: That the models compute on.
    """

    def __init__(self, settings: Settings, root: Path, device: str) -> None:
        self.settings, self.root, self.device = settings, root, device
        self.features: FeatureNetwork | None = None
        self.of_data: dict[Task[Any], Any] = {}

    def measure(self, run: Path, step: int) -> Measured:
        """NLL, NELBO and Frechet distance of the averaged weights of a checkpoint. What does not converge, or is not finite, is
        left out.

        Raises:
            ValueError: the checkpoint is gone, is not what was written, or is of other data.
        """
        began = time.monotonic()
        weights = Weights(run=run, step=step)
        digest = digest_of(weights.checkpoint)
        plan = Plan.of([weights], self.settings, self.root)
        if digest_of(weights.checkpoint) != digest:
            raise ValueError(f"{weights.checkpoint}: another checkpoint took its place while it was read")
        check_data(weights, plan.card)
        bench = _OneModel(plan, self.device, partial(self._seen, plan))
        figures: dict[str, Figure] = {}
        for name, take in self._figures(plan, bench):
            try:
                figures[name] = take()
            except ConvergenceError:
                continue
        return Measured(
            step=step,
            checkpoint=digest,
            figures=figures,
            unit=plan.subjects[0].spec.unit,
            images=len(plan.test),
            samples=self.settings.samples,
            seconds=time.monotonic() - began,
        )

    def _figures(self, plan: Plan, bench: _OneModel) -> Iterator[tuple[str, Callable[[], Figure]]]:
        """What takes each figure of `storage.along`, by name."""

        def likelihood(kind: type[Likelihood] | type[Nelbo]) -> Figure:
            measurement = kind(plan, 0)
            found = measurement.reduce(self._done(measurement, bench)).after
            return Figure(value=found.mean, se=found.error)

        def distance() -> Figure:
            measurement = Distances(plan, 0)
            found = measurement.reduce(self._done(measurement, bench)).distances.frechet
            return Figure(value=found.value, se=found.se)

        yield "nll", lambda: likelihood(Likelihood)
        yield "nelbo", lambda: likelihood(Nelbo)
        if self.settings.samples:
            yield "fd", distance

    def _done(self, measurement: Measurement[Any], bench: _OneModel) -> Done:
        done: dict[Task[Any], Any] = {}
        for task in measurement.tasks():
            if task.model is not None:
                done[task] = task.run(bench)
                continue
            if task not in self.of_data:
                self.of_data[task] = task.run(bench)
            done[task] = self.of_data[task]
        return done

    def _seen(self, plan: Plan, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of samples and of rows."""
        self.features = self.features or plan.extractor.make()
        with torch.no_grad():
            return self.features.evaluate(values)


@final
class _OneModel:
    """The bench (`measurement.Bench`) of a plan with one model.

    Args:
        features: Gives features and logits of levels or vectors.
    """

    def __init__(self, plan: Plan, device: str, features: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        (subject,) = plan.subjects
        self.plan, self.device, self.features = plan, device, features
        self.built = subject.build().to(device), subject.spec

    def model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        return self.built

    def rows(self, span: Span) -> Tensor:
        return self.plan.rows(span).clone()

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(values)
