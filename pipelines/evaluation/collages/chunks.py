"""Pieces in chunks of a good size: large enough that a network is busy, small enough for its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from indm_core.collage import Pieces

__all__ = ["Chunk", "chunks_of", "most_pieces"]

CHUNKS = 3
"""Of each actor in a step, about."""
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


def chunks_of(asked: Sequence[Pieces], actors: int, device: str = "cpu") -> list[Chunk]:
    """Chunks for some actors, the largest first: of each batch as many for each of them, so that they are done together.

    An actor gets about `CHUNKS` of all batches, and more where these would be too large.
    """
    work = [pieces.u.numel() for pieces in asked]
    chunks = []
    for i, pieces in enumerate(asked):
        wanted = round(CHUNKS * work[i] / max(1, sum(work)))
        needed = math.ceil(len(pieces.u) / (actors * most_pieces(pieces.u.shape[1:], device)))
        most = max(1, math.ceil(len(pieces.u) / (actors * max(1, wanted, needed))))
        chunks += [Chunk(i, j * most, part) for j, part in enumerate(pieces.split(most))]
    return sorted(chunks, key=lambda chunk: -chunk.pieces.u.numel())
