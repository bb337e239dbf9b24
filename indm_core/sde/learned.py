r"""Diffusions whose drift is a network:  dx = f(x, t) dt + g(t) dw,  and the flow without noise,  dx = f(x, t) dt.

Seen from outside they are SDEs like any other: Euler-Maruyama and RK45 sample them, the probability-flow ODE gives their
likelihood. What needs psi, cov or R takes a linear SDE instead.

Data enter a `LearnedSDE` at a time t > 0 by one step of the forward process, and leave by one backward step,

    u = x + t f(x, 0) + g(0) sqrt(t) eps,         x ~ N(u - t [f(u, t) - g(t)^2 s(u, t)], g(t)^2 t),

whose densities differ by 1/2 |delta|^2 - 1/2 |eps|^2 + d log(g(t)/g(0)) nats, delta the noise of the backward step. A
`LearnedODE` has no noise: data enter at time 0 as they are.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Eqs. 8-12; Grathwohl et al. 2019, "FFJORD" (the flow without noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.ode import State, rk45
from indm_core.sde.base import SDE

__all__ = ["Drift", "LearnedODE", "LearnedSDE", "Volatility"]

Drift = Callable[[Tensor, Tensor], Tensor]
"""drift(x, t) -> like x, t of shape (b,)."""


@final
@dataclass(frozen=True, kw_only=True)
class Volatility:
    """g(t) = first (last / first)^(t / t_max): constant where both are equal.

    Args:
        first, last: g at 0 and at t_max, positive.
        t_max: T, positive.
    """

    first: float
    last: float
    t_max: float

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in (self.first, self.last, self.t_max)):
            raise ValueError(f"g={self.first}, g_end={self.last} and t_max={self.t_max} must be positive and finite")

    def __call__(self, t: Tensor) -> Tensor:
        """g at times of any shape, in their dtype."""
        return self.first * (self.last / self.first) ** (t / self.t_max)

    def at(self, t: float) -> float:
        """g at one time."""
        return self.first * (self.last / self.first) ** (t / self.t_max)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Learned(SDE):
    """What the two have in common: K = 1, and a network for the drift.

    Args:
        f: The drift of x, t of shape (b,).
        t_min, t_max: Where samplers and likelihoods stay.
    """

    f: Drift
    t_min: float
    t_max: float

    @property
    def linear(self) -> None:
        return None

    def drift(self, u: Tensor, t: Tensor) -> Tensor:
        return self.f(u.squeeze(-1), t.to(u.device).reshape(-1).expand(len(u))).unsqueeze(-1)

    def check_state(self, u: Tensor) -> None:
        if u.shape[-1] != 1:
            raise ValueError(f"u: its blocks have size {u.shape[-1]}, those of a learned SDE 1")

    def embed(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def project(self, u: Tensor) -> Tensor:
        return u.squeeze(-1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedSDE(_Learned):
    """dx = f(x, t) dt + g(t) dw.

    Args:
        f: The drift of x, t of shape (b,).
        g: Volatility.
        t_min, t_max: Where samplers and likelihoods stay, 0 < t_min < t_max.
    """

    g: Volatility

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max < math.inf:
            raise ValueError(f"t_min={self.t_min} must lie strictly between 0 and t_max={self.t_max}, both finite")

    def GG(self, t: Tensor) -> Tensor:
        return self.g(t).square()[..., None, None]

    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """Euler-Maruyama from s to t, in steps of at most a thirtieth of T."""
        ts = torch.linspace(float(s), float(t), 1 + math.ceil(30 * float(t - s) / self.t_max), dtype=torch.float64)
        for start, step in zip(ts[:-1], ts.diff(), strict=True):
            noise = self.g.at(float(start)) * math.sqrt(step) * randn_like(u, generator)
            u = u + float(step) * self.drift(u, start) + noise
        return u

    def enter(self, u_0: Tensor, t: Tensor, eps: Tensor, score: Drift) -> tuple[Tensor, Tensor]:
        """One step of the forward process from 0 to t, and 1/2 |delta|^2 - 1/2 |eps|^2 + d log(g(t)/g(0))."""
        g_0, g_t, root = self.g.at(0.0), self.g.at(float(t)), math.sqrt(t)
        u = u_0 + float(t) * self.drift(u_0, torch.zeros_like(t)) + g_0 * root * eps
        delta = (u_0 - self.denoise(u, t, score(u, t))) / (g_t * root)
        change = math.log(g_t / g_0) * u_0[0].numel()
        return u, 0.5 * (delta.square() - eps.square()).flatten(1).sum(1) + change

    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """The mean of one backward step from t to 0 (Tweedie)."""
        return u - float(t) * (self.drift(u, t) - self.g.at(float(t)) ** 2 * score)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedODE(_Learned):
    """dx = f(x, t) dt: a continuous normalizing flow as an SDE without noise.

    Args:
        f: The drift of x, t of shape (b,).
        t_min, t_max: Where samplers and likelihoods stay; data are at t_min = 0.
    """

    t_min: float = 0.0

    def __post_init__(self) -> None:
        if self.t_min != 0 or not 0 < self.t_max < math.inf:
            raise ValueError(
                f"t_min={self.t_min} must be 0, where the data are, and t_max={self.t_max} positive and finite"
            )

    def GG(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)[..., None, None]

    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """The flow from s to t, by RK45; nothing is drawn."""

        def field(tau: Tensor, state: State, rows: Tensor) -> State:
            return (self.drift(state[0], tau),)

        (moved,), _ = rk45(field, (u,), float(s), float(t), rtol=1e-5, atol=1e-5)
        return moved

    def enter(self, u_0: Tensor, t: Tensor, eps: Tensor, score: Drift) -> tuple[Tensor, Tensor]:
        """The data as they are: no noise, and no bound to correct."""
        return u_0, u_0.new_zeros(len(u_0))

    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """u itself: the state at time 0 is the data."""
        return u
