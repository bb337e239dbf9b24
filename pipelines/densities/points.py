"""Positions of points in the unit square, for the log-Gaussian Cox process.

pines.csv, beside this file, holds the 126 pine saplings of a Finnish forest that the literature takes, already scaled
(Penttinen, Stoyan, Henttonen 1992; Møller, Syversveen, Waagepetersen 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from indm_core.ranges import check_positive
from pipelines.data.readers.csv_table import read_rows
from pipelines.data.readers.text_form import Written

__all__ = ["UNIT", "Window", "pines", "points"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The rectangle in which points were looked for; it becomes the unit square, each side by its own factor.

    It is not guessed from the points: that there are none near an edge is an observation, too.

    Args:
        left, bottom: The corner of the rectangle in which points were looked for.
        width, height: The sides of that rectangle.

    Raises:
        ValueError: a side that is not positive.
    """

    left: float = 0.0
    bottom: float = 0.0
    width: float = 1.0
    height: float = 1.0

    def __post_init__(self) -> None:
        check_positive(width=self.width, height=self.height)


UNIT = Window()


def pines() -> Tensor:
    """The pines, (126, 2), float64."""
    return points(Path(__file__).with_name("pines.csv"))


def points(file: Path, window: Window = UNIT, written: Written | None = None) -> Tensor:
    """The positions that a .csv file of two columns holds, scaled from their window to the unit square; (n, 2), float64.

    Args:
        file: Columns x and y, with or without a header.
        window: Where the points were looked for.
        written: How the table is written; None: with commas, 1.5.

    Raises:
        ValueError: a file that cannot be read, other than two columns, or a point outside the window.
    """
    names, rows = read_rows(Path(file), written)
    if len(names) != 2:
        raise ValueError(
            f"{file}: {len(names)} columns ({', '.join(names[:6])}); points have two, x and y; remove the rest"
        )
    found = torch.from_numpy(rows)
    low, sides = (
        torch.tensor(pair, dtype=torch.float64)
        for pair in ((window.left, window.bottom), (window.width, window.height))
    )
    scaled = (found - low) / sides
    outside = ((scaled < 0) | (scaled > 1)).any(1)
    if outside.any():
        raise ValueError(
            f"{file}: the point {found[outside][0].tolist()} is outside the window {_rectangle(low, low + sides)}; the points "
            f"lie in {_rectangle(found.amin(0), found.amax(0))}: give the window in which they were looked for, "
            "by --window.left, --window.bottom, --window.width and --window.height"
        )
    return scaled


def _rectangle(low: Tensor, high: Tensor) -> str:
    return " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(low.tolist(), high.tolist(), strict=True))
