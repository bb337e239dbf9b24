"""Networks as configurations: what a score or a drift is computed by, and what it sees of the time.

A class below `BackboneConfig` is a form that a file or the command line may name; adding one is writing it, here or in a file
of one's own (see `modules`), and nothing else has to be changed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from indm_core.model.diffflow import LinearDrift
from indm_core.nn import MLP, DDPMUNet, UNet
from indm_core.nn.ddpm import BetaSchedule, discrete_log_snr, level_of
from indm_core.sde import LinearSDE
from pipelines.data.spec import DataSpec

__all__ = [
    "BackboneConfig",
    "DDPMUNetConfig",
    "LinearDriftConfig",
    "MLPConfig",
    "TimeFeature",
    "UNetConfig",
    "network_shape",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ABC):
    """A network of a state and a time: a score, or a drift."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], sde: LinearSDE | None, num_classes: int = 0) -> nn.Module:
        """The network for events of a shape, which takes labels of `num_classes` classes where these are any; without a linear
        SDE its times are shares of t_max."""


TimeFeature = Literal["scaled", "slow", "log-sigma", "log-snr"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BackboneConfig):
    """The DDPM++ U-Net, or NCSN++: with filtered resampling, Fourier features and a path of the image itself.

    Args:
        family: ddpm++ or ncsn++.
        nf: Channels of the first level.
        ch_mult: Channels of each level in units of nf.
        num_res_blocks: Residual blocks per level.
        attention: Sides at which attention is applied.
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

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None, num_classes: int = 0) -> nn.Module:
        if len(shape) < 2:
            raise ValueError(
                f"UNetConfig is for images and sequences, the data are vectors {shape}; the recipe vectors takes them, with "
                "MLPConfig"
            )
        if min(shape[1:]) < 2:
            raise ValueError(
                f"UNetConfig: rows of shape {shape} have a side of one position, and convolutions need two; give them as "
                "vectors (n, d), to the recipe vectors"
            )
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
            num_classes=num_classes,
        )


@dataclass(frozen=True, kw_only=True)
class MLPConfig(BackboneConfig):
    """A residual MLP for vectors.

    Args:
        width: Hidden units.
        depth: Residual blocks.
        time: What the embedding sees: scaled (999 t), slow (2 pi t), log-sigma or log-snr.
    """

    width: int = 128
    depth: int = 3
    time: TimeFeature = "log-snr"

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None, num_classes: int = 0) -> nn.Module:
        if len(shape) != 1:
            kind = "images" if len(shape) == 3 else "sequences"
            raise ValueError(
                f"MLPConfig is for vectors, the data are {kind} {shape}; the recipe {kind} takes them, with UNetConfig"
            )
        (num_dims,) = shape
        time = _time_feature(self.time, sde)
        return MLP(num_dims, time_feature=time, width=self.width, depth=self.depth, num_classes=num_classes)


@dataclass(frozen=True, kw_only=True)
class DDPMUNetConfig(BackboneConfig):
    """The U-Net of DDPM, for weights that others have trained (see indm_core/nn/ddpm.py); the defaults are those on CIFAR-10.

    Args:
        channels: Of each level, multiples of groups.
        num_res_blocks: Residual blocks per level.
        attention_down, attention_up: Levels, 0 the finest, with attention on the way down and on the way up.
        attention_middle: Whether there is one in the middle.
        head_dim: Channels of a head of attention; 0 for one head.
        groups, norm_eps: Of the group norms.
        padding: Where zeros lie at a halving: 1 around the image, 0 behind it.
        cosine_first, shift: Of the waves of the time.
        num_temb: Length of the time's embedding; 0 takes four times the first channels.
        dropout: In the residual blocks.
        num_levels: Noise levels that the weights were trained at.
        beta_first, beta_last: Variances of the first and of the last step between them.
        schedule: How the variances (scaled_linear: their square roots) run between: linear.
    """

    channels: tuple[int, ...] = (128, 256, 256, 256)
    num_res_blocks: int = 2
    attention_down: tuple[int, ...] = (1,)
    attention_up: tuple[int, ...] = (1,)
    attention_middle: bool = True
    head_dim: int = 0
    groups: int = 32
    norm_eps: float = 1e-6
    padding: int = 0
    cosine_first: bool = False
    shift: int = 1
    num_temb: int = 0
    dropout: float = 0.1
    num_levels: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    schedule: BetaSchedule = "linear"

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None, num_classes: int = 0) -> nn.Module:
        if num_classes:
            raise ValueError(
                "conditional=True: DDPMUNetConfig has the architecture of weights that know no labels; take another "
                "backbone, or give --conditional false"
            )
        if sde is None:
            raise ValueError("DDPMUNetConfig is read at noise levels of a linear diffusion, and this model has none")
        table = discrete_log_snr(self.num_levels, self.beta_first, self.beta_last, self.schedule)
        return DDPMUNet(
            shape,
            level=lambda t: level_of(-2 * sde.log_rho(t), table.to(t.device)),
            scale=lambda t: torch.exp(sde.log_sigma(t)) * torch.sqrt(1 + torch.exp(-2 * sde.log_rho(t))),
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            attention_down=self.attention_down,
            attention_up=self.attention_up,
            attention_middle=self.attention_middle,
            head_dim=self.head_dim,
            groups=self.groups,
            eps=self.norm_eps,
            padding=self.padding,
            cosine_first=self.cosine_first,
            shift=self.shift,
            dropout=self.dropout,
            num_temb=self.num_temb,
        )


@dataclass(frozen=True, kw_only=True)
class LinearDriftConfig(BackboneConfig):
    """A drift that is given, not learned: T f = -rate x (see indm_core/model/diffflow.py), for DiffFlow's drift.

    Args:
        rate: Not negative; g^2 T / 2 keeps N(0, I), as VP does.
    """

    rate: float = 3.0

    def build(self, shape: tuple[int, ...], sde: LinearSDE | None, num_classes: int = 0) -> nn.Module:
        return LinearDrift(self.rate)


def _time_feature(kind: str, sde: LinearSDE | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """999 t; 2 pi t, for a flow without noise, whose drift has to be smooth between the steps of its training; log sigma(t); or
    minus twice the log-SNR, which the importance law of t draws uniformly."""
    if kind == "scaled":
        return lambda t: 999 * t
    if kind == "slow":
        return lambda t: 2 * math.pi * t
    if sde is None:
        raise ValueError(
            f"time={kind!r} is a function of a linear diffusion, and this model learns its own: take 'scaled' or 'slow'"
        )
    if kind == "log-sigma":
        return sde.log_sigma
    return lambda t: 2 * sde.log_importance(t)


def network_shape(spec: DataSpec, sde: LinearSDE) -> tuple[int, ...]:
    """The event that a backbone sees.

    Raises:
        ValueError: data that the SDE cannot diffuse.
    """
    try:
        return tuple(sde.to_network(sde.embed(torch.zeros(1, *spec.shape))).shape[1:])
    except ValueError as error:
        if len(spec.shape) == 3:
            raise
        kind = "vectors" if len(spec.shape) == 1 else "sequences"
        raise ValueError(f"{error}; {type(sde).__name__} is for images, the recipe {kind} takes {kind}") from None
