"""Nonlinear diffusion models in pure PyTorch: flows, linear SDEs, scores, samplers and likelihoods.

A module stands for one concept, and is imported when it is first used:

    sde  flow  nn  model         what a model is made of
    training                     one step of its training
    sample  exponential          samplers as functions of an SDE and a score;  sampling  a sampler by its name
    fitting                      grids of times fitted to a score
    draw  likelihood             what is done with a model, which `model.sample`, `model.nll` and `model.nelbo` call
    collage                      large content from models of its pieces
    pis                          samples of a density that is known up to a constant
    metrics  frechet  diagnostics  checks

The names that are used most are here too: `from indm_core import INDM, VP, Sampling`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indm_core import (
        checks,
        collage,
        diagnostics,
        draw,
        errors,
        exponential,
        fitting,
        flow,
        frechet,
        likelihood,
        metrics,
        model,
        nn,
        noise,
        pis,
        sample,
        sampling,
        sde,
        times,
        training,
    )
    from indm_core.errors import ConvergenceError
    from indm_core.flow import Flow, Glow, Identity, ResFlow
    from indm_core.likelihood import bits_per_dim, dequantise, nelbo, nll, quantise
    from indm_core.model import (
        FFJORD,
        INDM,
        Bridge,
        DiffFlow,
        DiNof,
        GenerativeModel,
        LinearModel,
        Objective,
        ScoreModel,
        Trainable,
    )
    from indm_core.nn import MLP, UNet
    from indm_core.sampling import Sampling
    from indm_core.sde import BDM, CLD, SDE, VE, VP, LinearSDE, SubVP
    from indm_core.training import AdamW, Trainer

__version__ = "0.1.0"

_MODULES = (
    "checks",
    "collage",
    "diagnostics",
    "draw",
    "errors",
    "exponential",
    "fitting",
    "flow",
    "frechet",
    "likelihood",
    "metrics",
    "model",
    "nn",
    "noise",
    "pis",
    "sample",
    "sampling",
    "sde",
    "times",
    "training",
)
_HOMES = ("sde", "flow", "nn", "model", "sampling", "likelihood", "training", "errors")
"""The modules whose names are here too."""

__all__ = [
    "BDM",
    "CLD",
    "FFJORD",
    "INDM",
    "MLP",
    "SDE",
    "VE",
    "VP",
    "AdamW",
    "Bridge",
    "ConvergenceError",
    "DiNof",
    "DiffFlow",
    "Flow",
    "GenerativeModel",
    "Glow",
    "Identity",
    "LinearModel",
    "LinearSDE",
    "Objective",
    "ResFlow",
    "Sampling",
    "ScoreModel",
    "SubVP",
    "Trainable",
    "Trainer",
    "UNet",
    "bits_per_dim",
    "checks",
    "collage",
    "dequantise",
    "diagnostics",
    "draw",
    "errors",
    "exponential",
    "fitting",
    "flow",
    "frechet",
    "likelihood",
    "metrics",
    "model",
    "nelbo",
    "nll",
    "nn",
    "noise",
    "pis",
    "quantise",
    "sample",
    "sampling",
    "sde",
    "times",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"indm_core.{name}")
    if name in __all__:
        homes = (import_module(f"indm_core.{home}") for home in _HOMES)
        return next(getattr(home, name) for home in homes if name in home.__all__)
    raise AttributeError(f"module 'indm_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
