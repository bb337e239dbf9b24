r"""Builders of factor graphs: chains, loops, grids, cubes, and any factors.

    chain      m pieces of p, neighbours share o:            canvas m p - (m - 1) o, separators between neighbours
    loop       the last shares o with the first as well:     canvas m (p - o)
    grid       the product of two chains: regions are products of regions, and so are their counting numbers: pieces +1, strips
               between them -1, the corners where strips cross +1
    corners    pieces that meet at their four corners alone, as the squares of one colour on a board (thesis, Fig. 4.2)
    cube_map   six faces; the loops LFRB, ULDR and UFDB are the factors, the faces the variables (thesis, 4.4.1)

Where more than half of a piece is shared, pieces that are no neighbours overlap too, inside the separators of neighbours; there
the counting number is 1 - m + (m - 1) = 0. So a chain's separators are those between neighbours, whatever o is.

References: Zhang 2023 (thesis), section 4.4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.collage.graph import FACTOR, VARIABLE, FactorGraph, Region, check_inside, counted
from indm_core.ranges import check_count
from indm_core.shapes import Int

__all__ = ["chain", "corners", "cube_map", "from_factors", "grid", "loop"]

Positions = Tensor | Sequence[int] | Sequence[Sequence[int]]
"""An int64 tensor of any shape, or lists."""

FACES = "LFRBUD"
"""The faces of a cube's canvas, from left to right: left, front, right, back, up, down."""


def chain(num_factors: int, piece: int, overlap: int) -> FactorGraph:
    """Pieces in a row along the canvas's last axis.

    Args:
        num_factors: m, at least 1.
        piece: p, the length of a piece along the chained axis.
        overlap: o, what neighbours share, 1 <= o < p.

    Returns:
        A graph on (m p - (m - 1) o,).
    """
    _check_line(num_factors, piece, overlap)
    stride = piece - overlap
    return _line(
        [torch.arange(piece) + j * stride for j in range(num_factors)], num_factors * stride + overlap, overlap
    )


def loop(num_factors: int, piece: int, overlap: int) -> FactorGraph:
    """Pieces in a ring along the canvas's last axis: the last shares its end with the beginning of the first.

    Args:
        num_factors, piece, overlap: As of a chain.

    Returns:
        A graph on (m (p - o),).

    Raises:
        ValueError: a piece wraps onto itself, or two meet in two places: the loop is too short.
    """
    _check_line(num_factors, piece, overlap)
    stride, length = piece - overlap, num_factors * (piece - overlap)
    fewest = next(m for m in range(2, 2 * piece + 2) if not _meet_twice(m, piece, stride))
    if length < piece or _meet_twice(num_factors, piece, stride):
        what = "a piece wraps onto itself" if length < piece else "two pieces meet in two places"
        raise ValueError(
            f"num_factors={num_factors}: a loop of length {length} is too short for piece={piece}, overlap={overlap}: {what}; "
            f"take num_factors={fewest} or more"
        )
    line = [(torch.arange(piece) + j * stride) % length for j in range(num_factors)]
    return _line(line, length, overlap, closed=True)


def grid(rows: int, cols: int, piece: int, overlap: int) -> FactorGraph:
    """Square pieces in rows and columns, on the canvas's last two axes.

    Args:
        rows, cols: Of pieces, each at least 1.
        piece, overlap: As of a chain, along both axes.

    Returns:
        A graph on (rows p - (rows - 1) o, cols p - (cols - 1) o).
    """
    check_count(rows=rows, cols=cols)
    down, across = chain(rows, piece, overlap), chain(cols, piece, overlap)
    width, regions = across.shape[0], []
    for a in down.regions:
        for b in across.regions:
            index = a.index[:, None] * width + b.index
            kind = FACTOR if a.kind == b.kind == FACTOR else VARIABLE
            regions.append(Region(index, a.count * b.count, kind, f"{kind} ({_number(a)}, {_number(b)})"))
    regions.sort(key=lambda region: region.kind == VARIABLE)
    return FactorGraph((*down.shape, *across.shape), tuple(regions))


