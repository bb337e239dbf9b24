"""The help of a command: what it does, and its options in groups, as wide as the terminal is.

An option is shown by the shortest name that means it, with its value and what it may be; the fields of a form stand below it.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from typing import Any

from pipelines.config.terminal.cli import Option, dashed, options, short_name

__all__ = ["columns", "describe", "fold", "page"]

COLUMN, LEAST, MOST = 30, 60, 120
"""Where the text of an option begins, and how narrow and wide a page is."""
EVERYWHERE = {
    "import MODULE": "Your own SDEs, flows, networks, models, readers and recipes: a file.py, or a name that an installed "
    "package has in the entry points of the group indm.extensions; several are separated by commas. It is run: name only what "
    "you trust.",
    "help": "This page; with other options, as they would change it.",
}
"""The options that every command has."""


def columns() -> int:
    """The width of a page: the terminal's, 80 where there is none."""
    return max(LEAST, min(MOST, shutil.get_terminal_size((80, 24)).columns))


def page(text: str, groups: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> str:
    """A command's help.

    Args:
        text: What it does; lines that begin with blanks stay as they are.
        groups: Titles and what stands below them (`describe`).
        notes: What is said at the end.
    """
    everywhere = "\n".join(_entry(name, "", said) for name, said in EVERYWHERE.items())
    parts = [f"{title}:\n{body}" for title, body in [*groups, ("every command", everywhere)]]
    return "\n\n".join([fold(text), *parts, *map(fold, notes)])


def fold(text: str, first: str = "", indent: str = "") -> str:
    """Paragraphs as wide as the page; lines that begin with blanks stay as they are.

    Args:
        first, indent: What the first line of a paragraph begins with, and the others.
    """
    folded = []
    for paragraph in text.strip("\n").split("\n\n"):
        plain = not any(line.startswith(" ") for line in paragraph.splitlines())
        folded.append(_fill(" ".join(paragraph.split()), first, indent) if plain else paragraph)
    return "\n\n".join(folded)


def describe(config: Any, below: str = "", taken: Collection[str] = (), apart: Collection[str] = ()) -> str:
    """The options of a configuration.

    Args:
        config: A dataclass of options.
        below: A field of it: those of that field alone.
        taken: Names that mean options of something else.
        apart: Fields of it that are described by themselves.
    """
    found = options(config)
    paths = [option.path for option in found]
    whole = [option.path for option in found if option.whole]
    forms = [option.path for option in found if is_dataclass(option.value)]
    lines = []
    for option in found:
        if option.path.partition(".")[0] in apart:
            continue
        if option.path == below or option.path.startswith(below and f"{below}."):
            depth = sum(option.path.startswith(f"{form}.") for form in forms if form != below)
            name = dashed(short_name(option.path, [*paths, *taken], whole))
            lines.append(_entry(name, option.shown, _said(option), depth))
    return "\n".join(lines)


def _said(option: Option) -> str:
    return f"{option.help} One of {', '.join(option.choices)}." if option.choices else option.help


def _entry(name: str, shown: str, text: str, depth: int = 0) -> str:
    """An option and its text beside it, or below it where the name is long."""
    head, margin = f"{'  ' * (depth + 1)}--{name} {shown}".rstrip(), " " * COLUMN
    if len(head) > COLUMN - 2:
        return f"{head}\n{_fill(text, margin, margin)}"
    return head.ljust(COLUMN) + _fill(text, margin, margin)[COLUMN:]


def _fill(text: str, first: str, indent: str) -> str:
    return textwrap.fill(
        text, columns(), initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
