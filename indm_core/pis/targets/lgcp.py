r"""A log-Gaussian Cox process: points whose intensity is the exponential of a Gaussian field, on a grid of m x m cells.

    x ~ N(c 1, K),    c = log n - v/2,    K_ij = v exp(-|i - j| / (l m)),    v = 1.91,  l = 1/33,  n points,
    mu^(x) = N(x; c 1, K) prod_i exp(x_i y_i - a exp(x_i)),    a = 1/m^2,                                          (5.21)

i and j are cells, |i - j| the distance of their indices in the grid and y_i the points in cell i. c makes the expected
number of points n. The counts' own constant is left out, as published: log p(y) = log Z + sum_i (y_i log a - log y_i!).

Whitened, the target is the density of z in x = c 1 + L z with L L^T = K: the same Z, and a prior N(0, I), whose scale is the
same in every direction.

References:
    Møller, Syversveen, Waagepetersen 1998, "Log Gaussian Cox processes"; Arbel, Matthews, Doucet 2021, "Annealed flow transport
    Monte Carlo" (m = 40 and 126 pines).
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["LGCP"]


@final
class LGCP(Target):
    """The posterior of the log-intensity.

    Args:
        points: Positions in the unit square, (n, 2).
        grid: m; d = m^2.
        whitened: Whether the density is that of z.
        variance: v.
        length: l, in sides of the square.

    Raises:
        ValueError: no points, or points of another shape or outside the square; numbers out of range.
    """

    root: Tensor
    counts: Tensor

    def __init__(
        self,
        points: Tensor,
        grid: int = 40,
        *,
        whitened: bool = False,
        variance: float = 1.91,
        length: float = 1 / 33,
    ) -> None:
        super().__init__()
        check_count(grid=grid)
        check_positive(variance=variance, length=length)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"points of the shape {tuple(points.shape)}: give (n, 2), at least one")
        points = points.double()
        outside = ~((points >= 0) & (points <= 1)).all(1)
        if outside.any():
            raise ValueError(
                f"points: {points[outside][0].tolist()} is outside the unit square; scale the positions to [0, 1]"
            )
        self.grid, self.dim, self.whitened = grid, grid**2, whitened
        self.mean, self.area = math.log(len(points)) - variance / 2, 1 / grid**2
        line = torch.arange(grid, dtype=torch.float64, device=points.device)
        cells = torch.cartesian_prod(line, line)
        K = variance * (-torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist") / (length * grid)).exp()
        column, row = (
            (points * grid).long().clamp(max=grid - 1).unbind(1)
        )  # a point on the far edge is in the last cell
        counts = torch.bincount(column * grid + row, minlength=self.dim).double()
        self.keep(root=torch.linalg.cholesky(K), counts=counts)

    def field(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """x = c 1 + L z."""
        return self.mean + z @ self.root.to(z).mT

    def white(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """z = L^-1 (x - c 1)."""
        return torch.linalg.solve_triangular(self.root.to(x), (x - self.mean).mT, upper=False).mT

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        z, x = (x, self.field(x)) if self.whitened else (self.white(x), x)
        log_prior = -0.5 * (z.square().sum(1) + self.dim * math.log(2 * math.pi))
        if not self.whitened:
            log_prior = log_prior - self.root.diagonal().log().sum().to(x)
        return log_prior + x @ self.counts.to(x) - self.area * x.exp().sum(1)