def corners(rows: int, cols: int, piece: int, overlap: int | None = None) -> FactorGraph:
    """rows x cols square pieces side by side, and between each four of them one more that shares a quarter with each.

    Args:
        rows, cols: Of the pieces side by side.
        piece: p, even: the side of a piece.
        overlap: p/2, the side of what two pieces share; every other leaves gaps.

    Returns:
        A graph on (rows p, cols p).
    """
    check_count(rows=rows, cols=cols, piece=piece)
    half = piece // 2
    if piece < 2 or piece % 2:
        raise ValueError(f"piece={piece} must be even and at least 2: pieces meet in their quarters")
    if overlap not in (None, half):
        raise ValueError(
            f"overlap={overlap}: pieces that meet at their corners leave gaps unless overlap = piece/2 = {half}"
        )
    places = [(2 * i, 2 * j) for i in range(rows) for j in range(cols)]
    places += [(2 * i + 1, 2 * j + 1) for i in range(rows - 1) for j in range(cols - 1)]
    positions = torch.arange(rows * cols * piece**2).reshape(rows * piece, cols * piece)
    cut = [positions[i * half : i * half + piece, j * half : j * half + piece] for i, j in places]
    return from_factors((rows * piece, cols * piece), cut)


def cube_map(face: int) -> FactorGraph:
    """Six square faces side by side, in the order LFRBUD; the factors are three loops of four faces, the variables the faces.

    A loop runs around the cube, seen from inside: its four faces side by side, (face, 4 face), each turned so that neighbours
    share an edge. L, F, R and B stand upright; U joins F's upper edge with its lower one, D F's lower edge with its upper one.
    A loop may be made of pieces itself, here of two faces each: cube_map(face).refine(loop(4, 2 * face, face).of_height(face)).

    Args:
        face: The side of a face.

    Returns:
        A graph on (face, 6 face).
    """
    check_count(face=face)
    positions = torch.arange(6 * face**2).reshape(face, 6, face).permute(1, 0, 2)
    at = dict(zip(FACES, positions, strict=True))
    quarter_turns = {
        "LFRB": {"L": 0, "F": 0, "R": 0, "B": 0},
        "ULDR": {"U": 2, "L": 1, "D": 0, "R": -1},
        "UFDB": {"U": 1, "F": 1, "D": 1, "B": -1},
    }
    factors = [
        Region(torch.cat([torch.rot90(at[one], turns) for one, turns in faces.items()], 1), 1, FACTOR, f"loop {name}")
        for name, faces in quarter_turns.items()
    ]
    return counted((face, 6 * face), factors, [at[name] for name in FACES])


def from_factors(
    shape: Sequence[int],
    factors: Sequence[Positions],
    *,
    variables: Sequence[Positions] | None = None,
    kinds: Sequence[str] | None = None,
) -> FactorGraph:
    """Any graph: the canvas's positions, numbered row by row, of each factor.

    Args:
        shape: The canvas's axes.
        factors: The positions of each piece, a tensor or lists, in the shape that a network sees.
        variables: The separators, likewise. None finds them: what factors share, and what separators share, each connected part
            by itself; two positions are neighbours where they are side by side in a factor.
        kinds: A name for each factor where they are scored by different scores; None calls them all "factor".

    Raises:
        ValueError: a factor outside of the canvas or inside another one, positions that are no integers, a position in no
            factor, a separator that is no rectangle of its piece.
    """
    if not factors:
        raise ValueError("factors: there are none")
    names = [FACTOR] * len(factors) if kinds is None else list(kinds)
    if len(names) != len(factors) or VARIABLE in names:
        raise ValueError(f"kinds={names}: one name for each of {len(factors)} factors, none of them {VARIABLE!r}")
    for axis, size in enumerate(shape):
        check_count(**{f"shape[{axis}]": size})
    regions = [
        Region(_positions(f"factor {j}", index), 1, kind, f"factor {j}")
        for j, (index, kind) in enumerate(zip(factors, names, strict=True))
    ]
    for region in regions:  # before overlaps are looked for
        check_inside(region, shape)
    _check_apart(regions)
    if variables is None:
        return counted(shape, regions, _separators(regions))
    return counted(shape, regions, [_positions(f"variable {i}", index) for i, index in enumerate(variables)])


def _positions(name: str, index: Positions) -> Int[Tensor, "*piece"]:
    """Positions as int64; a cast would round what is no integer."""
    try:
        positions = torch.as_tensor(index)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {index!r} are no positions ({error}); give integers in rows of one length"
        ) from error
    if not positions.numel():
        raise ValueError(f"{name}: holds no position; leave it out")
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ValueError(f"{name}: its positions are {positions.dtype}; give integers, 0 .. the size of the canvas - 1")
    return positions.long()


