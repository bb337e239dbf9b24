"""The blocks of the DDPM++ and NCSN++ networks: residual, attention, resampling.

Every feature map is (b, C, h, w). GN is a group norm of one sample, swish(a) = a sigmoid(a), conv_k a k x k convolution
with zeros beyond the border, temb the embedding of time and label:

    Res(x)  = (skip(x) + conv_3(dropout(swish(GN(conv_3(resample(swish(GN(x)))) + W swish(temb) + b))))) / sqrt 2
    A(x)    = (x + W_o softmax(Q^T K / sqrt C) V) / sqrt 2,   Q, K, V linear in GN(x), one head, C channels

The last layer of both begins at ~ 0. skip is resample, then conv_1, where Res resamples or changes the channels.

resample is by the mean of 2 x 2 pixels and by repetition, or by the filter (1, 3, 3, 1): down, sums with weights
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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.nn.embedding import NEAR_ZERO, initialised
from indm_core.shapes import Float

__all__ = ["FIR", "Attention", "Down", "FilteredConv", "ResBlock", "Up", "conv", "group_norm"]


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 groups: the largest such number that divides the channels."""
    most = max(1, min(num_channels // 4, 32))
    return nn.GroupNorm(max(g for g in range(1, most + 1) if num_channels % g == 0), num_channels, eps=1e-6)


def conv(
    num_in: int, num_out: int, kernel: int, *, scale: float = 1.0, generator: torch.Generator | None = None
) -> nn.Conv2d:
    """A convolution that keeps the sides."""
    return initialised(nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2), scale=scale, generator=generator)


class FIR(nn.Module):
    """The low-pass filter (1, 3, 3, 1)/8 along both sides, read at every `stride`-th pixel.

    Args:
        stride: 1 or 2.
        padding: edge pixels repeated before the first; after the last, one more where the side is odd.
    """

    kernel: Tensor

    def __init__(self, *, stride: int, padding: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        c, h, w = x.shape[1:]
        p = self.padding
        x = F.pad(x, (p, p + w % 2, p, p + h % 2), mode="replicate")
        return F.conv2d(x, self.kernel.expand(c, 1, 4, 4), stride=self.stride, groups=c)


class Down(nn.Module):
    """Halves both sides, odd ones rounded up: the mean of 2 x 2 pixels, or FIR."""

    def __init__(self, *, fir: bool) -> None:
        super().__init__()
        self.filter = FIR(stride=2, padding=1) if fir else nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.filter(x)


class Up(nn.Module):
    """Doubles both sides by repetition or linear interpolation (= FIR), cut to `size`, the finer level's sides."""

    def __init__(self, size: tuple[int, int], *, fir: bool) -> None:
        super().__init__()
        self.size, self.fir = size, fir

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        x = F.interpolate(x, scale_factor=2, mode="bilinear" if self.fir else "nearest")
        return x[..., : self.size[0], : self.size[1]]


class Attention(nn.Module):
    """A of the module docstring: every pixel attends to every pixel of its own image."""

    def __init__(self, num_channels: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.norm = group_norm(num_channels)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        nn.init.zeros_(self.qkv.bias)
        for weight in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.1), generator=generator)
        self.out = initialised(nn.Linear(num_channels, num_channels), scale=NEAR_ZERO, generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unsqueeze(1).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return (x + h.transpose(1, 2).reshape(x.shape)) * math.sqrt(0.5)


class ResBlock(nn.Module):
    """Res, or Res then A, of the module docstring.

    Args:
        num_in, num_out: channels.
        num_temb: length of the embedding of time and label.
        attention: whether A follows.
        resample: Down, Up or None; both h and x go through it.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        num_temb: int,
        dropout: float,
        attention: bool = False,
        resample: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(num_in)
        self.conv_in = conv(num_in, num_out, 3, generator=generator)
        self.condition = initialised(nn.Linear(num_temb, num_out), generator=generator)
        self.norm_out = group_norm(num_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(num_out, num_out, 3, scale=NEAR_ZERO, generator=generator)
        self.resample = resample or nn.Identity()
        plain = resample is None and num_in == num_out
        self.skip = nn.Identity() if plain else conv(num_in, num_out, 1, generator=generator)
        self.attention = Attention(num_out, generator=generator) if attention else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], temb: Float[Tensor, "b temb"]) -> Float[Tensor, "b c2 h2 w2"]:
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        h = h + self.condition(temb)[..., None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.attention((self.skip(self.resample(x)) + h) * math.sqrt(0.5))


class FilteredConv(nn.Module):
    """One halving of the progressive input: conv_3 of the filtered image, at every second pixel."""

    def __init__(self, num_in: int, num_out: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.filter = FIR(stride=1, padding=2)
        self.conv = initialised(nn.Conv2d(num_in, num_out, 3, stride=2), generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.conv(self.filter(x))
