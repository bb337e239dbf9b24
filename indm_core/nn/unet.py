"""The U-Net of the DDPM++ and NCSN++ family: a backbone for images of any sides, and for sequences of any length.

Levels i = 0 .. L-1 have C_i = nf * ch_mult[i] channels and sides ceil(n / 2^i), n the side of the image. The weights know no
side: a network that is made for one shape takes every other, small or large, and is good where it was trained. What depends on
the shape that it is made for is which levels have attention; a level keeps it whatever its side is. n_b is `num_res_blocks`;
Res, A, GN, swish and conv_k are those of `blocks`; [A] is an attention where the larger side of the level is in `attention`.
Every feature map on the way down is kept and is concatenated, in reverse order, to the input of one block on the way up:

    down    conv_3; per level n_b x (Res [A]); between levels Res (halves the sides)
    middle  Res A Res
    up      per level (n_b + 1) x Res, one [A]; between levels Res (restores the sides of the finer level)
    out     GN, swish, conv_3 ~ 0

With progressive_input='residual' the image itself goes down a second path, p_0 = x, and joins the first: after the
i-th halving h <- p_i = (conv_3(filter(p_{i-1})) + h) / sqrt 2, the convolution taken at every second pixel.

    DDPM++  positional embedding of 999 t, no fir, no progressive input: the defaults
    NCSN++  embedding='fourier' of log sigma(t), fir=True, progressive_input='residual'; the published division by
            sigma is ScoreModel's

On CIFAR-10 these have 61.80 and 62.76 million parameters, and with num_res_blocks=8 106.63 and 107.59.

References:
    Ho, Jain, Abbeel 2020, "Denoising diffusion probabilistic models", appendix B.
    Song et al. 2021, "Score-based generative modeling through stochastic differential equations", appendix H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.nn.blocks import Down, FilteredConv, ResBlock, Up, conv, group_norm
from indm_core.nn.embedding import NEAR_ZERO, ConditionEmbedding, Label
from indm_core.shapes import Float

__all__ = ["UNet"]


class Encoder(nn.Module):
    """The way down: an image to its feature maps, finest first, each a skip connection.

    Args:
        num_in: channels of the image.
        nf: channels of the first feature map.
        widths: C_i of the levels.
        attends: whether level i has attention.
        num_res_blocks: n_b.
        fir: resample by the filter.
        progressive: whether the image itself goes down a second path.
        axes: 2 of an image, 1 of a sequence.
        res: ResBlock without its channels.
    """

    def __init__(
        self,
        num_in: int,
        nf: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        num_res_blocks: int,
        fir: bool,
        progressive: bool,
        axes: int,
        res: Callable[..., ResBlock],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = conv(num_in, nf, 3, axes=axes, generator=generator)
        self.levels, self.to_coarser, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c, self.num_skips = nf, [nf]
        for i, width in enumerate(widths):
            if i:
                self.to_coarser.append(res(c, c, resample=Down(fir=fir, axes=axes)))
                self.num_skips.append(c)
                if progressive:
                    self.pyramid.append(FilteredConv(num_in, c, axes=axes, generator=generator))
                    num_in = c
            channels = [c, *[width] * num_res_blocks]
            self.levels.append(nn.ModuleList(res(a, b, attention=attends[i]) for a, b in pairwise(channels)))
            self.num_skips.extend(channels[1:])
            c = width

    def forward(self, x: Float[Tensor, "b c *sides"], temb: Float[Tensor, "b temb"]) -> list[Tensor]:
        p, h = x, self.conv_in(x)
        skips = [h]
        for i, level in enumerate(self.levels):
            if i:
                h = self.to_coarser[i - 1](h, temb)
                if self.pyramid:
                    h = p = (self.pyramid[i - 1](p) + h) * math.sqrt(0.5)
                skips.append(h)
            for block in level.children():
                h = block(h, temb)
                skips.append(h)
        return skips


class Decoder(nn.Module):
    """The way up: the coarsest map, and the skip connections from the last to the first, to the finest map.

    Args:
        num_skips: channels of the skip connections, finest first.
        widths, attends, num_res_blocks, fir, axes, res: as in `Encoder`.
    """

    def __init__(
        self,
        num_skips: Sequence[int],
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        num_res_blocks: int,
        fir: bool,
        axes: int,
        res: Callable[..., ResBlock],
    ) -> None:
        super().__init__()
        c, skips = widths[-1], list(num_skips)
        self.levels, self.to_finer = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(widths))):
            if i + 1 < len(widths):
                self.to_finer.append(res(c, c, resample=Up(fir=fir, axes=axes)))
            level = nn.ModuleList()
            for block in range(num_res_blocks + 1):
                last = block == num_res_blocks
                level.append(res(c + skips.pop(), widths[i], attention=attends[i] and last))
                c = widths[i]
            self.levels.append(level)

    def forward(
        self, h: Float[Tensor, "b c *sides"], skips: list[Tensor], temb: Float[Tensor, "b temb"]
    ) -> Float[Tensor, "b nf *finest"]:
        skips = list(skips)
        for i, level in enumerate(self.levels):
            if i:
                h = self.to_finer[i - 1](h, temb, skips[-1].shape[2:])
            for block in level.children():
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
        return h


def level_sides(shape: Sequence[int], num_levels: int) -> list[int]:
    """The larger side of every level, from the finest.

    Raises:
        ValueError: a level whose smaller side is below 2.
    """
    sides = [[-(-side // 2**i) for side in shape[1:]] for i in range(num_levels)]
    if min(sides[-1]) < 2:
        raise ValueError(f"ch_mult has {num_levels} levels, too many for shape {tuple(shape)}: sides {sides}")
    return [max(level) for level in sides]


@final
class UNet(nn.Module):
    """A backbone for images or sequences; the defaults are DDPM++ on CIFAR-10.

    Args:
        shape: (c, h, w) or (c, l), of what it is made for; x may have any other sides, odd ones too, and so has the output.
        time_feature: s as a function of t (b,), in float64: 999 t or log sigma(t).
        nf: channels of the first level, a multiple of 4.
        ch_mult: channels of level i over nf; its length is the number of levels.
        num_res_blocks: n_b, per level.
        attention: sides at which there is attention, compared with the larger side of a level.
        dropout: probability, in [0, 1).
        num_classes: 0: no labels.
        embedding: waves of s, 'positional' or 'fourier'.
        fourier_scale: standard deviation of the Fourier frequencies.
        fir: resample by the filter (1, 3, 3, 1).
        progressive_input: 'none', or 'residual', which adds the path of the image itself.
        generator: of the initial weights and the frequencies; None is the global one.
    Raises:
        ValueError: an argument out of range; `forward`: x of other channels or axes, y given while num_classes is 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        time_feature: Callable[[Tensor], Tensor],
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        fir: bool = False,
        progressive_input: str = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if nf < 4 or nf % 4:
            raise ValueError(f"nf must be a positive multiple of 4, got {nf}")
        if num_res_blocks < 1:
            raise ValueError(f"num_res_blocks must be at least 1, got {num_res_blocks}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        if progressive_input not in ("none", "residual"):
            raise ValueError(f"progressive_input must be 'none' or 'residual', got {progressive_input!r}")
        if len(shape) not in (2, 3) or not ch_mult or min(ch_mult) < 1:
            raise ValueError(f"shape must be (c, h, w) or (c, l) and ch_mult positive, got {shape} and {ch_mult}")
        self.num_channels, self.axes = shape[0], len(shape) - 1
        sides = level_sides(shape, len(ch_mult))
        widths = [nf * mult for mult in ch_mult]
        attends = [side in attention for side in sides]
        self.embed = ConditionEmbedding(
            nf,
            4 * nf,
            time_feature=time_feature,
            num_classes=num_classes,
            embedding=embedding,
            fourier_scale=fourier_scale,
            generator=generator,
        )
        res = partial(ResBlock, num_temb=4 * nf, dropout=dropout, axes=self.axes, generator=generator)
        self.encoder = Encoder(
            shape[0],
            nf,
            widths,
            attends,
            num_res_blocks=num_res_blocks,
            fir=fir,
            progressive=progressive_input == "residual",
            axes=self.axes,
            res=res,
            generator=generator,
        )
        self.middle_in = res(widths[-1], widths[-1], attention=True)
        self.middle_out = res(widths[-1], widths[-1])
        num_skips = self.encoder.num_skips
        self.decoder = Decoder(
            num_skips, widths, attends, num_res_blocks=num_res_blocks, fir=fir, axes=self.axes, res=res
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], shape[0], 3, axes=self.axes, scale=NEAR_ZERO, generator=generator)

    def forward(
        self, x: Float[Tensor, "b c *sides"], t: Float[Tensor, " b"], y: Label | None = None
    ) -> Float[Tensor, "b c *sides"]:
        if x.ndim != 2 + self.axes or x.shape[1] != self.num_channels:
            sides = ("h", "w") if self.axes == 2 else ("l",)
            wanted = ", ".join(("b", str(self.num_channels), *sides))
            raise ValueError(f"x must have shape ({wanted}), got {tuple(x.shape)}")
        temb = self.embed(t, y, x.dtype)
        skips = self.encoder(x, temb)
        h = self.middle_out(self.middle_in(skips[-1], temb), temb)
        h = self.decoder(h, skips, temb)
        return self.conv_out(F.silu(self.norm_out(h))).to(x.dtype)
