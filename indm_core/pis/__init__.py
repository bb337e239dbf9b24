"""The path integral sampler: samples and normalising constants of densities that are known up to a constant."""

from __future__ import annotations

from indm_core.pis.bridge import optimal_paths
from indm_core.pis.control import Control, GradControl, NetworkControl
from indm_core.pis.distances import Discrepancy, Divergence, mmd, sinkhorn
from indm_core.pis.draws import Counted, Draws, Method
from indm_core.pis.estimates import (
    Estimate,
    effective_count,
    ess,
    eubo,
    forward_ess,
    log_ess,
    log_z,
    log_z_bound,
    resampled,
)
from indm_core.pis.exact import MixtureControl, MonteCarloControl
from indm_core.pis.modes import mode_shares, modes_covered
from indm_core.pis.paths import WeightedPaths
from indm_core.pis.resampling import ResampledPaths
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets import Density, Target, score

__all__ = [
    "Control",
    "Counted",
    "Density",
    "Discrepancy",
    "Divergence",
    "Draws",
    "Estimate",
    "GradControl",
    "Method",
    "MixtureControl",
    "MonteCarloControl",
    "NetworkControl",
    "PathIntegralSampler",
    "ResampledPaths",
    "Target",
    "WeightedPaths",
    "effective_count",
    "ess",
    "eubo",
    "forward_ess",
    "log_ess",
    "log_z",
    "log_z_bound",
    "mmd",
    "mode_shares",
    "modes_covered",
    "optimal_paths",
    "resampled",
    "score",
    "sinkhorn",
]
