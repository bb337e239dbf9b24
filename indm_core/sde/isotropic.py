r"""The diffusions with one scalar coefficient for every coordinate: variance preserving, sub-VP, variance exploding.

References:
    Song et al. 2021, "Score-based generative modeling through SDEs", Eqs. 11, 29, 31, 33.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.sde.base import LinearSDE

__all__ = ["VE", "VP", "IsotropicSDE", "LinearBeta", "SubVP"]


@dataclass(frozen=True, kw_only=True)
class IsotropicSDE(LinearSDE):
    """K = 1 and one scalar coefficient for every coordinate: R = sigma_t."""

    @abstractmethod
    def f(self, t: Tensor) -> Tensor:
        """F as a scalar."""

    @abstractmethod
    def g2(self, t: Tensor) -> Tensor:
        """GG^T as a scalar."""

    @abstractmethod
    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        """psi as a scalar."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of u_t given x."""

    @property
    def pixelwise(self) -> bool:
        return True

    def F(self, t: Tensor) -> Tensor:
        return _as_block(self.f(t))

    def GG(self, t: Tensor) -> Tensor:
        return _as_block(self.g2(t))

    def psi(self, t: Tensor, s: Tensor) -> Tensor:
        return _as_block(self.alpha(t, s))

    def cov(self, t: Tensor) -> Tensor:
        return _as_block(self.sigma(t).square())

    def R(self, t: Tensor) -> Tensor:
        return _as_block(self.sigma(t))

    def embed(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def project(self, u: Tensor) -> Tensor:
        return u.squeeze(-1)

    def to_network(self, u: Tensor) -> Tensor:
        return u.squeeze(-1)

    def from_network(self, out: Tensor) -> Tensor:
        return out.unsqueeze(-1)


def _as_block(scalar: Tensor) -> Tensor:
    return scalar[..., None, None]


@dataclass(frozen=True, kw_only=True)
class LinearBeta(IsotropicSDE):
    """The drift -1/2 beta(t) u with beta(t) = beta_min + t (beta_max - beta_min), shared by VP and sub-VP.

    With B(t) the integral of beta: psi(t, s) = exp(-(B(t) - B(s))/2), and pi = N(0, I).

    Args:
        beta_min: beta(0), positive.
        beta_max: beta(1), at least beta_min.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"beta_min={self.beta_min} must be positive and at most beta_max={self.beta_max}")

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def B(self, t: Tensor, s: Tensor | float = 0.0) -> Tensor:
        """The integral of beta to t from s."""
        return (t - s) * (self.beta_min + 0.5 * (t + s) * (self.beta_max - self.beta_min))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.B(t, s))

    def prior_cov(self) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64)


@final
@dataclass(frozen=True, kw_only=True)
class VP(LinearBeta):
    """Variance preserving: g^2 = beta, Sigma = 1 - exp(-B).

    References: Song et al. 2021, Eq. 33.
    """

    def g2(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.B(t)))


@final
@dataclass(frozen=True, kw_only=True)
class SubVP(LinearBeta):
    """Sub-VP: g^2 = beta (1 - exp(-2B)), Sigma = (1 - exp(-B))^2.

    References: Song et al. 2021, Eq. 29.
    """

    def g2(self, t: Tensor) -> Tensor:
        return -self.beta(t) * torch.expm1(-2 * self.B(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.B(t))


@final
@dataclass(frozen=True, kw_only=True)
class VE(IsotropicSDE):
    """Variance exploding: F = 0, Sigma_t = sigma(t)^2 with sigma(t) = sigma_min (sigma_max/sigma_min)^t, and so
    cov(0) = sigma_min^2; pi = N(0, Sigma at t_max).

    Args:
        sigma_min: sigma(0), positive.
        sigma_max: sigma(1), above sigma_min.

    References: Song et al. 2021, Eq. 31.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be positive and below sigma_max={self.sigma_max}")

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t).square()

    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.ones_like(t + s)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def prior_cov(self) -> Tensor:
        return self.cov(torch.tensor(self.t_max, dtype=torch.float64))
