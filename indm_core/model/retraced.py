r"""The bound of a path of learned transitions that is retraced by others.

On a grid t_0 < ... < t_N with steps D_i = t_{i+1} - t_i, g_i = g(t_i), f_i = f(x_i, t_i), s_i = s(x_i, t_i) and
r_i = sqrt(D_i) / g_{i+1},

    q_i = eps_i + sqrt(D_i)/g_i f_i,     x_{i+1} = x_i + g_i sqrt(D_i) q_i,         the path, in units of its noise,
    delta_i = -(g_i/g_{i+1}) q_i + r_i (f_{i+1} - g_{i+1}^2 s_{i+1}),               the noise that retraces it backwards,

and the loss of a sample is -log p_N(x_N) + sum_i (1/2 |delta_i|^2 - 1/2 |eps_i|^2) + d log(g_N/g_0), whose last term is what
the normalising constants of the 2 N Gaussians leave. Differences x_i - x_{i+1}, as in the paper's delta_i, are avoided: they
cancel where a step is short. N evaluations of f make the path, N + 1 of f and N of s the adjoint's sweep.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Algorithm 2 (Eqs. 3.12-3.15 of the thesis).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from indm_core.adjoint import Path
from indm_core.sde import Volatility

__all__ = ["RetracedPath"]

Function = Callable[[Tensor, Tensor], Tensor]
"""function(x, t) -> like x, t of shape (b,)."""


@final
class RetracedPath(Path):
    """A grid, and what the loss asks at its points; its terms are the prior's and the transitions'.

    Args:
        f, s: Drift and score, of x and of times t (b,).
        log_prob_end: Log-density of the law at the last time, nats (b,).
        ts: Increasing times t_0, ..., t_N, float64, of the host.
        g: Volatility.
    """

    def __init__(
        self, f: Function, s: Function, log_prob_end: Callable[[Tensor], Tensor], ts: Tensor, g: Volatility
    ) -> None:
        self.drift, self.score, self.log_prob_end, self.ts = f, s, log_prob_end, ts.tolist()
        roots, self.g = [math.sqrt(t - s) for s, t in pairwise(self.ts)], [g.at(t) for t in self.ts]
        super().__init__(
            scale=[g * root for g, root in zip(self.g[:-1], roots, strict=True)],
            rate=[root / g for g, root in zip(self.g[:-1], roots, strict=True)],
        )
        self.r = [root / g for g, root in zip(self.g[1:], roots, strict=True)]

    def f(self, i: int, x: Tensor) -> Tensor:
        return self.drift(x, self._time(i, x))

    def point(self, i: int, x: Tensor, q: Tensor | None) -> tuple[Tensor | None, Tensor]:
        f, zero = self.f(i, x), x.new_zeros(len(x))
        if q is None:
            return f, torch.stack([zero, zero])
        s = self.score(x, self._time(i, x))
        delta = self.r[i - 1] * (f - self.g[i] ** 2 * s) - self.g[i - 1] / self.g[i] * q
        prior = -self.log_prob_end(x) if i == len(self.scale) else zero
        return f, torch.stack([prior, _half_square(delta)])

    def constants(self, x: Tensor, eps: Sequence[Tensor]) -> Tensor:
        change = x.new_full((len(x),), math.log(self.g[-1] / self.g[0]) * x[0].numel())
        return torch.stack([torch.zeros_like(change), change - sum(map(_half_square, eps))])

    def _time(self, i: int, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.ts[i], dtype=torch.float64, device=x.device)


def _half_square(v: Tensor) -> Tensor:
    return 0.5 * v.square().flatten(1).sum(1)
