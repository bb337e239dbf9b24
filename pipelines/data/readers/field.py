r"""Reader of random fields, drawn by their law: textures without seams whose long-range truth is known.

    field:LENGTH:HxW     images of H x W pixels of one channel, LENGTH the correlation length in pixels: field:4:8x16
    field:1,6:16x16      of several lengths, which are the classes 0, 1, ... and take turns

Pixels are a stationary Gaussian field x of mean 0, variance 1 and covariance

    E[x_ij x_kl] = exp(-(|i - k| + |j - l|) / LENGTH) = rho^(|i - k| + |j - l|),        rho = exp(-1/LENGTH),

which a turn by a right angle and a flip leave as it is. It is Markov along each axis, x_{j+1} = rho x_j + sqrt(1 - rho^2) n: a
column makes what lies left of it and what lies right of it independent. So a collage of pieces that share a column or more is
exact, and on grids likewise (the precision matrix is the product of those of two chains). Levels are those of [-4, 4] cut into
64; with the options low = -4 and high = 4 the model sees x itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from pipelines.data.labels import Labels
from pipelines.data.source import Chunk, Options, Source, SourceSplit, chunk_rows

__all__ = ["fields", "read_field"]

LEVELS, LIMIT = 64, 4.0
"""Levels, of [-LIMIT, LIMIT] in standard deviations."""
PREFIX = "field:"
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
NAMED = re.compile(rf"({NUMBER}(?:,{NUMBER})*):([0-9]{{1,4}})x([0-9]{{1,4}})")


def fields(num: int, height: int, width: int, length: float | np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Fields (num, height, width), float64; m fields and then n are m + n fields.

    Args:
        length: Of the correlation, in pixels, > 0; or one for each field, (num,).
    """
    rho = np.array([math.exp(-1 / one) for one in np.atleast_1d(length)])[:, None]
    noise = generator.standard_normal((num, height, width))
    for axis in (1, 2):
        x = np.moveaxis(noise, axis, 0)  # a view
        x[1:] *= np.sqrt(1 - rho**2)
        for i in range(1, len(x)):
            x[i] += rho * x[i - 1]
    return noise


def read_field(source: str, options: Options) -> Source | None:
    """Random fields: `rows` in train, a fifth as many in test.

    Raises:
        ValueError: a name that says no length and size.
    """
    if not source.startswith(PREFIX):
        return None
    named = NAMED.fullmatch(source.removeprefix(PREFIX))
    lengths = [float(word) for word in named[1].split(",")] if named else []
    if not named or not min(lengths) or min(height := int(named[2]), width := int(named[3])) < 1:
        raise ValueError(
            f"source={source!r}: write field:LENGTH:HxW, such as field:4:8x16, or field:1,6:16x16 for two classes; all above 0"
        )
    streams = np.random.SeedSequence(options.seed).spawn(2)
    counts = {"train": options.rows, "test": options.rows // 5}
    splits = {
        name: _split(source, name, count, (height, width), np.array(lengths), stream)
        for (name, count), stream in zip(counts.items(), streams, strict=True)
    }
    of = f", LENGTH = {named[1]} for class 0, 1, ..." if len(lengths) > 1 else ""
    length = "LENGTH" if of else named[1]
    note = f"a Gaussian field of covariance exp(-(|dy| + |dx|)/{length}){of}, levels of [-4, 4]"
    num_classes = len(lengths) if of else 0
    return Source(
        kind="image", shape=(1, height, width), levels=LEVELS, splits=splits, num_classes=num_classes, notes=(note,)
    )


def _split(
    source: str, name: str, count: int, size: tuple[int, int], lengths: np.ndarray, stream: np.random.SeedSequence
) -> SourceSplit:
    def chunks() -> Iterator[Chunk]:
        generator, most = np.random.default_rng(stream), chunk_rows(size[0] * size[1])
        for first in range(0, count, most):
            last = min(first + most, count)
            length = lengths[np.arange(first, last) % len(lengths)]
            x = fields(last - first, *size, length, generator)[:, None]
            levels = np.floor((x + LIMIT) * (LEVELS / (2 * LIMIT))).clip(0, LEVELS - 1)
            yield Chunk(levels.astype(np.uint8), np.arange(first, last))

    def labels() -> Labels:
        return Labels(codes=np.arange(count, dtype=np.int32) % len(lengths), values=tuple(range(len(lengths))))

    return SourceSplit(
        count=count,
        chunks=chunks,
        locate=lambda row: f"{source} {name} row {row}",
        labels=labels if len(lengths) > 1 else None,
        source=f"{source} {name}",
    )
