r"""What canvases are measured by, beside the distances of their pieces: seams, and correlations at a distance.

x (n, *lead, *axes) are n canvases, levels or real numbers; the last axes are those that a graph cuts.

Two positions a, b are *neighbours* where a factor holds them side by side, and each such pair is of one kind:

    closing   not side by side on the canvas's own axes: where the ends of a loop meet, or the faces of a cube
    seam      the others of which a factor holds one alone: a factor begins or ends between them, which is called a joint
    inside    all others

The jump of a pair is (x_a - x_b)^2, averaged over what the graph does not cut, and J_i of a kind is its mean over the pairs of
canvas i. Real pieces have at each axis of a piece, and at each phase f, the mean jump R[axis, f]: of positions i and i + 1 with
(i + 1) mod s = f, where pieces begin at multiples of the step s (s = 1: all positions alike). With w[axis, f] the share of a
kind's pairs that lie so in the factors which hold them,

    ratio = mean_i J_i / mean_k R_k,        R_k = sum of w[axis, f] R_k[axis, f] in the real piece k,

is 1 where canvases are as data are, and above 1 where there is a seam. Its standard error is that of the ratio of independent
means over n canvases and m real pieces, to first order: ratio^2 (Var J / (n J^2) + Var R / (m R^2)).

R is an average over positions. Where data are not stationary but for their phase (a digit in the middle of its piece), it is no
position's own jump, and the ratio of data themselves need not be 1 at joints: compare the seam with the inside then.

The correlation at lag l of m_i(j), the mean of canvas i over all axes but one, at the position j of that one, is

    rho_l = sum_ij a_ij b_ij / sqrt(sum_ij a_ij^2 sum_ij b_ij^2),    a_ij = m_i(j) - m(j),  b_ij = m_i(j + l) - m(j + l),

m(j) the mean over canvases, so that what all canvases have in common does not count. Its standard error is that of the delta
method over canvases, which is right from some 50 canvases on (below it is too small, by a quarter at 10).

References: Zhang 2023 (thesis), section 4.5.1 (FID+) and Fig. 4.4 (the pieces at each place).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.collage.graph import FactorGraph
from indm_core.noise import Noise, rand_like
from indm_core.ranges import check_count
from indm_core.shapes import Float, Int

__all__ = [
    "Joints",
    "LagCorrelations",
    "Neighbours",
    "Ratio",
    "joints",
    "jump_ratio",
    "jumps",
    "lag_correlations",
    "pieces_at",
    "random_pieces",
    "real_jumps",
]


def random_pieces(x: Tensor, shape: Sequence[int], step: int = 1, generator: Noise = None) -> Tensor:
    """One crop of each canvas, of a piece's shape: its Frechet distance to data is FD+.

    The thesis (4.5.1, FID+) crops squares out of panoramas of squares; here a crop has the shape of a piece, square or not. No
    crop goes over the ends of a loop.

    Args:
        x: Canvases.
        shape: Of a piece, along the last axes.
        step: Crops begin at its multiples, each equally often.
        generator: One generator per canvas makes a crop independent of the other canvases.

    Raises:
        ValueError: a canvas smaller than a piece.
    """
    check_count(step=step)
    room = [have - want for have, want in zip(x.shape[x.ndim - len(shape) :], shape, strict=True)]
    if min(room) < 0:
        raise ValueError(f"shape={tuple(shape)}: a piece of it is larger than the canvas {tuple(x.shape[1:])}")
    drawn = rand_like(x.new_zeros(len(x), len(shape), dtype=torch.float64), generator)
    begins = (drawn * drawn.new_tensor([free // step + 1 for free in room])).long() * step
    crops = [
        one[(..., *(slice(a, a + size) for a, size in zip(begin, shape, strict=True)))]
        for one, begin in zip(x, begins.tolist(), strict=True)
    ]
    return torch.stack(crops) if crops else x.new_zeros(0, *x.shape[1 : x.ndim - len(shape)], *shape)


def pieces_at(x: Tensor, graph: FactorGraph) -> list[Tensor]:
    """What canvases have at each factor, in the order of the factors: how errors accumulate along them (Fig. 4.4)."""
    flat = _flat(x, graph.shape)
    lead = x.shape[1 : x.ndim - len(graph.shape)]
    return [flat[..., f.index.flatten().to(x.device)].reshape(len(x), *lead, *f.index.shape) for f in graph.factors]


@final
@dataclass(frozen=True, eq=False)
class Neighbours:
    """Pairs of neighbouring positions of one kind.

    Args:
        first, second: The positions of each pair on the canvas, int64.
        share: w, the share of the pairs on each axis of a piece at each phase; 0 where there is no pair.
    """

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    share: Float[Tensor, "axes step"]


@final
@dataclass(frozen=True, eq=False)
class Joints:
    """The neighbours of a graph by their kind."""

    seam: Neighbours
    inside: Neighbours
    closing: Neighbours


def joints(graph: FactorGraph, step: int = 1, borders: FactorGraph | None = None) -> Joints:
    """The neighbours of a graph's positions. Positions side by side that no factor holds so are none, as in the gaps between
    pieces that meet at their corners.

    Args:
        graph: Its factors have equally many axes.
        step: s, at whose multiples pieces begin.
        borders: The graph whose factors make the joints, on the same canvas; None takes `graph`. Tiles alone have no neighbours
            across their borders: give a graph of the canvas that has them as `graph`, and the tiles as `borders`.
    """
    check_count(step=step)
    held = [_side_by_side(factor.index, axis, step) for factor in graph.factors for axis in range(factor.index.ndim)]
    low, high, axis, phase = torch.cat(held, 1)
    size = math.prod(graph.shape)
    pairs, of, holders = (low * size + high).unique(return_inverse=True, return_counts=True)
    first, second = pairs // size, pairs % size
    cut = torch.zeros(len(pairs), dtype=torch.bool)
    for factor in (borders or graph).factors:
        inside = torch.zeros(size, dtype=torch.bool)
        inside[factor.index.flatten()] = True
        cut |= inside[first] ^ inside[second]
    apart = _distance(first, second, graph.shape) != 1
    axes = max(factor.index.ndim for factor in graph.factors)

    def of_kind(kind: Tensor) -> Neighbours:
        share = torch.zeros(axes, step, dtype=torch.float64)
        share.index_put_((axis, phase), kind[of].double() / holders[of], accumulate=True)
        return Neighbours(first[kind], second[kind], share / max(1, int(kind.sum())))

    return Joints(seam=of_kind(cut & ~apart), inside=of_kind(~cut & ~apart), closing=of_kind(apart))


def jumps(x: Tensor, graph: FactorGraph, neighbours: Neighbours) -> Float[Tensor, " n"]:
    """J of each canvas, float64; nan where there are no such neighbours."""
    flat = _flat(x, graph.shape).double()
    first, second = neighbours.first.to(x.device), neighbours.second.to(x.device)
    return (flat[..., first] - flat[..., second]).square().mean((1, 2))


def real_jumps(x: Tensor, axes: int, step: int = 1) -> Float[Tensor, "m axes step"]:
    """R_k of real pieces, float64; nan at phases that a piece does not have.

    Args:
        axes: How many axes graphs cut, the last ones.
        step: s.
    """
    check_count(axes=axes, step=step)
    found = x.new_full((len(x), axes, step), math.nan, dtype=torch.float64)
    for axis in range(axes):
        at = x.ndim - axes + axis
        each = x.double().diff(dim=at).square().movedim(at, 1).reshape(len(x), x.shape[at] - 1, -1).mean(2)
        for phase in range(step):
            of_phase = each[:, (phase - 1) % step :: step]
            found[:, axis, phase] = of_phase.mean(1)
    return found


@final
@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two means and its standard error; nan where it could not be had."""

    value: float
    standard_error: float


