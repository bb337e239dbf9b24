"""Models as configurations: frozen dataclasses that build what they describe.

A class below `FlowConfig`, `BackboneConfig` or `ModelConfig` is a form that a file or the command line may name; adding one is
writing it here, and needs an entry nowhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from indm_core.flow import (
    ActNorm,
    Composed,
    Flow,
    Glow,
    Identity,
    LipSwish,
    ResFlow,
    Roulette,
    Sine,
)
from indm_core.model import INDM, Bridge, DiffFlow, DiNof, GenerativeModel
from indm_core.nn import MLP, UNet
from indm_core.sde import VP, LinearSDE
from pipelines.data.spec import DataSpec

__all__ = [
    "BackboneConfig",
    "BridgeConfig",
    "DiNofConfig",
    "DiffFlowConfig",
    "FlowConfig",
    "GlowConfig",
    "INDMConfig",
    "IdentityConfig",
    "MLPConfig",
    "ModelConfig",
    "ResFlowConfig",
    "UNetConfig",
    "network_shape",
]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ABC):
    """A flow of the latent."""

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
    """A residual flow (see indm_core/resflow.py).

    Args:
        blocks: Residual blocks at each scale.
        width: Hidden channels or units.
        kernels: Sides of a block's convolutions.
        dense: Treat images as vectors.
        coefficient: Lipschitz bound of a block, in (0, 1).
        constraint: Norm that is bounded.
        activation: 1-Lipschitz activation.
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
    constraint: Literal["spectral", "infinity"] = "infinity"
    activation: Literal["sine", "lipswish"] = "sine"
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
            roulette=self.roulette,
        )
        if self.actnorm == "none":
            return blocks
        per_pixel, data_init = self.actnorm == "pixel", self.actnorm_init == "data"
        return Composed([ActNorm(shape, per_pixel=per_pixel, data_init=data_init), blocks])


@dataclass(frozen=True, kw_only=True)
class GlowConfig(FlowConfig):
    """Glow (see indm_core/glow.py).

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


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ABC):
    """A network of a state and a time: a score, or a drift."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], sde: LinearSDE | None) -> nn.Module:
        """The network for events of a shape; without a linear SDE its times are shares of t_max."""


TimeFeature = Literal["scaled", "log-sigma", "log-snr"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BackboneConfig):
    """The DDPM++ U-Net, or NCSN++: with filtered resampling, Fourier features and a path of the image itself.

    Args:
        family: ddpm++ or ncsn++.
        nf: Channels of the first level.
        ch_mult: Channels of each level in units of nf.
        num_res_blocks: Residual blocks per level.
        attention: Image sides at which attention is applied.
        dropout: In the residual blocks.
        time: What the embedding sees: scaled (999 t, as published for VP), log-sigma (as published for VE), or log-snr
            (smooth at small t: fewer ODE steps).
    """

    family: Literal["ddpm++", "ncsn++"] = "ddpm++"
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    time: TimeFeature = "scaled"

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None) -> nn.Module:
        ncsn = self.family == "ncsn++"
        return UNet(
            shape,
            embedding="fourier" if ncsn else "positional",
            fir=ncsn,
            progressive_input="residual" if ncsn else "none",
            time_feature=_time_feature(self.time, sde),
            nf=self.nf,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            attention=self.attention,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class MLPConfig(BackboneConfig):
    """A residual MLP for vectors.

    Args:
        width: Hidden units.
        depth: Residual blocks.
        time: What the embedding sees: scaled (999 t), log-sigma or log-snr.
    """

    width: int = 128
    depth: int = 3
    time: TimeFeature = "log-snr"

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"MLPConfig is for vectors, and the data have events {shape}; take UNetConfig")
        (num_dims,) = shape
        return MLP(num_dims, time_feature=_time_feature(self.time, sde), width=self.width, depth=self.depth)


