r"""The noise of stochastic steps: how much of that of u_t is left at s, and how much is new.

For data in one point the reverse SDE about the mean is du = F_hat u dt + lam G dw, F_hat = F + (1 + lam^2)/2 GG^T Sigma^-1. It
has, from t down to s, the transition Psi_hat(s, t) = R_s W(s, t) R_t^-1,

    dW/ds = lam^2/2 M_s W,    W(t, t) = I,    M = R^-1 GG^T R^-T,

and the covariance P = Sigma_s - Psi_hat Sigma_t Psi_hat^T = R_s (I - W W^T) R_s^T of the noise that is new.

Where there is no closed form, Gauss's collocation solves the equation in one step: with nodes r_j and weights h w_j in
r = tau^(1/4), C_j the factor of W in dW/dr, and A_ij the integral to r_i of Lagrange's polynomial of r_j, a share of h,

    W_i = I + h sum_j A_ij C_j W_j,    W(s, t) = I + h sum_j w_j C_j W_j,

a linear system in all W_i. With 40 nodes W(s, t) is exact to 1e-11, steps from t_max to 1e-5 t_max included.

References: Zhang, Tao, Chen 2023, "gDDIM", Eqs. 18-22 and Proposition 6; Hairer, Lubich, Wanner 2006, "Geometric numerical
integration", section II.1 (collocation).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from indm_core.sde import LinearSDE, inverse, over_event
from indm_core.sde.algebra import gauss_legendre, gauss_legendre_like

__all__ = ["noise_factor"]

SHARE = 256
"""Steps that are solved together."""


def noise_factor(sde: LinearSDE, t: Tensor, s: Tensor, lam: float) -> Tensor:
    """W of stochastic gDDIM for steps to s from t (N,): Psi_hat(s, t) = R_s W R_t^-1 and P = R_s (I - W W^T) R_s^T.

    In closed form for K = 1 and for lam = 0 and 1 (where Psi_hat = Sigma_s psi(t, s)^T Sigma_t^-1); else by collocation.

    Returns:
        (N, *e, K, K), float64; no singular value is above 1.
    """
    at_t, at_s, k = over_event(t), over_event(s), sde.prior_cov().shape[-1]
    if k == 1:
        early, late = (sde.cov(tau) / sde.psi0(tau).square() for tau in (at_s, at_t))
        return (early / late) ** (lam**2 / 2)
    if lam == 0:
        return torch.eye(k).to(t).expand(len(t), 1, 1, k, k)
    if lam == 1:
        return (inverse(sde.R(at_t)) @ sde.psi(at_t, at_s) @ sde.R(at_s)).mT
    W = torch.cat([_collocated(sde, *ends, lam) for ends in zip(t.split(SHARE), s.split(SHARE), strict=True)])
    left, values, right = torch.linalg.svd(W)
    return left @ torch.diag_embed(values.clamp(max=1)) @ right


def _collocated(sde: LinearSDE, t: Tensor, s: Tensor, lam: float) -> Tensor:
    """W by Gauss's collocation, for K > 1."""
    x, w = gauss_legendre_like(t)
    first, last = (end.unsqueeze(1) ** 0.25 for end in (t, s))
    r = first + (last - first) * x
    M = sde.M(over_event(r.flatten().pow(4)))
    rate = 2 * lam**2 * r.pow(3) * (last - first)  # lam^2/2 dtau, of tau = r^4
    C = (rate.reshape(-1, 1, 1, 1, 1) * M).reshape(*r.shape, *M.shape[1:]).movedim(1, -3)  # (N, *e, j, K, K)
    n, k = C.shape[-3], C.shape[-1]
    coupled = torch.einsum("ij,...jab->...iajb", torch.as_tensor(_integrals(n)).to(C), C)
    system = torch.eye(n * k).to(C) - coupled.reshape(*C.shape[:-3], n * k, n * k)
    start = torch.eye(k).to(C).repeat(n, 1)
    inner = torch.linalg.solve(system, start.expand(*system.shape[:-2], n * k, k)).reshape(C.shape)
    return torch.eye(k).to(C) + torch.einsum("j,...jab,...jbc->...ac", w, C, inner)


@lru_cache
def _integrals(num: int) -> np.ndarray:
    """A_ij = int_0^{x_i} of Lagrange's polynomial of x_j, for Gauss-Legendre nodes x on [0, 1], by its Legendre series."""
    x, w = gauss_legendre(num)
    P = np.polynomial.legendre.legvander(2 * x - 1, num)
    k = np.arange(num)
    integrals = (P[:, k + 1] - np.where(k, P[:, k - 1], -1.0)) / (2 * (2 * k + 1))
    return ((2 * k + 1) * integrals) @ (w[:, None] * P[:, :num]).T
