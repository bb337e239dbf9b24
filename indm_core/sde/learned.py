r"""A diffusion whose drift is a network:  dx = f(x, t) dt + g dw.

Seen from outside it is an SDE like any other: Euler-Maruyama and RK45 sample it, the probability-flow ODE gives its likelihood.
Data enter at t_min by one step of the forward process. What needs psi, cov or R takes a linear SDE instead.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Eqs. 8-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.sde.base import SDE

__all__ = ["Drift", "LearnedSDE"]

Drift = Callable[[Tensor, Tensor], Tensor]
"""drift(x, t) -> like x, t of shape (b,)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedSDE(SDE):
    """dx = f(x, t) dt + g dw with a network for f; K = 1.

    Args:
        f: The drift of x, t of shape (b,).
        g: Volatility, positive.
        t_min, t_max: Where samplers and likelihoods stay.
    """

    f: Drift
    g: float
    t_min: float
    t_max: float

    @property
    def linear(self) -> None:
        return None

    def drift(self, u: Tensor, t: Tensor) -> Tensor:
        return self.f(u.squeeze(-1), t.to(u.device).reshape(-1).expand(len(u))).unsqueeze(-1)

    def GG(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.g**2)[..., None, None]

    def check_state(self, u: Tensor) -> None:
        if u.shape[-1] != 1:
            raise ValueError(f"u: its blocks have size {u.shape[-1]}, those of a learned SDE 1")

    def embed(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def project(self, u: Tensor) -> Tensor:
        return u.squeeze(-1)

    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """Euler-Maruyama from s to t, in steps of at most a thirtieth of T."""
        ts = torch.linspace(float(s), float(t), 1 + math.ceil(30 * float(t - s) / self.t_max), dtype=torch.float64)
        for start, step in zip(ts[:-1], ts.diff(), strict=True):
            u = u + float(step) * self.drift(u, start) + self.g * math.sqrt(step) * randn_like(u, generator)
        return u

    def enter(
        self, u_0: Tensor, t: Tensor, eps: Tensor, score: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One step of the forward process from 0 to t, and 1/2 |delta|^2 - 1/2 |eps|^2."""
        u = u_0 + float(t) * self.drift(u_0, torch.zeros_like(t)) + self.g * math.sqrt(t) * eps
        delta = (u_0 - self.denoise(u, t, score(u, t))) / (self.g * math.sqrt(t))
        return u, 0.5 * (delta.square() - eps.square()).flatten(1).sum(1)

    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """The mean of one backward step from t to 0 (Tweedie)."""
        return u - float(t) * (self.drift(u, t) - self.g**2 * score)
