"""Readers of arrays: embedded sets, NumPy files, CSV tables.

digits         scikit-learn's 1,797 images of 8 x 8 pixels with levels 0, ..., 16 (L = 17) and 10 classes
toy2d:NAME     a generated set on the plane (toy2d.py): `rows` training rows and a fifth as many test rows
.npy, .npz     images as integers (n, h, w), (n, h, w, c) or (n, c, h, w); vectors as floats (n, d). In an .npz the
               rows are called x, images, data or arr_0, the labels y, label or labels; x_train, y_train, x_test and
               y_test make two splits. Nothing is unpickled; rows are streamed, also out of a compressed archive.
.csv           one vector per line, all numbers, with or without a header; read twice: to check it, then to copy it
"""

from __future__ import annotations

import csv
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.readers.toy2d import TOY2D
from pipelines.data.source import (
    Chunk,
    Options,
    Source,
    SourceSplit,
    array_chunks,
    chunk_rows,
    records,
)

__all__ = ["read_array", "read_csv", "read_digits", "read_numpy", "read_rows", "read_toy2d"]

DEFLATE = 1100
"""No archive of numpy.savez_compressed is smaller by more than this factor."""


def read_digits(source: str, options: Options) -> Source | None:
    """scikit-learn's digits."""
    if source != "digits":
        return None
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("source='digits' comes with scikit-learn: pip install scikit-learn") from None
    pixels, label = load_digits(return_X_y=True)
    part = _in_memory(pixels.astype(np.uint8).reshape(-1, 1, 8, 8), np.asarray(label, np.int64), "digits")
    return Source(kind="image", shape=(1, 8, 8), levels=17, num_classes=10, splits={"train": part})


