"""Weighted samples of a trained path integral sampler, what they say of log Z, and the row of the table.

R times n paths are drawn. Paths come in pieces of `PIECE`, piece c of repetition r by the noise of (seed, r, c): the samples of
a whole piece depend neither on how many are drawn nor on where. Each repetition gives two estimates v_r of log Z
(`indm_core.pis.estimates`): the logarithm of its mean weight, and the bound. Where log Z is known, the table has of each

    bias = mean_r v_r - log Z,    sd = the standard deviation of v_r,    rms = sqrt(mean_r (v_r - log Z)^2).

RUN/samples.parquet   x (d numbers), log_w (nats) and repetition of every path, a row group for each repetition
RUN/log_z.json        the figures
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from indm_core.pis import Counted, Estimate, PathIntegralSampler, Target, ess, log_z, log_z_bound, resampled
from indm_core.training import step_seed
from pipelines.config.codec import from_json, to_json
from pipelines.runs.pictures import save_weighted
from pipelines.storage.files import replaced, sha256_of, write_text
from pipelines.storage.reading import read_json

__all__ = ["FIGURES", "PICTURE", "SAMPLES", "Drawing", "Figures", "Spread", "draw_weighted", "kept_figures", "table"]

SAMPLES, FIGURES, PICTURE = "samples.parquet", "log_z.json", "samples.png"
PIECE = 500
FEW = 0.01
"""Share of the paths that count, below which estimates are worth little."""


@final
@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How samples are drawn.

    Args:
        num_samples: n, of a repetition.
        repetitions: R.
        seed: Of the noise.
    """

    num_samples: int
    repetitions: int
    seed: int


