"""The path integral sampler: samples and normalising constants of densities that are known up to a constant."""

from __future__ import annotations

from indm_core.pis.control import Control, GradControl, NetworkControl
from indm_core.pis.draws import Counted, Draws, Method
from indm_core.pis.estimates import Estimate, ess, log_z, log_z_bound, resampled
from indm_core.pis.exact import MixtureControl, MonteCarloControl
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets import Target, score

__all__ = [
    "Control",
    "Counted",
    "Draws",
    "Estimate",
    "GradControl",
    "Method",
    "MixtureControl",
    "MonteCarloControl",
    "NetworkControl",
    "PathIntegralSampler",
    "Target",
    "ess",
    "log_z",
    "log_z_bound",
    "resampled",
    "score",
]
