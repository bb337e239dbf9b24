r"""Frechet distance of two Gaussian laws; from n samples of one of them, with a standard error; and at infinite n.

For laws of means m, m_r and covariances C, C_r (r: the reference)

    D = |m - m_r|^2 + tr C + tr C_r - 2 tr (C_r^1/2 C C_r^1/2)^1/2,

the squared 2-Wasserstein distance of N(m, C) and N(m_r, C_r). From here on m, C are the moments of n samples x_i, D_n is
the plug-in distance, N = n - 1, C_r = B B^T, and S = B^T C B = sum_i y_i y_i^T / N with y_i = B^T (x_i - m) has the
eigenvalues l. The last term of D_n is -2 tr S^1/2, and all of the following comes from log-determinants of S + t:

    tr S^1/2 = (1/pi) int_0^oo t^-1/2 tr S (S + t)^-1 dt,    d tr S^1/2 = (1/pi) int t^-1/2 d log det(S + t) dt / 2.

**One sample left out.** S_i = N/(N-1) (S - c y_i y_i^T), c = n/N^2, and with q_i(t) = y_i^T (S + t)^-1 y_i

    tr S_i^1/2 = (N/(N-1))^1/2 [tr S^1/2 + (1/2 pi) int t^-1/2 log(1 - c q_i(t)) dt]:

one eigenvalue problem gives all n distances D_(i). The integrals are sums over t = max(l) e^(h k), exact to about
e^(-2 pi^2 / h) because all singularities lie at t < 0; here h = 1.

**Variance.** D_n is a sum of uncorrelated parts: functions of one sample, of two (whose mean over either is 0), of three
and so on, with variances V_1, V_2, .... The jackknife (n-1)/n sum_i (D_(i) - mean)^2 estimates sum_k k V_k. That is right
for different laws and n >> d, where V_1 dominates, and twice too large for equal laws, where V_1 = 0 and V_2 leads. For
Gaussian samples, with e(t) the N numbers t/(l + t), l = 0 included, and <.> the mean over them,

    Cov[log det(S + t), log det(S + s)] = -2 log(1 - a) = sum_k 2 a^k / k,    a(t, s) = 1 - <e(t)> <e(s)> / <e(t) e(s)>,

as n, d -> oo at any ratio n/d. Term k counts cycles through k samples and is taken for the part of k samples. Term 1 alone
depends on more than the covariance of the samples (if these are linear in independent numbers), and the jackknife
measures it. Hence

    Var D_n = sum_k k V_k  -  sum_{k>=2} (k - 1) V_k,    V_k = (4/pi^2) int int w(t) w(s) 2 a^k/k dt ds,    w = t^-1/2 / 2,

the first sum from the samples, the second in closed form; |m - m_r|^2 adds 2 tr C^2 / n^2 to V_2. Left out: what more than
the covariance does to V_2, V_3, ... (clusters, heavy tails). It matters where the laws are equal, and makes the standard
error too large, by up to 2^1/2 (1.09 to 1.24 on the pixels of digits); heavy tails also scatter it. The reference is
held fixed: if its moments are those of finitely many samples, their error is common to all models compared with it, and it
is not in the standard error.

**Infinite n.** D_n is too large by O(d^2/n). Chong and Forsyth draw a line in 1/n through the distances of subsets. Unless
n >> d the true curve bends away from that line, and the line doubles the standard deviation. But the curve is known: let
Q = B^T Cov(x) B belong to the law as S belongs to the samples. With phi = 1 - <e> and u = t/(1 - phi)

    tr Q (Q + u)^-1 = N phi(t)    as n, d -> oo (Marchenko and Pastur), so that

    tr Q^1/2 = (1/pi) int u^-1/2 tr Q (Q + u)^-1 du = (2 N/pi) int t^-1/2 [1 - (1 - phi)^1/2] dt = T.

To the next order E T - tr Q^1/2 = (1/pi) int w log(1 - a(t, t)) dt / 2 for Gaussian samples, now with w = d u^1/2 / dt.
That is subtracted, and the jackknife of the result removes what is left of order 1/n, for any law. The standard error is
that of D_n with the new w. All this needs n > d: T has no part from u < u(0), and u(0) = 0 for n > d only.

References:
    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions", Eq. 16.
    Heusel et al. 2017, "GANs trained by a two time-scale update rule", Eq. 6 (the distance of features).
    Efron and Stein 1981, "The jackknife estimate of variance" (the parts of k samples; its expectation).
    Bai and Silverstein 2004, "CLT for linear spectral statistics of large-dimensional sample covariance matrices",
        Theorem 1.1 (covariance -2 log(1 - a) and mean log(1 - a) / 2).
    Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them" (infinite n).
    Tiomoko and Couillet 2019, "Random matrix-improved estimation of the Wasserstein distance between two centered Gaussian
        distributions" (the spectrum of the law in place of that of the samples).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = ["FrechetDistance", "fewest_samples", "frechet_distance", "frechet_from_samples", "frechet_infinity"]

# A covariance may be this far from symmetric and from non-negative, relative to its largest entry or eigenvalue: what
# float32 statistics of other programs show. Anything beyond is a mistake of the caller.
_TOLERANCE = 1e-5

# The grid t = max(l) e^k. What the rule and the two ends lose is 2e-5 of a standard error at most (measured).
_FIRST, _LAST = -42, 38

# V_1, the jackknife less what belongs to the interactions, is an estimate and may come out below 0. The variance is not
# taken below this share of the interactions' own: for few samples of equal laws, or laws with one or two leading
# directions, the mean standard error would be 30 % too small with 0 and 40 % too large with 1.
_FLOOR = 0.4


@final
@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """An estimate of a Frechet distance, its standard error, and the number of samples that both were computed from."""

    value: float
    standard_error: float
    num_samples: int


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


def frechet_from_samples(
    features: Float[Tensor, "*_"], mean_ref: Float[Tensor, "*_"], cov_ref: Float[Tensor, "*_"]
) -> FrechetDistance:
    r"""Plug-in Frechet distance of n samples from a reference law: `frechet_distance` of their moments.

    Biased upward, by O(d^2/n): compare values at equal n only, or use `frechet_infinity`. The standard error is that of the
    plug-in distance over sets of n samples (see the module): the jackknife, less its excess for interacting samples.

    Args:
        features: One sample per row (n, d), n >= 3, independent.
        mean_ref, cov_ref: The reference law, (d,) and (d, d), held fixed.

    Raises: ValueError as `frechet_distance`, and for fewer than 3 samples.

    References: Efron and Stein 1981; Bai and Silverstein 2004, Theorem 1.1.
    """
    x, mean_ref, factor_ref = _as_samples_and_reference(features, mean_ref, cov_ref, at_least=3)
    sets = _leave_one_out(x, mean_ref, factor_ref)
    value = _distance(*_as_gaussian("features", sets.mean, sets.cov), mean_ref, factor_ref)
    error = _standard_error(sets, sets.rest_i - 2 * _roots_left_out(sets), torch.full_like(sets.t, 0.5))
    return FrechetDistance(value=float(value), standard_error=error, num_samples=len(x))


def frechet_infinity(
    features: Float[Tensor, "*_"], mean_ref: Float[Tensor, "*_"], cov_ref: Float[Tensor, "*_"]
) -> FrechetDistance:
    r"""Frechet distance of the law of n samples from a reference law, as if n were infinite.

    Comparable across different n. Its bias is O(1/n^2) for any law and far below the standard error for n of at least
    `fewest_samples`; for equal laws it is negative as often as positive. See the module for the estimator.

    Args:
        features: One sample per row (n, d), independent, n at least `fewest_samples(d)`.
        mean_ref, cov_ref: The reference law, (d,) and (d, d), held fixed.

    Raises: ValueError as `frechet_distance`, and for fewer than `fewest_samples(rank of cov_ref)` samples.

    References: Chong and Forsyth 2020; Tiomoko and Couillet 2019; Bai and Silverstein 2004, Theorem 1.1.
    """
    x, mean_ref, factor_ref = _as_samples_and_reference(features, mean_ref, cov_ref, at_least=3)
    (n, d), rank = x.shape, factor_ref.shape[1]
    if n < fewest_samples(rank):
        raise ValueError(
            f"features: {n} samples of {d} features do not show the distance at infinite n: give {fewest_samples(rank)} "
            "samples or more, or features of fewer dimensions"
        )
    sets = _leave_one_out(x, mean_ref, factor_ref)
    root, root_i, w = _roots_at_infinity(sets)
    values_i = sets.rest_i - 2 * root_i
    value = n * (sets.rest - 2 * root) - (n - 1) * values_i.mean()
    return FrechetDistance(value=float(value), standard_error=_standard_error(sets, values_i, w), num_samples=n)


def fewest_samples(num_features: int) -> int:
    """How many samples `frechet_infinity` needs: n >= 1.1 d + 4, where its bias is below a third of its standard error.

    Args:
        num_features: d, or the rank of the reference covariance where that is smaller.
    """
    return math.ceil(1.1 * num_features) + 4


@final
@dataclass(frozen=True, kw_only=True)
class _LeaveOneOut:
    """A set of n samples and the n sets that lack one of them; the symbols are the module's."""

    num_samples: int
    mean: Tensor  # (d,)
    cov: Tensor  # (d, d)
    rest: Tensor  # (), |m - m_r|^2 + tr C + tr C_r
    rest_i: Tensor  # (n,), the same without sample i
    mean_variance: Tensor  # (), 2 tr C^2 / n^2
    lam: Tensor  # (k,), l > 0
    squares: Tensor  # (n, k), (y_i . v_j)^2 with the eigenvectors v of S
    t: Tensor  # (T,)
    dt: Tensor  # (T,), so that the integral of t^-1/2 g(t) is g @ dt

    def q(self, power: int) -> Tensor:
        """y_i^T (S + t)^-power y_i, (n, T)."""
        return self.squares @ (self.lam.unsqueeze(1) + self.t).pow(-power)

    def kept(self) -> Tensor:
        """1 - c q_i = det(S - c y_i y_i^T + t) / det(S + t), (n, T).

        It goes to 0 like t if sample i alone has a direction, as each has for n <= d + 1: rounding must not pass 0.
        """
        c = self.num_samples / (self.num_samples - 1) ** 2
        return (1 - c * self.q(1)).clamp(min=torch.finfo(self.t.dtype).eps)


