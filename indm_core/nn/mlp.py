r"""The backbone for vectors, a residual MLP.

With h_0 = W x + b and temb the embedding of time and label, one of its blocks is

  h_{k+1} = (h_k + W'_k swish((1 + a_k) * (W_k h_k + b_k) + c_k) + b'_k) / sqrt 2,  (a_k, c_k) = V_k swish(temb) + d_k,

and out = W_out swish(h_depth) + b_out, W_out ~ 0. The scale a_k is there because the eps of even a Gaussian is x times
a function of t.

References:
    Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.nn.embedding import NEAR_ZERO, ConditionEmbedding, Label, initialised
from indm_core.shapes import Float

__all__ = ["MLP"]


class DenseBlock(nn.Module):
    """One residual block on vectors of length `width`, its hidden layer scaled and shifted by the condition."""

    def __init__(self, width: int, num_temb: int, *, generator: torch.Generator | None) -> None:
        super().__init__()
        self.dense_in = initialised(nn.Linear(width, width), generator=generator)
        self.condition = initialised(nn.Linear(num_temb, 2 * width), generator=generator)
        self.dense_out = initialised(nn.Linear(width, width), generator=generator)

    def forward(self, h: Float[Tensor, "b width"], temb: Float[Tensor, "b temb"]) -> Float[Tensor, "b width"]:
        scale, shift = self.condition(temb).chunk(2, dim=-1)
        return (h + self.dense_out(F.silu(torch.addcmul(shift, 1 + scale, self.dense_in(h))))) * math.sqrt(0.5)


@final
class MLP(nn.Module):
    """A backbone for vectors: `depth` residual blocks of `width` units.

    Args:
        num_dims: d, the length of x (and of the output).
        time_feature: s as a function of t (b,), in float64; the waves of s have periods from 2 pi to 6e4.
        width: units per layer.
        depth: number of residual blocks.
        num_features: sine and cosine features of s, even.
        num_classes: 0: no labels.
        generator: of the initial weights; None is the global one.
    Raises:
        ValueError: an argument out of range; `forward`: x of another shape, y given while num_classes is 0.
    """

    def __init__(
        self,
        num_dims: int,
        *,
        time_feature: Callable[[Tensor], Tensor],
        width: int = 128,
        depth: int = 3,
        num_features: int = 64,
        num_classes: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_dims", num_dims), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_dims = num_dims
        self.embed = ConditionEmbedding(
            num_features, width, time_feature=time_feature, num_classes=num_classes, generator=generator
        )
        self.dense_in = initialised(nn.Linear(num_dims, width), generator=generator)
        self.blocks = nn.ModuleList(DenseBlock(width, width, generator=generator) for _ in range(depth))
        self.dense_out = initialised(nn.Linear(width, num_dims), scale=NEAR_ZERO, generator=generator)

    def forward(self, x: Float[Tensor, "b d"], t: Float[Tensor, " b"], y: Label | None = None) -> Float[Tensor, "b d"]:
        if x.shape[1:] != (self.num_dims,):
            raise ValueError(f"x must have shape (b, {self.num_dims}), got {tuple(x.shape)}")
        temb = self.embed(t, y, x.dtype)
        h = self.dense_in(x)
        for block in self.blocks:
            h = block(h, temb)
        return self.dense_out(F.silu(h)).to(x.dtype)
