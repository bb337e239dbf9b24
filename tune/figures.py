"""The figure of a sweep: likelihoods and, beside them, Frechet distances against each dimension that was searched (as
DiNof's Table 1 has them against T_m, and INDM's Table 3 against the pre-training); beside these the held-out NELBO of all
trials along training or, of samplers, the distances against the evaluations of the score.

Of several dimensions, points that agree in the others are joined by a line; where these are too many, none are. A value that
has no place on the axis, as the linear diffusion has no T_m, is a horizontal line with a band of its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.runs.job import read_metrics
from pipelines.runs.pictures import figure_of, put
from tune.results import Figure, Outcome, Sweep
from tune.spaces import Dimension, Space

__all__ = ["draw"]

MOST_LINES, MOST_NAMED = 6, 12
AXES = {"pretraining": "pre-training, % of the steps", "t_m": "T_m", "weighting": "weighting of the score's loss"}


def draw(sweep: Sweep, space: Space, root: Path, file: Path) -> None:
    """Draws a sweep.

    Args:
        root: The output directory, where its runs lie.
        file: The picture.
    """
    done = [outcome for outcome in sweep.trials if outcome.state == "measured"]
    likelihoods = [name for name in ("nll", "nelbo") if any(name in outcome.figures for outcome in done)]
    named = list(dict.fromkeys(name for outcome in done for name in outcome.figures if name.startswith("fd ")))
    distances = named or [name for name in ("fd",) if any(name in outcome.figures for outcome in done)]
    columns = [(names, up) for names, up in ((likelihoods, sweep.unit), (distances, "Frechet distance")) if names]
    rows = len(space.dimensions)
    figure = figure_of(5 * (len(columns) + 1), 4.2 * rows)
    grid = figure.add_gridspec(rows, len(columns) + 1)
    for row, dimension in enumerate(space.dimensions):
        for column, (names, up) in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            _panel(axes, dimension, done, names)
            axes.set_ylabel(up)
    last = figure.add_subplot(grid[0, len(columns)])
    if any("evaluations" in outcome.figures for outcome in done):
        _costs(last, done)
    else:
        _curves(last, sweep, root)
    figure.suptitle(sweep.name)
    figure.tight_layout()
    put(file, partial(figure.savefig, dpi=110))


def _panel(axes: Any, dimension: Dimension, done: Sequence[Outcome], names: Sequence[str]) -> None:
    """Figures against one dimension."""
    axes.set_xlabel(AXES.get(dimension.name, dimension.name))
    axes.grid(alpha=0.3)
    known = dict.fromkeys(outcome.point[dimension.name] for outcome in done)
    labels = [label for label in dimension.all() if label in known] if dimension.finite else list(known)
    placed = {label: dimension.choice(label).at for label in labels}
    if not any(map(math.isfinite, placed.values())):  # words
        placed = {label: float(i) for i, label in enumerate(labels)}
        axes.set_xticks(list(placed.values()), labels)
    others = {_rest(outcome, dimension): "" for outcome in done if math.isfinite(placed[outcome.point[dimension.name]])}
    for number, name in enumerate(names):
        for other in others:
            points = [o for o in done if _rest(o, dimension) == other and name in o.figures]
            label = " ".join(filter(None, [name, other if 1 < len(others) <= MOST_LINES else ""]))
            colour = {"color": f"C{number}"} if len(others) > MOST_LINES else {}
            _line(
                axes, [(placed[o.point[dimension.name]], o.figures[name]) for o in points], label, len(others), colour
            )
        for outcome in done:
            if not math.isfinite(placed[outcome.point[dimension.name]]) and name in outcome.figures:
                _level(axes, outcome.figures[name], f"{name}, {outcome.point[dimension.name]}", number)
    handles, texts = axes.get_legend_handles_labels()
    unique = dict(zip(texts, handles, strict=True))
    if unique:
        axes.legend(unique.values(), unique.keys(), fontsize="small")


def _line(axes: Any, points: Sequence[tuple[float, Figure]], label: str, groups: int, colour: dict[str, str]) -> None:
    found = sorted(
        (x, figure.value, figure.se) for x, figure in points if math.isfinite(x) and math.isfinite(figure.value)
    )
    if found:
        x, y, error = zip(*found, strict=True)
        error = [0.0 if math.isnan(e) else e for e in error]
        style = "-" if groups <= MOST_LINES else "none"
        axes.errorbar(
            x, y, error, marker="o", markersize=4, linestyle=style, linewidth=1.2, capsize=2, label=label, **colour
        )


def _level(axes: Any, figure: Figure, label: str, number: int) -> None:
    if math.isfinite(figure.value):
        axes.axhline(figure.value, linestyle="--", linewidth=1, color=f"C{number}", label=label)
        if math.isfinite(figure.se):
            axes.axhspan(figure.value - figure.se, figure.value + figure.se, alpha=0.1, color=f"C{number}")


def _rest(outcome: Outcome, dimension: Dimension) -> str:
    """The values of the other dimensions."""
    return ", ".join(f"{name} {text}" for name, text in outcome.point.items() if name != dimension.name)


def _costs(axes: Any, done: Sequence[Outcome]) -> None:
    """Frechet distance of samplers against the evaluations that a sample takes."""
    for outcome in done:
        evaluations, distance = outcome.figures["evaluations"].value, outcome.figures["fd"]
        if math.isfinite(evaluations) and math.isfinite(distance.value):
            error = 0.0 if math.isnan(distance.se) else distance.se
            label = ", ".join(outcome.point.values())
            axes.errorbar([evaluations], [distance.value], [error], marker="o", markersize=4, capsize=2, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("evaluations of the score per sample")
    axes.set_ylabel("Frechet distance")
    axes.grid(alpha=0.3)
    if 0 < len(done) <= MOST_NAMED:
        axes.legend(fontsize="x-small")


def _curves(axes: Any, sweep: Sweep, root: Path) -> None:
    """The held-out NELBO of every trial; a cross where one was stopped."""
    shown: list[float] = []
    for outcome in sweep.trials:
        curve = [(r.step, r.held_out.nelbo) for r in read_metrics(root / outcome.run) if r.held_out]
        curve = [(step, value) for step, value in curve if math.isfinite(value)]
        if curve:
            steps, values = zip(*curve, strict=True)
            (line,) = axes.plot(steps, values, marker=".", linewidth=1, label=", ".join(outcome.point.values()))
            shown += values[1:]
            if outcome.state != "measured":
                axes.plot(steps[-1:], values[-1:], marker="x", markersize=8, color=line.get_color())
    axes.set_xlabel("step")
    axes.set_ylabel(f"held-out NELBO ({sweep.unit})")
    axes.grid(alpha=0.3)
    if shown:
        low, high = min(shown), sorted(shown)[int(0.9 * (len(shown) - 1))]
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.3 * (high - low) + 1e-3)
        axes.legend(fontsize="x-small", ncols=1 + len(sweep.trials) // 8)
