"""The path integral sampler as a method: independent paths of a control, weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from indm_core.noise import Noise
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets.base import Target

__all__ = ["WeightedPaths"]


@final
@dataclass(frozen=True, kw_only=True)
class WeightedPaths:
    """The method "PIS"; its `bound` is the ELBO (5.19).

    Args:
        sampler: The control with its T, g and N; it is trained already, and its training is not counted. What the control asks
            of the target on the way is.
        num_steps: 0 takes N.
    """

    sampler: PathIntegralSampler
    num_steps: int = 0

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        counted = Counted(target)
        x, log_w = self.sampler.sample(counted, num, generator=generator, num_steps=self.num_steps)
        return Draws.independent(x, log_w, counted.evaluations)
