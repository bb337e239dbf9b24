r"""Importance sampling: samples of a density that is known, weighted so that they are those of a target.

    x ~ q,      log w = log mu^(x) - log q(x),      E[w] = Z  where q > 0 wherever mu^ is,      E[log w] <= log Z.

q is a Gaussian, such as the encoder of a variational autoencoder is, or a model with an exact likelihood: samples of its
probability-flow ODE have at t_min the density

    log q(x) = log p(u_{t_start}) + int div v dt + log|det dh/dx|,        u = h(x),

which the same ODE backwards gives with its divergence taken exactly (`likelihood.nll` without the residual).
Then the error of log w is that of the solver alone.

References:
    Chen et al. 2018, "Neural ordinary differential equations"; Noe et al. 2019, "Boltzmann generators" (reweighting).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.noise import Noise, rand, randn_like
from indm_core.pis.draws import Draws
from indm_core.pis.estimates import log_z, log_z_bound
from indm_core.pis.targets.base import Target, log_mu
from indm_core.ranges import check_count, check_positive
from indm_core.sampling import Sampling

__all__ = ["Reweighted", "gaussian_proposal", "model_proposal"]


@final
@dataclass(frozen=True, kw_only=True)
class Reweighted:
    """Weighted samples of q; one evaluation of the target for each.

    Args:
        sample: (num, generator) -> x (num, d).
        log_prob: x (n, d) -> log q(x), nats (n,), exactly.
    """

    sample: Callable[[int, Noise], Tensor]
    log_prob: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Raises: ValueError: samples of another dimension than the target's."""
        check_count(num=num)
        x = self.sample(num, generator)
        if x.shape != (num, target.dim):
            raise ValueError(f"sample gave the shape {tuple(x.shape)}; {target.name} takes {(num, target.dim)}")
        log_w = log_mu(target, x) - self.log_prob(x)
        return Draws(x=x, log_w=log_w, log_z=log_z(log_w), bound=log_z_bound(log_w), evaluations=num)


def gaussian_proposal(mean: Tensor, log_std: Tensor) -> Reweighted:
    """N(m, diag s^2), of m and log s (d,)."""

    def sample(num: int, generator: Noise) -> Tensor:
        return mean + log_std.exp() * randn_like(mean.expand(num, -1), generator)

    def log_prob(x: Tensor) -> Tensor:
        standard = (x - mean) * (-log_std).exp()
        return -(0.5 * (standard.square() + math.log(2 * math.pi)) + log_std).sum(1)

    return Reweighted(sample=sample, log_prob=log_prob)


def model_proposal(model: GenerativeModel, *, rtol: float = 1e-5, atol: float = 1e-5) -> Reweighted:
    """A model's probability-flow ODE, as a density of vectors.

    Args:
        model: Of vectors, shape (d,).
        rtol, atol: Tolerances of the ODE, of samples and of their density.

    Raises:
        ValueError: a model of something else.
    """
    check_positive(rtol=rtol, atol=atol)
    if len(model.shape) != 1:
        raise ValueError(f"model: makes samples of the shape {model.shape}; give one of vectors, (d,)")
    sampling = Sampling(sampler="ode", rtol=rtol, atol=atol, denoise=False)

    def sample(num: int, generator: Noise) -> Tensor:
        seed = int(2**31 * float(rand(1, torch.zeros((), dtype=torch.float64), generator)))
        return model.sample(num, sampler=sampling, seed=seed, batch_size=num)

    def log_prob(x: Tensor) -> Tensor:
        return -model.nll(x, residual=False, exact_divergence=True, rtol=rtol, atol=atol)

    return Reweighted(sample=sample, log_prob=log_prob)
