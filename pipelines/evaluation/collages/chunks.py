"""Pieces in chunks of a good size: large enough that a network is busy, small enough for its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from indm_core.collage import Pieces

__all__ = ["Chunk", "chunks_of", "most_pieces"]

CHUNKS = 6
"""Of each actor in a step, about: an actor that is held up by other work leaves its share to the others."""
LEAST_VALUES = {"cpu": 1 << 13, "cuda": 1 << 18}
"""Of all pieces of a chunk together, where there are as many: a chunk takes milliseconds to travel."""
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
    return max(1, _of(MOST_VALUES, device) // math.prod(shape))


def chunks_of(asked: Sequence[Pieces], actors: int, device: str = "cpu") -> list[Chunk]:
    """Chunks for some actors, the largest first: of each batch as many for each of them, so that they are done together.

    An actor gets about `CHUNKS` of all batches together, fewer where these would be small, and more where they would be large.
    """
    work = [pieces.u.numel() for pieces in asked]
    chunks = []
    for i, pieces in enumerate(asked):
        wanted = round(work[i] * min(CHUNKS / max(1, sum(work)), 1 / (actors * _of(LEAST_VALUES, device))))
        needed = math.ceil(len(pieces.u) / (actors * most_pieces(pieces.u.shape[1:], device)))
        most = max(1, math.ceil(len(pieces.u) / (actors * max(1, wanted, needed))))
        chunks += [Chunk(i, j * most, part) for j, part in enumerate(pieces.split(most))]
    return sorted(chunks, key=lambda chunk: -chunk.pieces.u.numel())


def _of(values: Mapping[str, int], device: str) -> int:
    return values["cuda" if device.startswith("cuda") else "cpu"]
