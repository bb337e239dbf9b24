"""Reader of NumPy files: one .npy array, or the arrays of an .npz archive.

    rows        images are integers (n, h, w), (n, h, w, c) or (n, c, h, w), c <= 4; vectors are floats (n, d)
    .npz        the rows are called x, images, data or arr_0, their labels y, label or labels; x_train, y_train, x_test, y_test,
                x_valid and y_valid make splits

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.data.labels import IGNORE, Labels
from pipelines.data.source import Chunk, Options, Source, SourceSplit, records
from pipelines.storage.messages import listed, one_line
from pipelines.storage.reading import expands_too_far

__all__ = ["read_array", "read_numpy"]

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
    pairs = {split: (f"x_{split}", f"y_{split}") for split in ("train", "test", "valid") if f"x_{split}" in members}
    if not pairs:
        x = [name for name in ("x", "images", "data", "arr_0") if name in members]
        if not x:
            raise ValueError(f"{file}: holds {listed(sorted(members))}; call the rows x and their labels y")
        y = [name for name in ("y", "label", "labels") if name in members]
        pairs = {"train": (x[0], y[0] if y else "")}
    splits = {
        split: (_open_array(file, x), partial(_open_array, file, y, kinds="biufUS") if y in members else None)
        for split, (x, y) in pairs.items()
    }
    return _numpy_source(splits, options)


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
    layout = _layout(train)
    vector = len(layout) == 1
    if not vector and train.dtype.itemsize > 1 and not options.levels:
        raise ValueError(f"{train}: {train.dtype} does not say how many levels a pixel has; give --levels")
    for x, _ in arrays.values():
        if x.shape[1:] != train.shape[1:] or x.dtype != train.dtype:
            raise ValueError(f"{x}: rows {x.shape[1:]} {x.dtype}, but {train}: {train.shape[1:]} {train.dtype}")
    levels = {"b": 2, "f": 0}.get(train.dtype.kind, 256)
    splits = {split: _numpy_split(x, y, layout) for split, (x, y) in arrays.items()}
    return Source(kind="vector" if vector else "image", shape=layout, levels=levels, splits=splits)


def _layout(array: _Array) -> tuple[int, ...]:
    """The shape of a row as stored: (d,) of floats, or (c, h, w) of integers."""
    row = array.shape[1:]
    if array.dtype.kind == "f":
        if len(row) == 1:
            return row
        raise ValueError(f"{array}: floats of shape {array.shape}; save vectors as (n, d), images as integer levels")
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
            with np.errstate(over="ignore"):
                values = images.astype(np.float32) if x.dtype.kind == "f" else images
            yield Chunk(values, np.arange(first, first + len(block)))

    labels = partial(_labels, y, x.shape[0]) if y else None
    return SourceSplit(count=x.shape[0], chunks=chunks, locate=lambda row: f"{x} row {row}", labels=labels)


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
