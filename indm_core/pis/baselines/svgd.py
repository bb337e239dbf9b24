r"""Stein variational gradient descent.

All n particles move along

    phi(x_i) = 1/n sum_j [k(x_j, x_i) grad log mu^(x_j) + grad_{x_j} k(x_j, x_i)],      k(x, y) = exp(-|x - y|^2 / h),
             = 1/n [sum_j k_ij s_j + 2/h (x_i sum_j k_ij - sum_j k_ij x_j)],

h = med^2 / log(n + 1), med the median distance of two particles, with the step sizes of Adam. The particles are no
independent samples: for few of them in many dimensions the spread comes out too small.

References:
    Liu, Wang 2016, "Stein variational gradient descent", Algorithm 1 (which takes log n and AdaGrad; with log(n + 1) one
    particle climbs the gradient).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.noise import Noise
from indm_core.pis.annealing import Bridge
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["SVGD", "stein_direction"]


def stein_direction(x: Float[Tensor, "n d"], score: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """phi at the particles."""
    squares = torch.cdist(x, x).square()
    n = len(x)
    pairs = squares[*torch.triu_indices(n, n, 1, device=x.device)] if n > 1 else squares[0]
    h = (pairs.median() / math.log(n + 1)).clamp(min=torch.finfo(x.dtype).tiny)
    k = (-squares / h).exp()
    return (k @ score + 2 / h * (x * k.sum(1, keepdim=True) - k @ x)) / n


@final
@dataclass(frozen=True, kw_only=True)
class SVGD:
    """Particles from N(0, sigma^2 I), moved together; memory grows as their number squared.

    Args:
        num_steps: Steps, one evaluation per particle each.
        step: The step size of Adam, in units of sigma; it falls linearly to a tenth.
        sigma: Of the start.

    Raises:
        ValueError: an argument out of range.
    """

    num_steps: int = 500
    step: float = 0.05
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_count(num_steps=self.num_steps)
        check_positive(step=self.step, sigma=self.sigma)

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        counted = Counted(target)
        bridge = Bridge(target=counted, sigma=self.sigma)
        points = bridge.begin(num, generator)
        x = points.x.clone()
        optimizer = torch.optim.Adam([x], lr=self.step * self.sigma)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, self.num_steps)
        for t in range(self.num_steps):
            points = bridge.at(x) if t > 0 else points
            x.grad = -stein_direction(points.x.detach(), points.score)
            optimizer.step()
            scheduler.step()
        if not x.isfinite().all():
            raise ConvergenceError(f"step={self.step}: particles are no longer finite; lower it")
        return Draws(x=x, log_w=torch.zeros_like(x[:, 0]), evaluations=counted.evaluations)
