"""Methods that the path integral sampler is compared with, under one interface, and what they are set up by."""

from __future__ import annotations

from indm_core.pis.annealing import Bridge, HMCMoves, Moves, RandomWalkMoves
from indm_core.pis.baselines.aft import AnnealedFlowTransport
from indm_core.pis.baselines.fitted import Fitted, GaussianMixture, fit
from indm_core.pis.baselines.hmc import HMC
from indm_core.pis.baselines.nuts import NUTS
from indm_core.pis.baselines.smc import SMC, AdaptiveTemperatures, LinearTemperatures, Temperatures
from indm_core.pis.baselines.snf import StochasticNormalizingFlow
from indm_core.pis.baselines.svgd import SVGD
from indm_core.pis.baselines.tempering import ParallelTempering
from indm_core.pis.baselines.variational import VariationalFlow
from indm_core.pis.baselines.vectors import couplings, residual

__all__ = [
    "HMC",
    "NUTS",
    "SMC",
    "SVGD",
    "AdaptiveTemperatures",
    "AnnealedFlowTransport",
    "Bridge",
    "Fitted",
    "GaussianMixture",
    "HMCMoves",
    "LinearTemperatures",
    "Moves",
    "ParallelTempering",
    "RandomWalkMoves",
    "StochasticNormalizingFlow",
    "Temperatures",
    "VariationalFlow",
    "couplings",
    "fit",
    "residual",
]
