"""What every method that samples a target gives, and what it costs: path integral samplers and their baselines alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import Tensor

from indm_core.noise import Noise
from indm_core.pis.estimates import Estimate, effective_count, log_z, log_z_bound
from indm_core.pis.targets.base import Target

__all__ = ["Counted", "Draws", "Method"]

UNKNOWN = Estimate(math.nan, math.nan)


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Weighted samples of a target, and what the method says of its constant.

    Args:
        x: Samples, (n, d).
        log_w: Their log weights, (n,), up to a constant; zeros where all weigh the same.
        log_z: Estimate of log Z, nats; nan where the method gives none.
        bound: Lower bound on log Z in the mean (ELBO), nats; nan where the method gives none.
        evaluations: Points at which log mu^ was evaluated, each with its gradient where that was asked for; training included.
    """

    x: Tensor
    log_w: Tensor
    log_z: Estimate = UNKNOWN
    bound: Estimate = UNKNOWN
    evaluations: int

    @classmethod
    def independent(cls, x: Tensor, log_w: Tensor, evaluations: int) -> Draws:
        """Of samples that are independent and weigh Z in the mean."""
        return cls(x=x, log_w=log_w, log_z=log_z(log_w), bound=log_z_bound(log_w), evaluations=evaluations)

    def ess_per_evaluation(self) -> float:
        """Effective samples (`effective_count`) per evaluation of the target; nan where the method gives no log Z."""
        return effective_count(self.log_z, len(self.x)) / self.evaluations


@runtime_checkable
class Method(Protocol):
    """Draws samples of a target; settings are the arguments of the object's constructor."""

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws: ...


@final
class Counted(Target):
    """A target that counts the points at which it is evaluated.

    Args:
        target: The one that is asked.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target, self.evaluations = target, 0
        self.name, self.dim, self.log_z = target.name, target.dim, target.log_z
        self.exact, self.modes = target.exact, target.modes

    def given_observation(self) -> Tensor | None:
        return self.target.given_observation()

    def log_prob(self, x: Tensor) -> Tensor:
        self.evaluations += len(x)
        return self.target.log_prob(x)

    def sample(self, num: int, generator: Noise = None) -> Tensor:
        return self.target.sample(num, generator)
