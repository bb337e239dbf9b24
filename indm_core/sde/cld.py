r"""Critically-damped Langevin diffusion: every coordinate x has a velocity v, and only the velocity is driven by noise.

    dx = beta m v dt,        dv = -beta x dt - beta Gamma m v dt + sqrt(2 Gamma beta) dw,          m = m_inv,

so F = beta A with A = [[0, m], [-1, -Gamma m]], GG^T = diag(0, 2 Gamma beta), Sigma_0 = diag(0, g), g = vv_gamma / m, and the
law at infinity is x ~ N(0, 1), v ~ N(0, 1/m). (The sign of F is that of Dockhorn et al.; the thesis misprints it.)

psi(t, s) = exp(F (t - s)) in closed form: with a = Gamma m / 2 and N = A + a I, N^2 = delta I, delta = a^2 - m, so that
exp(A tau) = e^{-a tau} (cosh(sqrt(delta) tau) I + sinh(sqrt(delta) tau)/sqrt(delta) N); delta = 0 is the critical damping.

Sigma_t = g c(t) c(t)^T + 2 Gamma beta int_0^t c(s) c(s)^T ds with c(s) = psi(s, 0) e_v: a sum of positive terms, because
Sigma_inf - psi (Sigma_inf - Sigma_0) psi^T loses all digits at small t (Sigma_xx ~ t^2). Gauss-Legendre nodes take the integral
to rounding while psi has not decayed; later the difference is exact.

R = L Q(theta) with L the Cholesky factor of Sigma and Q a rotation. The first row of dR/dt = (F + 1/2 GG^T Sigma^-1) R, where
GG^T vanishes, gives

    dtheta/dt = -beta m L_22/L_11,       theta(0) = -pi/2,  so that R(0) = diag(0, sqrt(g)),

and L_22/L_11 ~ t^-1/2: theta is a smooth function of sqrt t, which a Chebyshev series represents to 1e-10 (of a degree that is
raised until it does; parameters so far apart that none does are refused). In this form R R^T = Sigma at every t.

References:
    Dockhorn, Vahdat, Kreis 2022, "Score-based generative modeling with critically-damped Langevin diffusion", section 3;
    Zhang, Tao, Chen 2023, "gDDIM", section 4 (R in the place of L).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from indm_core.ranges import check_positive
from indm_core.sde.algebra import constant, gauss_legendre, gauss_legendre_like
from indm_core.sde.base import LinearSDE

__all__ = ["CLD"]

DEGREES = (160, 320, 640, 1280)


@final
@dataclass(frozen=True, kw_only=True)
class CLD(LinearSDE):
    """Position and velocity of every coordinate; K = 2, and R is no scalar.

    Args:
        beta: Speed of time, positive.
        gamma: Friction, positive; 2/sqrt(m_inv) is critical.
        m_inv: Inverse mass m, positive.
        vv_gamma: Variance of the velocity at time 0, as a share of its final variance, positive. The score is that of u_t given
            x alone, with this velocity integrated out (hybrid score matching).
    """

    beta: float = 4.0
    gamma: float = 1.0
    m_inv: float = 4.0
    vv_gamma: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(beta=self.beta, gamma=self.gamma, m_inv=self.m_inv, vv_gamma=self.vv_gamma)
        _rotation(self)

    @property
    def pixelwise(self) -> bool:
        return True

    @property
    def start_var(self) -> float:
        """g, the variance of the velocity at time 0."""
        return self.vv_gamma / self.m_inv

    def F(self, t: Tensor) -> Tensor:
        rows = (0.0, self.beta * self.m_inv), (-self.beta, -self.beta * self.gamma * self.m_inv)
        return constant(rows, t).expand(*t.shape, 2, 2)

    def GG(self, t: Tensor) -> Tensor:
        return constant(((0.0, 0.0), (0.0, 2 * self.gamma * self.beta)), t).expand(*t.shape, 2, 2)

    def psi(self, t: Tensor, s: Tensor) -> Tensor:
        tau = self.beta * (t - s)
        a, m = self.gamma * self.m_inv / 2, self.m_inv
        delta = a**2 - m
        root, square = math.sqrt(abs(delta)), delta * tau.square()
        if delta > 0:  # the exponents together: cosh alone would overflow
            slow, fast = torch.exp((root - a) * tau), torch.exp(-(root + a) * tau)
            even, odd = 0.5 * (slow + fast), 0.5 * (slow - fast) / max(root, 1e-300)
        else:
            even, odd = torch.cos(root * tau) * torch.exp(-a * tau), torch.sin(root * tau) * torch.exp(-a * tau)
            odd = odd / max(root, 1e-300)
        near = square.abs() < 1e-3  # critical damping, or small times: there the differences above cancel
        even = torch.where(near, _series(square, 1, 2, 24, 720) * torch.exp(-a * tau), even)
        odd = torch.where(near, _series(square, 1, 6, 120, 5040) * tau * torch.exp(-a * tau), odd)
        first = torch.stack([even + a * odd, m * odd], -1)
        second = torch.stack([-odd, even - a * odd], -1)
        return torch.stack([first, second], -2)

    def log_det_psi0(self, t: Tensor) -> Tensor:
        return -self.beta * self.gamma * self.m_inv * t  # the determinant of psi itself loses digits at strong damping

    def cov(self, t: Tensor) -> Tensor:
        x, w = gauss_legendre_like(t)
        early = t.clamp(max=self._memory)
        c = self.psi0(early.unsqueeze(-1) * x)[..., 1]
        noise = 2 * self.gamma * self.beta * torch.einsum("...n,...ni,...nj->...ij", early.unsqueeze(-1) * w, c, c)
        start = self.psi0(early)[..., 1]
        summed = self.start_var * start.unsqueeze(-1) * start.unsqueeze(-2) + noise
        psi, last = self.psi0(t), constant(((1.0, 0.0), (0.0, 1 / self.m_inv)), t)
        first = constant(((0.0, 0.0), (0.0, self.start_var)), t)
        relaxed = last - psi @ (last - first) @ psi.mT
        return torch.where((t <= self._memory)[..., None, None], summed, relaxed)

    @property
    def _memory(self) -> float:
        """Before this time 40 nodes suffice; after it Sigma_inf - psi (Sigma_inf - Sigma_0) psi^T has its digits."""
        a = self.gamma * self.m_inv / 2
        return 8 / (self.beta * (a + math.sqrt(abs(a**2 - self.m_inv))))

    def R(self, t: Tensor) -> Tensor:
        cov = self.cov(t)
        xx, xv, vv = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
        safe = xx.clamp(min=torch.finfo(t.dtype).tiny)  # at t = 0 there is no position noise
        at_zero = xx <= 0
        l11 = xx.sqrt()
        l21 = torch.where(at_zero, vv.sqrt(), xv / safe.sqrt())
        l22 = torch.where(at_zero, torch.zeros_like(vv), (vv - xv.square() / safe).clamp(min=0).sqrt())
        theta = self._theta(t)
        cos, sin = theta.cos(), theta.sin()
        first = torch.stack([l11 * cos, -l11 * sin], -1)
        second = torch.stack([l21 * cos + l22 * sin, l22 * cos - l21 * sin], -1)
        return torch.stack([first, second], -2)

    def _theta(self, t: Tensor) -> Tensor:
        """The Chebyshev series by Clenshaw's recurrence, which is differentiable at both ends."""
        x = 2 * (t / self.t_max).sqrt() - 1
        later, latest = torch.zeros_like(x), torch.zeros_like(x)
        first, *rest = _rotation(self)
        for c in reversed(rest):
            later, latest = 2 * x * later - latest + c, later
        return x * later - latest + first

    def log_rho(self, t: Tensor) -> Tensor:
        """Of the position: sqrt(Sigma_xx)/psi_xx."""
        return 0.5 * self.cov(t)[..., 0, 0].log() - self.psi0(t)[..., 0, 0].log()

    def prior_cov(self) -> Tensor:
        return torch.diag(torch.tensor([1.0, 1 / self.m_inv], dtype=torch.float64))

    def unseen(self, t: Tensor) -> Tensor:
        M = self.M(t)
        trace = M.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        return torch.eye(2, dtype=t.dtype, device=t.device) - M / trace

    def embed(self, x: Tensor) -> Tensor:
        return torch.stack([x, torch.zeros_like(x)], -1)

    def project(self, u: Tensor) -> Tensor:
        return u[..., 0]

    def to_network(self, u: Tensor) -> Tensor:
        """Positions, then velocities: (b, 2c, h, w) or (b, 2d)."""
        return torch.cat(u.unbind(-1), 1)

    def from_network(self, out: Tensor) -> Tensor:
        return torch.stack(out.chunk(2, 1), -1)