def read_toy2d(source: str, options: Options) -> Source | None:
    """A generated set on the plane."""
    prefix, _, shape = source.partition(":")
    if prefix != "toy2d":
        return None
    if shape not in TOY2D:
        raise ValueError(f"source={source!r}: the generated sets are {', '.join('toy2d:' + name for name in TOY2D)}")
    streams = np.random.SeedSequence(options.seed).spawn(2)
    splits = {}
    for split, rows, stream in zip(("train", "test"), (options.rows, options.rows // 5), streams, strict=True):
        x = TOY2D[shape](rows, np.random.default_rng(stream)).astype(np.float32)
        splits[split] = _in_memory(x, np.full(rows, -1), f"{source} {split}")
    return Source(kind="vector", shape=(2,), levels=0, splits=splits)


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
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{file}: not a readable .npz archive ({one_line(error)}); save it again") from None
    pairs = {split: (f"x_{split}", f"y_{split}") for split in ("train", "test", "valid") if f"x_{split}" in members}
    if not pairs:
        x = [name for name in ("x", "images", "data", "arr_0") if name in members]
        if not x:
            raise ValueError(f"{file}: holds {', '.join(sorted(members))}; call the rows x and their labels y")
        y = [name for name in ("y", "label", "labels") if name in members]
        pairs = {"train": (x[0], y[0] if y else "")}
    splits = {
        split: (_open_array(file, x), _open_array(file, y) if y in members else None) for split, (x, y) in pairs.items()
    }
    return _numpy_source(splits, options)


def read_csv(source: str, options: Options) -> Source | None:
    """A table of numbers, one vector per line."""
    file = Path(source)
    if file.suffix != ".csv" or not file.is_file():
        return None
    names, lines = [], 0
    for header, first, block in _csv_blocks(file):
        names, lines = header, first + len(block)
    if lines < 2:
        raise ValueError(f"{file}: {lines} rows of numbers; a data set has at least 2")

    def chunks() -> Iterator[Chunk]:
        for _, first, block in _csv_blocks(file):
            yield Chunk(block, np.full(len(block), -1), np.arange(first, first + len(block)))

    part = SourceSplit(count=lines, chunks=chunks, locate=lambda row: f"{file} row {row}")
    return Source(kind="vector", shape=(len(names),), levels=0, splits={"train": part}, columns=tuple(names))


def read_array(file: Path) -> np.ndarray:
    """All of a .npy file, in either order of its axes."""
    array = _open_array(file, "", whole=True)
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{array}: cannot read it ({one_line(error)}); save it again") from None


def read_rows(file: Path, *, spare: bool = False) -> tuple[list[str], np.ndarray]:
    """Column names and all numbers of a .csv file, float64 (n, d); `spare`: rows may have one cell more than the header."""
    names, blocks = [], []
    for header, _, block in _csv_blocks(file, np.float64, spare=spare):
        names = header
        blocks.append(block)
    if not blocks:
        raise ValueError(f"{file}: no rows of numbers")
    return names, np.concatenate(blocks)


def _in_memory(x: np.ndarray, label: np.ndarray, file: str) -> SourceSplit:
    return SourceSplit(count=len(x), chunks=lambda: array_chunks(x, label), locate=lambda row: f"{file} row {row}")


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
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{file}: cannot read it ({one_line(error)}); save it again") from None


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _open_array(file: Path, member: str, *, whole: bool = False) -> _Array:
    """An array by its header; unless it is read whole, its rows have to lie one after the other."""
    try:
        with _stream(file, member) as stream:
            shape, fortran, dtype = _header(stream)
    except Exception as error:  # NumPy parses the header as Python: what a damaged one raises has no end
        raise ValueError(f"{file}: not a NumPy array ({one_line(error)[:200]}); save it with numpy.save") from None
    array = _Array(file=file, member=member, shape=shape, dtype=dtype)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{array}: a header of shape {shape}; save it again")
    held = _bytes(file, member)
    if math.prod(shape) * dtype.itemsize > held:
        raise ValueError(f"{array}: a header of shape {shape} {dtype}, but {held:,} bytes; save it again")
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"{array}: dtype {dtype} is not read (nothing is unpickled); save plain numbers")
    if fortran and len(shape) > 1 and not whole:
        raise ValueError(f"{array}: Fortran order cannot be streamed; save numpy.ascontiguousarray of it")
    if not shape or 0 in shape:
        raise ValueError(f"{array}: shape {shape} has no rows; save rows along the first axis")
    return array


def _numpy_source(arrays: dict[str, tuple[_Array, _Array | None]], options: Options) -> Source:
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


def _numpy_split(x: _Array, y: _Array | None, layout: tuple[int, ...]) -> SourceSplit:
    label = None  # not an array of as many as a header claims
    if y is not None:
        if y.dtype.kind not in "iu" or y.shape[0] != x.shape[0] or math.prod(y.shape[1:]) != 1:
            raise ValueError(f"{y}: labels {y.shape} {y.dtype} for {x.shape[0]} rows; save one integer per row")
        label = np.concatenate([block.reshape(-1) for _, block in y.rows()]).astype(np.int64)
    channels_last = len(x.shape) == 4 and x.shape[1:] != layout

    def chunks() -> Iterator[Chunk]:
        for first, block in x.rows():
            images = np.moveaxis(block, -1, 1) if channels_last else block.reshape(len(block), *layout)
            with np.errstate(over="ignore"):
                values = images.astype(np.float32) if x.dtype.kind == "f" else images
            found = np.full(len(block), -1) if label is None else label[first : first + len(block)]
            yield Chunk(values, found, np.arange(first, first + len(block)))

    return SourceSplit(count=x.shape[0], chunks=chunks, locate=lambda row: f"{x} row {row}")


def _bytes(file: Path, member: str) -> int:
    if not member:
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        size = archive.getinfo(f"{member}.npy").file_size
    if size > DEFLATE * file.stat().st_size:
        raise ValueError(f"{file}:{member}: {size:,} bytes are more than the archive can hold; save it again")
    return size


def _csv_blocks(
    file: Path, dtype: type = np.float32, *, spare: bool = False
) -> Iterator[tuple[list[str], int, np.ndarray]]:
    """(column names, first row, (m, d) of a dtype) of a table; rows are numbered from 0, after the header."""
    names: list[str] = []
    lines: list[tuple[int, list[str]]] = []
    first, line = 0, 0
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                line = reader.line_num
                if not names:
                    header = not any(_is_number(cell) for cell in cells)
                    names = [cell.strip() if header else str(index) for index, cell in enumerate(cells)]
                    if header:
                        _check_header(file, line, names)
                        continue
                if spare and not lines and first == 0 and len(cells) == len(names) + 1:
                    names.append(str(len(names)))
                if cells:
                    lines.append((line, cells))
                if len(lines) == chunk_rows(8 * len(names)):
                    yield names, first, _numbers(file, names, lines, dtype)
                    first, lines = first + len(lines), []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file}: not a readable text table after line {line} ({one_line(error)}); save it as UTF-8 CSV"
        ) from None
    if lines:
        yield names, first, _numbers(file, names, lines, dtype)


def _check_header(file: Path, line: int, names: list[str]) -> None:
    for index, name in enumerate(names):
        if not name:
            raise ValueError(
                f"{file} line {line} column {index}: no name in the header, or a missing value in the first row; "
                "name the column or remove it"
            )
        if name in names[:index]:
            raise ValueError(f"{file} line {line} column {index}: a second column is called {_brief(name)}; rename it")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python's 1_000


def _brief(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}...")


def _numbers(file: Path, names: list[str], lines: list[tuple[int, list[str]]], dtype: type) -> np.ndarray:
    for line, cells in lines:
        if len(cells) != len(names):
            raise ValueError(
                f"{file} line {line}: {len(cells)} columns where the first line has {len(names)}; repair it"
            )
        for name, cell in zip(names, cells, strict=True):
            if not _is_number(cell):
                found = f"{_brief(cell)} is not a number" if cell.strip() else "a missing value"
                raise ValueError(f"{file} line {line} column {name}: {found}; remove the row or the column")
    with np.errstate(over="ignore"):
        block = np.array([[float(cell) for cell in cells] for _, cells in lines]).astype(dtype)
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        found = _brief(lines[row][1][column])
        raise ValueError(f"{file} line {lines[row][0]} column {names[column]}: {found} is not finite; remove the row")
    return block
