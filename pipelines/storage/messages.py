"""What people read of an error: one line of printable characters, of bounded length, whatever a file made it of."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

__all__ = ["listed", "one_line"]

MOST = 1600
"""Characters of a line; of a longer one the middle is left out."""


def one_line(said: object, most: int = MOST) -> str:
    """A message, or an exception's, on one line; what a terminal would take for a command or turn around is shown as ?."""
    text = str(said)
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} {text[-2 * most :]}"
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    line = line or (type(said).__name__ if isinstance(said, BaseException) else "")
    return line if len(line) <= most else f"{line[: most - most // 3 - 5]} ... {line[-(most // 3) :]}"


def listed(names: Iterable[object], most: int = 8) -> str:
    """Names in a message, the first few of many."""
    names = list(names)
    shown = ", ".join(one_line(name, 60) for name in islice(names, most))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
