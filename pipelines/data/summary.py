"""What a preparation took, skipped and left out, as people read it: `summary`."""

from __future__ import annotations

from pipelines.data.card import RULES, Card
from pipelines.storage.messages import one_line

__all__ = ["from_earlier_rules", "summary"]

HEAD: tuple[str, ...] = ("split", "source", "rows", "classes", "skipped")


def summary(card: Card) -> list[str]:
    """The lines of a table, before which stand the notes: each split, and each thing that is in none, with the reason."""
    rows = [HEAD]
    for name, split in card.splits.items():
        skipped = f"{split.skipped:,}" + "".join(f"; {reason}" for reason in split.reasons)
        rows.append((name, split.source, f"{split.count:,}", f"{split.classes:,}", skipped))
    rows += [
        ("-", item.name, "-", "-", f"{item.files:,} files: " * (item.files > 1) + item.reason) for item in card.left_out
    ]
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return [*(one_line(f"note: {note}") for note in card.notes), *lines]


def from_earlier_rules(card: Card) -> str:
    """A sentence on images that were prepared before it was recorded what is left out; '' for other sets."""
    if card.rules >= RULES or card.kind != "image" or not card.source.startswith("/"):
        return ""
    return (
        f"{card.name}: prepared by an earlier version, which did not record what it left out and did not turn images by their "
        "EXIF; prepare it again to see"
    )
