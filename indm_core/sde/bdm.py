r"""Blurring diffusion: the image fades frequency by frequency while white noise grows.

In the orthonormal DCT basis, u = V^T x, every frequency (i, j) is a scalar diffusion with the noise of all others:

    psi(t, s) = alpha_t d_t / (alpha_s d_s),    Sigma_t = sigma_t^2,    R_t = sigma_t,
    alpha_t = cos phi,  sigma_t = sin phi,  phi = a t + b:    log-SNR(t) = -2 log tan(a t + b) from 10 at 0 to -10 at t_max,
    d_t = (1 - min_scale) exp(-lambda_ij tau_t) + min_scale,  tau_t = 1/2 (sigma_blur_max sin^2(pi t / (2 t_max)))^2,
    lambda_ij = pi^2 (i^2/H^2 + j^2/W^2),

hence F = -a tan phi + d'/d and GG^T = dSigma/dt - 2 F Sigma = 2 a tan phi - 2 (d'/d) sin^2 phi. The bare cosine schedule has
phi = pi/2 at the end, where F is infinite; this one is that schedule with its ends moved inwards: F is finite on [0, t_max].

Noise is white in pixels and in frequencies alike, but a pixel's noise is *not* independent of its neighbours' along a path,
because the drift couples them: `pixelwise` is False.

References:
    Hoogeboom, Salimans 2023, "Blurring diffusion models", section 4; Rissanen, Heinonen, Solin 2023 (inverse heat dissipation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from indm_core.sde.base import LinearSDE

__all__ = ["BDM"]

LOG_SNR = 10.0


@final
@dataclass(frozen=True, kw_only=True)
class BDM(LinearSDE):
    """Blurring diffusion of images (c, height, width); K = 1, one coefficient per frequency.

    Args:
        height, width: Sides of the images.
        sigma_blur_max: Standard deviation, in pixels, of the blur at t_max; not negative.
        min_scale: What is left of the highest frequencies, in (0, 1].
    """

    height: int = 32
    width: int = 32
    sigma_blur_max: float = 15.0
    min_scale: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height={self.height} and width={self.width} must be at least 1")
        if self.sigma_blur_max < 0:
            raise ValueError(f"sigma_blur_max={self.sigma_blur_max} must not be negative")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale={self.min_scale} must lie in (0, 1]")

    @property
    def pixelwise(self) -> bool:
        return False

    @property
    def _rate(self) -> float:
        return (math.atan(math.exp(LOG_SNR / 2)) - self._first) / self.t_max

    @property
    def _first(self) -> float:
        return math.atan(math.exp(-LOG_SNR / 2))

    def _phase(self, t: Tensor) -> Tensor:
        return self._rate * t + self._first

    def _fading(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d and d'/d, broadcast(t, (H, W))."""
        lam = _eigenvalues(self.height, self.width, t.dtype, t.device)
        angle = math.pi * t / (2 * self.t_max)
        tau = 0.5 * (self.sigma_blur_max * angle.sin().square()).square()
        rate = self.sigma_blur_max**2 * angle.sin().pow(3) * angle.cos() * math.pi / self.t_max
        faded = (1 - self.min_scale) * torch.exp(-lam * tau)
        d = faded + self.min_scale
        return d, -lam * rate * faded / d

    def F(self, t: Tensor) -> Tensor:
        slope = self._fading(t)[1]
        return (slope - (self._rate * self._phase(t).tan()))[..., None, None]

    def GG(self, t: Tensor) -> Tensor:
        phase = self._phase(t)
        return (2 * self._rate * phase.tan() - 2 * self._fading(t)[1] * phase.sin().square())[..., None, None]

    def psi(self, t: Tensor, s: Tensor) -> Tensor:
        fade = self._fading(t)[0] / self._fading(s)[0]
        return (fade * (self._phase(t).cos() / self._phase(s).cos()))[..., None, None]

    def cov(self, t: Tensor) -> Tensor:
        return self._phase(t).sin().square()[..., None, None]

    def R(self, t: Tensor) -> Tensor:
        return self._phase(t).sin()[..., None, None]

    def log_rho(self, t: Tensor) -> Tensor:
        """Of the frequency 0, which is never blurred."""
        return self._phase(t).tan().log() + math.log(math.cos(self._first))

    def prior_cov(self) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64)

    def embed(self, x: Tensor) -> Tensor:
        """Frequencies of the images, (b, c, H, W, 1)."""
        if x.ndim != 4:
            raise ValueError(f"x: an event of shape {tuple(x.shape[1:])}; BDM blurs images (c, h, w)")
        if x.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"x: an event of shape {tuple(x.shape[1:])}, the SDE has height={self.height}, width={self.width}; give both"
            )
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = (_dct(side, x.dtype, x.device) for side in (self.height, self.width))
            return (rows @ x @ columns.mT).unsqueeze(-1)

    def project(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            rows, columns = (_dct(side, u.dtype, u.device) for side in (self.height, self.width))
            return rows.mT @ u.squeeze(-1) @ columns

    def to_network(self, u: Tensor) -> Tensor:
        """Pixels: a convolution knows nothing of frequencies."""
        return self.project(u)

    def from_network(self, out: Tensor) -> Tensor:
        return self.embed(out)


@lru_cache(maxsize=64)
def _dct(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, rows by frequency, (side, side); computed in float64, and sent to a device once."""
    x = torch.arange(side, dtype=torch.float64, device="cpu")
    basis = torch.cos(math.pi / side * (x + 0.5) * x.unsqueeze(1)) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _eigenvalues(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """lambda of the heat equation, (height, width), likewise."""
    i, j = (torch.arange(side, dtype=torch.float64, device="cpu") / side for side in (height, width))
    return (math.pi**2 * (i.square().unsqueeze(1) + j.square())).to(device=device, dtype=dtype)
