"""Normalizing flows: the interface (`base`) and the bijections.

Identity, Composed   h(x) = x; one flow after another (`base`)
ActNorm              a learned scale and shift (`actnorm`)
Glow                 multi-scale couplings with closed log-dets (`glow`)
ResFlow              residual blocks of bounded Lipschitz constant (`resflow`, `residual_block`, `activations`, `lipschitz`,
                     `torus`, `log_det`, `anderson`)
"""

from __future__ import annotations

from indm_core.flow.activations import LipSwish, Sine
from indm_core.flow.actnorm import ActNorm
from indm_core.flow.base import Composed, Flow, Identity, estimate_log_det
from indm_core.flow.glow import Glow
from indm_core.flow.log_det import Roulette
from indm_core.flow.resflow import ResFlow

__all__ = [
    "ActNorm",
    "Composed",
    "Flow",
    "Glow",
    "Identity",
    "LipSwish",
    "ResFlow",
    "Roulette",
    "Sine",
    "estimate_log_det",
]