def _leave_one_out(x: Tensor, mean_ref: Tensor, factor_ref: Tensor) -> _LeaveOneOut:
    n, N = len(x), len(x) - 1
    mean = x.mean(dim=0)
    x = x - mean
    cov = x.T @ x / N
    lam, squares = _spectrum(x, cov, factor_ref)
    largest = lam[-1] if len(lam) else torch.ones((), dtype=x.dtype, device=x.device)
    t = largest * torch.arange(_FIRST, _LAST, dtype=x.dtype, device=x.device).exp()
    trace, squared, trace_ref = cov.trace(), x.square().sum(dim=1), factor_ref.square().sum()
    trace_i = (N * trace - n / N * squared) / (N - 1)
    # Unbiased for tr C^2 of a Gaussian law: the square of the trace of a sample covariance leaks into it.
    trace_of_square = N**2 / ((N - 1) * (N + 2)) * (cov.square().sum() - trace.square() / N)
    return _LeaveOneOut(
        num_samples=n,
        mean=mean,
        cov=cov,
        rest=(mean - mean_ref).square().sum() + trace + trace_ref,
        rest_i=(mean - x / N - mean_ref).square().sum(dim=1) + trace_i + trace_ref,
        mean_variance=2 / n**2 * trace_of_square,
        lam=lam,
        squares=squares,
        t=t,
        dt=t.sqrt(),
    )


