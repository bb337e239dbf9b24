"""The measurements of an evaluation, in the order in which they are begun and printed."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.measurement import Measurement
from pipelines.evaluation.measurements.baselines import Baselines
from pipelines.evaluation.measurements.collages import Collages
from pipelines.evaluation.measurements.distances import Distances
from pipelines.evaluation.measurements.likelihood import Differences, Gap, Likelihood, Nelbo, PartnerNll

__all__ = ["MEASUREMENTS"]

MEASUREMENTS: tuple[type[Measurement[Any]], ...] = (
    Likelihood,
    Nelbo,
    Gap,
    PartnerNll,
    Distances,
    Collages,
    Baselines,
    Differences,
)