def jump_ratio(found: Float[Tensor, " n"], real: Float[Tensor, "m axes step"], neighbours: Neighbours) -> Ratio:
    """The mean jump of canvases at some neighbours over that of real pieces at positions that lie likewise.

    Args:
        found: `jumps` of the canvases.
        real: `real_jumps` of real pieces.
        neighbours: Those that `found` is of.

    Raises:
        ValueError: fewer than two canvases or real pieces.
    """
    if min(len(found), len(real)) < 2:
        raise ValueError(f"{len(found)} canvases and {len(real)} real pieces: an error needs 2 of either")
    share = neighbours.share.to(real)
    of_data = torch.where(share > 0, share * real, 0.0).flatten(1).sum(1)
    if not len(neighbours.first) or float(of_data.mean()) == 0.0:
        return Ratio(value=math.nan, standard_error=math.nan)
    ratio = found.mean() / of_data.mean()
    relative = (
        found.var() / len(found) / of_data.mean() ** 2 + ratio**2 * of_data.var() / len(real) / of_data.mean() ** 2
    )
    return Ratio(value=float(ratio), standard_error=float(relative.sqrt()))


@final
@dataclass(frozen=True, eq=False)
class LagCorrelations:
    """Correlations at some lags with their standard errors, float64; nan where nothing varies."""

    lags: tuple[int, ...]
    values: Float[Tensor, " lags"]
    standard_errors: Float[Tensor, " lags"]


