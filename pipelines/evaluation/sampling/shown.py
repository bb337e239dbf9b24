"""Samples of a model as data are."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pipelines.data.spec import DataSpec

__all__ = ["Shown", "shown"]


class Shown(NamedTuple):
    """Samples as data are: levels where the data have levels, all finite; and how many of them had diverged."""

    values: Tensor
    diverged: int


def shown(x: Tensor, spec: DataSpec) -> Shown:
    """Samples of a model as data are.

    A sample has diverged that is not finite, or lies further outside the data's range than ten times its width. What is not
    finite is put at the range's ends.
    """
    x = x.cpu()
    far = 10 * (spec.high - spec.low) if spec.levels else math.inf
    lost = ~x.flatten(1).isfinite() | (x.flatten(1) - spec.low).abs().gt(far)
    x = x.nan_to_num(nan=spec.low, posinf=spec.high, neginf=spec.low)

    return Shown(spec.from_model(x), int(lost.any(1).sum()))
