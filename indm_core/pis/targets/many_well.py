r"""Many wells: d/2 independent pairs, each of a double well and of a normal coordinate.

    log mu^(x) = sum_{i < d/2} 1/2 y_i + 6 y_i^2 - y_i^4 - 1/2 v_i^2,        y_i = x_{2i},  v_i = x_{2i+1}.

Z = (Z_y sqrt(2 pi))^{d/2}, Z_y = int exp(y/2 + 6 y^2 - y^4) dy = 11784.509 by quadrature. Each y_i lies in one of two wells, of
either sign: there are 2^{d/2} modes, 65,536 of them for d = 32, which are too many to list. They are counted by the signs of
y: `wells` numbers the mode of a sample, and `expected_wells` says how many different ones n exact samples visit in the mean,

    sum_{j = 0}^k binom(k, j) (1 - (1 - p^j (1 - p)^{k-j})^n),        k = d/2,  p = P(y > 0),

which is what the count of a sampler is to be held against.

References:
    Noé et al. 2019, "Boltzmann generators" (double well); Midgley et al. 2023, "Flow annealed importance sampling bootstrap".
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand_like, randn_like
from indm_core.pis.targets.base import Target
from indm_core.pis.targets.quadrature import Panels
from indm_core.ranges import check_count
from indm_core.shapes import Float, Int

__all__ = ["ManyWell"]

PANELS = Panels(low=-4.0, high=4.0, num=8000)  # beyond, the density of y is below e^-155 of its peak


@final
class ManyWell(Target):
    """The many-well density.

    Args:
        dim: d, even.

    Attributes:
        right: p, the mass of the well y > 0.

    Raises:
        ValueError: d is no even number of at least 2.
    """

    cdf: Tensor
    exact = True

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        check_count(dim=dim)
        if dim % 2:
            raise ValueError(f"dim={dim} must be even: coordinates come in pairs")
        self.dim = dim
        log_z, cdf = PANELS.integrated(_log_double_well(PANELS.nodes()))
        self.log_z = dim / 2 * (float(log_z) + 0.5 * math.log(2 * math.pi))
        self.right = 1 - float(cdf[PANELS.num // 2 - 1])
        self.keep(cdf=cdf)

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (_log_double_well(x[:, ::2]) - 0.5 * x[:, 1::2].square()).sum(1)

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        check_count(num=num)
        u = rand_like(self.cdf.new_empty(num, self.dim // 2), generator)
        y = PANELS.quantile(self.cdf, u.flatten()).reshape(u.shape)
        return torch.stack([y, randn_like(y, generator)], 2).flatten(1)

    def wells(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The number of the mode that each sample is in, from 0 to 2^{d/2} - 1: binary digit i says whether y_i > 0.

        Raises:
            ValueError: d is above 124, and there are more modes than an integer can number.
        """
        if self.dim > 124:
            raise ValueError(f"dim={self.dim}: modes are numbered for at most 124 dimensions")
        return ((x[:, ::2] > 0) << torch.arange(self.dim // 2, device=x.device)).sum(1)

    def expected_wells(self, num: int) -> float:
        """The mean number of different modes that `num` exact samples visit."""
        check_count(num=num)
        k, p = self.dim // 2, self.right
        visited = (-math.expm1(num * math.log1p(-(p**j * (1 - p) ** (k - j)))) for j in range(k + 1))
        return sum(math.comb(k, j) * share for j, share in enumerate(visited))


def _log_double_well(y: Tensor) -> Tensor:
    return 0.5 * y + 6 * y.square() - y.square().square()
