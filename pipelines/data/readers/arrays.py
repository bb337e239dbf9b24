"""Reader of NumPy files: one .npy array, or the arrays of an .npz archive.

    rows        images are integers (n, h, w), (n, h, w, c) or (n, c, h, w), c <= 4; vectors are floats (n, d), and sequences
                floats (n, c, l), where the option as_sequences says that they are no images
    .npz        the rows are called x, images, data or arr_0, their labels y, label or labels; with a split's name beside it
                (x_train and y_train, X_test, train_images and train_labels, or train alone) they make splits

Nothing is unpickled. Rows are streamed, also out of a compressed archive; a header that claims more than the file can
hold is refused before anything of that size is made.
"""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.data.card import LeftOut
from pipelines.data.labels import IGNORE, Labels
from pipelines.data.source import Chunk, Options, Source, SourceSplit, records
from pipelines.data.splits import Name, assign, parse
from pipelines.storage.messages import listed, one_line
from pipelines.storage.reading import expands_too_far

__all__ = ["read_array", "read_numpy"]

ALONE = ("x", "images", "data", "arr_0")
ROWS = {"x", "image", "images", "data", "arr"}
LABELS = {"y", "label", "labels", "target", "targets"}
"""Words in the names of an archive's members: of rows that are alone, in this order; of rows; of labels."""
HEADER = 1 << 16
"""Bytes of a header at most."""


def read_numpy(source: str, options: Options) -> Source | None:
    """One .npy array, or the arrays of an .npz archive."""
    file = Path(source)
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        return None
    if file.suffix == ".npy":
        return _numpy_source({"train": (_open_array(file, ""), None)}, options)
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception as error:  # zipfile takes a damaged directory at its word
        raise ValueError(f"{file}: not a readable .npz archive ({one_line(error)}); save it again") from None
    x, y, notes = _parts(file, members, options)
    arrays = {
        split: (_open_array(file, name), partial(_open_array, file, y[split], kinds="biufUS") if split in y else None)
        for split, name in x.items()
    }
    found = _numpy_source(arrays, options)
    unread = sorted(members - {*x.values(), *y.values()})
    left_out = tuple(LeftOut(name=name, files=1, reason="neither rows nor labels of a split") for name in unread)
    return replace(found, parts=True, notes=notes, left_out=left_out)


def _parts(file: Path, members: set[str], options: Options) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """The members of an archive that hold the rows of each split, and the labels of each; and what was decided on the way."""
    named = {member: parse(member) for member in sorted(members)}
    labels = {member: name for member, name in named.items() if LABELS & {*name.rest}}
    rows = [
        member
        for member, name in named.items()
        if member not in labels and (ROWS & {*name.rest} or (name.split and not name.rest))
    ]
    if not options.split and not any(named[member].split for member in rows):
        x = [member for wanted in ALONE for member in named if member.lower() == wanted]
        y = [member for member in named if member.lower() in LABELS]
        if not x:
            raise ValueError(f"{file}: holds {listed(named)}; call the rows x and their labels y")
        return {"train": x[0]}, dict.fromkeys(["train"][: len(y)], y[0] if y else ""), ()
    parts = assign(rows, str(file), options.split, options.splits)
    for split, names in parts.of.items():
        if len(names) > 1:
            raise ValueError(f"{file}: {listed(names)} are all {split}; say which one is: --split {split}={names[0]}")
    x = {split: name for split, (name,) in parts.of.items()}
    belongs = {(name.split, _other_words(name)): member for member, name in labels.items()}
    paired = {split: belongs.get((named[member].split, _other_words(named[member])), "") for split, member in x.items()}
    return x, {split: member for split, member in paired.items() if member}, parts.notes


def _other_words(name: Name) -> tuple[str, ...]:
    """The words of a member's name besides x or y."""
    return tuple(word for word in name.rest if word not in ROWS | LABELS)


def read_array(file: Path) -> np.ndarray:
    """All of a .npy file, in either order of its axes."""
    array = _open_array(file, "", whole=True)
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{array}: cannot read it ({one_line(error)}); save it again") from None


