"""Reader of tables of text: a .csv file of numbers, one vector a line, with or without a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.source import Chunk, Options, Source, SourceSplit, chunk_rows

__all__ = ["read_csv", "read_rows"]


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


def read_rows(file: Path, *, spare: bool = False) -> tuple[list[str], np.ndarray]:
    """Column names and all numbers of a .csv file, float64 (n, d); `spare`: rows may have one cell more than the header."""
    names, blocks = [], []
    for header, _, block in _csv_blocks(file, np.float64, spare=spare):
        names = header
        blocks.append(block)
    if not blocks:
        raise ValueError(f"{file}: no rows of numbers")
    return names, np.concatenate(blocks)


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
