"""What a reader hands to `prepare`: the splits of a data set as streams of chunks, and the options that it may use.

A reader is a function (source, options) -> Source | None, None when the source is not of its format. It opens files
lazily: a Source says how many rows each split has, and `chunks()` streams them in stored order with bounded memory.
A row that cannot be decoded is not in a chunk's `x` but in its `bad`, with the reason; how many are too many is decided
in prepare.py, once. `locate(row)` names a row for people: file and row within it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["Chunk", "Options", "Source", "SourceSplit", "array_chunks", "chunk_rows", "records"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to prepare a source.

    Args:
        name: of the data set; "" takes it from the source.
        size: side that image files are resized to (bicubic, antialiased, rounded to 8 bits again); 0 leaves them.
        crop: side of the centre crop before that; 0 takes the whole image, or with `size` its largest centred square.
        levels: L of integer images; 0 takes the format's (256 for 8 bits).
        low, high: interval that the model sees.
        max_skip: share of a split's rows that may be corrupt.
        test_fraction: share held out as `test` when the source has one split; 0 holds none out.
        seed: of the hold-out and of generated sets.
        splits: which splits to keep; () keeps all.
        rows: training rows of a generated set; it gets rows // 5 test rows.
        table: which published table the source is (power, gas, hepmass, miniboone, bsds300), cleaned and split as published.
    """

    name: str = ""
    size: int = 0
    crop: int = 0
    levels: int = 0
    low: float = -1.0
    high: float = 1.0
    max_skip: float = 0.01
    test_fraction: float = 0.2
    seed: int = 0
    splits: tuple[str, ...] = ()
    rows: int = 50_000
    table: str = ""

    def __post_init__(self) -> None:
        for argument in ("size", "crop", "levels", "seed"):
            if getattr(self, argument) < 0:
                raise ValueError(f"{argument}={getattr(self, argument)}: must not be negative")
        for argument in ("max_skip", "test_fraction"):
            if not 0 <= getattr(self, argument) < 1:
                raise ValueError(f"{argument}={getattr(self, argument)}: a share, at least 0 and below 1")
        if self.rows < 5:
            raise ValueError(f"rows={self.rows}: a generated set has at least 5")

    def to_json(self) -> str:
        """Canonical JSON: equal options give equal text."""
        return json.dumps(asdict(self), sort_keys=True)


class Chunk(NamedTuple):
    """Consecutive rows of a split: x (m, *shape), label (m,) (-1: none), row (m,) in the split, and the bad ones."""

    x: np.ndarray
    label: np.ndarray
    row: np.ndarray
    bad: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """A split: its number of rows, a stream of them, and the name of a row in the source's files."""

    count: int
    chunks: Callable[[], Iterator[Chunk]]
    locate: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that a reader recognised; shape, levels and kind as in `Card`; num_classes 0: count the labels; columns: the
    names of a table's, () for their numbers."""

    kind: str
    shape: tuple[int, ...]
    levels: int
    splits: dict[str, SourceSplit]
    num_classes: int = 0
    resizable: bool = False
    columns: tuple[str, ...] = ()

    def column(self, index: int) -> str:
        """The name of a vector's coordinate."""
        return self.columns[index] if self.columns else str(index)


def chunk_rows(row_bytes: int) -> int:
    """Rows handled at a time: at most 1024 and, above one, at most 16 MiB."""
    return max(1, min(1024, 2**24 // row_bytes))


def array_chunks(x: np.ndarray, label: np.ndarray) -> Iterator[Chunk]:
    """The chunks of a split that is in memory."""
    step = chunk_rows(x[:1].nbytes or 1)
    for start in range(0, len(x), step):
        stop = min(start + step, len(x))
        yield Chunk(x[start:stop], label[start:stop], np.arange(start, stop))


def records(stream: BinaryIO, size: int, count: int, file: str) -> Iterator[tuple[int, np.ndarray]]:
    """The `count` records of `size` bytes that end a stream, as (first, (m, size) uint8), a few MiB at a time.

    Raises:
        ValueError: the stream ends early or goes on.
    """
    step = chunk_rows(size)
    for first in range(0, count, step):
        wanted = min(step, count - first)
        block = stream.read(wanted * size)
        if len(block) < wanted * size:
            row = first + len(block) // size
            raise ValueError(f"{file}: truncated at row {row} of the {count} that it declares; download it again")
        yield first, np.frombuffer(block, np.uint8).reshape(wanted, size)
    if stream.read(1):
        raise ValueError(f"{file}: more bytes than the {count} rows that it declares; download it again")
