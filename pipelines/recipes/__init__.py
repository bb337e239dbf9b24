"""Recipes: one function per run. The name of a recipe is the name of its function."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.config.run import RunConfig
from pipelines.recipes.indm import INDM
from pipelines.recipes.nonlinear import NONLINEAR

__all__ = ["BASELINES", "DEFAULT", "RECIPES"]

RECIPES: dict[str, Callable[[], RunConfig]] = INDM | NONLINEAR
DEFAULT = "digits_vp_nll"
BASELINES = {"digits_vp_nll": "digits_linear_nll"}
"""What the main job trains beside its recipe."""
