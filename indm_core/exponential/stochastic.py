"""Stochastic gDDIM: steps of degree 0 with noise, whose marginals are the ODE's for data in one point."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from indm_core.exponential.forms import EpsForm
from indm_core.noise import Noise, randn_like
from indm_core.ode import State, rk45
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse, over_event, sqrt_psd

__all__ = ["noise_factor", "stochastic"]


def stochastic(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, lam: float, generator: Noise) -> Tensor:
    psi, mean, spread = (part.to(u.device) for part in _stochastic_plan(sde, tuple(ts.tolist()), lam))
    eps = EpsForm("R")
    for i, t in enumerate(ts[:-1]):
        u = apply(psi[i], u) + apply(mean[i], eps.value(sde, score, u, t)) + apply(spread[i], randn_like(u, generator))
    return u


@lru_cache(maxsize=8)
def _stochastic_plan(sde: LinearSDE, times: tuple[float, ...], lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """psi, R_s W - psi R_t and R_s (I - W W^T)^{1/2} of every step, once per grid."""
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    psi, R_t, R_s = sde.psi(over_event(s), over_event(t)), sde.R(over_event(t)), sde.R(over_event(s))
    W = noise_factor(sde, t, s, lam)
    inner = torch.eye(R_s.shape[-1]).to(R_s) - W @ W.mT
    return psi, R_s @ W - psi @ R_t, R_s @ sqrt_psd(inner.clamp(min=0) if inner.shape[-1] == 1 else inner)


def noise_factor(sde: LinearSDE, t: Tensor, s: Tensor, lam: float) -> Tensor:
    """W of stochastic gDDIM for steps to s from t (N,): Psi_hat(s, t) = R_s W R_t^-1 and P = R_s (I - W W^T) R_s^T.

    In closed form for K = 1 and for lam = 0 and 1 (where Psi_hat = Sigma_s psi(t, s)^T Sigma_t^-1); else by RK45 in log time.

    Returns:
        (N, *e, K, K), float64; no singular value is above 1.
    """
    at_t, at_s, k = over_event(t), over_event(s), sde.prior_cov().shape[-1]
    if k == 1:
        early, late = (sde.cov(tau) / sde.psi0(tau).square() for tau in (at_s, at_t))
        return (early / late) ** (lam**2 / 2)
    eye = torch.eye(k).to(t).expand(len(t), 1, 1, k, k)
    if lam == 0:
        return eye
    if lam == 1:
        return (inverse(sde.R(at_t)) @ sde.psi(at_t, at_s) @ sde.R(at_s)).mT
    span = (s / t).log()

    def field(x: Tensor, W: State, rows: Tensor) -> State:
        tau = t[rows] * torch.exp(x * span[rows])
        rate = (0.5 * lam**2 * span[rows] * tau).reshape(-1, 1, 1, 1, 1)
        return (rate * sde.M(over_event(tau)) @ W[0],)

    (W,), _ = rk45(field, (eye.clone(),), 0.0, 1.0, rtol=1e-10, atol=1e-12)
    left, values, right = torch.linalg.svd(W)
    return left @ torch.diag_embed(values.clamp(max=1)) @ right
