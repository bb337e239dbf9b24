r"""Importance sampling from a Gaussian mixture that is fitted to another method's samples.

The mixture q = sum_k w_k N(m_k, C_k) is fitted to half of given samples by expectation maximisation (EM). With the
weights W_i of the samples, which sum to 1, and r_ik = q(k | x_i), one step is

    n_k = sum_i W_i r_ik,    w_k = n_k,    m_k = sum_i W_i r_ik x_i / n_k,
    C_k = (n n_k S_k + a V) / (n n_k + a),    S_k = sum_i W_i r_ik (x_i - m_k)(x_i - m_k)^T / n_k,

where V = diag(var x) / K^(2/d) and a = 0.1 samples keep C_k positive definite. Of several starts the one is taken under
which the other half of the samples is likeliest. Then

    x ~ q,      log w = log mu^(x) - log q(x),

so that E[w] = Z whatever the fit, and E[log w] <= log Z. No draw tells of a mode that q misses. In d dimensions the fit
needs many more than d^2 samples: of fewer the weights are heavy and the error of log Z comes out too small.

References:
    Dempster, Laird, Rubin 1977 (EM); Fraley, Raftery 2007, "Bayesian regularization for normal mixture estimation" (V).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand, randn_like
from indm_core.pis.annealing import evaluated
from indm_core.pis.draws import Counted, Draws, Method
from indm_core.pis.estimates import resampled
from indm_core.pis.targets.base import Target
from indm_core.pis.targets.mixtures import by_component
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["Fitted", "GaussianMixture", "fit"]

PRIOR = 0.1
"""a, in samples."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """q.

    Args:
        log_weights: log w_k.
        means: m_k.
        roots: Lower triangular roots of C_k.
    """

    log_weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    roots: Float[Tensor, "k d d"]

    def log_joint(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """log w_k N(x; m_k, C_k)."""
        away = (x[None] - self.means[:, None]).mT  # (k, d, n)
        square = torch.linalg.solve_triangular(self.roots, away, upper=False).square().sum(1).mT
        log_det = self.roots.diagonal(dim1=1, dim2=2).log().sum(1)
        return self.log_weights - 0.5 * square - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log q(x)."""
        return torch.logsumexp(self.log_joint(x), 1)

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        """Draws, in an order that says nothing; components come as often as their weights say, to within one."""
        k = resampled(self.log_weights, num, generator)
        k = k[rand(num, self.means, generator).argsort()]
        means = self.means[k]
        return means + by_component(self.roots, k, randn_like(means, generator))


def fit(
    x: Float[Tensor, "n d"],
    log_w: Float[Tensor, " n"],
    num_components: int,
    *,
    num_steps: int = 50,
    num_starts: int = 4,
    generator: Noise = None,
) -> GaussianMixture:
    """The mixture fitted to the first half of weighted samples, the best of several starts for the second.

    Args:
        x, log_w: The samples and their log weights.
        num_components: K.
        num_steps: Of EM.
        num_starts: Starts.

    Raises:
        ValueError: fewer samples in half than components, or samples that are all equal in a coordinate.
    """
    half = len(x) // 2
    if half < num_components:
        raise ValueError(f"num_components={num_components} is more than the {half} samples that it would be fitted to")
    if (x[:half] == x[0]).all(0).any():
        raise ValueError(f"x: {half} samples, all equal in a coordinate, have no variance to fit; give more, or others")
    w, w_out = log_w[:half].softmax(0), log_w[half:].softmax(0)
    found = [_em(x[:half], w, num_components, num_steps, generator) for _ in range(num_starts)]
    return max(found, key=lambda mixture: float(w_out @ mixture.log_prob(x[half:])))


def _em(x: Tensor, w: Tensor, num_components: int, num_steps: int, generator: Noise) -> GaussianMixture:
    mean = w @ x
    prior = (w @ (x - mean).square()) / num_components ** (2 / x.shape[1])
    centres = _spread(x, w, num_components, generator)
    share = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), num_components).to(x)
    found = _maximised(x, w, share, prior)
    for _ in range(num_steps):
        found = _maximised(x, w, found.log_joint(x).softmax(1), prior)
    return found


def _maximised(x: Tensor, w: Tensor, share: Tensor, prior: Tensor) -> GaussianMixture:
    """The step of EM to the mixture from the shares r_ik."""
    weighted = w[:, None] * share
    n_k = weighted.sum(0).clamp(min=1e-12)
    means = weighted.mT @ x / n_k[:, None]
    squares = torch.stack([(x - m).mT @ (v[:, None] * (x - m)) for m, v in zip(means, weighted.unbind(1), strict=True)])
    counts = n_k[:, None, None]
    covs = (len(x) * squares + PRIOR * prior.diag()) / (len(x) * counts + PRIOR)
    return GaussianMixture(log_weights=n_k.log().log_softmax(0), means=means, roots=torch.linalg.cholesky(covs))


def _spread(x: Tensor, w: Tensor, num: int, generator: Noise) -> Tensor:
    """Samples far from one another: each drawn in proportion to its squared distance from those before (k-means++)."""
    log_w = w.log()
    centres = x[resampled(log_w, 1, generator)]
    for _ in range(num - 1):
        distance = torch.cdist(x, centres).min(1).values.clamp(min=1e-100)  # all may be centres
        centres = torch.cat([centres, x[resampled(log_w + 2 * distance.log(), 1, generator)]])
    return centres


@final
@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Draws from a mixture fitted to a method's samples, weighted; after parallel tempering, the baseline to beat.

    Args:
        method: Where the samples come from; its evaluations count.
        num_components: K.
        num_given: Samples that are asked of the method.
        num_steps, num_starts: See `fit`.

    Raises:
        ValueError: an argument out of range.
    """

    method: Method
    num_components: int = 10
    num_given: int = 2000
    num_steps: int = 50
    num_starts: int = 4

    def __post_init__(self) -> None:
        check_count(num_components=self.num_components, num_given=self.num_given)
        check_count(num_steps=self.num_steps, num_starts=self.num_starts)
        if self.num_given < 2 * self.num_components:
            raise ValueError(
                f"num_components={self.num_components} is more than half of num_given={self.num_given}, "
                "which it would be fitted to"
            )

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        given = self.method(target, self.num_given, generator=generator)
        mixture = fit(
            given.x.double(),
            given.log_w.double(),
            self.num_components,
            num_steps=self.num_steps,
            num_starts=self.num_starts,
            generator=generator,
        )
        x = mixture.sample(num, generator).to(given.x)
        counted = Counted(target)
        log_w = evaluated(counted, x, gradient=False).log_mu.double() - mixture.log_prob(x.double())
        return Draws.independent(x, log_w, given.evaluations + counted.evaluations)
