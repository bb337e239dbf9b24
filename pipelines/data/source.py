"""What a reader hands to `prepare`: the splits of a data set as streams of chunks, and the options that it may use.

A reader is a function (source, options) -> Source | None, None when the source is not of its format. It opens files
lazily: a Source says how many rows each split has, and `chunks()` streams them in stored order with bounded memory.
A row that cannot be decoded is not in a chunk's `x` but in its `bad`, with the reason; how many are too many is decided
in ingest.py, once. `locate(row)` names a row for people: file and row within it. What several readers need stands below:
splits that are in memory, records of equal size, rows that lie in several files, numbers that are checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from pipelines.data.card import LeftOut
from pipelines.data.labels import NONE, Classes, Labels, classes_of
from pipelines.data.splits import given_parts

__all__ = [
    "Chunk",
    "Options",
    "Piece",
    "Source",
    "SourceSplit",
    "Spread",
    "array_chunks",
    "checked_table",
    "chunk_rows",
    "group_rows",
    "in_memory",
    "locate_among",
    "one_by_one",
    "piece_rows",
    "records",
    "vectors",
]

BLOCK = 1 << 16
"""Rows that are checked at a time."""
LATER = {"labels": "classes", "separator": "comma", "decimal": "point", "header": "auto"}
LATER |= {"split": (), "channels": "auto", "background": "white", "orient": True, "fit": "equal", "standardise": False}
LATER |= {"as_sequences": False}
"""Options that the first cards did not know, with what was done without them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to prepare a source.

    Args:
        name: Of the data set; "" takes it from the source.
        size: Side that image files are resized to (bicubic, antialiased, rounded to 8 bits again); 0 leaves them.
        crop: Side of the centre crop before that; 0 takes the whole image, or with `size` its largest centred square.
        levels: L of integer images; 0 takes the format's (256 for 8 bits).
        low, high: Interval that the model sees.
        max_skip: Share of a split's rows that may be corrupt.
        test_fraction: Share held out as `test` when the source has one split; 0 holds none out. Of a format that comes with a
            test split which is not there, nothing is held out unless it is asked for, as by --splits train,test.
        seed: Of the hold-out and of generated sets.
        splits: Which splits to keep; () keeps all.
        rows: Training rows of a generated set; it gets rows // 5 test rows.
        table: Which published table the source is (power, gas, hepmass, miniboone, bsds300), cleaned and split as published.
        labels: classes: of the rows, where the source has them; ignore prepares the rows without; optional does so where they
            are no classes, and says why.
        separator: What divides the columns of a .csv file; those of a .tsv file are divided by tabs.
        decimal: How its numbers are written, 1.5 or 1,5.
        header: Whether its first line names the columns; auto sees by itself, and asks where it cannot tell.
        split: Which parts of the source are which split, train=PART,test=PART,valid=PART, each a folder, a file or a key of it
            (or a pattern of them); () goes by their names. What is not named is left out.
        channels: Of encoded images: grey, colour, or auto, which is grey where all images are.
        background: What transparent images are laid on, a colour's name or #rrggbb.
        orient: Turn photographs as their EXIF orientation says.
        fit: Images without `size` must have equal sizes, or, common, are brought to one: their largest centred squares are
            resized to the largest power of two that is no more than their median side and 64.
        standardise: The model sees vectors less the mean of the training rows, over their standard deviation, column by column,
            and sequences channel by channel; likelihoods and samples stay those of the data as they are.
        as_sequences: Rows are sequences (c, l) of c channels: floats (n, c, l) as they are, images of one channel as columns in
            turn, h channels and w positions, vectors as one channel.
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
    labels: Literal["classes", "ignore", "optional"] = "classes"
    separator: Literal["comma", "semicolon", "tab"] = "comma"
    decimal: Literal["point", "comma"] = "point"
    header: Literal["auto", "yes", "no"] = "auto"
    split: tuple[str, ...] = ()
    channels: Literal["auto", "grey", "colour"] = "auto"
    background: str = "white"
    orient: bool = True
    fit: Literal["equal", "common"] = "equal"
    standardise: bool = False
    as_sequences: bool = False

    def __post_init__(self) -> None:
        for argument in ("size", "crop", "levels", "seed"):
            if getattr(self, argument) < 0:
                raise ValueError(f"{argument}={getattr(self, argument)}: must not be negative")
        for argument in ("max_skip", "test_fraction"):
            if not 0 <= getattr(self, argument) < 1:
                raise ValueError(f"{argument}={getattr(self, argument)}: a share, at least 0 and below 1")
        if self.rows < 5:
            raise ValueError(f"rows={self.rows}: a generated set has at least 5")
        if self.separator == self.decimal == "comma":
            raise ValueError(
                f"separator={self.separator}, decimal={self.decimal}: a comma is one of them; give --separator"
            )
        given_parts(self.split)

    def to_json(self) -> str:
        """Canonical JSON: equal options give equal text, also to that of a version that had not all of them."""
        said = {name: value for name, value in asdict(self).items() if name not in LATER or value != LATER[name]}
        return json.dumps(said, sort_keys=True)


