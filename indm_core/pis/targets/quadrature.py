r"""Integrals and quantiles of densities on an interval that are known up to a constant.

The interval [low, high] is cut into n equal panels with q Gauss-Legendre nodes each. From log f at the nodes come

    log Z = log int f,    F(y) = (1/Z) int_low^y f    at the ends of the panels,

and the quantile F^-1(u), with F linear within a panel. A draw F^-1(u) of a uniform u is exact but for that line: F is off by at
most (high - low)^2 max |f'| / (8 Z n^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = ["Panels"]


@final
@dataclass(frozen=True, kw_only=True)
class Panels:
    """An interval in panels.

    Args:
        low, high: Its ends; what lies outside is taken for nothing.
        num: n.
        order: q; a panel is exact for polynomials of degree 2q - 1.
    """

    low: float
    high: float
    num: int
    order: int = 5

    @property
    def width(self) -> float:
        """Of a panel."""
        return (self.high - self.low) / self.num

    def nodes(self) -> Float[Tensor, " nodes"]:
        """The n q nodes, increasing, in float64."""
        inner, _ = np.polynomial.legendre.leggauss(self.order)
        start = self.low + self.width * torch.arange(self.num, dtype=torch.float64)
        return (start[:, None] + 0.5 * self.width * (1 + torch.from_numpy(inner))).flatten()

    def integrated(self, log_f: Float[Tensor, "*b nodes"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b num"]]:
        """log Z, and F at the upper end of each panel.

        Args:
            log_f: log f at the nodes.
        """
        _, weights = np.polynomial.legendre.leggauss(self.order)
        log_weights = torch.from_numpy(weights).to(log_f).log() + math.log(0.5 * self.width)
        log_mass = (log_f.unflatten(-1, (self.num, self.order)) + log_weights).logsumexp(-1)
        log_z = log_mass.logsumexp(-1)
        cdf = (log_mass - log_z[..., None]).exp().cumsum(-1)
        return log_z, cdf / cdf[..., -1:]

    def quantile(self, cdf: Float[Tensor, "*b num"], u: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
        """F^-1(u).

        Args:
            cdf: As of `integrated`.
            u: In [0, 1).
        """
        cdf = cdf.to(u)
        panel = torch.searchsorted(cdf, u, right=True)  # the first with u < F: never one without mass
        above = cdf.gather(-1, panel)
        below = torch.where(panel > 0, cdf.gather(-1, (panel - 1).clamp(min=0)), 0.0)
        return self.low + self.width * (panel + (u - below) / (above - below))
