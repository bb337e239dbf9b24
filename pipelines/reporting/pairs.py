"""Vectors as pair plots: every column against every other, samples over data, and each column's histogram."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.runs.pictures import figure_of, put

__all__ = ["MOST", "ONLY", "draw_pairs", "shown_columns"]

MOST, ONLY = 8, 6
"""Columns that are drawn all; of more, the first ones."""
DATA, SAMPLES = "#9aa0a8", "#d1572b"


def shown_columns(names: Sequence[str]) -> Sequence[str]:
    """The names of the columns that are drawn."""
    return names[:ONLY] if len(names) > MOST else names


def draw_pairs(data: np.ndarray, samples: np.ndarray, names: Sequence[str], file: Path) -> int:
    """Draws the pair plot.

    Args:
        data, samples: (n, d) and (m, d), finite.
        names: Of the first columns, those that are drawn.
        file: The picture.

    Returns:
        How many samples lie outside of the axes, which go around the data.
    """
    num = len(names)
    data, samples = data[:, :num].astype(float), samples[:, :num].astype(float)
    low, high = data.min(0), data.max(0)
    margin = np.where(high > low, 0.12 * (high - low), 1.0)
    low, high = low - margin, high + margin
    side = {1: 3.6, 2: 2.3, 3: 1.7, 4: 1.45}.get(num, 1.1)
    figure = figure_of(side * num + 0.6, side * num + 0.3)
    grid = figure.subplots(num, num, squeeze=False)
    for i, row in enumerate(grid):
        for j, axes in enumerate(row):
            if j > i:
                axes.axis("off")
                continue
            axes.set_xlim(low[j], high[j])
            _histogram(axes, data[:, j], samples[:, j]) if i == j else _cloud(axes, data[:, [j, i]], samples[:, [j, i]])
            if i != j:
                axes.set_ylim(low[i], high[i])
            _label(axes, names, i, j)
    handles = [_dot(DATA), _dot(SAMPLES)]
    place = {"loc": "upper right", "bbox_to_anchor": (0.98, 0.98)} if num > 1 else {"loc": "upper center", "ncols": 2}
    figure.legend(handles, ["test data", "samples"], frameon=False, fontsize=9, **place)
    figure.tight_layout(pad=0.5)
    put(file, partial(figure.savefig, dpi=100))
    return int(((samples < low) | (samples > high)).any(1).sum())


def _histogram(axes: Any, data: np.ndarray, samples: np.ndarray) -> None:
    low, high = axes.get_xlim()
    bins = np.linspace(low, high, 31)
    axes.hist(data, bins, density=True, color=DATA, alpha=0.75)
    axes.hist(
        samples, bins, density=bool(np.histogram(samples, bins)[0].sum()), histtype="step", color=SAMPLES, linewidth=1.3
    )
    axes.set_yticks([])


def _cloud(axes: Any, data: np.ndarray, samples: np.ndarray) -> None:
    axes.scatter(*data.T, s=7, linewidths=0, color=DATA, alpha=0.7)
    axes.scatter(*samples.T, s=4, linewidths=0, color=SAMPLES, alpha=0.7)


def _label(axes: Any, names: Sequence[str], i: int, j: int) -> None:
    """Names along the left and the lower edge, numbers at few ticks."""
    size, most = (10, 20) if len(names) <= 4 else (8, 17)
    axes.tick_params(labelsize=size - 2)
    axes.locator_params(nbins=3, axis="x")
    if i == len(names) - 1:
        axes.set_xlabel(_brief(names[j], most), fontsize=size)
    else:
        axes.set_xticklabels([])
    if i != j:
        axes.locator_params(nbins=3, axis="y")
        if j:
            axes.set_yticklabels([])
    if j == 0:
        axes.set_ylabel("density" if len(names) == 1 else _brief(names[i], most), fontsize=size)


def _brief(name: str, most: int) -> str:
    """A name that fits a panel, without the signs that matplotlib takes for formulas."""
    shown = name if len(name) <= most else f"{name[: most - 1]}…"
    return shown.replace("$", r"\$")


def _dot(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", markersize=5, color=colour)
