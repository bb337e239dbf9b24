"""How a table of text is written: what divides its columns, its decimals, and whether its first line names the columns.

Numbers in the first line are taken for names where they count the columns from 0 or 1 or are years in their order, above at
least three columns and a row of fractions. Where that would be a guess, the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.data.source import Options

__all__ = ["PLAIN", "SEPARATORS", "Form", "Written", "brief", "names_columns", "written_otherwise"]

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a table is written, in the words of the command line.

    Args:
        separator: What divides the columns; those of a .tsv file are divided by tabs.
        decimal: How its numbers are written, 1.5 or 1,5.
        header: Whether its first line names the columns; auto sees by itself, and asks where it cannot tell.
    """

    separator: Literal["comma", "semicolon", "tab"] = "comma"
    decimal: Literal["point", "comma"] = "point"
    header: Literal["auto", "yes", "no"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a table is written: what divides its columns, 1.5 or 1,5, and whether its first line names them."""

    separator: str = ","
    decimal: str = "."
    header: Literal["auto", "yes", "no"] = "auto"

    @staticmethod
    def of(file: Path, options: Options | Written) -> Form:
        """As the options say; the columns of a .tsv file are divided by tabs."""
        separator = "\t" if file.suffix.lower() == ".tsv" else SEPARATORS[options.separator]
        return Form(separator=separator, decimal="," if options.decimal == "comma" else ".", header=options.header)

    def is_number(self, cell: str) -> bool:
        """Whether `number` takes it."""
        try:
            self.number(cell)
        except ValueError:
            return False
        return "_" not in cell  # Python's 1_000

    def number(self, cell: str) -> float:
        if self.decimal == ".":
            return float(cell)
        return float(cell.replace(".", "?").replace(",", "."))  # 1.000,5 is refused


PLAIN = Form()


def names_columns(file: Path, found: Sequence[tuple[int, Sequence[str]]], form: Form) -> bool:
    """Whether the first of the first two lines, each a number and its cells, names the columns; ValueError where to ask."""
    line, cells = found[0]
    if form.header != "auto":
        return form.header == "yes"
    if not any(map(form.is_number, cells)):
        return True
    below = found[1][1] if len(found) == 2 else []
    if not _may_be_names(cells) or len(below) != len(cells) or not all(map(form.is_number, below)):
        return False
    fractions = not all(cell.strip().lstrip("+-").isdecimal() for cell in below)
    first = int(cells[0])
    if len(cells) > 2 and fractions:
        return True
    if first == 1 or (len(cells) == 1 and not (first == 0 and fractions)):
        return False
    shown = brief(form.separator.join(cells[:6]))
    raise ValueError(
        f"{file} line {line}: {shown} may be the names of columns or a row; give --header yes or --header no"
    )


def _may_be_names(cells: Sequence[str]) -> bool:
    """Whether numbers count columns from 0 or 1, as programs name those that have no names, or are years in their order."""
    if not all(re.fullmatch(r"[0-9]{1,9}", cell) for cell in cells):
        return False
    numbers = np.array(cells, np.int64)
    years = numbers[0] >= 1800 and numbers[-1] <= 2200
    steps = np.diff(numbers)
    return bool((steps > 0).all() if years else numbers[0] in (0, 1) and (steps == 1).all())


def brief(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}...")


def written_otherwise(cells: Sequence[str], form: Form) -> str:
    """The remedy where cells look as if the table were written in another form; '' where they do not."""
    text = " ".join(cells[:1000])[:10_000]
    for name, separator in SEPARATORS.items():
        if separator != form.separator and separator != "," and separator in text:
            return f"columns are divided by {name}s? then give --separator {name}"
    if form.separator != "," and form.decimal == "." and re.search(r"[0-9],[0-9]", text):
        return "numbers are written 1,5? then give --decimal comma"
    if form.separator == "," and any(
        re.fullmatch(r"\s*[-+]?[0-9]+,[0-9]+(e[-+]?[0-9]+)?\s*", cell) for cell in cells[:1000]
    ):
        return "numbers are written 1,5? then write them 1.5, or divide columns by semicolons and give --decimal comma"
    if len(cells) < 3 and re.search(r"[0-9.] +[-+0-9.]", text):
        return "columns are divided by spaces? then divide them by commas"
    if form.separator != "," and "," in text:
        return "columns are divided by commas? then leave --separator out"
    return ""