def _check_apart(factors: Sequence[Region]) -> None:
    """Refuses a factor inside another one, or equal to it: its counting number would be 0, and nothing would score it."""
    sets = [factor.positions for factor in factors]
    holders: dict[int, set[int]] = {}
    for j, positions in enumerate(sets):
        for position in positions:
            holders.setdefault(position, set()).add(j)
    for j, positions in enumerate(sets):
        others = set.intersection(*(holders[position] for position in positions)) - {j}
        if others:
            raise ValueError(f"factor {j}: lies inside factor {min(others)}, which says all that it says; leave it out")


def _separators(factors: Sequence[Region]) -> list[Tensor]:
    """What factors share, and what such overlaps share in turn, each connected part in the shape that a factor sees it in."""
    near = _neighbours(factors)
    sets = {region.positions: region for region in factors}  # each with a factor that holds it
    holders: dict[int, list[int]] = {}  # which sets hold a position, so that only those that meet are compared
    cut: dict[frozenset[int], list[frozenset[int]]] = {}  # overlaps that were seen before
    listed: list[frozenset[int]] = []
    newest = list(sets)
    while newest:
        for a in newest:
            for position in a:
                holders.setdefault(position, []).append(len(listed))
            listed.append(a)
        parts = {}
        for a in newest:
            for b in sorted({r for position in a for r in holders[position]}):
                overlap = a & listed[b]
                if overlap not in cut:
                    cut[overlap] = [overlap] if overlap in sets else _connected(overlap, near)
                parts |= {part: sets[a] for part in cut[overlap] if part not in sets}
        sets |= parts
        newest = list(parts)
    return [_as_seen(part, factor) for part, factor in sets.items() if part != factor.positions]


def _neighbours(factors: Sequence[Region]) -> dict[int, set[int]]:
    """The positions beside each position in any factor, of those that two factors share: overlaps have no others."""
    shared = torch.cat([region.index.flatten() for region in factors]).bincount() > 1
    near: dict[int, set[int]] = {}
    for region in factors:
        for axis in range(region.index.ndim):
            size = region.index.shape[axis]
            pairs = torch.stack([region.index.narrow(axis, i, size - 1).flatten() for i in (0, 1)])
            for one, other in pairs[:, shared[pairs].all(0)].T.tolist():
                near.setdefault(one, set()).add(other)
                near.setdefault(other, set()).add(one)
    return near


def _connected(positions: frozenset[int], near: dict[int, set[int]]) -> list[frozenset[int]]:
    """The connected parts of some positions."""
    left, parts = set(positions), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = set().union(*(near.get(position, set()) for position in edge)) & left
            left -= edge
        parts.append(frozenset(part))
    return sorted(parts, key=min)


def _as_seen(part: frozenset[int], factor: Region) -> Int[Tensor, "*piece"]:
    """The positions of a part in the order and shape in which a factor holds them."""
    inside = torch.isin(factor.index, torch.tensor(sorted(part)))
    if factor.index.ndim == 1:
        return factor.index[inside]
    block = factor.index
    for axis in range(block.ndim):
        others = [a for a in range(block.ndim) if a != axis]
        held = inside.sum(others).nonzero().flatten()
        block = block.narrow(axis, int(held[0]), int(held[-1] - held[0]) + 1)
    if block.numel() != len(part):
        raise ValueError(
            f"{factor.name}: an overlap of {len(part)} positions is no rectangle of it ({tuple(block.shape)} around it); "
            "give the separators as variables"
        )
    return block


def _line(factors: Sequence[Tensor], length: int, overlap: int, *, closed: bool = False) -> FactorGraph:
    regions = [Region(index, 1, FACTOR, f"factor {j}") for j, index in enumerate(factors)]
    joints = factors if closed else factors[:-1]
    return counted((length,), regions, [index[-overlap:] for index in joints])


def _number(region: Region) -> str:
    return region.name.removeprefix(f"{region.kind} ")


def _meet_twice(num_factors: int, piece: int, stride: int) -> bool:
    """Whether two arcs of a ring overlap at both their ends."""
    length = num_factors * stride
    return any(start < piece and length - start < piece for start in range(stride, length, stride))


def _check_line(num_factors: int, piece: int, overlap: int) -> None:
    check_count(num_factors=num_factors, piece=piece)
    if overlap:
        check_count(overlap=overlap)
    if not 1 <= overlap < piece:
        raise ValueError(
            f"overlap={overlap} must lie in 1 .. piece - 1 = {piece - 1}: what neighbours share joins them"
        )
