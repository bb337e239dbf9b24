"""Reader of tables of text: a .csv or .tsv file of numbers, one vector a line.

The text is UTF-8, with or without a byte-order mark. Cells are divided by commas (or as `Form` says) and may be quoted; lines
end in LF, CRLF or CR; empty lines are passed over. Where no cell of the first line is a number, it is a header that names the
columns; so it is where its numbers are plainly names (text_form.py). A cell is whatever Python's `float` takes, but
for its 1_000: it becomes the nearest float64, then the nearest number of the type asked for, which must be finite.

The file is read in blocks of whole lines of about 1 MiB. pyarrow parses a block, to the same bits and some eight times
as fast. A block that it refuses, or in which a number is not finite, is read again by the plain code (`csv` and
`float`, cell by cell), which takes the few numbers that pyarrow does not know, and names the line and the column of
what is none.
"""

from __future__ import annotations

import codecs
import csv
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions
from pyarrow.csv import read_csv as parse

from pipelines.data.readers.text_form import PLAIN, Form, Written, brief, names_columns, written_otherwise
from pipelines.data.source import Chunk, Options, Source, SourceSplit, chunk_rows
from pipelines.storage.messages import one_line
from pipelines.storage.reading import open_regular

__all__ = ["read_csv", "read_rows"]

BLOCK = 1 << 20
"""Bytes that are read at a time."""
COLUMN_BYTES = 500
"""With fewer bytes of a block for each column, what pyarrow spends on a column is more than it saves."""
LONGEST = 32 << 20
"""Bytes of a line."""
SUFFIXES = (".csv", ".tsv")
LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|\Z)")

Record = tuple[int, list[str]]
"""The number of a line (the last one, where cells have several) and its cells."""


def read_csv(source: str, options: Options) -> Source | None:
    """A table of numbers, one vector a line; the file is read twice, to check it and to copy it."""
    file = Path(source)
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return None
    form = _decided(file, Form.of(file, options))
    names, rows = [], 0
    for header, first, block in _blocks(file, np.float32, form):
        names, rows = header, first + len(block)
    if rows < 2:
        raise ValueError(f"{file}: {rows} rows of numbers; a data set has at least 2")

    def chunks() -> Iterator[Chunk]:
        for _, first, block in _blocks(file, np.float32, form):
            yield Chunk(block, np.arange(first, first + len(block)))

    part = SourceSplit(count=rows, chunks=chunks, locate=lambda row: f"{file} row {row}")
    return Source(kind="vector", shape=(len(names),), levels=0, splits={"train": part}, columns=tuple(names))


def read_rows(file: Path, written: Written | None = None, *, spare: bool = False) -> tuple[list[str], np.ndarray]:
    """Column names and all numbers of a text table, float64 (n, d); `spare`: rows may have one cell more than the header."""
    names, blocks = [], []
    for header, _, block in _blocks(file, np.float64, Form.of(file, written or Written()), spare=spare):
        names = header
        blocks.append(block)
    if not blocks:
        raise ValueError(f"{file}: no rows of numbers")
    return names, np.concatenate(blocks)


class _Lines:
    """A text file in blocks of whole lines (for pyarrow), which also gives its lines one by one (for csv).

    Attributes:
        number: Of the last line that was given.
        whole: Of the last line that ended a record.
    """

    def __init__(self, file: Path, separator: str) -> None:
        self.number = self.whole = 0
        self._file, self._separator = file, separator
        self._block, self._at, self._rest = b"", 0, b""

    def __enter__(self) -> _Lines:
        self._stream = open_regular(self._file)
        self._rest = self._stream.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    @property
    def ended(self) -> bool:
        """Whether all lines of the block have been given."""
        return self._at == len(self._block)

    def block(self) -> bytes:
        """The lines of the block that have not been given, or those of the next one; b'' at the end of the file."""
        if self.ended:
            self._block, self._at = self._read(), 0
        return self._block[self._at :]

    def pass_block(self) -> None:
        """Goes to the end of the block, whose lines are known to be whole records."""
        left = self.block()
        ends = left.count(b"\n") + left.count(b"\r") - left.count(b"\r\n")
        self.number += ends + (not left.endswith((b"\n", b"\r")))
        self.whole = self.number
        self._at = len(self._block)

    def records(self) -> Iterator[Record]:
        """The records from here on, as csv reads them; that of an empty line has no cells."""
        for cells in csv.reader(self, delimiter=self._separator):
            self.whole = self.number
            yield self.number, cells

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.ended and not self.block():
            raise StopIteration
        line = LINE.match(self._block, self._at).group()  # pyright: ignore[reportOptionalMemberAccess]
        text = line.decode()
        self._at += len(line)
        self.number += 1
        return text

    def _read(self) -> bytes:
        text, size = self._rest, BLOCK
        while more := self._stream.read(size):
            text += more
            cut = text.rfind(b"\n") + 1 or text.rfind(b"\r", 0, -1) + 1  # a CR at the end may be half of a CRLF
            if cut:
                self._rest = text[cut:]
                return text[:cut]
            if len(text) > LONGEST:
                raise csv.Error(f"a line of more than {LONGEST >> 20} MiB")
            size *= 2  # a long line is not to be copied for each MiB of it
        self._rest = b""
        return text


