"""How a network is told the time and the class.

A time t (b,) is turned into a number s = time_feature(t) that a network can read: 999 t for the variance-preserving
SDEs, log sigma(t) for VE. Waves of s follow, n numbers per sample,

    positional   (sin w_i s, cos w_i s),           w_i = 10000^(-i / (n/2 - 1)),  i = 0 .. n/2 - 1   (Ho et al. 2020)
    Fourier      (sin 2 pi f_i s, cos 2 pi f_i s), f_i ~ N(0, scale^2), drawn once                   (Song et al. 2021)

and two layers temb = W_2 swish(W_1 waves + b_1) + b_2, to which the row of a table is added for a sample with a class
label, or the weighted mean of its rows for one with weights over the classes. swish(a) = a sigmoid(a). s and the waves
are computed in float64, whatever the network's type: in float32 the phase 2 pi f_i s is off by 1e-4 and in bfloat16 by
several turns.

`initialised` gives a layer the initial law of Ho et al. 2020: bias 0 and weights uniform with variance scale / fan, fan
the mean of the numbers of inputs and outputs. NEAR_ZERO is the scale of a layer that begins at nothing but must still
pass a gradient.

References:
    Ho, Jain, Abbeel 2020, "Denoising diffusion probabilistic models", appendix B.
    Song et al. 2021, "Score-based generative modeling through stochastic differential equations", appendix C.
    Tancik et al. 2020, "Fourier features let networks learn high frequency functions in low dimensional domains".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.shapes import Float, Int

__all__ = ["NEAR_ZERO", "ConditionEmbedding", "FourierEmbedding", "PositionalEmbedding", "initialised"]

NEAR_ZERO = 1e-10
MOST_TURNS = 2**12
"""Bound of a Fourier embedding's scale: ticks of 2^-16 in 32 bits hold frequencies of up to eight times that."""
Label = Int[Tensor, " b"] | Float[Tensor, "b classes"]
"""A class of each sample, -1 for none; or weights over none and the classes."""
Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


def initialised(layer: Layer, *, scale: float = 1.0, generator: torch.Generator | None = None) -> Layer:
    """The layer, with bias 0 and weights uniform on [-a, a], a^2 / 3 = scale / fan.

    Args:
        layer: a linear or convolutional layer with a bias; its weights are written.
        scale: 1 keeps the variance of a signal; NEAR_ZERO switches the layer off at the start.
    """
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale), generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class PositionalEmbedding(nn.Module):
    """s -> (sin w_i s, cos w_i s) with n/2 wave numbers from 1 down to 1/10000 in geometric progression.

    Args:
        num_features: n, even and at least 4.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        if num_features < 4 or num_features % 2:
            raise ValueError(f"num_features must be even and at least 4, got {num_features}")
        self.num_waves = num_features // 2

    def forward(self, s: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        i = torch.arange(self.num_waves, dtype=s.dtype, device=s.device)
        phase = s[:, None] * torch.exp(-math.log(10000.0) / (self.num_waves - 1) * i)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class FourierEmbedding(nn.Module):
    """s -> (sin 2 pi f_i s, cos 2 pi f_i s) with n/2 random frequencies that are fixed and part of a checkpoint.

    The frequencies are kept as integer multiples of 2^-16: casting a network to another type leaves integers alone, a
    frequency rounded to bfloat16 would be another embedding.

    Args:
        num_features: n, even.
        scale: standard deviation of f_i, positive, in turns per unit of s.
    """

    ticks: Tensor

    def __init__(self, num_features: int, *, scale: float = 16.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_features < 2 or num_features % 2:
            raise ValueError(f"num_features must be even and positive, got {num_features}")
        if not 0 < scale < MOST_TURNS:
            raise ValueError(f"scale={scale} must be positive and below {MOST_TURNS}")
        f = scale * torch.randn(num_features // 2, generator=generator)
        self.register_buffer("ticks", (f * 2**16).round().to(torch.int32))

    def forward(self, s: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        phase = s[:, None] * self.ticks * (2 * math.pi * 2**-16)  # s first: integers times a float would be float32
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class ConditionEmbedding(nn.Module):
    """(t, y) -> swish(temb): what every block of a network reads of the time and the class.

    Args:
        num_features: waves per time (positional); the Fourier embedding has twice as many, as published.
        num_out: length of temb.
        time_feature: s as a function of t (b,), in float64.
        num_classes: 0: no labels.
        embedding: waves of s, 'positional' or 'fourier'.
        fourier_scale: standard deviation of the Fourier frequencies.
    Raises:
        ValueError: `embedding` or `num_classes` out of range; `forward`: a label for a network without classes, or weights of
            another number of classes.
    """

    def __init__(
        self,
        num_features: int,
        num_out: int,
        *,
        time_feature: Callable[[Tensor], Tensor],
        num_classes: int = 0,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding must be 'positional' or 'fourier', got {embedding!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {num_classes}")
        self.time_feature = time_feature
        self.num_classes = num_classes
        if embedding == "positional":
            self.waves = PositionalEmbedding(num_features)
        else:
            num_features = 2 * num_features
            self.waves = FourierEmbedding(num_features, scale=fourier_scale, generator=generator)
        self.dense_in = initialised(nn.Linear(num_features, num_out), generator=generator)
        self.dense_out = initialised(nn.Linear(num_out, num_out), generator=generator)
        if num_classes:
            # Row 0 is the label -1: it is zero and, as padding, stays zero.
            self.labels = nn.Embedding(num_classes + 1, num_out, padding_idx=0)
            with torch.no_grad():
                self.labels.weight[1:].normal_(generator=generator)

    def forward(self, t: Float[Tensor, " b"], y: Label | None, dtype: torch.dtype) -> Float[Tensor, "b temb"]:
        waves = self.waves(self.time_feature(t.double()).double()).to(dtype)
        temb = self.dense_out(F.silu(self.dense_in(waves)))
        if y is not None:
            if not self.num_classes:
                raise ValueError(f"y was given to a network built with num_classes=0: {y}")
            temb = temb + (self._mean(y) if y.is_floating_point() else self.labels(y + 1))
        return F.silu(temb)

    def _mean(self, weights: Float[Tensor, "b classes"]) -> Float[Tensor, "b temb"]:
        """The weighted mean of the table's rows; row 0 is left out, since it is zero and stays so."""
        if weights.shape[1] != self.num_classes + 1:
            raise ValueError(
                f"y has the shape {tuple(weights.shape)}: weights over none and {self.num_classes} classes are "
                f"(b, {self.num_classes + 1})"
            )
        return weights[:, 1:].to(self.labels.weight.dtype) @ self.labels.weight[1:]