def _time_feature(kind: str, sde: LinearSDE | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """999 t; log sigma(t); or minus twice the log-SNR, which the importance law of t draws uniformly."""
    if kind == "scaled":
        return lambda t: 999 * t
    if sde is None:
        raise ValueError(
            f"time={kind!r} is a function of a linear diffusion, and this model learns its own: take 'scaled'"
        )
    if kind == "log-sigma":
        return sde.log_sigma
    return lambda t: 2 * sde.log_importance(t)


def network_shape(spec: DataSpec, sde: LinearSDE) -> tuple[int, ...]:
    """The event that a backbone sees."""
    return tuple(sde.to_network(sde.embed(torch.zeros(1, *spec.shape))).shape[1:])


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """A generative model."""

    @abstractmethod
    def build(self, spec: DataSpec) -> GenerativeModel:
        """The model with fresh weights, drawn from torch's default generator."""

    @property
    @abstractmethod
    def shared_steps(self) -> int:
        """Steps at the start that a baseline shares: RUN/pretrained is what they lead to. 0: none."""

    @abstractmethod
    def check_steps(self, steps: int) -> None:
        """Refuses a number of training steps that the model's schedule does not fit into."""


def _check_pretraining(flow: FlowConfig, steps: int) -> None:
    if steps and not flow.starts_at_identity:
        raise ValueError(
            f"pretrain_steps={steps}: the score is trained as a linear diffusion first, and {type(flow).__name__} does not "
            "begin at the identity; set its start (or actnorm_init) to identity, or pretrain_steps=0"
        )


@dataclass(frozen=True, kw_only=True)
class INDMConfig(ModelConfig):
    """INDM, or with IdentityConfig the linear diffusion (see indm_core/indm.py).

    Args:
        sde: The diffusion in the latent.
        flow: From data to latent.
        backbone: The score network.
        mode: nll or fid: the weighting of the score's loss.
        pretrain_steps: Steps at the start in which only the score is trained, as a linear diffusion.
        soft_truncation: Exponent k of Soft Truncation, at least 1; 0 for none.
        data_var: Variance of a coordinate, for the score's preconditioning (see indm_core/score.py); 0 for none, as published.
    """

    sde: LinearSDE = field(default_factory=VP)
    flow: FlowConfig = field(default_factory=ResFlowConfig)
    backbone: BackboneConfig = field(default_factory=UNetConfig)
    mode: Literal["nll", "fid"] = "nll"
    pretrain_steps: int = 0
    soft_truncation: float = 0.0
    data_var: float = 0.0

    @property
    def shared_steps(self) -> int:
        return self.pretrain_steps

    def check_steps(self, steps: int) -> None:
        pass  # pre-training alone is a linear diffusion

    def build(self, spec: DataSpec) -> GenerativeModel:
        return self._built(INDM, spec)

    def _built(self, kind: type[INDM], spec: DataSpec) -> INDM:
        _check_pretraining(self.flow, self.pretrain_steps)
        backbone = self.backbone.build(network_shape(spec, self.sde), self.sde)
        return kind(
            self.flow.build(spec.shape),
            backbone,
            self.sde,
            shape=spec.shape,
            mode=self.mode,
            pretrain_steps=self.pretrain_steps,
            soft_truncation=self.soft_truncation,
            data_var=self.data_var,
        )


@dataclass(frozen=True, kw_only=True)
class BridgeConfig(INDMConfig):
    """An INDM whose flow carries the data set `data.partner` to the prior (see indm_core/indm.py)."""

    def build(self, spec: DataSpec) -> GenerativeModel:
        return self._built(Bridge, spec)


@dataclass(frozen=True, kw_only=True)
class DiNofConfig(ModelConfig):
    """DiNof (see indm_core/dinof.py).

    Args:
        sde: The diffusion.
        t_m: Where it starts from the flow prior, as a share of t_max, in (0, 1].
        prior: The flow at t_m.
        flow: A flow of the latent as well; IdentityConfig as published.
        backbone: The score network.
        mode: nll or fid: the weighting of the score's loss.
        pretrain_steps: Steps at the start in which the flow of the latent rests.
        soft_truncation: Exponent k of Soft Truncation, at least 1; 0 for none.
        data_var: Variance of a coordinate, for the score's preconditioning (see indm_core/score.py); 0 for none, as published.
    """

    sde: LinearSDE = field(default_factory=VP)
    t_m: float = 0.6
    prior: FlowConfig = field(default_factory=GlowConfig)
    flow: FlowConfig = field(default_factory=IdentityConfig)
    backbone: BackboneConfig = field(default_factory=UNetConfig)
    mode: Literal["nll", "fid"] = "fid"
    pretrain_steps: int = 0
    soft_truncation: float = 0.0
    data_var: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_m <= 1:
            raise ValueError(f"t_m={self.t_m} must lie in (0, 1]: the share of t_max at which the flow prior sits")

    @property
    def shared_steps(self) -> int:
        return 0

    def check_steps(self, steps: int) -> None:
        pass

    def build(self, spec: DataSpec) -> GenerativeModel:
        _check_pretraining(self.flow, self.pretrain_steps)
        shape = network_shape(spec, self.sde)
        backbone = self.backbone.build(shape, self.sde)
        return DiNof(
            self.prior.build(shape),
            self.flow.build(spec.shape),
            backbone,
            self.sde,
            shape=spec.shape,
            t_m=self.t_m,
            mode=self.mode,
            pretrain_steps=self.pretrain_steps,
            soft_truncation=self.soft_truncation,
            data_var=self.data_var,
        )


@dataclass(frozen=True, kw_only=True)
class DiffFlowConfig(ModelConfig):
    """DiffFlow (see indm_core/diffflow.py).

    Args:
        drift: The drift network; its time is "scaled", its dropout 0.
        score: The score network; the same.
        g: Volatility.
        t_max: T.
        num_steps: N of each stage of progressive training.
        change_at: Optimiser steps at which the next stage begins, one fewer than stages.
        flexible: Whether times are drawn anew for each batch.
    """

    drift: BackboneConfig = field(default_factory=lambda: UNetConfig(dropout=0.0))
    score: BackboneConfig = field(default_factory=lambda: UNetConfig(dropout=0.0))
    g: float = 1.0
    t_max: float = 0.05
    num_steps: tuple[int, ...] = (30,)
    change_at: tuple[int, ...] = ()
    flexible: bool = True

    def __post_init__(self) -> None:
        if len(self.num_steps) != len(self.change_at) + 1:
            raise ValueError(
                f"num_steps={self.num_steps} has {len(self.num_steps)} stages and change_at={self.change_at} "
                f"{len(self.change_at)} changes between them; give one change fewer than stages"
            )
        if self.num_steps and min(self.num_steps) < 2:
            raise ValueError(f"num_steps={self.num_steps}: N={min(self.num_steps)} must be at least 2")
        if any(later <= first for first, later in pairwise((0, *self.change_at))):
            raise ValueError(f"change_at={self.change_at} must be positive and increase")

    @property
    def shared_steps(self) -> int:
        return 0

    def check_steps(self, steps: int) -> None:
        if self.change_at and self.change_at[-1] >= steps:
            raise ValueError(
                f"change_at={self.change_at}: with steps={steps} the last stage, N={self.num_steps[-1]}, is never trained; "
                "give more --steps, or fewer stages in --num-steps and --change-at"
            )

    def build(self, spec: DataSpec) -> GenerativeModel:
        return DiffFlow(
            self.drift.build(spec.shape, None),
            self.score.build(spec.shape, None),
            shape=spec.shape,
            g=self.g,
            t_max=self.t_max,
            schedule=tuple(zip((0, *self.change_at), self.num_steps, strict=True)),
            flexible=self.flexible,
        )
