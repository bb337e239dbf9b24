"""What recipes of every data set share: optimisers, and the linear diffusion that a model generalises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from indm_core.training import AdamW
from pipelines.config.flows import IdentityConfig
from pipelines.config.models import INDMConfig
from pipelines.config.run import RunConfig

__all__ = ["Recipe", "adam", "adamw", "by_name", "linear", "named"]

Recipe = Callable[[], RunConfig]


def by_name(*recipes: Recipe) -> dict[str, Recipe]:
    """Recipes by the names of their functions."""
    return {recipe.__name__: recipe for recipe in recipes}


def named(name: str, text: str, make: Recipe) -> Recipe:
    """A recipe of a family: `make` under a name, which its run has too, with a line of help."""

    def recipe() -> RunConfig:
        return replace(make(), recipe=name)

    recipe.__name__, recipe.__doc__ = name, text
    return recipe


def adamw(lr: float, *networks: str, decay: Literal["none", "cosine"] = "none") -> dict[str, AdamW]:
    """One learning rate for several networks, with this project's betas and weight decay."""
    return {network: AdamW(lr=lr, decay=decay) for network in networks}


def adam(lr: float, *networks: str, warmup: int = 0) -> dict[str, AdamW]:
    """As DiNof and DiffFlow are trained: Adam, without weight decay."""
    return {network: AdamW(lr=lr, beta_2=0.999, weight_decay=0.0, warmup=warmup) for network in networks}


def linear(model: INDMConfig) -> INDMConfig:
    """The linear diffusion that an INDM generalises, with the same score network; it has nothing to pre-train."""
    return replace(model, flow=IdentityConfig(), objective=replace(model.objective, pretrain_steps=0))
