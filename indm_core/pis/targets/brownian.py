r"""A random walk seen through noise, both of unknown scale, with its middle hidden.

    s ~ LogNormal(0, 2),  r ~ LogNormal(0, 2),    x_1 ~ N(0, s^2),  x_i ~ N(x_{i-1}, s^2),    y_j ~ N(x_j, r^2),  j in O,

i = 1, ..., 30, O all but the middle ten. The state of d = 32 is (a, b, x_1, ..., x_30) with a = log s and b = log r, whose
law is N(0, 2^2): the Jacobians s and r of the logarithms cancel the factors 1/s and 1/r of the log-normal densities. Hence

    mu^(a, b, x) = N(a; 0, 4) N(b; 0, 4) prod_i N(x_i; x_{i-1}, e^{2a}) prod_{j in O} N(y_j; x_j, e^{2b}),    x_0 = 0.

Z = p(y) and exact samples: given the scales everything is Gaussian. With M_ij = min(i, j), M_OO = Q diag(lam) Q^T,
u = a - b, rho = e^{2u}, m = |O| and c = Q^T y,

    log p(y | u, b) = -1/2 e^{-2b} sum_k c_k^2/(rho lam_k + 1) - m b - 1/2 sum_k log(rho lam_k + 1) - m/2 log 2 pi,

which is integrated with the prior over b and over u. A draw takes u from its marginal law, b given u, and x given both by

    x = x' + rho M_{:O} (rho M_OO + I)^{-1} (y - y'),

(x', y') a draw of the prior at these scales.

References:
    Sountsov et al. 2020, "Inference gym" (the model, whose coordinates for s and r are others; p(y) does not depend on them);
    Blessing et al. 2024, "Beyond ELBOs: a large-scale evaluation of variational methods for sampling".
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand, randn_like
from indm_core.pis.targets.base import Target
from indm_core.pis.targets.quadrature import Panels
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["Brownian", "brownian"]

SCALE = 2.0
"""Standard deviation of a and of b."""
RATIO = Panels(low=-24.0, high=24.0, num=4800, order=2)
"""Of u, whose standard deviation is 2 sqrt(2) a priori."""
LEVELS = torch.linspace(-16, 16, 321, dtype=torch.float64)
"""Of b, where its integral is a sum over equal steps, which converges exponentially."""
LEVEL = Panels(low=-16.0, high=16.0, num=3200, order=1)
"""Of b given u, where draws are quantiles."""
OUTSIDE = 20.0
"""Nats by which the joint law of u and b has fallen at the ends of their intervals, at least."""
ROWS = 500
"""Draws of b whose distribution functions are in memory together."""


@final
class Brownian(Target):
    """The posterior of the scales and the positions.

    Args:
        y: Observations of consecutive positions, (l,), nan where one is hidden; d = l + 2.

    Raises:
        ValueError: no observation, or one that is infinite; scales that are not within the intervals that are integrated over.
    """

    y: Tensor
    seen: Tensor
    lam: Tensor
    Q: Tensor
    cdf: Tensor
    exact = True

    def __init__(self, y: Float[Tensor, " l"]) -> None:
        super().__init__()
        seen = (~y.isnan()).nonzero()[:, 0]
        if not len(seen) or y.isinf().any():
            raise ValueError(f"y={y.tolist()}: give finite numbers, at least one, and nan where a position is hidden")
        self.dim = len(y) + 2
        at = (seen + 1).double()
        lam, Q = torch.linalg.eigh(torch.minimum(at[:, None], at))
        self.keep(y=y.double()[seen], seen=seen, lam=lam, Q=Q)
        log_joint = self._log_joint(RATIO.nodes(), LEVELS)
        _check_inside(log_joint, self.y)
        log_z, cdf = RATIO.integrated(log_joint.logsumexp(1) + math.log(float(LEVELS[1] - LEVELS[0])))
        self.log_z = float(log_z)
        self.keep(cdf=cdf.to(self.y))

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        scales, walk = x[:, :2], x[:, 2:]
        a, b = scales.unbind(1)
        steps = torch.cat([walk[:, :1], walk.diff(dim=1)], 1) * (-a[:, None]).exp()
        errors = (self.y.to(x) - walk[:, self.seen]) * (-b[:, None]).exp()
        squares = (scales / SCALE).square().sum(1) + steps.square().sum(1) + errors.square().sum(1)
        num = self.dim + len(self.y)
        constant = 0.5 * num * math.log(2 * math.pi) + 2 * math.log(SCALE)
        return -0.5 * squares - (self.dim - 2) * a - len(self.y) * b - constant

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        check_count(num=num)
        u = RATIO.quantile(self.cdf.double(), rand(num, self.cdf, generator))
        v = rand(num, self.cdf, generator)[:, None]
        nodes = LEVEL.nodes().to(u)
        pieces = (
            LEVEL.quantile(LEVEL.integrated(self._log_joint(ratio, nodes))[1], place)
            for ratio, place in zip(u.split(ROWS), v.split(ROWS), strict=True)
        )
        b = torch.cat(list(pieces))[:, 0]
        return torch.cat([torch.stack([u + b, b], 1), self._walk(u, b, generator)], 1).to(self.cdf)

    def _walk(self, u: Tensor, b: Tensor, generator: Noise) -> Tensor:
        """Draws of x given the scales, float64 (n, l)."""
        z = randn_like(u.new_empty(len(u), self.dim - 2 + len(self.y)), generator)
        walk = (u + b).exp()[:, None] * z[:, : self.dim - 2].cumsum(1)
        left = self.y.to(u) - walk[:, self.seen] - b.exp()[:, None] * z[:, self.dim - 2 :]
        rho, Q = (2 * u).exp()[:, None], self.Q.to(u)
        told = (left @ Q / (rho * self.lam.to(u) + 1)) @ Q.mT
        at = torch.arange(1, self.dim - 1).to(u)
        return walk + rho * (told @ torch.minimum((self.seen + 1).to(u)[:, None], at))

    def _log_joint(self, u: Tensor, b: Tensor) -> Tensor:
        """log p(u, b, y) of all pairs, float64 (len(u), len(b))."""
        spread = (2 * u).exp()[:, None] * self.lam.to(u) + 1
        squares = ((self.y.to(u) @ self.Q.to(u)).square() / spread).sum(1)
        log_det = spread.log().sum(1)
        log_prior = -0.5 * ((u[:, None] + b).square() + b.square()) / SCALE**2 - math.log(2 * math.pi * SCALE**2)
        constant = 0.5 * len(self.y) * math.log(2 * math.pi)
        return log_prior - 0.5 * (squares[:, None] * (-2 * b).exp() + log_det[:, None]) - len(self.y) * b - constant


def _check_inside(log_joint: Tensor, y: Tensor) -> None:
    ends = torch.cat([log_joint[[0, -1]].flatten(), log_joint[:, [0, -1]].flatten()])
    if ends.max() > log_joint.max() - OUTSIDE:
        raise ValueError(
            f"y between {float(y.min()):g} and {float(y.max()):g}: the scales that explain it lie beyond e^-16 or e^16, where "
            "log Z is not integrated; give observations in a unit in which they differ by about 1"
        )


def brownian(seed: int = 0) -> Brownian:
    """30 positions with steps of 0.1, seen with noise of 0.15 but for the middle ten.

    Args:
        seed: Of the walk and its noise, which are therefore not the published ones.
    """
    z = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = 0.1 * z[0].cumsum(0) + 0.15 * z[1]
    y[10:20] = math.nan
    return Brownian(y)
