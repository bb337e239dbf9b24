r"""Churn: before a step the state is noised up to a slightly later time, and the step begins there.

    rho(t^) = (1 + gamma) rho(t),      gamma = min(churn/N, sqrt(2) - 1) where churn_from <= t/t_max <= churn_to, else 0,
    u^ = psi(t^, t) u + churn_noise (Sigma_t^ - psi(t^, t) Sigma_t psi(t^, t)^T)^{1/2} z,

N the number of steps and rho the noise in units of the signal (`LinearSDE.log_rho`), of one coordinate or their mean where
coefficients are matrices: it says how far back a step goes, while the transition is that of the SDE for all of them. t^ is at
most the time at which sampling starts, so that the first step has none.

With churn_noise = 1 and an exact score the transition takes the law at t to that at t^: what is left of the law's error is
that of the steps, at the order of the method. The values of earlier steps lie on other paths of the ODE; so churn is for
methods that use none.

References: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", Algorithm 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from indm_core.exponential.options import Multistep, check_grid
from indm_core.noise import Noise, randn_like
from indm_core.sde import LinearSDE, apply, sqrt_psd
from indm_core.times import times_at

__all__ = ["noised", "raised"]

MOST = math.sqrt(2) - 1
"""gamma at most: the noise that is added has the variance of that which is there."""


def raised(sde: LinearSDE, ts: Tensor, options: Multistep) -> Tensor:
    """The times at which the steps of a grid begin, t^ (N,).

    Raises:
        ValueError: a rho that does not grow with t along the grid.
    """
    t = ts[:-1]
    if not options.churn:
        return t
    check_grid(sde, ts, options)
    log_rho = sde.log_rho(ts)
    chosen = (t >= options.churn_from * sde.t_max) & (t <= options.churn_to * sde.t_max)
    gamma = min(options.churn / len(t), MOST)
    later = times_at(sde, (log_rho[:-1] + math.log1p(gamma)).clamp(max=log_rho[0]), float(ts[-1]), float(ts[0]))
    return torch.where(chosen, torch.maximum(later, t), t)


def noised(sde: LinearSDE, u: Tensor, t: Tensor, s: Tensor, scale: float, generator: Noise) -> Tensor:
    """The state at t of a state u at s < t: a draw of the SDE's transition, its noise times `scale`."""
    psi = sde.psi(t, s)
    cov = sde.cov(t) - psi @ sde.cov(s) @ psi.mT
    return apply(psi, u) + apply(scale * sqrt_psd(cov), randn_like(u, generator))
