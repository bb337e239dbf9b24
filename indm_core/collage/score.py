r"""The score of a canvas from the scores of its pieces.

    score(u, t) = sum over regions r of c_r score_r(u_r, t),           (thesis, Eq. 4.7, with counting numbers for 1 - d)

at every noise level: the noise of different positions is independent, so that the noised marginal of a region is the marginal
of the noised canvas, and one network for pieces of every shape serves all. At t = 0 and on a graph without cycles this is
the score of a law with these separators, exactly. At t > 0 noise breaks the independence that they give; the sum is then the
score of q_t ~ prod_r q_t(u_r)^{c_r}, which is not q_0 noised: no ODE or reverse SDE ends in q_0. `sample_collage` does.

All regions of one shape and score are one batch: a gather, an evaluation, a scatter-add. The evaluations of all batches are
handed over at once (`Evaluate`): in turn, each in chunks of at most `max_pieces`, or spread over machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from indm_core.collage.graph import VARIABLE, FactorGraph, Region
from indm_core.ranges import check_count, check_not_negative
from indm_core.sample import Score
from indm_core.shapes import Float, Int

__all__ = ["Collage", "Evaluate", "Pieces", "collage"]


class Pieces(NamedTuple):
    """Pieces of one shape that a score is asked of, with its arguments: score(u, t, y)."""

    score: Score
    u: Float[Tensor, "n *event k"]
    t: Tensor
    y: Tensor | None

    def split(self, most: int) -> Iterator[Pieces]:
        """In parts of at most so many pieces."""
        for first in range(0, max(1, len(self.u)), most):
            part = slice(first, first + most)
            t, y = self.t if self.t.ndim == 0 else self.t[part], None if self.y is None else self.y[part]
            yield Pieces(self.score, self.u[part], t, y)


Evaluate = Callable[[Sequence[Pieces]], Sequence[Tensor]]
"""The scores of each of several batches of pieces, which do not depend on each other."""


def collage(
    score: Score | Mapping[str, Score],
    graph: FactorGraph,
    condition: Tensor | None = None,
    *,
    guidance: float = 0.0,
    null: Tensor | None = None,
    max_pieces: int = 4096,
    evaluate: Evaluate | None = None,
) -> Collage:
    """The canvas's score, to be called as any score: collage(u, t, y) for u (b, *lead, *graph.shape, K).

    Args:
        score: The score of a region's state (n, *lead, *piece, K), of every shape that the graph has, at a time that is 0-d or
            (n, 1, ..., 1); or one for each kind of region.
        graph: The canvas.
        condition: y of each region, (num_regions, ...), the factors' first, in the graph's order; or of the factors alone, and
            variables are then scored without a condition. None: y of the call, one per canvas, for all its regions.
        guidance: w of s(u, y) + w (s(u, y) - s(u, none)), of the regions that have a condition of their own.
        null: The condition that stands for none, like one of `condition`; with guidance.
        max_pieces: The most pieces that are evaluated together.
        evaluate: Evaluates all batches of pieces in place of one after the other, `max_pieces` at a time.

    Returns:
        The score; it has gradients where `score` and `evaluate` have.

    Raises:
        ValueError: a kind without a score; a condition of another length than regions or factors.
    """
    check_count(max_pieces=max_pieces)
    check_not_negative(guidance=guidance)
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
    if guidance and condition is None:
        raise ValueError(f"guidance={guidance:g}: it leads towards a class; give a condition, or no guidance")
    if guidance and null is None:
        raise ValueError(
            f"guidance={guidance:g}: it leads away from none; give the condition that stands for none, null"
        )
    batches = tuple(_batches(graph, scores, condition, guidance, null))
    return Collage(graph, batches, evaluate or partial(_in_turn, max_pieces))


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
        guidance: The weight with which they are led to their conditions; 0: they are not.
        null: The condition that stands for none, where they are led.
    """

    score: Score
    index: Int[Tensor, " g *piece"]
    count: Float[Tensor, " g"]
    y: Tensor | None
    unconditional: bool
    guidance: float
    null: Tensor | None