def lag_correlations(x: Tensor, lags: Sequence[int], axis: int = -1) -> LagCorrelations:
    """rho_l of the means over all axes but one; of statistics (n, positions), of these themselves.

    Args:
        x: Canvases, or real pieces.
        lags: Each below the length of the axis.
        axis: Along which.

    Raises:
        ValueError: a lag that does not fit, or fewer than two canvases.
    """
    along = x.double().movedim(axis, 1).flatten(2).mean(2) if x.ndim > 2 else x.double()
    if len(along) < 2:
        raise ValueError(f"{len(along)} canvases: a correlation over them needs 2")
    if wrong := [lag for lag in lags if not 0 < lag < along.shape[1]]:
        raise ValueError(f"lags={tuple(lags)}: {wrong[0]} does not lie in 1 .. {along.shape[1] - 1}")
    centred = along - along.mean(0)
    found = torch.tensor([_correlation(centred[:, :-lag], centred[:, lag:]) for lag in lags], dtype=torch.float64)
    values, errors = found.reshape(-1, 2).T
    return LagCorrelations(tuple(lags), values, errors)


def _correlation(a: Tensor, b: Tensor) -> tuple[float, float]:
    """rho, and its error from what each canvas adds to it: psi_i = ab_i - rho (aa_i + bb_i) / 2, in units of the variances."""
    ab, aa, bb = ((p * q).mean(1) for p, q in ((a, b), (a, a), (b, b)))
    rho = ab.mean() / (aa.mean() * bb.mean()).sqrt()
    psi = ab / (aa.mean() * bb.mean()).sqrt() - rho / 2 * (aa / aa.mean() + bb / bb.mean())
    return float(rho), float(psi.std() / len(a) ** 0.5)


def _flat(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(n, what the graph does not cut, positions)."""
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise ValueError(f"x: canvases of shape {tuple(x.shape[1:])}, and the graph is on {tuple(shape)}")
    return x.reshape(len(x), -1, math.prod(shape))


def _side_by_side(index: Int[Tensor, "*piece"], axis: int, step: int) -> Int[Tensor, "four pairs"]:
    """The pairs of a piece along one of its axes: the lower position, the higher one, the axis and the phase."""
    num = index.shape[axis] - 1
    pairs = torch.stack([index.narrow(axis, 0, num), index.narrow(axis, 1, num)])
    shape = [-1 if a == axis else 1 for a in range(index.ndim)]
    phase = ((torch.arange(num) + 1) % step).reshape(shape).expand(pairs.shape[1:])
    return torch.stack([pairs.amin(0), pairs.amax(0), torch.full_like(phase, axis), phase]).flatten(1)


def _distance(first: Tensor, second: Tensor, shape: Sequence[int]) -> Int[Tensor, " pairs"]:
    """How many steps along the canvas's axes lie between positions."""
    sides = torch.tensor(list(shape))
    strides = torch.tensor([math.prod(shape[a + 1 :]) for a in range(len(shape))])
    one, other = (at[:, None] // strides % sides for at in (first, second))
    return (one - other).abs().sum(1)
