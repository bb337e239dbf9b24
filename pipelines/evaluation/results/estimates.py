"""Figures with their standard errors; nan stands for what could not be had."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from indm_core.metrics import Moments, fewest_samples, frechet_from_samples, frechet_infinity

__all__ = [
    "FEWEST",
    "FEWEST_OF_SCORE",
    "Estimate",
    "FrechetResult",
    "ReferenceFeatures",
    "frechet",
    "gap",
    "with_error",
]

FEWEST = 3
"""Samples of a Frechet distance that has a standard error."""
FEWEST_OF_SCORE = 20
"""Samples of an Inception Score: two in each of ten parts."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, its estimator's standard error on these images (nan for one replicate), and the one over images."""

    mean: float
    se: float = math.nan
    se_images: float = math.nan

    @staticmethod
    def of(per_image: Tensor) -> Estimate:
        """From values (replicates, images)."""
        replicates, images = per_image.shape
        means = per_image.mean(1)
        se = float(means.std() / math.sqrt(replicates)) if replicates > 1 else math.nan
        over = float(per_image.mean(0).std() / math.sqrt(images)) if images > 1 else math.nan
        return Estimate(mean=float(means.mean()), se=se, se_images=over)

    @property
    def error(self) -> float:
        """The estimator's standard error; the one over images where one replicate gives none."""
        return self.se_images if math.isnan(self.se) else self.se

    def over_images(self) -> Estimate:
        """With the error over images as its error."""
        return replace(self, se=self.se_images)

    def metrics(self, name: str) -> dict[str, float]:
        """Its numbers as they are logged; NAME_se is the error that is printed beside it."""
        return {name: self.mean, f"{name}_se": self.error, f"{name}_se_images": self.se_images}

    def __str__(self) -> str:
        return with_error(self.mean, self.error, "+.4f", ".4f")


def gap(nelbos: Tensor, nlls: Tensor) -> Estimate:
    """NELBO - NLL; its standard error takes the two estimators as independent, which errs on the large side."""
    over_images = Estimate.of((nelbos.mean(0) - nlls.mean(0)).unsqueeze(0))
    se = math.hypot(Estimate.of(nelbos).se, Estimate.of(nlls).se)
    return Estimate(mean=over_images.mean, se=se, se_images=over_images.se_images)


@dataclass(frozen=True, kw_only=True)
class FrechetResult:
    """A Frechet distance with its standard error.

    Args:
        value, se: With the moments of n samples put in, which makes it too large by O(d^2/n).
        n: Samples.
        at_infinity, at_infinity_se: As if n were infinite; nan where n samples of so many features do not show it.
    """

    value: float
    se: float
    n: int
    at_infinity: float = math.nan
    at_infinity_se: float = math.nan

    @staticmethod
    def nothing(n: int) -> FrechetResult:
        """Of samples whose features are not finite."""
        return FrechetResult(value=math.nan, se=math.nan, n=n)


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """Features (m, d) of the data that samples are compared with.

    Args:
        known: Their moments, where they were computed before.
    """

    features: Tensor
    known: Moments | None = None

    @cached_property
    def moments(self) -> Moments:
        return self.known or Moments().update(self.features)


def frechet(features: Tensor, reference: ReferenceFeatures) -> FrechetResult:
    """The Frechet distance of samples from a reference, and what it would be of infinitely many (`indm_core.frechet`).

    Args:
        features: Of the samples, (n, d).

    Raises:
        ValueError: fewer than three samples, or two rows of the reference.
    """
    for what, rows, fewest in (("samples", features, FEWEST), ("rows of the reference", reference.features, 2)):
        if len(rows) < fewest:
            raise ValueError(
                f"{len(rows)} {what}: a Frechet distance with its error needs at least {fewest}; give more of them"
            )
    mean, cov = reference.moments.mean, reference.moments.cov
    found = frechet_from_samples(features, mean, cov)
    result = FrechetResult(value=found.value, se=found.standard_error, n=len(features))
    if len(features) < fewest_samples(features.shape[1]):
        return result
    limit = frechet_infinity(features, mean, cov)
    return replace(result, at_infinity=limit.value, at_infinity_se=limit.standard_error)


def with_error(value: float, error: float, form: str = ".3f", form_of_error: str = "") -> str:
    """A figure and its standard error as text, in given formats; what could not be had is n/a."""
    if not math.isfinite(value):
        return "n/a"
    shown = format(error, form_of_error or form) if math.isfinite(error) else "n/a"
    return f"{value:{form}} +- {shown}"
