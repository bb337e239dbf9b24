"""Densities with a known constant, for tests of methods that sample what is known up to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from indm_core.noise import Noise, rand, randn_like
from indm_core.pis import Counted, Target
from indm_core.pis.baselines import Bridge

__all__ = ["Black", "Mixture", "Undefined", "bridge", "gaussian", "modes"]

F64 = torch.float64


class Mixture(Target):
    """3 sum_k w_k N(m_k, diag v_k)."""

    log_z = math.log(3)
    exact = True
    means: Tensor
    variances: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.dim = means.shape[1]
        for name, value in (("means", means), ("variances", variances), ("weights", weights)):
            self.register_buffer(name, value)

    def log_prob(self, x: Tensor) -> Tensor:
        away = (x[:, None] - self.means).square() / self.variances + (2 * math.pi * self.variances).log()
        return torch.logsumexp(self.weights.log() - 0.5 * away.sum(-1), 1) + self.log_z

    def sample(self, num: int, generator: Noise = None) -> Tensor:
        k = torch.searchsorted(self.weights.cumsum(0), rand(num, self.means, generator)).clamp(
            max=len(self.weights) - 1
        )
        return self.means[k] + self.variances[k].sqrt() * randn_like(self.means[k], generator)


class Undefined(Target):
    """N(0, 1) in two dimensions, nan where x_1 is above a number."""

    dim = 2

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > self.above, math.nan, -0.5 * x.square().sum(1))


class Black(Target):
    """N(0.5, 0.5 I) times 3, without a gradient."""

    dim = 2
    log_z = math.log(3)

    def log_prob(self, x: Tensor) -> Tensor:
        away = (x.detach().double() - 0.5).square() / 0.5 + math.log(math.pi)
        return (math.log(3) - 0.5 * away.sum(1)).to(x)


def gaussian(dim: int) -> Mixture:
    """Variances from 0.1 to 2."""
    means, variances = torch.linspace(-1, 1, dim, dtype=F64), torch.linspace(0.1, 2, dim, dtype=F64)
    return Mixture(means[None], variances[None], torch.ones(1, dtype=F64))


def modes() -> Mixture:
    """Two modes in the plane, twelve standard deviations apart."""
    means = torch.tensor([[3.0, 3.0], [-3.0, -3.0]], dtype=F64)
    variances = torch.tensor([[0.5, 0.5], [0.5, 0.2]], dtype=F64)
    return Mixture(means, variances, torch.tensor([0.3, 0.7], dtype=F64))


def bridge(target: Target, sigma: float = 2.0) -> Bridge:
    return Bridge(target=Counted(target), sigma=sigma)
