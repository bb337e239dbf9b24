"""A density that is known up to a constant, and its score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["Target", "score"]


class Target(nn.Module, ABC):
    """An unnormalised density mu^(x) = Z mu(x) on R^d.

    Constants are buffers, so that a target follows the dtype and device of what asks it; it has no parameters that are trained.

    Attributes:
        dim: d.
        log_z: log Z in nats, where it is known in closed form or by quadrature; else nan.
        exact: Whether `sample` gives exact samples.
        modes: Centres (m, d) whose neighbourhoods are counted as modes; (0, d) where none are named.
    """

    dim: int
    log_z: float = math.nan
    exact: bool = False
    modes: Tensor = torch.empty(0)

    @abstractmethod
    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log mu^(x), nats."""

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        """Exact samples.

        Raises:
            ValueError: there is no way to draw them.
        """
        raise ValueError(f"{type(self).__name__} has no exact samples; ask one whose `exact` is true")


def score(target: Target, x: Float[Tensor, "n d"], clip: float = math.inf) -> Float[Tensor, "n d"]:
    """grad log mu^(x), detached, each component clipped to [-clip, clip].

    Raises:
        ValueError: log_prob has no gradient; what does without one.
    """
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        log_prob = target.log_prob(given)
        if not log_prob.requires_grad:
            raise ValueError(
                f"target {type(target).__name__}: log_prob has no gradient in x; give --control nn and --loss log-variance, "
                "which ask for none"
            )
        (found,) = torch.autograd.grad(log_prob.sum(), given)
    return found.clamp(-clip, clip)
