"""Labels as files have them -> classes 0, ..., K - 1, for every reader and every split of a data set.

    whole numbers (2, 2.0, true)   are the classes; where the greatest is far above their number (years, identities), they are
                                   numbered in their order
    words                          are numbered in the order of their names, which the card keeps
    null, nan, an empty word, -1   say nothing of a row

A split has labels or it has none: where some rows have none, or no two rows share one (they name rows and not classes), or
they are measured quantities, the set is refused before a row is copied, and `--labels ignore` prepares it without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.storage.messages import one_line

__all__ = ["IGNORE", "NONE", "Classes", "Labels", "classes_of"]

IGNORE = "give --labels ignore, which prepares the rows without"
PLAIN = 1000
"""Whole numbers below it are classes as they are."""
MOST_CLASSES = 2**31 - 1
LONGEST = 256
"""Letters of a class's name."""
FEW = 10
"""Rows of which nothing can be told from labels that are all different."""
MANY = 100
"""Above so many different labels, two rows should share one on average."""

Value = int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a split.

    Args:
        codes: (n,) into `values`.
        values: The different ones as the file has them, None for a label that is missing.
    """

    codes: np.ndarray
    values: tuple[Value, ...]

    @staticmethod
    def of(blocks: Iterable[Iterable[Any]]) -> Labels:
        """The labels of consecutive rows: of numbers, words and None."""
        known: dict[Value, int] = {}
        codes = [np.fromiter((known.setdefault(_value(x), len(known)) for x in block), np.int32) for block in blocks]
        return Labels(codes=np.concatenate([np.empty(0, np.int32), *codes]), values=tuple(known))


NONE = Labels(codes=np.empty(0, np.int32), values=())
"""Of a split without labels."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What the labels of a data set stand for.

    Args:
        num: K, 0 where there are no labels.
        names: Of the classes in their order; () where they are numbers.
        rows: By split, the class of each of its rows, -1 for none; splits without labels are left out.
    """

    num: int = 0
    names: tuple[str, ...] = ()
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, split: str, row: np.ndarray) -> np.ndarray:
        """The classes of rows of a split."""
        return self.rows[split][row] if split in self.rows else np.full(len(row), -1)


def classes_of(labels: Mapping[str, Labels], locate: Callable[[str, int], str], num_classes: int = 0) -> Classes:
    """The classes that the labels of all splits stand for.

    Args:
        labels: By split, the one for training first; `NONE` of a split that has none.
        locate: (split, row) -> what people call that row.
        num_classes: K where the format says it, else 0.

    Raises:
        ValueError: labels that are no classes; the message names the row.
    """
    told = {split: found for split, found in labels.items() if any(value is not None for value in found.values)}
    for split, found in told.items():
        _refuse_values(found, split, locate, num_classes)
    values = {value for found in told.values() for value in found.values if value is not None}
    if not values:
        return Classes()
    words = {type(value) is str for value in values}
    if len(words) == 2:
        examples = ", ".join(
            one_line(repr(next(v for v in values if (type(v) is str) is word)), 60) for word in (True, False)
        )
        raise ValueError(f"labels are words and numbers, such as {examples}; write them alike, or {IGNORE}")
    if next(iter(labels)) not in told:
        where = locate(next(iter(told)), 0)
        raise ValueError(f"{where}: labelled, but no row of {next(iter(labels))} is; label those too, or {IGNORE}")
    for split, found in told.items():
        _refuse_missing(found, split, locate)
    if not num_classes:
        split, found = next(iter(told.items()))
        _refuse_identities(found, split, locate)
    order = sorted(values)  # pyright: ignore[reportArgumentType]
    largest = 0 if True in words else int(order[-1])
    if num_classes or (True not in words and largest < max(PLAIN, 2 * len(order))):
        number = {value: int(value) for value in order}  # pyright: ignore[reportArgumentType]
        return _numbered(told, number, num_classes or largest + 1, ())
    return _numbered(told, {value: index for index, value in enumerate(order)}, len(order), tuple(map(str, order)))


def _numbered(told: Mapping[str, Labels], number: Mapping[Any, int], num: int, names: tuple[str, ...]) -> Classes:
    rows = {
        split: np.array([number[value] for value in found.values], np.int64)[found.codes]
        for split, found in told.items()
    }
    return Classes(num=num, names=names, rows=rows)


def _value(x: Any) -> Value:
    """A label as an int, a str, a float that is no whole number, or None for none."""
    if isinstance(x, np.generic):
        x = float(x) if isinstance(x, np.floating) else x.item()
    if isinstance(x, bytes):
        x = x.decode("utf-8", "replace")
    if x is None or x == "" or x == -1 or x != x:
        return None
    if isinstance(x, float) and not x.is_integer():
        return x
    return int(x) if isinstance(x, int | float) else str(x)


def _first(found: Labels, wrong: Callable[[Value], bool]) -> int | None:
    """The first row whose label is wrong."""
    flags = np.array([wrong(value) for value in found.values], bool)
    rows = np.flatnonzero(flags[found.codes])
    return int(rows[0]) if len(rows) else None


def _refuse_values(found: Labels, split: str, locate: Callable[[str, int], str], num_classes: int) -> None:
    """Refuses what is no class by itself: a fraction, a number below 0 or beyond the format's classes, a whole text."""
    highest = num_classes or MOST_CLASSES
    said = f"0 to {num_classes - 1}" if num_classes else "0, 1, ... (-1: none)"
    rules: tuple[tuple[Callable[[Value], bool], str], ...] = (
        (lambda x: type(x) is float, f"measures something and is no class; {IGNORE}"),
        (lambda x: type(x) is int and not 0 <= x < highest, f"is not in {said}; repair it, or {IGNORE}"),
        (lambda x: type(x) is str and num_classes > 0, f"is not in {said}; repair it, or {IGNORE}"),
        (lambda x: type(x) is str and len(x) > LONGEST, f"is a text of over {LONGEST} letters and no class; {IGNORE}"),
    )
    for wrong, reason in rules:
        row = _first(found, wrong)
        if row is not None:
            value = found.values[found.codes[row]]
            raise ValueError(f"{locate(split, row)}: the label {one_line(_shown(value), 60)} {reason}")


def _shown(value: Value) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"of {value.bit_length()} bits"
    return repr(value)


def _refuse_missing(found: Labels, split: str, locate: Callable[[str, int], str]) -> None:
    row = _first(found, lambda x: x is None)
    if row is not None:
        num = int(np.isin(found.codes, [found.values.index(None)]).sum())
        raise ValueError(
            f"{locate(split, row)}: no label, as {num:,} of {len(found.codes):,} rows of {split}; label them, or {IGNORE}"
        )


def _refuse_identities(found: Labels, split: str, locate: Callable[[str, int], str]) -> None:
    """Refuses labels that name rows: those all different, or, where they are many, shared by less than two rows on average."""
    num, rows = len(found.values), len(found.codes)
    if (num == rows >= FEW) or (num > MANY and 2 * num > rows):
        example = one_line(_shown(found.values[found.codes[0]]), 60)
        raise ValueError(
            f"{locate(split, 0)}: the label {example} is one of {num:,} different ones of {rows:,} rows of {split}, which name "
            f"rows and no classes; {IGNORE}"
        )
