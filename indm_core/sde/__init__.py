"""Stochastic differential equations: the interface (`base`), the algebra of blocks (`algebra`) and the diffusions.

VP, SubVP, VE   one scalar for every coordinate (`isotropic`)
CLD             critically-damped Langevin: position and velocity, blocks of two (`cld`)
BDM             blurring: one coefficient per frequency of an image (`bdm`)
LearnedSDE, LearnedODE   a drift that is a network (`learned`)
"""

from __future__ import annotations

from indm_core.sde.algebra import (
    apply,
    event_sum,
    gaussian_log_prob,
    instant,
    inverse,
    log_abs_det,
    over_event,
    sqrt_psd,
)
from indm_core.sde.base import SDE, LinearSDE
from indm_core.sde.bdm import BDM
from indm_core.sde.cld import CLD
from indm_core.sde.isotropic import VE, VP, IsotropicSDE, LinearBeta, SubVP
from indm_core.sde.learned import LearnedODE, LearnedSDE, Volatility

__all__ = [
    "BDM",
    "CLD",
    "SDE",
    "VE",
    "VP",
    "IsotropicSDE",
    "LearnedODE",
    "LearnedSDE",
    "LinearBeta",
    "LinearSDE",
    "SubVP",
    "Volatility",
    "apply",
    "event_sum",
    "gaussian_log_prob",
    "instant",
    "inverse",
    "log_abs_det",
    "over_event",
    "sqrt_psd",
]
