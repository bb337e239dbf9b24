"""Flows as configurations: frozen dataclasses that build what they describe.

A class below `FlowConfig` is a form that a file or the command line may name; adding one is writing it, here or in a file of
one's own (see `modules`), and nothing else has to be changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from indm_core.flow import ActNorm, Composed, Flow, Glow, Identity, LipSwish, ResFlow, Roulette, Sine

__all__ = ["FlowConfig", "GlowConfig", "IdentityConfig", "ResFlowConfig"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ABC):
    """A flow: an invertible map of events."""

    @property
    @abstractmethod
    def starts_at_identity(self) -> bool:
        """Whether an INDM can go on from the linear diffusion that it was before."""

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> Flow:
        """The flow on events of this shape."""


@dataclass(frozen=True, kw_only=True)
class IdentityConfig(FlowConfig):
    """The identity: a linear diffusion."""

    @property
    def starts_at_identity(self) -> bool:
        return True

    def build(self, shape: tuple[int, ...]) -> Flow:
        return Identity()


@dataclass(frozen=True, kw_only=True)
class ResFlowConfig(FlowConfig):
    """A residual flow (see indm_core/flow/resflow.py).

    Args:
        blocks: Residual blocks at each scale.
        width: Hidden channels or units.
        kernels: Sides of a block's convolutions.
        dense: Treat images as vectors.
        coefficient: Lipschitz bound of a block, in (0, 1).
        constraint: Norm that is bounded: spectral, at the size of the data; torus, the spectral norm at every size; infinity,
            at every size.
        activation: 1-Lipschitz activation.
        first_activation: Whether one stands before the very first layer too; the published form has none there.
        roulette: Law of the number of series terms in training.
        actnorm: A learned scale and shift before the blocks, per channel or per pixel.
        actnorm_init: Start of these: identity (an INDM goes on from the linear diffusion that it was), or the mean and the
            standard deviation of the first batch.
    """

    blocks: tuple[int, ...] = (16, 16)
    width: int = 512
    kernels: tuple[int, ...] = (3, 1, 3)
    dense: bool = False
    coefficient: float = 0.98
    constraint: Literal["spectral", "torus", "infinity"] = "infinity"
    activation: Literal["sine", "lipswish"] = "sine"
    first_activation: bool = False
    roulette: Roulette = field(default_factory=Roulette)
    actnorm: Literal["none", "channel", "pixel"] = "none"
    actnorm_init: Literal["identity", "data"] = "identity"

    def __post_init__(self) -> None:
        if self.actnorm == "none" and self.actnorm_init != "identity":
            raise ValueError(f"actnorm_init={self.actnorm_init!r} needs actnorm='channel' or 'pixel', not 'none'")

    @property
    def starts_at_identity(self) -> bool:
        return self.actnorm_init == "identity"

    def build(self, shape: tuple[int, ...]) -> Flow:
        blocks = ResFlow(
            shape,
            blocks=self.blocks,
            width=self.width,
            kernels=self.kernels,
            dense=self.dense,
            coefficient=self.coefficient,
            constraint=self.constraint,
            activation=Sine if self.activation == "sine" else LipSwish,
            first_activation=self.first_activation,
            roulette=self.roulette,
        )
        if self.actnorm == "none":
            return blocks
        per_pixel, data_init = self.actnorm == "pixel", self.actnorm_init == "data"
        return Composed([ActNorm(shape, per_pixel=per_pixel, data_init=data_init), blocks])


@dataclass(frozen=True, kw_only=True)
class GlowConfig(FlowConfig):
    """Glow (see indm_core/flow/glow.py).

    Args:
        levels: L; vectors take one.
        depth: K, steps per level.
        hidden: Channels or units of a coupling's network.
        start: data (rotations, and actnorms set by the first batch, as published) or identity (an INDM goes on from the linear
            diffusion that it was).
    """

    levels: int = 3
    depth: int = 16
    hidden: int = 256
    start: Literal["data", "identity"] = "data"

    @property
    def starts_at_identity(self) -> bool:
        return self.start == "identity"

    def build(self, shape: tuple[int, ...]) -> Flow:
        return Glow(shape, levels=self.levels, steps=self.depth, hidden=self.hidden, start=self.start)
