"""The work of an actor that measures models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ray
import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.likelihood import dequantise, nelbo, nll, quantise
from indm_core.model import Bridge, GenerativeModel
from indm_core.training import load_networks, step_seed
from pipelines.config.run import RunConfig
from pipelines.config.sampling import Sampling
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features import FeatureNetwork
from pipelines.evaluation.sampling import Drawn, draw_by
from pipelines.evaluation.settings import Settings

__all__ = ["Evaluator", "SampleBatch", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A trained model, as it travels through the object store."""

    run: RunConfig
    spec: DataSpec
    tensors: dict[str, Tensor]

    def build(self) -> GenerativeModel:
        model = self.run.model.build(self.spec)
        load_networks(model, self.tensors)
        return model.eval()


class SampleBatch(NamedTuple):
    """A batch of samples: features, logits, the samples (levels, or vectors), score evaluations of each, seconds, and how many
    samples diverged: not finite, or further outside the data's range than it is wide, ten times over."""

    features: Tensor
    logits: Tensor
    shown: Tensor
    evaluations: float
    seconds: float
    diverged: int


class Evaluator:
    """An actor's work: it builds each model and the feature network once.

    Args:
        subjects: References to the models.
        features: Makes the feature network.
        threads: Of torch.
        device: That the models compute on; draws are made there, and so differ between kinds of device.
    """

    def __init__(
        self, subjects: list[ray.ObjectRef], features: Callable[[], FeatureNetwork], threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self.subjects, self.make_features, self.device = subjects, features, device
        self.models: dict[int, tuple[GenerativeModel, DataSpec]] = {}
        self.features: FeatureNetwork | None = None

    def likelihood(self, kind: str, model: int, k: Tensor, seed: int, settings: Settings) -> Tensor:
        """What `KINDS` says of a chunk of levels, bits/dim or nats/dim per image (b,); the draws depend on the seed alone."""
        subject, spec = self._model(model)
        x = dequantise(k, spec.levels, spec.low, spec.high, torch.Generator().manual_seed(seed)).to(self.device)
        generator = torch.Generator(self.device).manual_seed(step_seed(seed, 1, 0))
        residual = not kind.endswith("_before")
        if kind == "partner":
            assert isinstance(subject, Bridge)
            with torch.no_grad():
                nats = subject.partner_nll(x, generator)
        elif kind.startswith("nll"):
            s = settings
            exact = {"num_probes": s.num_probes, "rtol": s.rtol, "atol": s.atol}
            nats = nll(subject, x, residual=residual, generator=generator, **exact)
        else:
            nats = nelbo(subject, x, residual=residual, num_draws=settings.nelbo_draws, generator=generator)
        return spec.in_unit(nats.cpu())

    def sample(self, model: int, seeds: list[int], sampling: Sampling) -> SampleBatch:
        """The samples of the given seeds and their features."""
        subject, spec = self._model(model)
        began = time.monotonic()
        try:
            drawn = draw_by(subject, seeds, sampling, self.device)
        except ConvergenceError:  # one sampler that fails does not cost the table
            drawn = Drawn(torch.full((len(seeds), *spec.shape), math.nan), math.nan)
        x, seconds = drawn.x.cpu(), time.monotonic() - began
        far = 10 * (spec.high - spec.low) if spec.levels else math.inf
        lost = ~x.flatten(1).isfinite() | (x.flatten(1) - spec.low).abs().gt(far)
        x = x.nan_to_num(nan=spec.low, posinf=spec.high, neginf=spec.low)
        shown = quantise(x, spec.levels, spec.low, spec.high) if spec.levels else x
        features, logits = self._features(shown)
        shown = shown.to(torch.int32) if spec.levels else shown
        return SampleBatch(features, logits, shown, drawn.evaluations, seconds, int(lost.any(1).sum()))

    def reference(self, k: Tensor) -> Tensor:
        """Features of data."""
        return self._features(k)[0]

    def _features(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        self.features = self.features or self.make_features()
        with torch.no_grad():
            return self.features.evaluate(shown)

    def _model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        if index not in self.models:
            subject: Subject = ray.get(self.subjects[index])
            self.models[index] = (subject.build().to(self.device), subject.spec)
        return self.models[index]