def _spectrum(x: Tensor, cov: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of S = B^T C B above rounding, ascending, and the squares of the samples' coordinates in its basis."""
    N, rank = len(x) - 1, factor.shape[1]
    if rank == 0:
        return cov.new_zeros(0), x.new_zeros(len(x), 0)
    if rank <= N:
        lam, vectors = torch.linalg.eigh(factor.T @ cov @ factor)
        squares = (x @ (factor @ vectors)).square()
    else:
        y = x @ factor
        lam, vectors = torch.linalg.eigh(y @ y.T / N)
        squares = vectors.square() * (N * lam)
    keep = lam > len(lam) * torch.finfo(lam.dtype).eps * lam[-1]
    return lam[keep], squares[:, keep]


def _roots_left_out(sets: _LeaveOneOut) -> Tensor:
    """tr S_i^1/2 of the n sets that lack one sample, (n,)."""
    N = sets.num_samples - 1
    return (N / (N - 1)) ** 0.5 * (sets.lam.sqrt().sum() + sets.kept().log() @ sets.dt / (2 * math.pi))


def _roots_at_infinity(sets: _LeaveOneOut) -> tuple[Tensor, Tensor, Tensor]:
    """tr Q^1/2 from all samples, (), and without each, (n,); and the w (in units of t^-1/2) of the former, (T,)."""
    N, lam, t, c = sets.num_samples - 1, sets.lam.unsqueeze(1), sets.t, sets.num_samples / (sets.num_samples - 1) ** 2
    p = lam / (lam + t)
    phi, psi = p.sum(dim=0) / N, p.square().sum(dim=0) / N
    kept = sets.kept()
    lost = c * t * sets.q(2) / kept
    phi_i = (N * phi - lost) / (N - 1)
    psi_i = (N * psi - 2 * lost + lost.square() + 2 * c * t.square() * sets.q(3) / kept) / (N - 1)
    # S_i at (N/(N-1)) t has the resolvent of S - c y_i y_i^T at t: the grid is scaled with the matrix.
    root_i = (N / (N - 1)) ** 0.5 * _root_at_infinity(N - 1, phi_i, psi_i, sets.dt)
    return _root_at_infinity(N, phi, psi, sets.dt), root_i, (1 - 2 * phi + psi) / (2 * (1 - phi) ** 1.5)


def _root_at_infinity(N: int, phi: Tensor, psi: Tensor, dt: Tensor) -> Tensor:
    """tr Q^1/2, from the means phi and psi of l/(l + t) and of its square over the N eigenvalues of S (last axis: t)."""
    log_e, e_squared = torch.log1p(-phi), 1 - 2 * phi + psi
    root = 2 * N / math.pi * (-torch.expm1(log_e / 2) @ dt)
    w = e_squared * (-1.5 * log_e).exp() / 2
    return root - (w * torch.log1p(-(psi - phi.square()) / e_squared)) @ dt / (2 * math.pi)


def _standard_error(sets: _LeaveOneOut, values_i: Tensor, w: Tensor) -> float:
    """Of a statistic with the values `values_i` when a sample is left out; w belongs to it, in units of t^-1/2."""
    n, N, zeros = sets.num_samples, sets.num_samples - 1, sets.num_samples - 1 - len(sets.lam)
    lam, t = sets.lam.unsqueeze(1), sets.t
    e, p = t / (lam + t), lam / (lam + t)
    phi = p.sum(dim=0) / N
    # e - <e> without cancellation: from e where t is small and from p = 1 - e where t is large.
    centred = torch.where(t < t[-_FIRST], e - (e.sum(dim=0) + zeros) / N, phi - p)
    a = (centred.T @ centred + zeros * torch.outer(phi, phi)) / (e.T @ e + zeros)
    w = w * sets.dt / math.pi
    parts = -2 * torch.log1p(-a) - 2 * a  # sum_{k>=2} 2 a^k / k
    interacting = 4 * (w @ parts @ w) + sets.mean_variance
    excess = 4 * (w @ (2 * a.square() / (1 - a) - parts) @ w) + sets.mean_variance
    jackknife = N / n * (values_i - values_i.mean()).square().sum()
    return float(torch.maximum(jackknife - excess, _FLOOR * interacting).sqrt())


def _as_samples_and_reference(
    features: Tensor, mean_ref: Tensor, cov_ref: Tensor, at_least: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (n, d), mean (d,) and factor B (d, rank) of the reference, in float64 on the samples' device."""
    x = as_samples("features", features, at_least)
    mean_ref, factor_ref = _as_gaussian("ref", mean_ref.to(x.device), cov_ref.to(x.device))
    if x.shape[1] != len(mean_ref):
        raise ValueError(f"mean_ref: {len(mean_ref)} features, but the samples have {x.shape[1]}")
    return x, mean_ref, factor_ref


def as_samples(argument: str, features: Tensor, at_least: int) -> Tensor:
    """Features as a float64 matrix (n, d) of finite numbers."""
    if features.ndim != 2 or features.shape[1] == 0:
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
    if mean.ndim != 1 or not len(mean) or not mean.isfinite().all():
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
