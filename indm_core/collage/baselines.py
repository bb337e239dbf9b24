r"""What collages are compared with.

    independent tiles     a collage without separators: `tiles`
    the piece's model     run on the whole canvas as if it were a piece: any sampler with the piece's score
    shifted tiles         one set of tiles a step, moved at random: each joint lies inside a tile at other steps
    resampling            a step down, noise back up, repeated: what pieces disagree on is drawn again
    outpainting           one piece after the other, each given what it shares with those before it, by `replacement` or by
                          `reconstruction`: as many samplings as there are pieces, and each builds on the errors of the last

References:
    Zhang 2023 (thesis), sections 4.2 and 4.5.1, Table 4.1. Lugmayr et al. 2022, "RePaint", Algorithm 1 (resampling).
    Bar-Tal et al. 2023, "MultiDiffusion", and Wang et al. 2024 (shifted windows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.collage.conditions import Observation, Pixels
from indm_core.collage.graph import FACTOR, FactorGraph, Region
from indm_core.collage.sampling import check_pixelwise
from indm_core.collage.score import collage
from indm_core.exponential import sample_deis
from indm_core.noise import Noise
from indm_core.ranges import check_count
from indm_core.sample import Sampler, Score
from indm_core.sde import LinearSDE
from indm_core.times import check_times

__all__ = ["sample_outpainted", "sample_resampled", "sample_shifted", "tiles"]

Guide = Callable[[Score, LinearSDE, Observation, Tensor], Score]


def tiles(length: int, piece: int, shift: int = 0) -> FactorGraph:
    """Pieces side by side along the canvas's last axis, without overlap; those at the ends may be shorter.

    Args:
        length: Of the canvas.
        piece: Of a tile.
        shift: Where a tile ends, 0 <= shift < piece.
    """
    check_count(length=length, piece=piece)
    if not 0 <= shift < piece:
        raise ValueError(f"shift={shift} must lie in 0 .. piece - 1 = {piece - 1}")
    cuts = sorted({0, length, *range(shift, length, piece)})
    regions = [Region(torch.arange(a, b), 1, FACTOR, f"tile {i}") for i, (a, b) in enumerate(pairwise(cuts))]
    return FactorGraph((length,), tuple(regions))


@torch.no_grad()
def sample_shifted(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    piece: int,
    y: Tensor | None = None,
    max_pieces: int = 4096,
    generator: torch.Generator | None = None,
) -> Tensor:
    """gDDIM steps, each through the score of tiles that are moved at random.

    Args:
        score: Of a piece, of every length up to `piece`.
        u: State at ts[0], (b, *lead, length, K).
        y: Of each canvas, for all its tiles.
        max_pieces: The most tiles that are evaluated together.
        generator: Of the shifts.
    """
    check_pixelwise(sde)
    check_times(sde, ts)
    check_count(piece=piece)
    for t, s in pairwise(ts):
        shift = int(torch.randint(piece, (), generator=generator))
        moved = collage(score, tiles(u.shape[-2], piece, shift), max_pieces=max_pieces)
        u = sample_deis(sde, partial(_of_label, moved, y), u, torch.stack([t, s]), order=0)
    return u


def _of_label(score: Score, label: Tensor | None, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return score(u, t, label)


@torch.no_grad()
def sample_resampled(
    sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, *, repeats: int = 5, generator: Noise = None
) -> Tensor:
    """gDDIM steps, each repeated from a state that is noised back up.

    Args:
        score: A collage's.
        repeats: Steps down per level; 1 is the ODE.

    Returns:
        The state at ts[-1]; repeats (len(ts) - 1) evaluations of the score.
    """
    check_pixelwise(sde)
    check_times(sde, ts)
    check_count(repeats=repeats)
    for t, s in pairwise(ts):
        for repeat in range(repeats):
            if repeat:
                u = sde.transition(u, t, s, generator)
            u = sample_deis(sde, score, u, torch.stack([t, s]), order=0)
    return u


@torch.no_grad()
def sample_outpainted(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    graph: FactorGraph,
    guide: Guide,
    sampler: Sampler,
    generator: Noise = None,
) -> Tensor:
    """One piece after the other, from the middle outwards, each given what earlier ones hold of it.

    Args:
        score: Of a piece.
        u: State at ts[0] on the canvas.
        graph: Its factors are the pieces; they hang together.
        guide: `replacement` or `reconstruction`: the score of a piece of which some pixels are known.
        sampler: sampler(sde, score, u, ts, generator) -> u.

    Returns:
        The state at ts[-1]; one run of the sampler for each factor.
    """
    check_pixelwise(sde)
    lead, flat = graph.flatten(u)
    flat = flat.clone()
    done = torch.zeros(math.prod(graph.shape), dtype=torch.bool)
    for factor in _from_the_middle(graph):
        index, shape = factor.index, (len(u), *lead, *factor.index.shape, u.shape[-1])
        known, state = done[index], flat[:, :, index.flatten()].reshape(shape)
        given = score
        if known.any():
            seen = Pixels(known.to(u.device))
            given = guide(score, sde, seen, seen.measure(sde.project(state)))
            state = torch.where(known.to(u.device).unsqueeze(-1), _start(sde, state, ts, generator), state)
        drawn = sampler(sde, given, state, ts, generator).reshape(*flat.shape[:2], index.numel(), -1)
        new = index.flatten()[~known.flatten()]
        flat[:, :, new] = drawn[:, :, (~known.flatten()).nonzero().flatten()]
        done[index] = True
    return flat.reshape(u.shape)


def _start(sde: LinearSDE, state: Tensor, ts: Tensor, generator: Noise) -> Tensor:
    """What is known, noised to ts[0]."""
    return sde.transition(sde.embed(sde.project(state)), ts[0], torch.zeros_like(ts[0]), generator)


def _from_the_middle(graph: FactorGraph) -> list[Region]:
    """The factors in an order in which each, but the first, shares positions with one before it.

    Raises:
        ValueError: factors that share nothing with the others.
    """
    left = list(graph.factors)
    order = [left.pop(len(left) // 2)]
    held = set(order[0].positions)
    while left:
        joined = next((factor for factor in left if not held.isdisjoint(factor.positions)), None)
        if joined is None:
            raise ValueError(f"{left[0].name}: shares no position with the others; outpainting needs an overlap")
        left.remove(joined)
        order.append(joined)
        held |= joined.positions
    return order
