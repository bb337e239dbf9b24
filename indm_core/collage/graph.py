r"""Factor graphs: how a large canvas is made of pieces.

A canvas u has positions 0 .. P-1, and a region r is an array of them: a piece, as a network sees it, or what pieces share. With
the marginals q(r) of the regions and their counting numbers c_r, the canvas has the law

    p(u) ~ prod_r q(u_r)^{c_r},        c_r = 1 - sum of c_s over the regions s that contain r,        (Kikuchi; regions nest)

and its score is the sum of c_r grad log q(u_r). Pieces (*factors*) have c = 1. Where no position is in more than one overlap,
what d pieces share (a *variable*, or separator) has c = 1 - d: the Bethe approximation, Eq. 4.7 of the thesis. In a grid edge
strips have c = -1 and their corners, where they cross, +1. Each position is counted once: the sum of c_r over the regions that
cover it is 1, which is checked. p is exact where the graph has no cycle and a separator makes its two sides independent.

A separator is an overlap taken whole. To subtract its positions one by one leaves out what they have in common.

References:
    Zhang 2023 (thesis), chapter 4 (DiffCollage), Eqs. 4.5-4.7; Zhang et al. 2023, "DiffCollage", CVPR.
    Yedidia, Freeman, Weiss 2005, "Constructing free-energy approximations", sections III and V (counting numbers).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from indm_core.ranges import check_count
from indm_core.shapes import Float, Int

__all__ = ["FactorGraph", "Region"]

FACTOR, VARIABLE = "factor", "variable"


@final
@dataclass(frozen=True, eq=False)
class Region:
    """Positions of the canvas that one score is taken of.

    Args:
        index: The canvas's position at each of the region's own, int64, in the shape that a network sees: (w,), (h, w), ... A
            flip or a rotation is an index in another order.
        count: c_r, its counting number.
        kind: What it is: "factor", "variable", or a name of the user's own; regions of one kind are scored by one score.
        name: How messages call it.
    """

    index: Int[Tensor, "*piece"]
    count: int
    kind: str
    name: str

    @property
    def positions(self) -> frozenset[int]:
        """Its positions, in no order."""
        return frozenset(self.index.flatten().tolist())


@final
@dataclass(frozen=True, eq=False)
class FactorGraph:
    """A canvas and the regions that it is scored by.

    Args:
        shape: The canvas's axes that the graph cuts, the last ones before the block K of a state: (w,) of a strip of any
            height, (h, w) of an image.
        regions: Factors first, then variables; those with c = 0 left out.

    Raises:
        ValueError: a region beyond the canvas or with a position twice; a position that is not counted once.
    """

    shape: tuple[int, ...]
    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        total = torch.zeros(math.prod(self.shape), dtype=torch.int64)
        for region in self.regions:
            check_inside(region, self.shape)
            total[region.index.flatten()] += region.count
        self._check_counted_once(total)

    def _check_counted_once(self, total: Int[Tensor, " p"]) -> None:
        wrong = (total != 1).nonzero().flatten()
        if not len(wrong):
            return
        place = int(wrong[0])
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), self.shape))
        if not any(place in region.positions for region in self.regions):
            raise ValueError(f"position {at} of the canvas {self.shape} is in no factor; add one that covers it")
        raise ValueError(
            f"position {at} of the canvas {self.shape} is counted {int(total[place])} times, not once; "
            "give the overlaps as variables, whole, each once"
        )

    @property
    def factors(self) -> tuple[Region, ...]:
        """The pieces."""
        return tuple(region for region in self.regions if region.kind != VARIABLE)

    @property
    def variables(self) -> tuple[Region, ...]:
        """The separators."""
        return tuple(region for region in self.regions if region.kind == VARIABLE)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its regions, each once."""
        return tuple(dict.fromkeys(region.kind for region in self.regions))

    def flatten(self, u: Float[Tensor, "b *canvas k"]) -> tuple[torch.Size, Float[Tensor, "b l p k"]]:
        """The axes of a state on this canvas that the graph does not cut, and the state (b, their product, positions, K).

        Raises:
            ValueError: a state on another canvas.
        """
        axes = len(self.shape)
        if u.ndim < axes + 2 or tuple(u.shape[-1 - axes : -1]) != self.shape:
            raise ValueError(f"u: a state of shape {tuple(u.shape)} on a canvas (b, ..., {self.shape}, k)")
        lead = u.shape[1 : -1 - axes]
        return lead, u.reshape(len(u), math.prod(lead), math.prod(self.shape), u.shape[-1])

    def of_height(self, height: int) -> FactorGraph:
        """The same graph on a canvas with an axis more, (height, *shape): every region spans it whole."""
        check_count(height=height)
        rows = torch.arange(height) * math.prod(self.shape)
        regions = [replace(r, index=rows.reshape(-1, *[1] * r.index.ndim) + r.index) for r in self.regions]
        return FactorGraph((height, *self.shape), tuple(regions))

    def refine(self, inner: FactorGraph) -> FactorGraph:
        """The graph in which each factor is itself made of pieces, by `inner`, a graph on a canvas of a factor's shape.

        Its regions are the variables of this graph, and those of `inner` placed in each factor; the counting numbers of regions
        with the same index are added up, and what is left with 0 is left out. A graph may so be a factor of a graph: with
        inner's collage as the factors' score, `collage` gives the same score.

        Raises:
            ValueError: a factor of another shape than inner's canvas.
        """
        counted: dict[tuple[object, ...], Region] = {}
        for region in self._refined(inner):
            key = (region.kind, tuple(region.index.shape), tuple(region.index.flatten().tolist()))
            before = counted[key].count if key in counted else 0
            name = counted[key].name if key in counted else region.name
            counted[key] = Region(region.index, before + region.count, region.kind, name)
        kept = [region for region in counted.values() if region.count]
        return FactorGraph(self.shape, _factors_first(kept))

    def _refined(self, inner: FactorGraph) -> list[Region]:
        found = []
        for region in self.regions:
            if region.kind == VARIABLE:
                found.append(region)
                continue
            if tuple(region.index.shape) != inner.shape:
                raise ValueError(
                    f"{region.name}: has shape {tuple(region.index.shape)}, the inner canvas {inner.shape}"
                )
            flat = region.index.flatten()
            found += [
                Region(flat[part.index], region.count * part.count, part.kind, f"{region.name}, {part.name}")
                for part in inner.regions
            ]
        return found