@dataclass(frozen=True, kw_only=True)
class _Array:
    """An array in a .npy file or in a member of an .npz archive, known by its header."""

    file: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.file}:{self.member}" if self.member else str(self.file)

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """Its rows in order, as (first, block)."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with _stream(self.file, self.member) as stream:
            _header(stream)
            for first, block in records(stream, size, self.shape[0], str(self)):
                yield first, block.reshape(-1).view(self.dtype).reshape(len(block), *self.shape[1:])


@contextmanager
def _stream(file: Path, member: str) -> Iterator[BinaryIO]:
    try:
        if not member:
            with file.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as stream:
            yield stream  # pyright: ignore[reportReturnType]
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{file}: cannot read it ({one_line(error)}); save it again") from None


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    first = version == (1, 0)
    length = stream.read(2 if first else 4)
    if int.from_bytes(length, "little") > HEADER:
        raise ValueError(f"a header of {int.from_bytes(length, 'little'):,} bytes")
    header = io.BytesIO(length + stream.read(int.from_bytes(length, "little")))
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return read(header)


def _open_array(file: Path, member: str, *, whole: bool = False, kinds: str = "biuf") -> _Array:
    """An array by its header, of one of the kinds of dtype; unless it is read whole, its rows lie one after the other."""
    held = _bytes(file, member)
    try:
        with _stream(file, member) as stream:
            shape, fortran, dtype = _header(stream)
    except Exception as error:  # NumPy parses the header as Python: what a damaged one raises has no end
        raise ValueError(f"{file}: not a NumPy array ({one_line(error)[:200]}); save it with numpy.save") from None
    array = _Array(file=file, member=member, shape=shape, dtype=dtype)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{array}: a header of shape {shape}; save it again")
    if math.prod(shape) * dtype.itemsize > held:
        raise ValueError(f"{array}: a header of shape {shape} {dtype}, but {held:,} bytes; save it again")
    if dtype.hasobject or dtype.kind not in kinds or not dtype.itemsize:
        words = " or text" if "U" in kinds else ""
        raise ValueError(f"{array}: dtype {dtype} is not read (nothing is unpickled); save plain numbers{words}")
    if fortran and len(shape) > 1 and not whole:
        raise ValueError(f"{array}: Fortran order cannot be streamed; save numpy.ascontiguousarray of it")
    if not shape or 0 in shape:
        raise ValueError(f"{array}: shape {shape} has no rows; save rows along the first axis")
    return array


def _numpy_source(arrays: Mapping[str, tuple[_Array, Callable[[], _Array] | None]], options: Options) -> Source:
    train = next(iter(arrays.values()))[0]
    layout = _layout(train, options)
    kind = {1: "vector", 2: "sequence", 3: "image"}[len(layout)]
    if kind == "image" and train.dtype.itemsize > 1 and not options.levels:
        other = "; or save sequences of other numbers as floats" if options.as_sequences else ""
        raise ValueError(f"{train}: {train.dtype} does not say how many levels a pixel has; give --levels{other}")
    for x, _ in arrays.values():
        if x.shape[1:] != train.shape[1:] or x.dtype != train.dtype:
            raise ValueError(f"{x}: rows {x.shape[1:]} {x.dtype}, but {train}: {train.shape[1:]} {train.dtype}")
    levels = {"b": 2, "f": 0}.get(train.dtype.kind, 256)
    splits = {split: _numpy_split(x, y, layout) for split, (x, y) in arrays.items()}
    return Source(kind=kind, shape=layout, levels=levels, splits=splits)


def _layout(array: _Array, options: Options) -> tuple[int, ...]:
    """The shape of a row as stored: (d,) or (c, l) of floats, or (c, h, w) of integers."""
    row = array.shape[1:]
    if array.dtype.kind == "f":
        if len(row) == 1 or (len(row) == 2 and options.as_sequences):
            return row
        raise ValueError(
            f"{array}: floats of shape {array.shape}; save vectors as (n, d), images as integer levels, and sequences as "
            "(n, c, l), for which give --as-sequences true"
        )
    if len(row) == 2:
        return (1, *row)
    if len(row) == 3 and row[-1] <= 4 and row[0] > 4:
        return (row[2], row[0], row[1])
    if len(row) == 3 and row[0] <= 4 and row[-1] > 4:
        return row
    raise ValueError(
        f"{array}: integers of shape {array.shape}; save vectors as floats, images as (n, h, w, c) or (n, c, h, w), c <= 4"
    )


def _numpy_split(x: _Array, y: Callable[[], _Array] | None, layout: tuple[int, ...]) -> SourceSplit:
    channels_last = len(x.shape) == 4 and x.shape[1:] != layout

    def chunks() -> Iterator[Chunk]:
        for first, block in x.rows():
            images = np.moveaxis(block, -1, 1) if channels_last else block.reshape(len(block), *layout)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by its row
                values = images.astype(np.float32) if x.dtype.kind == "f" else images
            yield Chunk(values, np.arange(first, first + len(block)))

    labels = partial(_labels, y, x.shape[0]) if y else None
    return SourceSplit(
        count=x.shape[0],
        chunks=chunks,
        locate=lambda row: f"{x} row {row}",
        labels=labels,
        source=x.member or x.file.name,
    )


def _labels(y: Callable[[], _Array], rows: int) -> Labels:
    array = y()
    if array.shape[0] != rows or math.prod(array.shape[1:]) != 1:
        raise ValueError(f"{array}: labels {array.shape} {array.dtype} for {rows} rows; save one per row, or {IGNORE}")
    return Labels.of(block.reshape(-1) for _, block in array.rows())


def _bytes(file: Path, member: str) -> int:
    if not member:
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(f"{member}.npy")
    held = min(entry.compress_size, file.stat().st_size)
    if expands_too_far(entry.file_size, held):
        raise ValueError(
            f"{file}:{member}: {entry.file_size:,} bytes are more than the archive can hold; save it again"
        )
    return entry.file_size
