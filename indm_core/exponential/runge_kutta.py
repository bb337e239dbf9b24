"""Runge-Kutta methods in rho, in which the ODE of y = u/psi(t, 0) is dy/drho = eps."""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.exponential.coefficients import rho_of
from indm_core.exponential.forms import EpsForm
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse

__all__ = ["runge_kutta"]

_STAGES = (
    ((), (1.0,)),
    (((1.0,),), (1 / 2, 1 / 2)),
    (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)
"""Runge-Kutta: what each stage after the first adds up of those before it, and the weights; a stage's time is the sum."""


def runge_kutta(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, order: int) -> Tensor:
    """dy/drho = eps, y = u/psi(t, 0)."""
    stages, weights = _STAGES[order]
    rho, eps = rho_of(sde, ts), EpsForm("R")
    for i in range(len(ts) - 1):
        y, h = apply(inverse(sde.psi0(ts[i])), u), rho[i + 1] - rho[i]
        slopes = [eps.value(sde, score, u, ts[i])]
        for row in stages:
            share = sum(row)
            t = ts[i + 1] if share == 1 else sde.time_at(2 * torch.log(rho[i] + share * h).reshape(1))[0]
            inner = y + sum((a * h).to(u.dtype) * k for a, k in zip(row, slopes, strict=True))
            slopes.append(eps.value(sde, score, apply(sde.psi0(t), inner), t))
        y = y + sum((w * h).to(u.dtype) * k for w, k in zip(weights, slopes, strict=True))
        u = apply(sde.psi0(ts[i + 1]), y)
    return u
