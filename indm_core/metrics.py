r"""Distances between two sets of samples, from the features that a network makes of them.

A feature network f is the caller's (`pipelines.features`); here a sample is a row f(x) of a matrix (n, d). With a for
the generated samples and b for the data,

    Frechet distance   |m_a - m_b|^2 + tr(C_a + C_b) - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2,
    kernel distance    MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b),    k(x, y) = (gamma x.y + c)^3,
    Inception Score    exp E_x KL(p(y|x) || p(y)),

m the mean and C the covariance of the features. The first is `indm_core.frechet`'s, given here under the same names.

What is biased, and in which direction:

    Frechet distance   of the moments of n samples (`frechet_from_samples`): too large, by O(d^2/n) times a number that
                       depends on the law of a: compare values at equal n, never across different n. At infinite n
                       (`frechet_infinity`): unbiased but for O(1/n^2).
    kernel distance    unbiased at every n; hence slightly negative at times.
    Inception Score    too small (the entropy of an estimated p(y) is): compare at equal n / splits.

References:
    Heusel et al. 2017, "GANs trained by a two time-scale update rule", Eq. 6 (the Frechet distance).
    Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them" (infinite n).
    Binkowski et al. 2018, "Demystifying MMD GANs", Eq. 4 and section 4 (kernel distance; bias of the Frechet distance).
    Salimans et al. 2016, "Improved techniques for training GANs", section 4 (the Inception Score).
    Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", Eq. 2.1 (pairwise update of moments).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.frechet import (
    FrechetDistance,
    as_samples,
    fewest_samples,
    frechet_distance,
    frechet_from_samples,
    frechet_infinity,
)
from indm_core.ranges import check_not_negative, check_positive
from indm_core.shapes import Float

__all__ = [
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "fewest_samples",
    "frechet_distance",
    "frechet_from_samples",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
]


@final
class Moments:
    """Mean and covariance of a stream of features, in float64.

    A batch (n_b, m_b, S_b), S the scatter matrix sum (x - m)(x - m)^T, joins by

        m <- m + n_b/(n + n_b) delta,    S <- S + S_b + n n_b/(n + n_b) delta delta^T,    delta = m_b - m,

    so that no large numbers are subtracted, and shards merge to the moments of the whole, in any order, to rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    @staticmethod
    def known(count: int, mean: Float[Tensor, " d"], cov: Float[Tensor, "d d"]) -> Moments:
        """The moments of samples that are not at hand any more.

        Args:
            count: Of the samples, n >= 2.
            mean, cov: As of the properties.
        """
        return Moments()._join(count, mean.double(), cov.double() * (count - 1), "mean")

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Sample mean. Raises: ValueError before the first sample."""
        if self.count < 1:
            raise ValueError("count=0: a mean needs at least 1 sample")
        return self._mean

    @property
    def cov(self) -> Float[Tensor, "d d"]:
        """Sample covariance with divisor n - 1: unbiased. Raises: ValueError before the second sample."""
        if self.count < 2:
            raise ValueError(f"count={self.count}: a covariance needs at least 2 samples")
        return self._scatter / (self.count - 1)

    def update(self, features: Float[Tensor, "*_"]) -> Moments:
        """Take in a batch.

        Args:
            features: One sample per row (n, d), n >= 0; the first batch fixes d and the device.

        Returns: This object.

        Raises: ValueError for values that are not finite (naming the row) and for another d.
        """
        features = as_samples("features", features, at_least=0)
        if len(features) == 0:
            return self
        mean = features.mean(dim=0)
        centred = features - mean
        return self._join(len(features), mean, centred.T @ centred, "features")

    def merge(self, other: Moments) -> Moments:
        """Take in the moments of other samples; `other` stays as it is.

        Returns: This object.

        Raises: ValueError if `other` has another d.
        """
        if other.count == 0:
            return self
        return self._join(other.count, other._mean, other._scatter, "other")

    def _join(self, count: int, mean: Tensor, scatter: Tensor, argument: str) -> Moments:
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return self
        if mean.shape != self._mean.shape:
            raise ValueError(f"{argument}: {len(mean)} features a sample, but those so far have {len(self._mean)}")
        total = self.count + count
        delta = mean.to(self._mean) - self._mean
        self._mean = self._mean + delta * (count / total)
        self._scatter = self._scatter + scatter.to(delta) + torch.outer(delta, delta) * (self.count * count / total)
        self.count = total
        return self


@final
@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """An unbiased estimate of MMD^2 and its standard error; `subset_size` is what was used after clipping."""

    mean: float
    standard_error: float
    subset_size: int


def kernel_distance(
    features_a: Float[Tensor, "*_"],
    features_b: Float[Tensor, "*_"],
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    num_subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    r"""Squared maximum mean discrepancy with the kernel k(x, y) = (gamma x.y + coef0)^degree, in float64: unbiased.

    On m samples of either set

        MMD^2 = sum_{i!=j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2,

    and the mean over `num_subsets` subsets, drawn without replacement, is the published estimator (KID for Inception-v3
    features). Subsets of the same samples are not independent: their spread / sqrt(num_subsets) leaves out the sampling
    error of the two sets themselves. Here

        standard_error^2 = V_a [m/n_a + (1 - m/n_a) / num_subsets] + V_b [m/n_b + (1 - m/n_b) / num_subsets],
        V_a = Var_i g(x_i) / m,   g(x_i) = 2 [mean_{j!=i} k(x_i, x_j) - mean_j k(x_i, y_j)],

    V the delta method for m samples, its first share what more subsets cannot reduce: exact to first order where the
    laws differ, and too large (sqrt 2 times or more) where they agree.

    Args:
        features_a, features_b: One sample per row, (n_a, d) and (n_b, d), at least 2 each.
        degree, coef0: Of the kernel: a whole number from 1, and a number from 0, without which it is none.
        gamma: Of the kernel, positive; None is 1/d.
        num_subsets: How many subsets; where the subset is both whole sets it is evaluated once.
        subset_size: m, clipped to the smaller of n_a and n_b.
        generator: Draws the subsets.

    Raises: ValueError for fewer than 2 samples, mismatched d, values that are not finite, an argument out of its range,
        num_subsets < 1 and subset_size < 2.

    References: Gretton et al. 2012, Lemma 6; Binkowski et al. 2018, Eq. 4.
    """
    a = as_samples("features_a", features_a, at_least=2)
    b = as_samples("features_b", features_b, at_least=2).to(a.device)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features_b: {b.shape[1]} features a sample, but features_a has {a.shape[1]}")
    if not isinstance(degree, int) or degree < 1:
        raise ValueError(f"degree={degree} must be a whole number, at least 1")
    check_not_negative(coef0=coef0)
    gamma = 1 / a.shape[1] if gamma is None else gamma
    check_positive(gamma=gamma)
    if num_subsets < 1:
        raise ValueError(f"num_subsets={num_subsets}: at least 1 is needed")
    if subset_size < 2:
        raise ValueError(f"subset_size={subset_size}: at least 2 is needed")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        num_subsets = 1

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (gamma * (x @ y.T) + coef0).pow(degree)

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum(dim=1) - k.diagonal()) / (size - 1)

    def share(num: int) -> float:
        return size / num + (1 - size / num) / num_subsets

    estimates, variances = [], []
    for _ in range(num_subsets):
        x = a[_choice(len(a), size, generator).to(a.device)]
        y = b[_choice(len(b), size, generator).to(a.device)]
        k_xy = kernel(x, y)
        g_x, g_y = within(x) - k_xy.mean(dim=1), within(y) - k_xy.mean(dim=0)
        estimates.append(g_x.mean() + g_y.mean())
        variances.append(4 / size * (share(len(a)) * g_x.var() + share(len(b)) * g_y.var()))
    mean, variance = torch.stack(estimates).mean(), torch.stack(variances).mean()
    return KernelDistance(mean=float(mean), standard_error=float(variance.sqrt()), subset_size=size)


@final
@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean over the splits and the standard error of that mean; papers print +- sqrt(splits) times the latter."""

    mean: float
    standard_error: float
    num_samples: int


def inception_score(logits: Float[Tensor, "*_"], *, splits: int = 10) -> InceptionScore:
    r"""exp of the mean KL(p(y|x) || p(y)) over each split of the samples, averaged over the splits.

    Between 1 and the number of classes. p(y) is estimated on n/splits samples, which makes the score too small. Split i
    takes the samples i, i + splits, ..., so that samples ordered by class do no harm.

    Args:
        logits: (n, classes), n >= 2 splits; p(y|x) is their softmax (of probabilities give the logarithm).
        splits: At least 2, for the standard error.

    Raises: ValueError for fewer than 2 samples a split and for values that are not finite.
    """
    if splits < 2:
        raise ValueError(f"splits={splits}: a standard error needs at least 2")
    log_p = as_samples("logits", logits, at_least=2 * splits).log_softmax(dim=1)
    scores = []
    for i in range(splits):
        part = log_p[i::splits]
        log_q = part.logsumexp(dim=0) - torch.tensor(len(part)).to(part).log()
        scores.append((part.exp() * (part - log_q)).sum(dim=1).mean().exp())
    score = torch.stack(scores)
    return InceptionScore(
        mean=float(score.mean()), standard_error=float(score.std() / splits**0.5), num_samples=len(log_p)
    )


def _choice(num: int, size: int, generator: torch.Generator | None) -> Tensor:
    """`size` indices below `num`, without replacement, on the generator's device."""
    device = "cpu" if generator is None else generator.device
    return torch.randperm(num, generator=generator, device=device)[:size]