@final
@dataclass(frozen=True, eq=False)
class Collage:
    """A canvas's score; made by `collage`."""

    graph: FactorGraph
    batches: tuple[Batch, ...]
    evaluate: Evaluate

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
        asked = [_pieces(batch, flat, lead, t, y) for batch in self.batches]
        total = torch.zeros_like(flat)
        for batch, score in zip(self.batches, self.evaluate(asked), strict=True):
            total = total + _placed(batch, flat, score)
        return total.reshape(u.shape)


def _batches(
    graph: FactorGraph, scores: Mapping[str, Score], condition: Tensor | None, guidance: float, null: Tensor | None
) -> Iterator[Batch]:
    ordered: dict[tuple[object, ...], list[int]] = {}
    for r, region in enumerate(graph.regions):
        bare = _bare(region, graph, condition)
        ordered.setdefault((tuple(region.index.shape), id(scores[region.kind]), bare), []).append(r)
    for (_, _, bare), members in ordered.items():
        regions = [graph.regions[r] for r in members]
        y = None if condition is None or bare else condition[members]
        yield Batch(
            score=scores[regions[0].kind],
            index=torch.stack([region.index for region in regions]),
            count=torch.tensor([float(region.count) for region in regions], dtype=torch.float64),
            y=y,
            unconditional=bool(bare),
            guidance=0.0 if y is None else guidance,
            null=null,
        )


def _bare(region: Region, graph: FactorGraph, condition: Tensor | None) -> bool:
    """Whether conditions are given, and none for this region."""
    return condition is not None and region.kind == VARIABLE and len(condition) != len(graph.regions)


def _pieces(batch: Batch, flat: Float[Tensor, "b l p k"], lead: Sequence[int], t: Tensor, y: Tensor | None) -> Pieces:
    """The regions of a batch on every canvas, (g b, *lead, *piece, k); led, once with their conditions and once without."""
    index = batch.index.to(flat.device)
    g, piece, (b, _, _, k) = len(index), index.shape[1:], flat.shape
    u = flat[:, :, index].movedim(2, 0).reshape(g * b, *lead, *piece, k)
    t_each = t if t.ndim == 0 else t.reshape(1, b).expand(g, b).reshape(g * b, *[1] * (u.ndim - 2))
    y_each = None
    if batch.y is not None:
        y_each = batch.y.to(flat.device).repeat_interleave(b, 0)
    elif y is not None and not batch.unconditional:
        y_each = y.repeat(g, *[1] * (y.ndim - 1))
    if not batch.guidance or batch.null is None or y_each is None:
        return Pieces(batch.score, u, t_each, y_each)
    both_t = t_each if t_each.ndim == 0 else torch.cat([t_each, t_each])
    return Pieces(batch.score, torch.cat([u, u]), both_t, torch.cat([y_each, batch.null.to(y_each).expand_as(y_each)]))


def _placed(batch: Batch, flat: Float[Tensor, "b l p k"], score: Tensor) -> Float[Tensor, "b l p k"]:
    """What the scores of a batch's regions add to the canvas's score."""
    if batch.guidance:
        with_y, without = score.chunk(2)
        score = with_y + batch.guidance * (with_y - without)
    index = batch.index.to(flat.device)
    g, (b, length, _, k) = len(index), flat.shape
    weighted = score.reshape(g, b, length, index[0].numel(), k) * batch.count.to(flat).reshape(g, 1, 1, 1, 1)
    placed = weighted.movedim(0, 2).reshape(b, length, index.numel(), k)
    return torch.zeros_like(flat).index_add(2, index.flatten(), placed)


def _in_turn(most: int, asked: Sequence[Pieces]) -> list[Tensor]:
    """The scores of all pieces, at most `most` in one call."""
    return [torch.cat([part.score(part.u, part.t, part.y) for part in pieces.split(most)]) for pieces in asked]
