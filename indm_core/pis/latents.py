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
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.model import LinearModel
from indm_core.pis.targets import Posterior
from indm_core.ranges import check_positive
from indm_core.sde import apply
from indm_core.shapes import Bool, Float
from indm_core.times import check_times

__all__ = ["decoded", "latent_posterior"]


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


def latent_posterior(
    model: LinearModel, y: Float[Tensor, " m"], known: Bool[Tensor, "*event"], *, sigma: float, ts: Float[Tensor, " n"]
) -> Posterior:
    """The law of z given y.

    Args:
        model: Its parameters ask for no gradient.
        y: What is observed, in the order of x[known].
        known: Which numbers of x are.
        sigma: Standard deviation of the observation's noise, in units of x.
        ts: See `decoded`.

    Raises:
        ValueError: sizes that do not agree, no positive sigma, times that do not begin at t_start, or a model that would be
            trained.
    """
    check_positive(sigma=sigma)
    check_times(model.sde, ts)
    if not math.isclose(float(ts[0]), model.t_start, rel_tol=1e-9):
        raise ValueError(f"ts[0]={float(ts[0]):g} must be the model's t_start={model.t_start:g}, where z has its law")
    if known.shape != torch.Size(model.shape) or y.shape != (int(known.sum()),):
        raise ValueError(
            f"known of the shape {tuple(known.shape)} with {int(known.sum())} numbers, y of {tuple(y.shape)}: give a mask of "
            f"{model.shape} and as many numbers as it has"
        )
    if any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: its parameters ask for a gradient; call requires_grad_(False) on it")
    example = model.state_like(1, torch.zeros(()))

    def log_prior(z: Tensor) -> Tensor:
        return model.log_prob_start(z.reshape(len(z), *example.shape[1:]))

    def log_likelihood(z: Tensor) -> Tensor:
        error = decoded(model, z, ts)[:, known] - y.to(z)
        return -(0.5 * (error / sigma).square() + math.log(sigma) + 0.5 * math.log(2 * math.pi)).sum(1)

    return Posterior(example.numel(), log_prior, log_likelihood)
