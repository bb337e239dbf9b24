"""Pieces in chunks of a good size: large enough that a network is busy, small enough for its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from indm_core.collage import Pieces

__all__ = ["Chunk", "chunks_of", "most_pieces"]

MOST_VALUES = {"cpu": 1 << 16, "cuda": 1 << 21}
"""Of all pieces of a chunk together, by the kind of device; on a CPU larger ones leave its caches (128 pieces of 28 x 84 take
1.4 times the time of 4 x 32)."""


class Chunk(NamedTuple):
    """Some pieces of a batch.

    Args:
        batch: Its number.
        first: Number of the first piece.
        pieces: The pieces.
    """

    batch: int
    first: int
    pieces: Pieces


def most_pieces(shape: Sequence[int], device: str) -> int:
    """Pieces of a shape that a chunk may have."""
    return max(1, MOST_VALUES["cuda" if device.startswith("cuda") else "cpu"] // math.prod(shape))


def chunks_of(asked: Sequence[Pieces], num: int, device: str = "cpu") -> list[Chunk]:
    """At least about `num` chunks of equal work, the largest first: of each batch as many as its share of all values."""
    work = [pieces.u.numel() for pieces in asked]
    chunks = []
    for i, pieces in enumerate(asked):
        even = math.ceil(len(pieces.u) / max(1, round(num * work[i] / max(1, sum(work)))))
        most = max(1, min(even, most_pieces(pieces.u.shape[1:], device)))
        chunks += [Chunk(i, j * most, part) for j, part in enumerate(pieces.split(most))]
    return sorted(chunks, key=lambda chunk: -chunk.pieces.u.numel())
