"""Methods that the path integral sampler is compared with, under one interface."""

from __future__ import annotations

from indm_core.pis.baselines.bridge import Bridge, Moves
from indm_core.pis.baselines.fitted import Fitted, GaussianMixture, fit
from indm_core.pis.baselines.hmc import HMC, HMCMoves
from indm_core.pis.baselines.nuts import NUTS
from indm_core.pis.baselines.random_walk import RandomWalkMoves
from indm_core.pis.baselines.smc import SMC, AdaptiveTemperatures, LinearTemperatures, Temperatures
from indm_core.pis.baselines.svgd import SVGD
from indm_core.pis.baselines.tempering import ParallelTempering

__all__ = [
    "HMC",
    "NUTS",
    "SMC",
    "SVGD",
    "AdaptiveTemperatures",
    "Bridge",
    "Fitted",
    "GaussianMixture",
    "HMCMoves",
    "LinearTemperatures",
    "Moves",
    "ParallelTempering",
    "RandomWalkMoves",
    "Temperatures",
    "fit",
]
