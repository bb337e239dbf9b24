r"""The start of a diffusion's ODE, given a part of the sample that it leads to.

A model with a linear diffusion is a map from its law at t_start to data, x = h^-1(project(u_{t_min})), by the probability-flow
ODE. On a grid t_0 = t_start > ... > t_N = t_min DDIM's steps

    u_s = psi(s, t) u_t + (R_s - psi(s, t) R_t) eps(u_t, t),        eps = -R_t^T score(u_t, t),

make it x(z), z = u_{t_start}, at N evaluations of the score. What is observed, y = x(z)_known + N(0, sigma^2 I), gives

    mu^(z) = p(z) N(y; x(z)_known, sigma^2 I),        Z = p(y):

samples of mu are samples of the N-step model given y, without an approximation of its score. Both factors have gradients in z.
The sampler's uncontrolled end, N(0, T g^2 I), has to cover p(z): of a VP diffusion p(z) is N(0, I), so T g^2 = 1.

References:
    Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (DDIM as order 0); Song et al. 2021,
    "Score-based generative modeling", Eq. 13 (the ODE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from indm_core.model import LinearModel
from indm_core.noise import Noise, randn_like
from indm_core.pis.targets import Posterior
from indm_core.pis.targets.base import like
from indm_core.ranges import check_positive
from indm_core.sde import apply
from indm_core.shapes import Bool, Float
from indm_core.times import check_times

__all__ = ["LatentFamily", "decoded", "latent_posterior"]


def decoded(model: LinearModel, z: Float[Tensor, "n d"], ts: Float[Tensor, " m"]) -> Float[Tensor, " n *event"]:
    """x(z), differentiable in z.

    Args:
        model: Of any linear SDE.
        z: States at ts[0], flat.
        ts: Decreasing times from t_start to the last one, float64.
    """
    sde, u = model.sde, z.reshape(model.state_like(len(z), z).shape)
    for t, s in pairwise(ts.to(z.device)):
        eps, psi = sde.eps_from_score(model.score(u, t), t), sde.psi(s, t)
        u = apply(psi, u) + apply(sde.R(s) - psi @ sde.R(t), eps)
    return model.decode(u)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LatentFamily:
    """The laws of z given y, for every y: a `Family` (`amortised`).

    Args:
        model: Its parameters ask for no gradient.
        known: Which numbers of x are observed.
        sigma: Standard deviation of the observation's noise, in units of x.
        ts: See `decoded`.

    Raises:
        ValueError: a mask of another shape, no positive sigma, times that do not begin at t_start, or a model that would be
            trained.
    """

    model: LinearModel
    known: Bool[Tensor, "*event"]
    sigma: float
    ts: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)
        check_times(self.model.sde, self.ts)
        if not math.isclose(float(self.ts[0]), self.model.t_start, rel_tol=1e-9):
            raise ValueError(
                f"ts[0]={float(self.ts[0]):g} must be the model's t_start={self.model.t_start:g}, where z has its law"
            )
        if self.known.shape != torch.Size(self.model.shape):
            raise ValueError(f"known of the shape {tuple(self.known.shape)}: give a mask of {self.model.shape}")
        if any(p.requires_grad for p in self.model.parameters()):
            raise ValueError("model: its parameters ask for a gradient; call requires_grad_(False) on it")

    @property
    def dim(self) -> int:
        return self.model.state_like(1, torch.zeros(())).numel()

    @torch.no_grad()
    def observe(self, num: int, generator: Noise = None) -> Float[Tensor, "num m"]:
        """Noisy parts of draws of the model, of the dtype of its parameters."""
        z = self.model.sample_start(self.model.state_like(num, like(self.model)), generator)
        y = decoded(self.model, z.flatten(1), self.ts)[:, self.known]
        return y + self.sigma * randn_like(y, generator)

    def log_prior(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.model.log_prob_start(z.reshape(self.model.state_like(len(z), z).shape))

    def log_likelihood(self, z: Float[Tensor, "n d"], y: Tensor) -> Float[Tensor, " n"]:
        """log p(y | z) of one observation (m,), or of one per row (n, m)."""
        error = (decoded(self.model, z, self.ts)[:, self.known] - y.to(z)) / self.sigma
        return -(0.5 * error.square() + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum(1)

    def log_prob(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        return self.log_prior(x) + self.log_likelihood(x, y)


def latent_posterior(
    model: LinearModel, y: Float[Tensor, " m"], known: Bool[Tensor, "*event"], *, sigma: float, ts: Float[Tensor, " n"]
) -> Posterior:
    """The law of z given y.

    Args:
        model, known, sigma, ts: See `LatentFamily`.
        y: What is observed, in the order of x[known].

    Raises:
        ValueError: sizes that do not agree, and as `LatentFamily` does.
    """
    family = LatentFamily(model=model, known=known, sigma=sigma, ts=ts)
    if y.shape != (int(known.sum()),):
        raise ValueError(f"y of {tuple(y.shape)}: give the {int(known.sum())} numbers that known says are observed")
    return Posterior(family.dim, family.log_prior, lambda z: family.log_likelihood(z, y))
