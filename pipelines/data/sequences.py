"""Rows seen as sequences (c, l): c channels along l positions, as motions, sounds and measurements in time are.

    floats (n, c, l)          as they are
    images (1, h, w)          sequences of their columns: h channels, w positions; levels stay levels
    vectors (d,)              one channel, d positions

A strip of cells side by side is so a sequence whose long-range truth is known (`mosaics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from pipelines.data.source import Chunk, Source

__all__ = ["as_sequences"]


def as_sequences(found: Source, origin: str) -> Source:
    """A source whose rows are sequences.

    Args:
        origin: Where it comes from, for the message.

    Raises:
        ValueError: images of several channels.
    """
    if found.kind == "sequence":
        return found
    if found.kind == "image" and found.shape[0] != 1:
        remedy = "give --channels grey, or leave it out" if found.images else "leave it out"
        raise ValueError(
            f"as_sequences=true: {origin} has images of shape {found.shape}, and the columns of one channel make a sequence; "
            f"{remedy}"
        )
    shape = found.shape[1:] if found.kind == "image" else (1, *found.shape)
    splits = {name: replace(part, chunks=partial(_reshaped, part.chunks, shape)) for name, part in found.splits.items()}
    return replace(found, kind="sequence", shape=shape, splits=splits, columns=())


def _reshaped(chunks: Callable[[], Iterator[Chunk]], shape: tuple[int, ...]) -> Iterator[Chunk]:
    for chunk in chunks():
        yield chunk._replace(x=chunk.x.reshape(len(chunk.x), *shape))
