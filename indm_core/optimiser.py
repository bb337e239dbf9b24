r"""Settings of one network's optimiser: AdamW, and the learning rate of every step.

The learning rate rises over w steps of warm-up; where it decays, it then falls to a fraction f of itself, by half a cosine or
exponentially. With s_k = (k - w)/(K - w) for k = w, ..., K - 1 and K steps in all,

    lr_k = lr (k + 1)/w for k < w,      lr_k = lr (f + (1 - f) (1 + cos(pi s_k))/2)   or   lr_k = lr f^s_k    from k = w on:

f is reached at the end of the last step. A rate is a function of its step, so that a resumed run has those that it would have
had; for the same reason a run that decays has its K for good.

References:
    Loshchilov and Hutter 2019 (AdamW) and 2017 (the cosine); Zhang, Chen 2022, "Path integral sampler" (the exponential, in
    steps of 50).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from indm_core.ranges import check_not_negative, check_positive

__all__ = ["AdamW"]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Optimiser settings of one network.

    Args:
        lr: Learning rate.
        beta_1, beta_2: Decay of the first and second moments.
        weight_decay: Decoupled weight decay; 0 is Adam.
        clip: Largest norm of the network's gradient, of a loss in nats, a sum over the D dimensions; infinity for none. A
            published clip of 1 on the mean over dimensions is a clip of D here.
        warmup: Steps over which the learning rate rises linearly to `lr`.
        decay: Of the learning rate after the warm-up: none, or cosine or exponential down to a fraction of it at the last step.
        decay_to: That fraction, f in [0, 1]; of an exponential one above 0. A factor 0.95 every 50 of 1500 steps is 0.95^30.
    """

    lr: float = 2e-4
    beta_1: float = 0.9
    beta_2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 0
    decay: Literal["none", "cosine", "exponential"] = "none"
    decay_to: float = 0.0

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        if self.decay not in ("none", "cosine", "exponential"):
            raise ValueError(f"decay={self.decay!r} is none of 'none', 'cosine', 'exponential'")
        if not 0 <= self.decay_to <= 1:
            raise ValueError(f"decay_to={self.decay_to} must lie in [0, 1]")
        if self.decay == "exponential" and self.decay_to == 0:
            raise ValueError(
                "decay_to=0: an exponential rate never comes to 0; give a fraction above it, or decay cosine"
            )
        check_not_negative(weight_decay=self.weight_decay, warmup=self.warmup)
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise ValueError(f"beta_1={self.beta_1} and beta_2={self.beta_2} must lie in [0, 1)")
        if not self.clip > 0:
            raise ValueError(f"clip={self.clip} must be positive; inf leaves gradients as they are")

    def check_steps(self, steps: int) -> None:
        """Refuses a training that is too short for its learning rate to decay.

        Raises:
            ValueError: no step is left after the warm-up.
        """
        if self.decay != "none" and steps <= self.warmup:
            raise ValueError(
                f"decay={self.decay}: the rate falls from the end of warmup={self.warmup} to the last step, and steps={steps}; "
                "give more steps, or a shorter warmup"
            )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a training of `steps` steps."""
        if step < self.warmup:
            return self.lr * ((step + 1) / self.warmup)
        if self.decay == "none":
            return self.lr
        share = min(1.0, (step - self.warmup) / (steps - self.warmup))
        if self.decay == "exponential":
            return self.lr * self.decay_to**share
        return self.lr * (self.decay_to + (1 - self.decay_to) * (1 + math.cos(math.pi * share)) / 2)

    def over(self, network: nn.Module) -> torch.optim.AdamW:
        """The optimiser of a network's parameters: one kernel for all of a step where there is one, because tensor by tensor a
        step takes thousands of calls on a CPU."""
        fused = {p.device.type for p in network.parameters()} <= {"cpu", "cuda"}
        return torch.optim.AdamW(
            network.parameters(),
            lr=self.lr,
            betas=(self.beta_1, self.beta_2),
            weight_decay=self.weight_decay,
            fused=fused,
        )
