r"""Neal's funnel: a normal coordinate that sets the scale of all others.

    x_0 ~ N(0, s^2),    x_i | x_0 ~ N(0, e^{x_0}),   i = 1, ..., d - 1,

normalised: log Z = 0. The chapter's text and the benchmark of record have s = 3; the published code of the path integral
sampler, and so its table, has s = 1.

References:
    Neal 2003, "Slice sampling"; Zhang, Chen 2022, "Path integral sampler".
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["Funnel"]


@final
class Funnel(Target):
    """The funnel.

    Args:
        scale: s.
        dim: d, at least 2.

    Raises:
        ValueError: an argument out of range.
    """

    like: Tensor  # of the dtype and on the device of the samples
    log_z = 0.0
    exact = True

    def __init__(self, scale: float = 3.0, dim: int = 10) -> None:
        super().__init__()
        check_positive(scale=scale)
        check_count(dim=dim)
        if dim < 2:
            raise ValueError(f"dim={dim}: a funnel has at least 2 dimensions")
        self.scale, self.dim = float(scale), dim
        self.keep(like=torch.empty(dim, dtype=torch.float64))

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        first = x[:, 0]
        squares = (x[:, 1:] * (-0.5 * first[:, None]).exp()).square().sum(1) + (first / self.scale).square()
        constant = math.log(self.scale) + 0.5 * self.dim * math.log(2 * math.pi)
        return -0.5 * (squares + (self.dim - 1) * first) - constant

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        check_count(num=num)
        z = randn_like(self.like.expand(num, -1), generator)
        first = self.scale * z[:, :1]
        return torch.cat([first, (0.5 * first).exp() * z[:, 1:]], 1)
