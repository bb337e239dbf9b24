"""Stochastic differential equations: the interface (`linear_sde`) and the five diffusions.

VP, SubVP, VE   one scalar for every coordinate (`isotropic`)
CLD             critically-damped Langevin: position and velocity, blocks of two (`cld`)
BDM             blurring: one coefficient per frequency of an image (`bdm`)
"""

from __future__ import annotations

from indm_core.bdm import BDM
from indm_core.cld import CLD
from indm_core.isotropic import VE, VP, IsotropicSDE, LinearBeta, SubVP
from indm_core.linear_sde import (
    SDE,
    LinearSDE,
    apply,
    event_sum,
    gaussian_log_prob,
    inverse,
    log_abs_det,
    sqrt_psd,
)

__all__ = [
    "BDM",
    "CLD",
    "SDE",
    "VE",
    "VP",
    "IsotropicSDE",
    "LinearBeta",
    "LinearSDE",
    "SubVP",
    "apply",
    "event_sum",
    "gaussian_log_prob",
    "inverse",
    "log_abs_det",
    "sqrt_psd",
]