@final
@dataclass(frozen=True, kw_only=True)
class Spread:
    """An estimate of log Z over repetitions, nats.

    Args:
        mean: Over repetitions.
        se: Its standard error: by the spread of the repetitions, of a single one by its paths.
        bias, sd, rms: See above; nan where log Z is not known, and sd where there is one repetition.
    """

    mean: float
    se: float
    bias: float
    sd: float
    rms: float

    @staticmethod
    def of(estimates: Sequence[Estimate], truth: float) -> Spread:
        """The spread of one estimate.

        Args:
            estimates: By repetition.
            truth: log Z; nan where it is not known.
        """
        v = np.asarray([estimate.value for estimate in estimates])
        sd = float(v.std(ddof=1)) if len(v) > 1 else math.nan
        return Spread(
            mean=float(v.mean()),
            se=sd / math.sqrt(len(v)) if len(v) > 1 else estimates[0].se,
            bias=float(v.mean()) - truth,
            sd=sd,
            rms=float(np.sqrt(np.square(v - truth).mean())),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found out about a target by a trained sampler.

    Args:
        weights: SHA-256 of the sampler's weights.
        samples: SHA-256 of samples.parquet; '' where an earlier version wrote the figures.
        drawing: How its samples were drawn.
        truth: log Z where it is known, else nan.
        log_z, bound: Its estimates, reweighted and not.
        ess: Effective share of the paths, the mean over repetitions.
        evaluations: Points at which the target was evaluated to draw these samples.
        seconds: That it took.
    """

    weights: str
    samples: str = ""
    drawing: Drawing
    truth: float
    log_z: Spread
    bound: Spread
    ess: float
    evaluations: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        """The finite numbers under their names in MLflow."""
        found = {"ess": self.ess, "evaluations/sampling": float(self.evaluations), "seconds/sampling": self.seconds}
        for name, spread in (("log_z", self.log_z), ("bound", self.bound)):
            found |= {name: spread.mean, f"{name}_se": spread.se}
            found |= {f"{name}_{what}": getattr(spread, what) for what in ("bias", "sd", "rms")}
        return {name: number for name, number in found.items() if math.isfinite(number)}


def draw_weighted(
    sampler: PathIntegralSampler, target: Target, directory: Path, drawing: Drawing, weights: str
) -> Figures:
    """Draws the repetitions, and writes samples, a picture and, last, the figures into a directory.

    Args:
        sampler: In evaluation mode.
        target: Of the sampler.
        drawing: How many, and by which noise.
        weights: SHA-256 of the sampler's weights.
    """
    counted, began, truth = Counted(target), time.monotonic(), float(target.log_z)
    log_ws, shown = list[Tensor](), torch.empty(0)
    (directory / FIGURES).unlink(missing_ok=True)  # what is there belongs together wherever this ends
    with replaced(directory / SAMPLES) as file, pq.ParquetWriter(file, _schema(target.dim)) as writer:
        for repetition in range(drawing.repetitions):
            pieces = list(_pieces(sampler, counted, drawing, repetition))
            x, log_w = (torch.cat(part).cpu() for part in zip(*pieces, strict=True))
            writer.write_table(_table_of(x, log_w, repetition))
            log_ws.append(log_w)
            shown = shown if repetition else x
    figures = Figures(
        weights=weights,
        samples=sha256_of(directory / SAMPLES),
        drawing=drawing,
        truth=truth,
        log_z=Spread.of(list(map(log_z, log_ws)), truth),
        bound=Spread.of(list(map(log_z_bound, log_ws)), truth),
        ess=sum(map(ess, log_ws)) / len(log_ws),
        evaluations=counted.evaluations,
        seconds=time.monotonic() - began,
    )
    exact = target.sample(len(shown), _generator(sampler, drawing.seed)).cpu() if target.exact else None
    chosen = resampled(log_ws[0], len(shown), torch.Generator().manual_seed(drawing.seed))
    save_weighted(shown[chosen], log_ws[0], exact, directory / PICTURE)
    write_text(directory / FIGURES, json.dumps(to_json(figures), indent=1) + "\n")
    return figures


def kept_figures(directory: Path, drawing: Drawing, weights: str) -> Figures | None:
    """The figures that are there already of these samples of these weights; None where there are none, or where the samples
    beside them are gone or others than those that were written, which is said."""
    try:
        figures = from_json(Figures, read_json(directory / FIGURES), FIGURES)
    except (OSError, ValueError):
        return None
    if (figures.drawing, figures.weights) != (drawing, weights):
        return None
    if lost := [name for name in (SAMPLES, PICTURE) if not (directory / name).is_file()]:
        print(f"{directory / lost[0]}: gone; the samples are drawn again", flush=True)
        return None
    if sha256_of(directory / SAMPLES) != figures.samples:
        print(
            f"{directory / SAMPLES}: not the file that {FIGURES} is of (SHA-256); the samples are drawn again",
            flush=True,
        )
        return None
    return figures


def _pieces(
    sampler: PathIntegralSampler, target: Target, drawing: Drawing, repetition: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """x and log w of the paths of a repetition."""
    for piece, begin in enumerate(range(0, drawing.num_samples, PIECE)):
        generator = _generator(sampler, step_seed(drawing.seed, repetition, piece))
        yield sampler.sample(target, min(PIECE, drawing.num_samples - begin), generator=generator)


def _generator(sampler: PathIntegralSampler, seed: int) -> torch.Generator:
    """Noise on the sampler's device."""
    device = next((p.device for p in sampler.parameters()), torch.device("cpu"))
    return torch.Generator(device).manual_seed(seed)


def _schema(dim: int) -> pa.Schema:
    return pa.schema([("x", pa.list_(pa.float32(), dim)), ("log_w", pa.float64()), ("repetition", pa.int32())])


def _table_of(x: Tensor, log_w: Tensor, repetition: int) -> pa.Table:
    schema = _schema(x.shape[1])
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(x.float().flatten().numpy()), x.shape[1]),
        pa.array(log_w.double().numpy()),
        pa.array(np.full(len(x), repetition, np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table(
    name: str, dim: int, method: str, figures: Figures, *, evaluations: float, steps: int, seconds: float
) -> list[str]:
    """The row of a run, with its head, and its errors where log Z is known; a warning where few paths count.

    Args:
        name, dim: Of the target.
        method: Such as PIS-Grad (kl, N = 100).
        evaluations: Of the target, in training.
        steps, seconds: Of the training.
    """
    head = ("target", "d", "sampler", "steps", "log Z (reweighted)", "log Z (bound)", "ESS", "evaluations", "seconds")
    cells = (
        name,
        str(dim),
        method,
        f"{steps:,}",
        f"{figures.log_z.mean:+.4f} +- {figures.log_z.se:.4f}",
        f"{figures.bound.mean:+.4f} +- {figures.bound.se:.4f}",
        f"{figures.ess:.1%}",
        f"{evaluations:.3g} + {figures.evaluations:.3g}",
        f"{seconds:.0f} + {figures.seconds:.0f}",
    )
    widths = [max(map(len, pair)) for pair in zip(head, cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, cells)]
    num = figures.drawing.repetitions
    of = f"{num} repetition{'s' * (num > 1)} of {figures.drawing.num_samples:,} paths"
    lines.append(f"{of}; evaluations of the target and seconds: training + sampling")
    if math.isfinite(figures.truth):
        lines.append(f"errors against log Z = {figures.truth:.4f}: {_errors(figures)}")
    if math.isnan(figures.ess):
        lines.append(
            "warning: log Z is no number, since log weights are nan, or +inf, or -inf on all paths: log_prob has to give "
            "a number, or -inf, wherever paths end"
        )
    if figures.ess < FEW:
        lines.append(
            f"warning: {figures.ess:.2%} of the paths count (ESS), so that log Z is not to be trusted: the control does not "
            "reach the whole target. Raise --variance (T g^2), which must cover it; else --steps, --num-steps or --batch-size"
        )
    return [line.rstrip() for line in lines]


def _errors(figures: Figures) -> str:
    said = []
    for name, spread in (("reweighted", figures.log_z), ("bound", figures.bound)):
        sd = f", sd {spread.sd:.4f}" if math.isfinite(spread.sd) else ""
        said.append(f"{name} bias {spread.bias:+.4f}{sd}, RMS {spread.rms:.4f}")
    return "; ".join(said)
