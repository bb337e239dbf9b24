"""Pictures of data and of learning: PNG grids, lines of sequences, scatter plots of 2-D sets, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.data.spec import DataSpec
from pipelines.runs.record import Record
from pipelines.storage.along import Measured
from pipelines.storage.files import opened, replaced

__all__ = [
    "figure_of",
    "image_grid",
    "learning_curve",
    "lines",
    "pixels",
    "put",
    "save_image",
    "save_levels",
    "save_samples",
    "save_weighted",
]


MOST_SEQUENCES = 6
"""In a picture."""


def pixels(levels: Tensor, spec: DataSpec) -> np.ndarray:
    """Levels (n, c, h, w) as 8-bit pixels (n, h, w, 3): spread over 0..255, one channel shown grey, two as red-green."""
    grey = (levels.cpu().numpy() * (255 / (spec.levels - 1))).round().astype(np.uint8).transpose(0, 2, 3, 1)
    channels = grey.shape[-1]
    if channels == 1:
        return grey.repeat(3, axis=-1)
    return np.concatenate([grey, np.zeros_like(grey)], axis=-1)[..., :3]


def save_image(levels: Tensor, spec: DataSpec, file: Path) -> None:
    """One image (c, h, w) as a PNG; a grey one stays grey."""
    (image,) = pixels(levels[None], spec)
    picture = Image.fromarray(image[..., 0] if len(levels) == 1 else image)
    with opened(file) as stream:
        picture.save(stream, "png")


def image_grid(shown: np.ndarray, *, columns: int = 0) -> Image.Image:
    """(n, h, w, 3) pixels in a grid, with a thin border, enlarged until a side has about 400 pixels.

    Args:
        columns: 0 makes it nearly square.
    """
    n, h, w, _ = shown.shape
    columns = columns or max(min(8, n), math.isqrt(n))
    rows = -(-n // columns)
    canvas = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, 3), 64, np.uint8)
    for i, tile in enumerate(shown):
        top, left = 1 + i // columns * (h + 1), 1 + i % columns * (w + 1)
        canvas[top : top + h, left : left + w] = tile
    scale = max(1, 400 // max(canvas.shape[:2]))
    return Image.fromarray(canvas).resize((canvas.shape[1] * scale, canvas.shape[0] * scale), Image.Resampling.NEAREST)


def put(file: Path, save: Callable[[Path], object]) -> None:
    """Puts a picture in its place, whole or not at all. One that cannot be written is said and is no error: the work that it
    shows is worth more.

    Args:
        file: Of the picture.
        save: save(path) writes it to a path that ends like `file`.
    """
    try:
        with replaced(file) as path:
            save(path)
    except OSError as error:
        print(f"no picture {file}: {error.strerror or error}", flush=True)


def save_samples(x: Tensor, spec: DataSpec, file: Path) -> None:
    """Samples x of a model as a picture."""
    save_levels(spec.from_model(x), spec, file)


def save_levels(shown: Tensor, spec: DataSpec, file: Path, columns: int = 0) -> None:
    """A grid of images given by their levels, the channels of the first sequences against position, or a scatter plot of the
    first two coordinates of vectors.

    Args:
        columns: Of the grid; 0 makes it nearly square.
    """
    if len(spec.shape) == 3:
        put(file, image_grid(pixels(shown, spec), columns=columns).save)
        return
    if len(spec.shape) == 2:
        put(file, partial(_sequences(shown[:MOST_SEQUENCES].cpu().numpy()).savefig, dpi=110, bbox_inches="tight"))
        return
    figure = figure_of(4.5, 4.5)
    axes = figure.add_subplot()
    points = shown.cpu().numpy()
    axes.scatter(points[:, 0], points[:, -1 if points.shape[1] == 1 else 1], s=2, linewidths=0)
    axes.set_aspect("equal")
    put(file, partial(figure.savefig, dpi=120, bbox_inches="tight"))


def _sequences(values: np.ndarray) -> Any:
    """Sequences (n, c, l) one below the other, a line for each channel."""
    num, channels, length = values.shape
    figure = figure_of(min(14.0, 3 + length / 12), 1.1 + 1.3 * num)
    colours = [f"C{channel}" for channel in range(channels)]
    if channels > 10:  # matplotlib's colours repeat
        from matplotlib import colormaps

        colours = [colormaps["viridis"](channel / (channels - 1)) for channel in range(channels)]
    panels = figure.subplots(num, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, sequence in zip(panels, values, strict=True):
        for channel, line in enumerate(sequence):
            axes.plot(line, color=colours[channel], linewidth=0.9, label=f"channel {channel}")
        axes.margins(x=0)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("position")
    if 1 < channels <= 10:
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="x-small")
    return figure


def learning_curve(
    series: Mapping[str, Sequence[Record]],
    unit: str,
    file: Path,
    along: Mapping[str, Sequence[Measured]] = MappingProxyType({}),
) -> None:
    """Training NELBO, or what else is the first term of the losses, against step for one or more runs, and with markers the
    NELBO on held-out rows with its standard error; a dotted line marks the end of the pre-training. Beside it, where
    checkpoints were measured, their likelihoods and their Frechet distances.

    Args:
        series: By run, its records.
        unit: Of the NELBO.
        file: The picture.
        along: By run, what was measured of its checkpoints.
    """
    names = {name for records in along.values() for record in records for name in record.figures}
    panels = [group for group in (("nll", "nelbo"), ("fd",)) if names & set(group)]
    figure = figure_of(7 + 5 * len(panels), 4)
    first, *others = figure.subplots(1, 1 + len(panels), squeeze=False, width_ratios=[7, *[5] * len(panels)])[0]
    _bounds(first, series, unit)
    for axes, group in zip(others, panels, strict=True):
        _of_checkpoints(axes, along, group)
        axes.set_ylabel("Frechet distance" if group == ("fd",) else unit)
    if others:
        figure.tight_layout()
    put(file, partial(figure.savefig, dpi=120, bbox_inches="tight"))


def _bounds(axes: Any, series: Mapping[str, Sequence[Record]], unit: str) -> None:
    """Training and held-out NELBO."""
    shown: list[float] = []
    term = next((name for records in series.values() for record in records for name in record.terms), "nelbo")
    for name, of_run in series.items():
        records = [r for r in of_run if term in r.terms]
        steps, bounds = [r.step for r in records], [r.terms[term] for r in records]
        (line,) = axes.plot(steps, bounds, label=name, linewidth=1.2)
        points = [(r.step, r.held_out.nelbo, r.held_out.se) for r in of_run if r.held_out]
        if points:
            style = {"linestyle": "--", "linewidth": 1, "marker": "o", "markersize": 3, "capsize": 2}
            axes.errorbar(*zip(*points, strict=True), color=line.get_color(), label=f"{name}, held out", **style)
        shown += [value for value in [*bounds, *(point[1] for point in points)] if math.isfinite(value)]
        joint = [r.step for r in records if r.phase != "pretraining"]
        if joint and len(joint) < len(records):
            axes.axvline(joint[0], linestyle=":", color=line.get_color(), linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel(f"{'NELBO' if term == 'nelbo' else term} ({unit})")
    if shown:
        low, high = min(shown), float(np.quantile(shown, 0.9))
        axes.set_ylim(low - 0.05 * abs(high - low), high + 0.2 * abs(high - low) + 1e-6)
    axes.legend()
    axes.grid(alpha=0.3)


def _of_checkpoints(axes: Any, along: Mapping[str, Sequence[Measured]], names: Sequence[str]) -> None:
    """Figures of checkpoints with their standard errors, of each run in its colour."""
    for number, (run, records) in enumerate(along.items()):
        for name, style in zip(names, ("-", "--"), strict=False):
            points = [(r.step, r.figures[name].value, r.figures[name].se) for r in records if name in r.figures]
            points = [point for point in points if all(map(math.isfinite, point))]
            if points:
                shape = {"marker": "o", "markersize": 3, "linewidth": 1.2, "capsize": 2, "linestyle": style}
                axes.errorbar(*zip(*points, strict=True), color=f"C{number}", label=f"{run}, {name}", **shape)
    axes.set_xlabel("step")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def save_weighted(x: Tensor, log_w: Tensor, exact: Tensor | None, file: Path) -> None:
    """Samples of a density in the plane of their first two coordinates (in one dimension a histogram), exact ones behind them
    where there are any; and a histogram of the log weights.

    Args:
        x: Samples in which all count alike, (n, d).
        log_w: The log weights that they were resampled by, (m,); those that are not finite are counted below the histogram.
        exact: Exact samples, (k, d).
    """
    figure = figure_of(9, 4.2)
    plane, weights = figure.subplots(1, 2)
    layers = [(exact.numpy(), "0.75", "exact")] if exact is not None else []
    for points, colour, label in [*layers, (x.numpy(), "C0", "resampled")]:
        if x.shape[1] == 1:
            density = bool(np.isfinite(points).any())
            _histogram(plane, points[:, 0], density=density, histtype="step", color=colour, label=label)
        else:
            plane.scatter(points[:, 0], points[:, 1], s=4, linewidths=0, color=colour, label=label)
    plane.legend(loc="upper right", fontsize="small")
    left_out = _histogram(weights, log_w.numpy())
    weights.set_xlabel("log w (nats)" + (f"; {left_out:,} of {len(log_w):,} are not finite" if left_out else ""))
    put(file, partial(figure.savefig, dpi=110, bbox_inches="tight"))


def _histogram(axes: Any, numbers: np.ndarray, **look: Any) -> int:
    """Draws the finite ones of some numbers, which may be all the same; returns how many others there are."""
    finite = numbers[np.isfinite(numbers)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    least = 1e-6 * max(1.0, abs(low), abs(high))  # bins that are far narrower are not told apart by their numbers
    margin = max(0.0, least - (high - low) / 2)
    axes.hist(finite, bins=60, range=(low - margin, high + margin), **look)
    return len(numbers) - len(finite)


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float]]], across: str, up: str, file: Path, *, log: bool = False
) -> None:
    """Points (x, y, standard error of y) joined by a line for each name; `log`: logarithmic axes."""
    figure = figure_of(7, 4)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(series.items()):
        x, y, error = zip(*sorted(points), strict=True)
        style = ("-", "--", ":")[i // 10 % 3]  # ten colours
        axes.errorbar(x, y, error, marker="o", markersize=3, linewidth=1.2, linestyle=style, capsize=2, label=name)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(series) > 5 else {}
    axes.legend(fontsize="small", **beside)
    axes.grid(alpha=0.3)
    put(file, partial(figure.savefig, dpi=120, bbox_inches="tight"))


def figure_of(width: float, height: float) -> Any:
    """A matplotlib figure of a size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))
