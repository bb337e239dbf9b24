"""The blocks of the DDPM++ and NCSN++ networks: residual, attention, resampling.

Every feature map is (b, C, h, w) of an image, of any sides, or (b, C, l) of a sequence; a block of a network is made for one of
the two, by its number of axes. GN is a group norm of one sample, swish(a) = a sigmoid(a), conv_k a convolution with
k taps along each axis and zeros beyond the border, temb the embedding of time and label:

    Res(x)  = (skip(x) + conv_3(dropout(swish(GN(conv_3(resample(swish(GN(x)))) + W swish(temb) + b))))) / sqrt 2
    A(x)    = (x + W_o softmax(Q^T K / sqrt C) V) / sqrt 2,   Q, K, V linear in GN(x), one head, C channels

The last layer of both begins at ~ 0. skip is resample, then conv_1, where Res resamples or changes the channels.

resample is by the mean of two pixels along each axis and by repetition, or by the filter (1, 3, 3, 1): down, sums with weights
(1, 3, 3, 1)/8 at every second pixel; up, (1, 3, 3, 1)/4 on the image with zeros between its pixels, which is linear
interpolation at half pixels. For the filter the image continues beyond its border with the edge pixels (the published
code puts zeros there), so that a constant stays constant, and on even sides the mean stays too. Odd sides are rounded
up.

References:
    Brock, Donahue, Simonyan 2019, "Large scale GAN training for high fidelity natural image synthesis" (Res).
    Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN" (filter, residual input).
    Song et al. 2021, "Score-based generative modeling through stochastic differential equations", appendix H.
    Zhang 2019, "Making convolutional networks shift-invariant again".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.compiled import Repeated
from indm_core.nn.embedding import NEAR_ZERO, initialised
from indm_core.shapes import Float

__all__ = ["FIR", "Attention", "Down", "FilteredConv", "ResBlock", "Up", "conv", "group_norm"]


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 groups: the largest such number that divides the channels."""
    most = max(1, min(num_channels // 4, 32))
    return nn.GroupNorm(max(g for g in range(1, most + 1) if num_channels % g == 0), num_channels, eps=1e-6)


def conv(
    num_in: int,
    num_out: int,
    kernel: int,
    *,
    axes: int = 2,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Conv1d | nn.Conv2d:
    """A convolution that keeps the sides of an image (axes = 2) or the length of a sequence (1)."""
    layer = (nn.Conv1d if axes == 1 else nn.Conv2d)(num_in, num_out, kernel, padding=kernel // 2)
    return initialised(layer, scale=scale, generator=generator)


class FIR(nn.Module):
    """The low-pass filter (1, 3, 3, 1)/8 along every axis, read at every `stride`-th pixel.

    Args:
        stride: 1 or 2.
        padding: edge pixels repeated before the first; after the last, one more where the side is odd.
        axes: 2 of an image, 1 of a sequence.
    """

    kernel: Tensor

    def __init__(self, *, stride: int, padding: int, axes: int = 2) -> None:
        super().__init__()
        self.stride, self.padding, self.axes = stride, padding, axes
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps) if axes == 2 else taps, persistent=False)

    def forward(self, x: Float[Tensor, "b c *sides"]) -> Float[Tensor, "b c *halves"]:
        p, c = self.padding, x.shape[1]
        x = F.pad(x, [n for side in reversed(x.shape[2:]) for n in (p, p + side % 2)], mode="replicate")
        filtered = F.conv2d if self.axes == 2 else F.conv1d
        return filtered(x, self.kernel.expand(c, 1, *self.kernel.shape), stride=self.stride, groups=c)


class Down(nn.Module):
    """Halves the sides, odd ones rounded up: the mean of two pixels along each axis, or FIR."""

    def __init__(self, *, fir: bool, axes: int = 2) -> None:
        super().__init__()
        mean = nn.AvgPool2d if axes == 2 else nn.AvgPool1d
        self.filter = FIR(stride=2, padding=1, axes=axes) if fir else mean(2, ceil_mode=True)

    def forward(self, x: Float[Tensor, "b c *sides"], sides: Sequence[int]) -> Float[Tensor, "b c *halves"]:
        return self.filter(x)


class Up(nn.Module):
    """Doubles the sides by repetition or linear interpolation (= FIR), cut to `sides`, the finer level's."""

    def __init__(self, *, fir: bool, axes: int = 2) -> None:
        super().__init__()
        self.mode = "nearest" if not fir else "bilinear" if axes == 2 else "linear"

    def forward(self, x: Float[Tensor, "b c *sides"], sides: Sequence[int]) -> Float[Tensor, "b c *doubles"]:
        x = F.interpolate(x, scale_factor=2, mode=self.mode)
        return x[(..., *(slice(side) for side in sides))]


class Attention(nn.Module):
    """A of the module docstring: every pixel attends to every pixel of its own image, whatever its sides."""

    def __init__(self, num_channels: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.norm = group_norm(num_channels)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        nn.init.zeros_(self.qkv.bias)
        for weight in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.1), generator=generator)
        self.out = initialised(nn.Linear(num_channels, num_channels), scale=NEAR_ZERO, generator=generator)

    def forward(self, x: Float[Tensor, "b c *sides"]) -> Float[Tensor, "b c *sides"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unsqueeze(1).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return (x + h.transpose(1, 2).reshape(x.shape)) * math.sqrt(0.5)


class ResBlock(Repeated):
    """Res, or Res then A, of the module docstring.

    Args:
        num_in, num_out: channels.
        num_temb: length of the embedding of time and label.
        attention: whether A follows.
        resample: Down, Up or None; both h and x go through it.
        axes: 2 of an image, 1 of a sequence.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        num_temb: int,
        dropout: float,
        attention: bool = False,
        resample: Down | Up | None = None,
        axes: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(num_in)
        self.conv_in = conv(num_in, num_out, 3, axes=axes, generator=generator)
        self.condition = initialised(nn.Linear(num_temb, num_out), generator=generator)
        self.norm_out = group_norm(num_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(num_out, num_out, 3, axes=axes, scale=NEAR_ZERO, generator=generator)
        self.resample = resample or _Same()
        plain = resample is None and num_in == num_out
        self.skip = nn.Identity() if plain else conv(num_in, num_out, 1, axes=axes, generator=generator)
        self.attention = Attention(num_out, generator=generator) if attention else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b c *sides"], temb: Float[Tensor, "b temb"], sides: Sequence[int] = ()
    ) -> Float[Tensor, "b c2 *sides2"]:
        """x through the block; `sides` are those of the output where it is upsampled."""
        h = self.conv_in(self.resample(F.silu(self.norm_in(x)), sides))
        h = h + self.condition(temb).reshape(*h.shape[:2], *[1] * (h.ndim - 2))
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.attention((self.skip(self.resample(x, sides)) + h) * math.sqrt(0.5))


class _Same(nn.Module):
    """No resampling."""

    def forward(self, x: Tensor, sides: Sequence[int]) -> Tensor:
        return x


class FilteredConv(nn.Module):
    """One halving of the progressive input: conv_3 of the filtered image, at every second pixel."""

    def __init__(self, num_in: int, num_out: int, *, axes: int = 2, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.filter = FIR(stride=1, padding=2, axes=axes)
        layer = (nn.Conv2d if axes == 2 else nn.Conv1d)(num_in, num_out, 3, stride=2)
        self.conv = initialised(layer, generator=generator)

    def forward(self, x: Float[Tensor, "b c *sides"]) -> Float[Tensor, "b c2 *halves"]:
        return self.conv(self.filter(x))