def _blocks(
    file: Path, dtype: type, form: Form = PLAIN, *, spare: bool = False
) -> Iterator[tuple[list[str], int, np.ndarray]]:
    """(column names, first row, (m, d) of a dtype) of a table; rows are numbered from 0, after the header."""
    row = 0
    with _opened(file, form) as lines:
        names, start = _start(file, lines, form, spare)
        if start:
            yield names, 0, _converted(file, names, start, dtype, form)
            row = len(start)
        for block in _rest(file, lines, names, dtype, form):
            yield names, row, block
            row += len(block)


@contextmanager
def _opened(file: Path, form: Form) -> Iterator[_Lines]:
    """The lines of a file; what cannot be read of it is a ValueError that names the last good line."""
    lines = _Lines(file, form.separator)
    try:
        with lines:
            yield lines
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; mend the name") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file}: not a readable text table after line {lines.whole} ({one_line(error)}); save it as UTF-8 CSV"
        ) from None


def _first_two(lines: _Lines) -> list[Record]:
    return list(islice((record for record in lines.records() if record[1]), 2))


def _start(file: Path, lines: _Lines, form: Form, spare: bool) -> tuple[list[str], list[Record]]:
    """The names of the columns and the first rows (one or two); [] where there is none."""
    found = _first_two(lines)
    if not found:
        return [], []
    line, cells = found[0]
    if names_columns(file, found, form):
        names, rows = [cell.strip() for cell in cells], found[1:]
        _check_header(file, line, names)
    else:
        names, rows = [str(index) for index in range(len(cells))], found
    if spare and rows and len(rows[0][1]) == len(names) + 1:
        names.append(str(len(names)))
    return names, rows


def _decided(file: Path, form: Form) -> Form:
    """The form with `header` settled; that numbers are taken for names is said."""
    with _opened(file, form) as lines:
        found = _first_two(lines)
        named = bool(found) and names_columns(file, found, form)
    if named and form.header == "auto" and any(map(form.is_number, found[0][1])):
        shown = brief(form.separator.join(found[0][1][:6]))
        said = f"{shown} are taken for the names of columns; else give --header no"
        print(f"{file} line {found[0][0]}: {said}", file=sys.stderr)
    return replace(form, header="yes" if named else "no")


def _rest(file: Path, lines: _Lines, names: list[str], dtype: type, form: Form) -> Iterator[np.ndarray]:
    """The numbers of the rows from here on, at most `chunk_rows` at a time."""
    while block := lines.block():
        x = _parsed(block, len(names), dtype, form)
        if len(x):
            lines.pass_block()
            step = chunk_rows(8 * len(names))
            yield from (x[first : first + step] for first in range(0, len(x), step))
        else:
            yield from _plain(file, lines, names, dtype, form)


def _parsed(block: bytes, num: int, dtype: type, form: Form) -> np.ndarray:
    """The numbers of a block by pyarrow; no rows where it refuses the block, or where a number is not finite.

    A block is cut where a line ends, which may be within a quoted cell; such a cell holds the end of a line, and is
    refused.
    """
    refused = np.empty((0, num), dtype)
    if len(block) < COLUMN_BYTES * num:
        return refused
    names = [str(index) for index in range(num)]
    try:
        table = parse(
            pa.BufferReader(block),
            read_options=ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False),
            parse_options=ParseOptions(delimiter=form.separator),
            convert_options=ConvertOptions(
                decimal_point=form.decimal,
                column_types=dict.fromkeys(names, pa.float64()),
                null_values=[],  # an empty cell, or NA, is refused
            ),
        )
    except pa.ArrowInvalid:
        return refused
    with np.errstate(over="ignore"):
        x = np.stack([column.to_numpy() for column in table.columns], axis=1).astype(dtype)
    return x if np.isfinite(x).all() else refused


def _plain(file: Path, lines: _Lines, names: list[str], dtype: type, form: Form) -> Iterator[np.ndarray]:
    """The numbers of the rest of a block, cell by cell, and of the lines behind it that a quoted cell at its end goes on in."""
    found: list[Record] = []
    for line, cells in lines.records():
        if cells:
            found.append((line, cells))
        if found and (lines.ended or len(found) == chunk_rows(8 * len(names))):
            yield _converted(file, names, found, dtype, form)
            found = []
        if lines.ended:
            return


def _check_header(file: Path, line: int, names: list[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not name:
            raise ValueError(
                f"{file} line {line} column {index}: no name in the header, or a missing value in the first row; "
                "name the column or remove it"
            )
        if name in seen:
            raise ValueError(f"{file} line {line} column {index}: a second column is called {brief(name)}; rename it")
        seen.add(name)


def _converted(file: Path, names: list[str], records: list[Record], dtype: type, form: Form) -> np.ndarray:
    """The numbers of records, (m, d), or what is wrong with them."""
    for line, cells in records:
        if len(cells) != len(names):
            raise ValueError(
                f"{file} line {line}: {len(cells)} columns where the first line has {len(names)}; "
                f"{written_otherwise([*names, *cells], form) or 'repair it'}"
            )
        for name, cell in zip(names, cells, strict=True):
            if not form.is_number(cell):
                found = f"{brief(cell)} is not a number" if cell.strip() else "a missing value"
                remedy = written_otherwise([cell], form) or "remove the row or the column"
                raise ValueError(f"{file} line {line} column {brief(name)[1:-1]}: {found}; {remedy}")
    with np.errstate(over="ignore"):
        block = np.array([[form.number(cell) for cell in cells] for _, cells in records]).astype(dtype)
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        found, name = brief(records[row][1][column]), brief(names[column])[1:-1]
        raise ValueError(f"{file} line {records[row][0]} column {name}: {found} is not finite; remove the row")
    return block