def _series(square: Tensor, *denominators: int) -> Tensor:
    """1 + x^2/d_1 + x^4/d_2 + x^6/d_3 of x^2, which may be negative: cosh or cos, sinhc or sinc."""
    total = torch.zeros_like(square)
    for d in reversed(denominators):
        total = total * square + 1 / d
    return total


@lru_cache
def _rotation(sde: CLD) -> tuple[float, ...]:
    """Chebyshev coefficients of theta in r = sqrt(t / t_max), from dtheta/dr = -2 r t_max beta m L_22/L_11.

    Raises:
        ValueError: no degree up to `DEGREES` resolves theta.
    """
    for degree in DEGREES:
        r = (np.cos((np.arange(degree) + 0.5) * np.pi / degree) + 1) / 2
        slope = -2 * r * sde.t_max * sde.beta * sde.m_inv * _ratio(sde, torch.as_tensor(sde.t_max * r**2))
        slope = np.polynomial.chebyshev.chebfit(2 * r - 1, slope, degree - 1)
        theta = np.polynomial.chebyshev.chebint(slope, scl=0.5)
        theta[0] += -math.pi / 2 - np.polynomial.chebyshev.chebval(-1.0, theta)
        if np.isfinite(theta).all() and np.abs(theta[-degree // 10 :]).max() < 1e-11:
            return tuple(np.polynomial.chebyshev.chebtrim(theta, 1e-15).tolist())
    raise ValueError(
        f"gamma={sde.gamma}, m_inv={sde.m_inv}, beta={sde.beta}, vv_gamma={sde.vv_gamma}: scales too far apart for R to be "
        "resolved; take gamma nearer to 2/sqrt(m_inv), or a larger vv_gamma"
    )


def _ratio(sde: CLD, t: Tensor) -> np.ndarray:
    """L_22/L_11 = sqrt(det Sigma)/Sigma_xx.

    Early det Sigma is summed from positive terms as well: with x the cross product of two columns,
    det Sigma = g D int (c(t) x c(s))^2 ds + D^2/2 int int (c(s) x c(s'))^2 ds ds',  D = 2 Gamma beta.
    """
    x, w = gauss_legendre()
    early = t.clamp(max=sde._memory)
    c = sde.psi0(early.unsqueeze(-1) * torch.as_tensor(x))[..., 1].numpy()
    end = sde.psi0(early)[..., 1].numpy()[:, None, :]
    D, weights = 2 * sde.gamma * sde.beta, early.numpy()[:, None] * w
    det = sde.start_var * D * (weights * _cross(end, c) ** 2).sum(1)
    pairs = _cross(c[:, :, None, :], c[:, None, :, :]) ** 2
    det = det + 0.5 * D**2 * np.einsum("tn,tm,tnm->t", weights, weights, pairs)
    cov = sde.cov(t).numpy()
    direct = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
    return np.sqrt(np.where(t.numpy() <= sde._memory, det, direct)) / cov[:, 0, 0]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
