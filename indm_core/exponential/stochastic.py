r"""Stochastic gDDIM: steps of degree 0 with noise, whose marginals are the ODE's for data in one point.

    u_s = psi(s, t) (u_t - R_t eps) + R_s W eps + R_s (I - W W^T)^{1/2} z,    W of `noise_factor`, z standard normal:

the step of degree 0 in data, u_s = Psi_hat u_t + (psi(s, 0) - Psi_hat psi(t, 0)) x + noise, in terms of eps (`forms`).

References: Zhang, Tao, Chen 2023, "gDDIM", Eqs. 18-22 and Proposition 6.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from indm_core.exponential.forms import EpsForm
from indm_core.exponential.noise_factor import noise_factor
from indm_core.noise import Noise, randn_like
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, over_event, sqrt_psd
from indm_core.times import on_device

__all__ = ["stochastic"]


def stochastic(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, lam: float, generator: Noise) -> Tensor:
    psi, mean, spread = _planned(sde, tuple(ts.tolist()), lam, u.device)
    eps = EpsForm("R")
    for i, t in enumerate(on_device(ts, u.device)[:-1]):
        u = apply(psi[i], u) + apply(mean[i], eps.value(sde, score, u, t)) + apply(spread[i], randn_like(u, generator))
    return u


@lru_cache(maxsize=8)
def _planned(
    sde: LinearSDE, times: tuple[float, ...], lam: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """psi, R_s W - psi R_t and R_s (I - W W^T)^{1/2} of every step, once per grid, computed on the CPU."""
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    psi, R_t, R_s = sde.psi(over_event(s), over_event(t)), sde.R(over_event(t)), sde.R(over_event(s))
    W = noise_factor(sde, t, s, lam)
    inner = torch.eye(R_s.shape[-1]).to(R_s) - W @ W.mT
    spread = R_s @ sqrt_psd(inner.clamp(min=0) if inner.shape[-1] == 1 else inner)
    return psi.to(device), (R_s @ W - psi @ R_t).to(device), spread.to(device)