def check_inside(region: Region, shape: Sequence[int]) -> None:
    """Refuses a region beyond the canvas, or with a position twice, or whose positions are no int64 tensor."""
    if not isinstance(region.index, Tensor) or region.index.dtype != torch.int64:
        raise ValueError(f"{region.name}: index={region.index!r} must be a tensor of positions, int64")
    index, size = region.index.flatten(), math.prod(shape)
    outside = index[(index < 0) | (index >= size)]
    if len(outside):
        raise ValueError(
            f"{region.name}: position {int(outside[0])} lies outside the canvas of shape {tuple(shape)}, {size} positions"
        )
    if len(index.unique()) != len(index):
        twice = Counter(index.tolist()).most_common(1)[0][0]
        raise ValueError(f"{region.name}: holds position {twice} twice: it wraps onto itself; take a larger canvas")


def counted(shape: Sequence[int], factors: Sequence[Region], variables: Sequence[Tensor]) -> FactorGraph:
    """A graph whose counting numbers follow from which region contains which.

    Args:
        shape: The canvas's.
        factors: The pieces; their counts are replaced.
        variables: The positions of separators, int64, each separator once, and of what they share where it counts.
    """
    separators = [Region(index, 0, VARIABLE, f"variable {i}") for i, index in enumerate(variables)]
    regions = [*factors, *separators]
    for region in separators:
        check_inside(region, shape)
    sets = [region.positions for region in regions]
    at: dict[int, set[int]] = {}
    for r, positions in enumerate(sets):
        for position in positions:
            at.setdefault(position, set()).add(r)
    counts: dict[int, int] = {}
    for r in sorted(range(len(regions)), key=lambda r: -len(sets[r])):
        above = set.intersection(*(at[position] for position in sets[r]))
        if not any(s < len(factors) for s in above):
            raise ValueError(
                f"{regions[r].name}: is no part of a factor; a variable is what factors share, add one that holds it"
            )
        counts[r] = 1 - sum(counts[s] for s in above if len(sets[s]) > len(sets[r]))
    kept = [Region(g.index, counts[r], g.kind, g.name) for r, g in enumerate(regions) if counts[r]]
    return FactorGraph(tuple(shape), tuple(kept))


def _factors_first(regions: Sequence[Region]) -> tuple[Region, ...]:
    return tuple(sorted(regions, key=lambda region: region.kind == VARIABLE))
