r"""Distances between two sets of samples, from the features that a network makes of them.

A feature network f is the caller's (`pipelines.features`); here a sample is a row f(x) of a matrix (n, d). With a for
the generated samples and b for the data,

    Frechet distance   |m_a - m_b|^2 + tr(C_a + C_b) - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2,
    kernel distance    MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b),    k(x, y) = (gamma x.y + c)^3,
    Inception Score    exp E_x KL(p(y|x) || p(y)),

m the mean and C the covariance of the features. The Frechet distance is the squared 2-Wasserstein distance of
N(m_a, C_a) and N(m_b, C_b). With any factors C_a = A A^T, C_b = B B^T its last term is a nuclear norm,

    tr (C_a^1/2 C_b C_a^1/2)^1/2 = |A^T B|_* = sum of the singular values of A^T B,

which is what is computed: real by construction, and exact to rounding for singular C, where the square roots of
rounding errors in the eigenvalues of C_a C_b would cost half of the digits.

What is biased, and in which direction:

    Frechet distance   with the moments of n samples put in for a it is too large, by O(1/n) times a number that depends
                       on the law of a: compare values at equal n, never across different n.
    kernel distance    unbiased at every n; hence slightly negative at times.
    Inception Score    too small (the entropy of an estimated p(y) is): compare at equal n / splits.

References:
    Heusel et al. 2017, "GANs trained by a two time-scale update rule", Eq. 6 (the Frechet distance).
    Binkowski et al. 2018, "Demystifying MMD GANs", Eq. 4 and section 4 (kernel distance; bias of the Frechet distance).
    Salimans et al. 2016, "Improved techniques for training GANs", section 4 (the Inception Score).
    Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", Eq. 2.1 (pairwise update of moments).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = [
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "frechet_bootstrap",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
]

# A covariance may be this far from symmetric and from non-negative, relative to its largest entry or eigenvalue: what
# float32 statistics of other programs show. Anything beyond is a mistake of the caller.
_TOLERANCE = 1e-5


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
        features = _as_samples("features", features, at_least=0)
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

    def to_dict(self) -> dict[str, Tensor]:
        """The state as plain tensors: what is sent between workers or kept in a safetensors file."""
        return {"count": torch.tensor(self.count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_dict(cls, state: Mapping[str, Tensor]) -> Moments:
        """The moments that `to_dict` wrote down."""
        moments = cls()
        moments.count = int(state["count"])
        moments._mean, moments._scatter = state["mean"], state["scatter"]
        return moments


def frechet_distance(
    mean_a: Float[Tensor, "*_"],
    cov_a: Float[Tensor, "*_"],
    mean_b: Float[Tensor, "*_"],
    cov_b: Float[Tensor, "*_"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance of two Gaussian laws, in float64.

        |m_a - m_b|^2 + tr C_a + tr C_b - 2 |C_a^1/2 C_b^1/2|_*

    Symmetric in a and b. Covariances may be singular: eigenvalues below d * 2.2e-16 of the largest are rounding errors
    and count as 0. The distance of equal laws comes out as +-1e-15 of the traces; a negative value is returned as 0.

    Args:
        mean_a, mean_b: Means (d,).
        cov_a, cov_b: Covariances (d, d).

    Returns: The distance, in units of the features squared; the published FID for the Inception-v3 pool features.

    Raises: ValueError for mismatched sizes, values that are not finite, a covariance that is not symmetric or has a
        negative eigenvalue.

    References: Dowson and Landau 1982, Eq. 16; Heusel et al. 2017, Eq. 6.
    """
    mean_a, factor_a = _as_gaussian("a", mean_a, cov_a)
    mean_b, factor_b = _as_gaussian("b", mean_b, cov_b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"mean_b: {len(mean_b)} features, but mean_a has {len(mean_a)}")
    return _distance(mean_a, factor_a, mean_b, factor_b)


@final
@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """A Frechet distance put in for `num_samples` samples, and the standard error of that number."""

    value: float
    standard_error: float
    num_samples: int


