r"""Controls that are known: of mixtures of Gaussians in closed form, of any target by Monte Carlo.

Under the optimal control the path is a Brownian bridge to a draw x_T ~ mu, and the control leads to where x_T is expected,

    u*_t(x) = g grad log phi_t(x) = (E[x_T | x_t = x] - x) / (g (T - t)).

For mu = sum_k w_k N(m_k, C_k), x_t tells of x_T with precision l = t / (T (T - t) g^2), and given component k

    E[x_T | x, k] = P_k^-1 h_k,    P_k = C_k^-1 + l I,    h_k = C_k^-1 m_k + x / ((T - t) g^2),
    log p(k | x) = log w_k - 1/2 log det C_k P_k - 1/2 m_k^T C_k^-1 m_k + 1/2 h_k^T P_k^-1 h_k + constant,

finite at t = 0 too. For any target, with x_T = x + g sqrt(T - t) xi the uncontrolled end and Psi = log mu^0/mu^,

    u*_t(x) = E[exp(-Psi(x_T)) xi] / (sqrt(T - t) E[exp(-Psi(x_T))]),

Eq. 5.8 with the whole rest of the path in the place of its first instant, which changes nothing: phi_s(x_s) is a martingale.

References:
    Zhang, Chen 2022, "Path integral sampler", Eqs. 5.7-5.9 of the thesis; Tzen, Raginsky 2019, "Theoretical guarantees for
    sampling and inference in generative models with latent diffusions".
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from indm_core.pis.targets.base import Density, log_mu
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["MixtureControl", "MonteCarloControl"]


@final
class MixtureControl(nn.Module):
    """The optimal control of a mixture of Gaussians (PIS-GT); whatever target it is given is not asked.

    Args:
        means: m_k, (k, d).
        covs: C_k, (k, d, d), positive definite.
        weights: w_k, (k,), positive; they need not sum to one.
    """

    means: Tensor
    vectors: Tensor
    values: Tensor
    log_weights: Tensor

    def __init__(self, means: Float[Tensor, "k d"], covs: Float[Tensor, "k d d"], weights: Float[Tensor, " k"]) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covs)
        if not (values > 0).all():
            raise ValueError(
                f"covs: the smallest eigenvalue is {float(values.min()):g}; covariances are positive definite"
            )
        if not (weights > 0).all():
            raise ValueError(f"weights={weights.tolist()}: they must be positive")
        self.register_buffer("means", torch.einsum("kij,ki->kj", vectors, means))  # in the axes of C_k
        self.register_buffer("vectors", vectors)
        self.register_buffer("values", values)
        self.register_buffer("log_weights", weights.log())

    def forward(self, t: Tensor, x: Tensor, *, target: Density, t_max: float, g: float) -> Tensor:
        left = (t_max - t).to(x.dtype)[:, None]
        told = (t / (t_max * (t_max - t) * g**2)).to(x.dtype)[:, None, None]
        along = torch.einsum("kij,ni->nkj", self.vectors, x) / (left * g**2)[:, None]
        precision, h = 1 / self.values + told, self.means / self.values + along
        log_odds = (h.square() / precision - self.means.square() / self.values - (self.values * precision).log()).sum(
            -1
        )
        odds = (self.log_weights + 0.5 * log_odds).softmax(-1)
        expected = torch.einsum("nk,kij,nkj->ni", odds, self.vectors, h / precision)
        return (expected - x) / (g * left)


@final
class MonteCarloControl(nn.Module):
    """The optimal control by averages over uncontrolled ends. The same ends serve every x: the control is a function of (t, x).

    It is 0 where the target has no density at any of them.

    Args:
        dim: d.
        num_draws: Ends, in pairs of opposite signs; even.
        seed: Of the draws.
    """

    xi: Tensor

    def __init__(self, dim: int, *, num_draws: int = 1000, seed: int = 0) -> None:
        super().__init__()
        check_count(num_draws=num_draws)
        if num_draws % 2:
            raise ValueError(f"num_draws={num_draws} must be even: draws come in pairs of opposite signs")
        xi = torch.randn(num_draws // 2, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("xi", torch.cat([xi, -xi]))

    def forward(self, t: Tensor, x: Tensor, *, target: Density, t_max: float, g: float) -> Tensor:
        root = (t_max - t).sqrt().to(x.dtype)[:, None]
        ends = x[:, None] + g * root[..., None] * self.xi  # (n, draws, d)
        with torch.no_grad():
            end = log_mu(target, ends.flatten(0, 1)).reshape(len(x), -1)
        log_w = end + 0.5 * ends.square().sum(-1) / (t_max * g**2)
        lost = (log_w == -math.inf).all(1, keepdim=True)
        return torch.where(lost, 0, log_w.softmax(1) @ self.xi / root)
