r"""Steps that are adapted until moves are accepted as often as wanted: dual averaging.

After the t-th move, with the accepted share a_t,

    H_t = (1 - 1/(t + t_0)) H_{t-1} + (a* - a_t)/(t + t_0),       log h_{t+1} = log(10 h_1) - sqrt(t)/gamma H_t,
    log h-_t = t^-kappa log h_{t+1} + (1 - t^-kappa) log h-_{t-1},

where h is used while it adapts and the average h- from then on.

References:
    Hoffman, Gelman 2014, "The No-U-turn sampler", Algorithm 5.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

__all__ = ["DualAveraging"]

GAMMA, T_0, KAPPA = 0.05, 10, 0.75
"""Of the reference."""


@final
class DualAveraging:
    """Adapts steps, one or several at once.

    Args:
        step: h_1, positive, of any shape.
        wanted: a*.
    """

    def __init__(self, step: Tensor, wanted: float) -> None:
        self.wanted, self.num = wanted, 0
        self.log_step = self.log_mean = step.log()
        self.centre = self.log_step + math.log(10)
        self.error = torch.zeros_like(step)

    @property
    def step(self) -> Tensor:
        """h."""
        return self.log_step.exp()

    @property
    def settled(self) -> Tensor:
        """h-."""
        return self.log_mean.exp()

    def update(self, accepted: Tensor) -> None:
        """Takes the accepted share of the last move, like the steps."""
        self.num += 1
        share = 1 / (self.num + T_0)
        self.error = (1 - share) * self.error + share * (self.wanted - accepted)
        self.log_step = self.centre - math.sqrt(self.num) / GAMMA * self.error
        weight = self.num**-KAPPA
        self.log_mean = weight * self.log_step + (1 - weight) * self.log_mean