def frechet_bootstrap(
    features: Float[Tensor, "*_"],
    mean_ref: Float[Tensor, "*_"],
    cov_ref: Float[Tensor, "*_"],
    *,
    num_resamples: int = 100,
    generator: torch.Generator | None = None,
) -> FrechetDistance:
    r"""Frechet distance of samples from a reference law, with its standard error by the bootstrap.

    The n samples are drawn n times with replacement; the standard deviation of the distance over `num_resamples` such
    sets is the standard error. A set is a vector of weights w (how often each sample was drawn); with C_ref = B B^T

        tr (C_w^1/2 C_ref C_w^1/2)^1/2 = |diag(w/(n-1))^1/2 (X - 1 m_w^T) B|_*

    needs one Gram matrix and one symmetric eigenvalue problem of size min(n, d) and no matrix root.

    `value` is biased upward, by O(1/n) (see the module): compare values at equal n only. The resampled distances lie
    higher still, by about the same bias once more, which is why their spread is used and not their position. The
    reference is held fixed: its own sampling error is common to all models compared with it.

    Args:
        features: One sample per row (n, d), n >= 2.
        mean_ref, cov_ref: The reference law, (d,) and (d, d).
        num_resamples: R >= 2; the standard error is itself good to 1/sqrt(2 (R - 1)): 7 % for 100, 16 % for 20. A
            resample takes 2 seconds on one core for n = 5000 and the 2048 features of Inception-v3: there use 20.
        generator: Draws the resamples.

    Raises: ValueError as `frechet_distance` and for fewer than 2 samples or resamples.
    """
    x = _as_samples("features", features, at_least=2)
    mean_ref, factor_ref = _as_gaussian("ref", mean_ref.to(x.device), cov_ref.to(x.device))
    num_samples, num_features = x.shape
    if num_features != len(mean_ref):
        raise ValueError(f"mean_ref: {len(mean_ref)} features, but the samples have {num_features}")
    if num_resamples < 2:
        raise ValueError(f"num_resamples={num_resamples}: a standard error needs at least 2")

    moments = Moments().update(x)
    value = _distance(*_as_gaussian("features", moments.mean, moments.cov), mean_ref, factor_ref)
    projected, trace_ref = x @ factor_ref, factor_ref.square().sum()
    resampled = []
    for _ in range(num_resamples):
        drawn = _randint(num_samples, generator).to(x.device)
        counts = torch.bincount(drawn, minlength=num_samples)
        rows = counts.nonzero().squeeze(1)
        weights = counts[rows].to(x)
        mean = weights @ x[rows] / num_samples
        trace = weights @ (x[rows] - mean).square().sum(dim=1) / (num_samples - 1)
        centred = projected[rows] - mean @ factor_ref
        cross = _nuclear_norm(centred * (weights / (num_samples - 1)).sqrt().unsqueeze(1))
        resampled.append((mean - mean_ref).square().sum() + trace + trace_ref - 2 * cross)
    return FrechetDistance(
        value=float(value), standard_error=float(torch.stack(resampled).std()), num_samples=num_samples
    )


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
        degree, coef0: Of the kernel.
        gamma: Of the kernel; None is 1/d.
        num_subsets: How many subsets; where the subset is both whole sets it is evaluated once.
        subset_size: m, clipped to the smaller of n_a and n_b.
        generator: Draws the subsets.

    Raises: ValueError for fewer than 2 samples, mismatched d, values that are not finite, num_subsets < 1 and
        subset_size < 2.

    References: Gretton et al. 2012, Lemma 6; Binkowski et al. 2018, Eq. 4.
    """
    a = _as_samples("features_a", features_a, at_least=2)
    b = _as_samples("features_b", features_b, at_least=2).to(a.device)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features_b: {b.shape[1]} features a sample, but features_a has {a.shape[1]}")
    if num_subsets < 1:
        raise ValueError(f"num_subsets={num_subsets}: at least 1 is needed")
    if subset_size < 2:
        raise ValueError(f"subset_size={subset_size}: at least 2 is needed")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        num_subsets = 1
    gamma = 1 / a.shape[1] if gamma is None else gamma

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
    log_p = _as_samples("logits", logits, at_least=2 * splits).log_softmax(dim=1)
    scores = []
    for i in range(splits):
        part = log_p[i::splits]
        log_q = part.logsumexp(dim=0) - torch.tensor(len(part)).to(part).log()
        scores.append((part.exp() * (part - log_q)).sum(dim=1).mean().exp())
    score = torch.stack(scores)
    return InceptionScore(
        mean=float(score.mean()), standard_error=float(score.std() / splits**0.5), num_samples=len(log_p)
    )


def _as_samples(argument: str, features: Tensor, at_least: int) -> Tensor:
    """Features as a float64 matrix (n, d) of finite numbers."""
    if features.ndim != 2:
        raise ValueError(f"{argument}: shape {tuple(features.shape)}, but one sample per row (n, d) is expected")
    if len(features) < at_least:
        raise ValueError(f"{argument}: {len(features)} samples, at least {at_least} are needed")
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{argument}: row {row} is not finite (one of {int((~finite).sum())} such rows)")
    return features.to(torch.float64)


def _as_gaussian(label: str, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a factor A (d, rank) with A A^T = cov, in float64."""
    mean, cov = mean.to(torch.float64), cov.to(torch.float64)
    if mean.ndim != 1 or not mean.isfinite().all():
        raise ValueError(f"mean_{label}: a vector of finite numbers is expected, not {_describe(mean)}")
    if cov.shape != (len(mean), len(mean)) or not cov.isfinite().all():
        raise ValueError(f"cov_{label}: a finite {len(mean)}x{len(mean)} matrix is expected, not {_describe(cov)}")
    skew = float((cov - cov.T).abs().max())
    if skew > _TOLERANCE * float(cov.abs().max()):
        raise ValueError(f"cov_{label}: not symmetric, entries differ from their mirror images by up to {skew:.3g}")
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    smallest, largest = float(values[0]), float(values.abs().max())
    if smallest < -_TOLERANCE * largest:
        raise ValueError(f"cov_{label}: eigenvalue {smallest:.3g} is negative, so this is no covariance")
    keep = values > len(values) * torch.finfo(values.dtype).eps * largest
    return mean, vectors[:, keep] * values[keep].sqrt()


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> Tensor:
    """The Frechet distance of two laws given by mean and factor; rounding below 0 is clipped."""
    cross = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    distance = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum() - 2 * cross
    return distance.clamp(min=0)


def _describe(x: Tensor) -> str:
    return f"shape {tuple(x.shape)} with {int((~x.isfinite()).sum())} values that are not finite"


def _nuclear_norm(A: Tensor) -> Tensor:
    """Sum of singular values by the smaller Gram matrix: to 1e-8 of the largest, and three times as fast as the SVD."""
    gram = A @ A.T if A.shape[0] < A.shape[1] else A.T @ A
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()


def _randint(num: int, generator: torch.Generator | None) -> Tensor:
    """`num` indices below `num`, with replacement, on the generator's device."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(num, (num,), generator=generator, device=device)


def _choice(num: int, size: int, generator: torch.Generator | None) -> Tensor:
    """`size` indices below `num`, without replacement, on the generator's device."""
    device = "cpu" if generator is None else generator.device
    return torch.randperm(num, generator=generator, device=device)[:size]
