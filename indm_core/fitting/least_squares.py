r"""The descent of a sampler's end error over grids: Levenberg and Marquardt's method.

A grid t_0 > t_1 > ... > t_N with fixed ends is written by the logarithms a of its gaps in r = sqrt t, in which a diffusion is
smooth down to 0: with p = softmax(a) and C its cumulated sum,

    r_i = r_0 - (r_0 - r_N) C_i,        dr_i/da_j = -(r_0 - r_N) p_j ([j <= i] - C_i),

so that every a in R^N is a decreasing grid. e(a) is the vector of errors of the sampler's results over starts and coordinates.
Its derivative by each r_i is taken by a difference, in which one time alone is moved: what the sampler does before that time
stays the same (`remembered`). With J = (de/dr) (dr/da), a step is

    (J^T J + mu D) delta = -J^T e,        D = diag(J^T J) + its mean times 1e-3,

cut to |delta| <= 1 in each gap. It is taken where |e|^2 falls, and mu divided by 5; else mu is multiplied by 5. The added mean
holds the one direction that J does not see, all gaps alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = ["Refined", "refine"]

Errors = Callable[[Tensor], Float[Tensor, " m"]]

DIFFERENCE = 0.01
"""The share of the shorter gap beside it by which a time is moved for a difference."""
WIDEST = 8.0
"""Logarithms of gaps stay so near to their mean, so that no gap vanishes."""
TRIALS = 5
"""Values of mu that are tried before a grid counts as the lowest near."""


@dataclass(frozen=True)
class Refined:
    """A grid, and the root mean square of its errors."""

    times: Tensor
    error: float


@torch.no_grad()
def refine(errors: Errors, ts: Float[Tensor, " n"], *, iterations: int = 15, enough: float = 0.02) -> Refined:
    """The grid that the descent from `ts` ends in.

    Args:
        errors: errors(ts) -> e, float64.
        ts: Decreasing times, float64; the ends stay.
        iterations: At most so many Jacobians, of N - 1 runs of the sampler each.
        enough: The descent ends where a step lowers |e|^2 by less than this share.
    """
    gaps, e, mu = _gaps(ts), errors(ts), 1e-2
    for _ in range(iterations if len(ts) > 2 else 0):
        before = float(e @ e)
        J = _jacobian(errors, e, gaps, ts)
        if before == 0 or not bool(J.isfinite().all()):
            break
        for _ in range(TRIALS):
            moved = gaps + _step(J, e, mu)
            tried = errors(_grid(moved, ts))
            if float(tried @ tried) < before:
                gaps, e, mu = moved, tried, max(mu / 5, 1e-8)
                break
            mu *= 5
        if float(e @ e) > (1 - enough) * before:
            break
    return Refined(_grid(gaps, ts), float(e.square().mean().sqrt()))


def _jacobian(errors: Errors, e: Tensor, gaps: Tensor, ts: Tensor) -> Float[Tensor, "m n"]:
    """de/da. The last time is moved first, so that what a run shares with the one at `ts` was used not long ago."""
    r = _grid(gaps, ts).sqrt()
    shorter = torch.minimum(-r[:-1].diff(), -r[1:].diff())
    columns = []
    for i in reversed(range(1, len(r) - 1)):
        h = DIFFERENCE * shorter[i - 1]
        moved = r.clone()
        moved[i] += h
        columns.append((errors(torch.cat([ts[:1], moved[1:-1].square(), ts[-1:]])) - e) / h)
    shares = gaps.softmax(0)
    cumulated = shares.cumsum(0)[:-1]
    earlier = torch.ones(len(gaps), len(gaps)).to(gaps).tril()[:-1]
    by_gaps = -(r[0] - r[-1]) * shares * (earlier - cumulated.unsqueeze(1))
    return torch.stack(columns[::-1], 1) @ by_gaps.to(e)


def _step(J: Tensor, e: Tensor, mu: float) -> Tensor:
    """delta."""
    square = J.mT @ J
    diagonal = square.diagonal()
    added = mu * (diagonal + 1e-3 * diagonal.mean()).clamp(min=torch.finfo(e.dtype).tiny)
    delta = -torch.linalg.lstsq(square + torch.diag(added), (J.mT @ e).unsqueeze(1)).solution.squeeze(1)
    return delta / max(1.0, float(delta.abs().max()))


def _gaps(ts: Tensor) -> Float[Tensor, " n"]:
    """Logarithms of the gaps in sqrt t, with mean 0."""
    logs = (-ts.sqrt().diff()).log()
    return logs - logs.mean()


def _grid(gaps: Tensor, ts: Tensor) -> Float[Tensor, " n"]:
    """The grid of logarithms of gaps, with the ends of `ts` exactly."""
    first, last = ts[0].sqrt(), ts[-1].sqrt()
    shares = (gaps - gaps.mean()).clamp(-WIDEST, WIDEST).softmax(0)
    between = (first - (first - last) * shares.cumsum(0)[:-1]).square()
    return torch.cat([ts[:1], between, ts[-1:]])
