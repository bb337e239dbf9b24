"""A density that is known up to a constant, and its score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["Density", "Target", "like", "log_mu", "observed", "score"]


@runtime_checkable
class Density(Protocol):
    """What a sampler asks of a target: d, and log mu^(x) of x (n, d), nats (n,)."""

    @property
    def dim(self) -> int: ...
    def log_prob(self, x: Tensor) -> Tensor: ...


class Target(nn.Module, ABC):
    """An unnormalised density mu^(x) = Z mu(x) on R^d.

    Constants are buffers, in float64 unless the target is moved to another dtype, and `log_prob` casts them to the dtype of x:
    a target takes x of any dtype. Samples have the dtype of the constants. A target has no parameters that are trained, and its
    constants are not part of a saved state: it is built anew, never loaded.

    Attributes:
        name: What errors call it: its class, or that of the target that it asks.
        dim: d.
        log_z: log Z in nats, where it is known in closed form or by quadrature; else nan.
        exact: Whether `sample` gives exact samples.
        modes: Centres (m, d) whose neighbourhoods are counted as modes; m = 0 where none are named.
    """

    name: str
    dim: int
    log_z: float = math.nan
    exact: bool = False
    modes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__
        self.keep(modes=torch.empty(0, 0, dtype=torch.float64))

    def keep(self, **constants: Tensor) -> None:
        """Registers constants, each under the name of its keyword."""
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def given_observation(self) -> Tensor | None:
        """y, of a density given an observation (`amortised`): (m,), or (n, m) where each of n rows has its own."""
        return None

    @abstractmethod
    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log mu^(x), nats."""

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        """Exact samples.

        Raises:
            ValueError: there is no way to draw them.
        """
        raise ValueError(f"{self.name} has no exact samples; ask one whose `exact` is true")


def log_mu(target: Density, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """log mu^(x), nats.

    Raises:
        ValueError: of another shape.
    """
    found = target.log_prob(x)
    if found.shape != (len(x),):
        raise ValueError(
            f"target {_name(target)}: log_prob gave the shape {tuple(found.shape)} for x of {tuple(x.shape)}; "
            f"it gives ({len(x)},)"
        )
    return found


def observed(target: Density) -> Tensor:
    """The observation y that a target is given.

    Raises:
        ValueError: it is given none.
    """
    y = target.given_observation() if isinstance(target, Target) else None
    if y is None:
        raise ValueError(
            f"target {_name(target)}: the control sees an observation y, and the target is given none; "
            "give it by indm_core.pis.amortised.Given, or a control of dim_y=0"
        )
    return y


def like(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of a module's constants and weights; of the default ones where it has none."""
    tensors = (t for t in (*module.buffers(), *module.parameters()) if t.is_floating_point())
    return next(tensors, torch.zeros(()))


def score(target: Density, x: Float[Tensor, "n d"], clip: float = math.inf) -> Float[Tensor, "n d"]:
    """grad log mu^(x), detached, each component clipped to [-clip, clip].

    Raises:
        ValueError: log_prob has no gradient; what does without one.
    """
    # inside an activation checkpoint its hooks would compute all steps before this one anew for this gradient
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        given = x.detach().requires_grad_()
        log_prob = log_mu(target, given)
        if not log_prob.requires_grad:
            raise ValueError(
                f"target {_name(target)}: log_prob has no gradient in x; give --control nn and --loss log-variance, "
                "which ask for none"
            )
        (found,) = torch.autograd.grad(log_prob.sum(), given)
    return found.clamp(-clip, clip)


def _name(target: Density) -> str:
    """What errors call a density; one that is no `Target` by its class."""
    return target.name if isinstance(target, Target) else type(target).__name__


def _itself(saved: Tensor) -> Tensor:
    return saved
