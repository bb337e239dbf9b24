r"""The score of a canvas from the scores of its pieces.

    score(u, t) = sum over regions r of c_r score_r(u_r, t),           (thesis, Eq. 4.7, with counting numbers for 1 - d)

at every noise level: the noise of different positions is independent, so that the noised marginal of a region is the marginal
of the noised canvas, and one network for pieces of every shape serves all. At t = 0 and on a graph without cycles this is
the score of a law with these separators, exactly. At t > 0 noise breaks the independence that they give; the sum is then the
score of q_t ~ prod_r q_t(u_r)^{c_r}, which is not q_0 noised: no ODE or reverse SDE ends in q_0. `sample_collage` does.

All regions of one shape and score are one batch: a gather, an evaluation (in chunks of at most `max_pieces`), a scatter-add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.collage.graph import VARIABLE, FactorGraph, Region
from indm_core.ranges import check_count
from indm_core.sample import Score
from indm_core.shapes import Float, Int

__all__ = ["Collage", "collage"]


def collage(
    score: Score | Mapping[str, Score],
    graph: FactorGraph,
    condition: Tensor | None = None,
    *,
    max_pieces: int = 4096,
) -> Collage:
    """The canvas's score, to be called as any score: collage(u, t, y) for u (b, *lead, *graph.shape, K).

    Args:
        score: The score of a region's state (n, *lead, *piece, K), of every shape that the graph has, at a time that is 0-d or
            (n, 1, ..., 1); or one for each kind of region.
        graph: The canvas.
        condition: y of each region, (num_regions, ...), the factors' first, in the graph's order; or of the factors alone, and
            variables are then scored without a condition. None: y of the call, one per canvas, for all its regions.
        max_pieces: The most pieces that are evaluated together.

    Returns:
        The score; it has gradients where `score` has.

    Raises:
        ValueError: a kind without a score; a condition of another length than regions or factors.
    """
    check_count(max_pieces=max_pieces)
    scores = dict(score) if isinstance(score, Mapping) else dict.fromkeys(graph.kinds, score)
    missing = [kind for kind in graph.kinds if kind not in scores]
    if missing:
        raise ValueError(
            f"score: none for regions of kind {', '.join(map(repr, missing))}; there are {', '.join(scores)}"
        )
    if condition is not None and (not isinstance(condition, Tensor) or not condition.ndim):
        raise ValueError(f"condition={condition!r} must be a tensor with one entry for each factor, or each region")
    if condition is not None and len(condition) not in (len(graph.factors), len(graph.regions)):
        raise ValueError(
            f"condition: has {len(condition)} entries for {len(graph.factors)} factors and {len(graph.variables)} variables; "
            "give one for each factor, or one for each of both, factors first"
        )
    return Collage(graph, tuple(_batches(graph, scores, condition)), max_pieces)


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Regions of one shape that one score is taken of.

    Args:
        score: Of all of them.
        index: Their positions.
        count: Their counting numbers.
        y: Their conditions; None: what the call gives.
        unconditional: Whether no condition is for them, although there are some for others.
    """

    score: Score
    index: Int[Tensor, " g *piece"]
    count: Float[Tensor, " g"]
    y: Tensor | None
    unconditional: bool


@final
@dataclass(frozen=True, eq=False)
class Collage:
    """A canvas's score; made by `collage`."""

    graph: FactorGraph
    batches: tuple[Batch, ...]
    max_pieces: int

    def __call__(
        self, u: Float[Tensor, "b *canvas k"], t: Float[Tensor, "*t"], y: Tensor | None = None
    ) -> Float[Tensor, "b *canvas k"]:
        """sum over regions of c_r score(u_r, t), like u.

        Args:
            u: The state (b, *lead, *shape, K), shape the graph's.
            t: 0-d or (b, 1, ..., 1).
            y: One condition per canvas, where the collage has none of its own.

        Raises:
            ValueError: u on another canvas; t or y of another length than u; y beside conditions of the regions.
        """
        lead, flat = self.graph.flatten(u)
        if y is not None and any(batch.y is not None for batch in self.batches):
            raise ValueError("y: this collage has a condition for each region; give one or the other")
        if t.ndim and t.numel() != len(u):
            raise ValueError(
                f"t: has shape {tuple(t.shape)} for {len(u)} canvases; give one time, 0-d, or one for each"
            )
        if y is not None and (not y.ndim or len(y) != len(u)):
            raise ValueError(f"y: has shape {tuple(y.shape)} for {len(u)} canvases; give one condition for each")
        total = torch.zeros_like(flat)
        for batch in self.batches:
            total = total + _scored(batch, self.max_pieces, flat, lead, t, y)
        return total.reshape(u.shape)


def _batches(graph: FactorGraph, scores: Mapping[str, Score], condition: Tensor | None) -> Iterator[Batch]:
    ordered: dict[tuple[object, ...], list[int]] = {}
    for r, region in enumerate(graph.regions):
        bare = _bare(region, graph, condition)
        ordered.setdefault((tuple(region.index.shape), id(scores[region.kind]), bare), []).append(r)
    for (_, _, bare), members in ordered.items():
        regions = [graph.regions[r] for r in members]
        yield Batch(
            score=scores[regions[0].kind],
            index=torch.stack([region.index for region in regions]),
            count=torch.tensor([float(region.count) for region in regions], dtype=torch.float64),
            y=None if condition is None or bare else condition[members],
            unconditional=bool(bare),
        )


def _bare(region: Region, graph: FactorGraph, condition: Tensor | None) -> bool:
    """Whether conditions are given, and none for this region."""
    return condition is not None and region.kind == VARIABLE and len(condition) != len(graph.regions)


def _scored(
    batch: Batch, max_pieces: int, flat: Float[Tensor, "b l p k"], lead: Sequence[int], t: Tensor, y: Tensor | None
) -> Float[Tensor, "b l p k"]:
    """What the regions of a batch add to the canvas's score."""
    index = batch.index.to(flat.device)
    g, piece, (b, _, _, k) = len(index), index.shape[1:], flat.shape
    pieces = flat[:, :, index].movedim(2, 0)  # (g, b, l, *piece, k)
    u = pieces.reshape(g * b, *lead, *piece, k)
    t_each = t if t.ndim == 0 else t.reshape(1, b).expand(g, b).reshape(g * b, *[1] * (u.ndim - 2))
    y_each = None
    if batch.y is not None:
        y_each = batch.y.to(flat.device).repeat_interleave(b, 0)
    elif y is not None and not batch.unconditional:
        y_each = y.repeat(g, *[1] * (y.ndim - 1))
    score = _evaluated(batch.score, u, t_each, y_each, max_pieces).reshape(pieces.shape)
    weighted = score * batch.count.to(flat).reshape(g, *[1] * (pieces.ndim - 1))
    placed = weighted.movedim(0, 2).reshape(*flat.shape[:2], index.numel(), k)
    return torch.zeros_like(flat).index_add(2, index.flatten(), placed)


def _evaluated(score: Score, u: Tensor, t: Tensor, y: Tensor | None, most: int) -> Tensor:
    """The scores of all pieces, at most `most` in one call."""
    parts = [slice(first, first + most) for first in range(0, max(1, len(u)), most)]
    return torch.cat([score(u[p], t if t.ndim == 0 else t[p], None if y is None else y[p]) for p in parts])
