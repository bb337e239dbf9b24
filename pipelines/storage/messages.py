"""What people read of an error: one line of printable characters, of bounded length, whatever a file made it of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

__all__ = ["FailedError", "listed", "nearest", "one_line"]

MOST = 1600
"""Characters of a line; of a longer one the middle is left out."""
FEW = 12
"""Names that are all listed where none of them is near."""


class FailedError(RuntimeError):
    """What was asked for was tried and has failed: a command's exit status is 1, where it is 2 of what is refused."""


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


def nearest(name: str, known: Sequence[str], where: str = "", mark: str = "") -> str:
    """'did you mean a, b?', or, where nothing is near, what there is: all of a few names, and of many where they stand.

    Args:
        name: What was written.
        known: What there is.
        where: Where all of it can be read, as a clause.
        mark: Written in front of each name.
    """
    near = (
        difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        or [other for other in known if name and name in other][:3]
    )
    if near:
        return f"did you mean {', '.join(mark + other for other in near)}?"
    shown = len(known) if not where or len(known) <= FEW else 0
    return f"there are {', '.join(mark + other for other in known)}" if shown else f"there are {len(known)}, {where}"
