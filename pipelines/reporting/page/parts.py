"""What a page is made of, before it is HTML (`html`) or Markdown (`markdown`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Drawing", "Folded", "Gallery", "Listing", "Meanings", "Note", "Page", "Part", "Row", "Section", "Table"]

Row = Sequence[str]
"""Cells; what stands behind a line break of a cell is how its figure came about."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures.

    Args:
        title: Of the table; '' where its section has only this one.
        head, rows: Names of the columns, and the cells.
        note: How it is to be read.
    """

    title: str = ""
    head: Row
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture, PNG, and what it shows."""

    file: Path
    title: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures side by side."""

    drawings: Sequence[Drawing]


@dataclass(frozen=True, kw_only=True)
class Meanings:
    """Terms, each with its meaning in a line."""

    terms: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Text as it is typed or stored."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Parts that are shown when their title is opened."""

    title: str
    parts: Sequence[Table | Listing | Note]


Part = Table | Gallery | Meanings | Listing | Note | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """Parts under a heading; one without parts is left out."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page.

    Args:
        title: Of the page.
        said: What it is about, when and where it was made, a sentence each.
        sections: In the order in which they are read.
    """

    title: str
    said: Sequence[str] = ()
    sections: Sequence[Section]
