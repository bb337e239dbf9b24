"""Which points of a space a search takes, and what it asks of a plan: of trainings (`plan`) and of samplers (`sampling`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from tune.spaces import Point, Space

__all__ = ["FEWEST_TRIALS", "Search", "Searched", "points"]

FEWEST_TRIALS = 10
"""Of a search that says no number."""


class Search(Protocol):
    """How a space is searched."""

    @property
    def search(self) -> Literal["grid", "random", "optuna"]: ...

    @property
    def num_trials(self) -> int: ...

    @property
    def search_seed(self) -> int: ...

    @property
    def metric(self) -> str: ...


class Searched(Protocol):
    """A sweep, as a searcher that learns from trials knows it."""

    @property
    def space(self) -> Space: ...

    @property
    def options(self) -> Search: ...

    @property
    def directory(self) -> Path: ...


def points(plan: Searched, trial: Callable[[Point], str]) -> list[Point]:
    """The points of a grid or of a random search, in order; none of a search that depends on what trials give.

    Args:
        trial: A text of a point's trial; of equal ones the first alone is taken.

    Raises:
        ValueError: points that cannot be counted, or that `trial` refuses.
    """
    space, o = plan.space, plan.options
    if o.search == "optuna":
        return []
    if o.search == "grid":
        return _different(space, trial, space.grid(), math.inf)
    number = o.num_trials or FEWEST_TRIALS
    if all(dimension.finite for dimension in space.dimensions):  # each at most once
        grid = space.grid()
        drawn = (grid[i] for i in np.random.default_rng(o.search_seed).permutation(len(grid)))
    else:
        drawn = (space.draw(i, o.search_seed) for i in range(20 * number))
    return _different(space, trial, drawn, number)


def _different(space: Space, trial: Callable[[Point], str], several: Iterable[Point], most: float) -> list[Point]:
    """The first ones, as many as `most`, of those whose trial is no earlier one's."""
    seen: dict[str, Point] = {}
    for point in several:
        try:
            text = trial(point)
        except ValueError as error:
            raise ValueError(f"{space.label(point)}: {error}") from error
        seen.setdefault(text, point)
        if len(seen) == most:
            break
    return list(seen.values())
