"""Densities that are known up to a constant."""

from __future__ import annotations

from indm_core.pis.targets.base import Density, Target, score
from indm_core.pis.targets.brownian import Brownian, brownian
from indm_core.pis.targets.funnel import Funnel
from indm_core.pis.targets.lgcp import LGCP
from indm_core.pis.targets.many_well import ManyWell
from indm_core.pis.targets.mixtures import GaussianMixture, Mixture, StudentMixture, mog40, nine_modes, students
from indm_core.pis.targets.posterior import Posterior
from indm_core.pis.targets.regression import LogisticRegression
from indm_core.pis.targets.rings import Rings

__all__ = [
    "LGCP",
    "Brownian",
    "Density",
    "Funnel",
    "GaussianMixture",
    "LogisticRegression",
    "ManyWell",
    "Mixture",
    "Posterior",
    "Rings",
    "StudentMixture",
    "Target",
    "brownian",
    "mog40",
    "nine_modes",
    "score",
    "students",
]
