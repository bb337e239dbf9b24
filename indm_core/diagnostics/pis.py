r"""Theorems 3 and 4 of the path integral sampler as measurements, of controls whose error is known.

The exact control u* is moved to u, with |u_t(x) - u*_t(x)|^2 = e at every t and x. D = T/N is the step.

    Theorem 3     W_2(law of x_N, mu) = O(g sqrt(T d (D + epsilon)))       for e = d epsilon
    Theorem 4     ESS = Z^2 / E[w^2] >= 1 - epsilon                        for e = epsilon/T, in continuous time

Theorem 3 is measured without sampling. Where the target is N(m, C) and the control affine, u_t(x) = A_t x + b_t, x_N is
Gaussian, and its moments follow from those of x_0 = 0:

    mean_{i+1} = (I + g D A_i) mean_i + g D b_i,      cov_{i+1} = (I + g D A_i) cov_i (I + g D A_i)^T + g^2 D I,

which W_2 compares with m and C in closed form. For u = u* the noise is additive and W_2 falls like D, faster than the
theorem's root; a constant error moves the mean of x_N by O(g T sqrt(d epsilon)), and there the theorem's root is sharp.

Theorem 4 is a bound on E[w^2] by Girsanov's theorem, which gives the stronger ESS >= exp(-epsilon), with equality for an
error that does not depend on x. For N(m, T g^2 I) that equality holds on every grid, since u* is constant and Eq. 5.18 exact;
for other targets the steps lose something besides, which falls like D.

References:
    Zhang, Chen 2022, "Path integral sampler", Theorems 3 and 4 of the thesis (Eq. 5.17).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from indm_core.frechet import frechet_distance
from indm_core.pis import PathIntegralSampler, Target
from indm_core.ranges import check_not_negative
from indm_core.shapes import Float

__all__ = ["Moved", "end_moments", "log_slope", "theorem_3_scale", "w2_to_gaussian"]


@final
class Moved(nn.Module):
    """A control moved by a constant vector of equal components, |u - u*|^2 = `error` everywhere.

    Args:
        control: u*.
        error: e, at least 0.
    """

    def __init__(self, control: nn.Module, error: float) -> None:
        super().__init__()
        check_not_negative(error=error)
        self.control, self.error = control, error

    def forward(self, t: Tensor, x: Tensor, *, target: Target, t_max: float, g: float) -> Tensor:
        return self.control(t, x, target=target, t_max=t_max, g=g) + math.sqrt(self.error / x.shape[1])


@torch.no_grad()
def end_moments(
    sampler: PathIntegralSampler, target: Target, *, num_steps: int = 0
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and covariance of x_N in float64, exact to the rounding of a control that is affine in x.

    Args:
        target: What the control is given.
        num_steps: 0 takes N.

    Raises:
        ValueError: the control is not affine, to 1e-4 of its largest value within two standard deviations of N(0, T g^2 I).
    """
    path, d, like = sampler.path(target, num_steps), sampler.dim, sampler.begin(1)
    eye = torch.eye(d, dtype=torch.float64, device=like.device)
    unit = math.sqrt(path.var)
    # -2 e_j tells an odd function from a line, the last point a product x_j x_k, which is 0 on the axes
    points = unit * torch.cat([0 * eye[:1], eye, -2 * eye, torch.linspace(1, 2, d).to(eye)[None]])
    mean, cov = points[0], 0 * eye
    for i, scale in enumerate(path.scale):
        u = path.f(i, points.to(like)).double()
        b, A = u[0], (u[1 : d + 1] - u[0]).T / unit
        if not (u - b - points @ A.T).abs().max() <= 1e-4 * u.abs().max():
            raise ValueError("control: it is not affine in x, so that x_N is not Gaussian; sample it instead")
        step = path.step * sampler.g
        kept = eye + step * A
        mean, cov = kept @ mean + step * b, kept @ cov @ kept.T + scale**2 * eye
    return mean, cov


def w2_to_gaussian(
    sampler: PathIntegralSampler,
    target: Target,
    mean: Float[Tensor, " d"],
    cov: Float[Tensor, "d d"],
    *,
    num_steps: int = 0,
) -> float:
    """W_2 between the sampler's end and N(mean, cov), exact, in units of x; see `end_moments`."""
    return math.sqrt(float(frechet_distance(*end_moments(sampler, target, num_steps=num_steps), mean, cov)))


def theorem_3_scale(sampler: PathIntegralSampler, epsilon: float, *, num_steps: int = 0) -> float:
    """g sqrt(T d (D + epsilon)), to which W_2 is proportional at most."""
    check_not_negative(epsilon=epsilon)
    step = sampler.t_max / sampler.steps(num_steps)
    return sampler.g * math.sqrt(sampler.t_max * sampler.dim * (step + epsilon))


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y against log x by least squares: the order of a power law."""
    x_log, y_log = (torch.tensor(v, dtype=torch.float64).log() for v in (x, y))
    x_log = x_log - x_log.mean()
    return float((x_log @ y_log) / x_log.square().sum())
