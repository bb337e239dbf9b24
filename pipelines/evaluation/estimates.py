"""Figures with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from indm_core.metrics import Moments, frechet_bootstrap, inception_score, kernel_distance

__all__ = ["Estimate", "differences", "distances", "gap"]


@dataclass(frozen=True)
class Estimate:
    """A mean, its estimator's standard error on these images (nan for one replicate), and the one over images."""

    mean: float
    se: float
    se_images: float

    @staticmethod
    def of(per_image: Tensor) -> Estimate:
        """From values (replicates, images)."""
        replicates, images = per_image.shape
        means = per_image.mean(1)
        se = float(means.std() / math.sqrt(replicates)) if replicates > 1 else math.nan
        over = float(per_image.mean(0).std() / math.sqrt(images)) if images > 1 else math.nan
        return Estimate(float(means.mean()), se, over)


def gap(nelbos: Tensor, nlls: Tensor) -> Estimate:
    """NELBO - NLL; its standard error takes the two estimators as independent, which errs on the large side."""
    over_images = Estimate.of((nelbos.mean(0) - nlls.mean(0)).unsqueeze(0))
    se = math.hypot(Estimate.of(nelbos).se, Estimate.of(nlls).se)
    return Estimate(over_images.mean, se, over_images.se_images)


def differences(names: Sequence[str], per_image: dict[tuple[str, int], Tensor]) -> dict[str, Any]:
    """First run minus each other, paired per image on the same draws; the standard error is that of the pairs."""
    found = {}
    for j in range(1, len(names)):
        pairs = {}
        for kind in ("nll", "nelbo", "nll_before", "nelbo_before"):
            if (kind, 0) not in per_image or (kind, j) not in per_image:
                continue
            pairs[kind] = asdict(Estimate.of(per_image[kind, 0] - per_image[kind, j]))
        found[f"{names[0]} - {names[j]}"] = pairs
    return found


def distances(features: Tensor, logits: Tensor, real: Tensor, seed: int) -> dict[str, Any]:
    """Frechet and kernel distances of samples from the training data, and with Inception its score, with standard errors.

    Args:
        features, logits: Of the samples, (n, d) and (n, classes).
        real: Features of the training data (m, d).
        seed: Of the bootstrap.
    """
    reference = Moments().update(real)
    generator = torch.Generator().manual_seed(seed)
    num = 20 if features.shape[1] > 512 else 100
    frechet = frechet_bootstrap(features, reference.mean, reference.cov, num_resamples=num, generator=generator)
    kid = kernel_distance(features, real, generator=generator)
    found: dict[str, Any] = {
        "frechet": {"mean": float(frechet.value), "se": float(frechet.standard_error), "samples": len(features)},
        "kernel": {"mean": float(kid.mean), "se": float(kid.standard_error), "samples": len(features)},
        "reference_samples": len(real),
    }
    if logits.shape[1] == 1008:  # Inception's classes
        score = inception_score(logits)
        found["inception_score"] = {"mean": float(score.mean), "se": float(score.standard_error)}
    return found
