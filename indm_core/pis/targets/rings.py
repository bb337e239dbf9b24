r"""Concentric rings in the plane, of equal height:

    mu^(x) = sum_j exp(-(|x| - r_j)^2 / (2 s^2)),

    Z = 2 pi sum_j int_0^oo r exp(-(r - r_j)^2 / (2 s^2)) dr
      = 2 pi sum_j [s^2 exp(-r_j^2 / (2 s^2)) + r_j s sqrt(2 pi) Phi(r_j/s)].

The radius of a draw is a quantile of r mu^(r), its angle is uniform. The centre x = 0, where the sampler begins, is a kink
of depth exp(-r_1^2 / (2 s^2)); the gradient there is zero, by symmetry.

References:
    Zhang, Chen 2022, "Path integral sampler", Fig. 5.2 of the thesis, which shows rings and does not say their radii.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand
from indm_core.pis.targets.base import Target
from indm_core.pis.targets.quadrature import Panels
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["Rings"]


@final
class Rings(Target):
    """Rings.

    Args:
        radii: r_j.
        width: s.

    Raises:
        ValueError: no radius, or one that is not positive; a width that is not positive.
    """

    radii: Tensor
    cdf: Tensor
    dim = 2
    exact = True

    def __init__(self, radii: Sequence[float] = (1.0, 2.0, 3.0), width: float = 0.1) -> None:
        super().__init__()
        check_positive(width=width)
        if not radii or not all(0 < radius < math.inf for radius in radii):
            raise ValueError(f"radii={tuple(radii)}: give at least one, each positive and finite")
        self.width = float(width)
        self.log_z = math.log(2 * math.pi * sum(_mass(radius, width) for radius in radii))
        high = max(radii) + 10 * width
        self.panels = Panels(low=0.0, high=high, num=math.ceil(200 * high / width))
        self.keep(radii=torch.tensor(list(radii), dtype=torch.float64))
        r = self.panels.nodes()
        self.keep(cdf=self.panels.integrated(self._log_height(r) + r.log())[1])

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self._log_height(torch.linalg.vector_norm(x, dim=1))

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        check_count(num=num)
        r = self.panels.quantile(self.cdf, rand(num, self.cdf, generator))
        angle = 2 * math.pi * rand(num, self.cdf, generator)
        return (r[:, None] * torch.stack([angle.cos(), angle.sin()], 1)).to(self.cdf)

    def _log_height(self, r: Tensor) -> Tensor:
        return (-0.5 * ((r[:, None] - self.radii.to(r)) / self.width).square()).logsumexp(1)


def _mass(radius: float, width: float) -> float:
    """int_0^oo r exp(-(r - radius)^2 / (2 width^2)) dr."""
    at = radius / width
    normal = 0.5 * math.erfc(-at / math.sqrt(2))
    return width**2 * math.exp(-0.5 * at**2) + radius * width * math.sqrt(2 * math.pi) * normal