class Chunk(NamedTuple):
    """Consecutive rows of a split: x (m, *shape), row (m,) in the split, the bad ones, and what was done to rows to make them
    fit, an entry for each."""

    x: np.ndarray
    row: np.ndarray
    bad: tuple[tuple[int, str], ...] = ()
    done: tuple[str, ...] = ()


Piece = Callable[[int], Iterator[Chunk]]
"""piece(threads) -> some consecutive rows of a split, read and decoded where it is called; it travels to other processes."""
Spread = Callable[[Iterator[Piece]], Iterator[Chunk]]
"""What carries out pieces and gives their rows in order: `one_by_one`, or tasks of a cluster."""


def one_by_one(pieces: Iterator[Piece]) -> Iterator[Chunk]:
    """The rows of pieces, made in this process by as many threads as it has cores."""
    for piece in pieces:
        yield from piece(min(32, os.cpu_count() or 1))


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """A split.

    Args:
        count: Its number of rows.
        chunks: Gives a stream of them.
        locate: Names a row in the source's files.
        labels: Reads the labels of all rows; None where the source has none.
        source: What people call the files or folders of it.
        pieces: Gives what `chunks` is made of, where other processes can make it.
    """

    count: int
    chunks: Callable[[], Iterator[Chunk]]
    locate: Callable[[int], str]
    labels: Callable[[], Labels] | None = None
    source: str = ""
    pieces: Callable[[], Iterator[Piece]] | None = None

    def spread_by(self, spread: Spread) -> SourceSplit:
        """The split whose pieces are carried out by `spread`; itself where it has none."""
        return replace(self, chunks=partial(_spread, spread, self.pieces)) if self.pieces else self


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that a reader recognised.

    Args:
        kind, shape, levels: As in `Card`.
        splits: By name.
        num_classes: 0: the labels tell.
        images: Whether it is encoded images, for which the options of images hold.
        parts: Whether it has parts with names, for which the option `split` holds.
        columns: The names of a table's, () for their numbers.
        missing: The test split that a set of this format comes with, as people find it, where this source has train alone; ''
            where it is there, or the format knows none. Nothing takes its place unasked.
        left_out, notes: As in `Card`.
    """

    kind: str
    shape: tuple[int, ...]
    levels: int
    splits: dict[str, SourceSplit]
    num_classes: int = 0
    images: bool = False
    parts: bool = False
    columns: tuple[str, ...] = ()
    missing: str = ""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def place(self, index: Sequence[int]) -> str:
        """What people call a coordinate: the column of a vector, channel and position of a sequence; '' of an image."""
        if self.kind == "vector":
            return f" column {self.columns[index[0]] if self.columns else index[0]}"
        return f" channel {index[0]} position {index[1]}" if self.kind == "sequence" else ""

    def classes(self) -> Classes:
        """What the labels of all splits stand for.

        Raises:
            ValueError: labels that are no classes; the message names the row.
        """
        labels = {name: part.labels() if part.labels else NONE for name, part in self.splits.items()}
        return classes_of(labels, lambda name, row: self.splits[name].locate(row), self.num_classes)


def _spread(spread: Spread, pieces: Callable[[], Iterator[Piece]]) -> Iterator[Chunk]:
    return spread(pieces())


def chunk_rows(row_bytes: int) -> int:
    """Rows handled at a time: at most 1024 and, above one, at most 16 MiB."""
    return max(1, min(1024, 2**24 // row_bytes))


def piece_rows(row_bytes: int) -> int:
    """Rows of a piece: enough to be worth a task, few enough that a small folder has some for every task."""
    return min(256, chunk_rows(row_bytes))


def group_rows(row_bytes: int) -> int:
    """Rows of a row group: at most 1024 and, above eight, at most 512 KiB. A worker reads whole ones: many small ones are mixed
    better, and shared more evenly, than a few that are large."""
    return max(1, min(1024, max(8, 2**19 // row_bytes), 2**24 // row_bytes))


def array_chunks(x: np.ndarray) -> Iterator[Chunk]:
    """The chunks of a split that is in memory."""
    step = chunk_rows(x[:1].nbytes or 1)
    for start in range(0, len(x), step):
        stop = min(start + step, len(x))
        yield Chunk(x[start:stop], np.arange(start, stop))


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


def in_memory(x: np.ndarray, file: str, label: np.ndarray | None = None) -> SourceSplit:
    """A split that is in memory; without labels where none are given."""
    labels = None if label is None else lambda: Labels.of([label])
    return SourceSplit(
        count=len(x),
        chunks=lambda: array_chunks(x),
        locate=lambda row: f"{file} row {row}",
        labels=labels,
        source=file,
    )


def vectors(parts: dict[str, tuple[np.ndarray, str]]) -> Source:
    """Splits of vectors (n, d), each with the name of its file, as float32.

    Raises:
        ValueError: they differ in their number of columns.
    """
    width, first = next((x.shape[1], file) for x, file in parts.values())
    for x, file in parts.values():
        if x.shape[1] != width:
            raise ValueError(f"{file}: {x.shape[1]} columns, but {width} in {first}; all splits have the same")
    splits = {name: in_memory(x.astype(np.float32), file) for name, (x, file) in parts.items()}
    return Source(kind="vector", shape=(width,), levels=0, splits=splits)


def locate_among(files: Sequence[object], counts: Sequence[int]) -> Callable[[int], str]:
    """Names a row of a split that lies in several files, of so many rows each."""
    bounds = np.cumsum([0, *counts])

    def locate(row: int) -> str:
        index = int(np.searchsorted(bounds, row, side="right")) - 1
        return f"{files[index]} row {row - bounds[index]}"

    return locate


def checked_table(x: np.ndarray, file: str, names: Sequence[str] = ()) -> np.ndarray:
    """A table (n, d) as float64.

    Raises:
        ValueError: it has another shape or type, or a number that is not finite in float32; `names` are those of its columns.
    """
    if x.ndim != 2 or x.dtype.kind not in "iuf":
        raise ValueError(f"{file}: {x.dtype} of shape {x.shape}; a table is numbers of shape (rows, columns)")
    if 0 in x.shape:
        raise ValueError(f"{file}: shape {x.shape} has no numbers; a table has rows and columns")
    x = x.astype(np.float64)
    for first in range(0, len(x), BLOCK):
        wrong = ~(np.abs(x[first : first + BLOCK]) <= np.finfo(np.float32).max)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{file} row {first + row} column {names[column] if names else column}: {x[first + row, column]} is missing or "
                "not finite (float32); remove the row"
            )
    return x
