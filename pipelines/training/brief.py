"""The brief measurement at the end of a training: how large it is, found out before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.data.card import load_card
from pipelines.evaluation.needs import attainable
from pipelines.evaluation.settings import BRIEF_SETTINGS, Settings
from pipelines.runs.job import Job

__all__ = ["measurement"]

LARGE = 1024
"""Dimensions above which data are measured on less, so that the measurement takes less time than a short training does."""
BRIEF_SETTINGS_OF_LARGE = replace(BRIEF_SETTINGS, images=64, rtol=1e-3, atol=1e-3, samples=200)


def measurement(jobs: Sequence[Job]) -> Settings:
    """What the brief measurement at the end of a training will be, found out before its first step: a distance that the data do
    not allow is left out, and said.

    Raises:
        ValueError: data on which nothing can be measured.
    """
    first = jobs[0]
    settings = BRIEF_SETTINGS if first.spec.num_dims <= LARGE else BRIEF_SETTINGS_OF_LARGE
    partner = load_card(first.partner) if first.partner else None
    return attainable(first.data, load_card(first.data), settings, partner)
