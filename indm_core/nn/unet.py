"""The U-Net of the DDPM++ and NCSN++ family: a backbone for images.

Levels i = 0 .. L-1 have C_i = nf * ch_mult[i] channels and sides ceil(n / 2^i), n the side of the image. n_b is
`num_res_blocks`; Res, A, GN, swish and conv_k are those of `blocks`; [A] is an attention where the larger side of the
level is in `attention`. Every feature map on the way down is kept and is concatenated, in reverse order, to the input
of one block on the way up:

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
from indm_core.nn.embedding import NEAR_ZERO, ConditionEmbedding
from indm_core.shapes import Float, Int

__all__ = ["UNet"]

Size = tuple[int, int]


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
        res: Callable[..., ResBlock],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = conv(num_in, nf, 3, generator=generator)
        self.levels, self.to_coarser, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c, self.num_skips = nf, [nf]
        for i, width in enumerate(widths):
            if i:
                self.to_coarser.append(res(c, c, resample=Down(fir=fir)))
                self.num_skips.append(c)
                if progressive:
                    self.pyramid.append(FilteredConv(num_in, c, generator=generator))
                    num_in = c
            channels = [c, *[width] * num_res_blocks]
            self.levels.append(nn.ModuleList(res(a, b, attention=attends[i]) for a, b in pairwise(channels)))
            self.num_skips.extend(channels[1:])
            c = width

    def forward(self, x: Float[Tensor, "b c h w"], temb: Float[Tensor, "b temb"]) -> list[Tensor]:
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
        sizes: sides of the levels.
        widths, attends, num_res_blocks, fir, res: as in `Encoder`.
    """

    def __init__(
        self,
        num_skips: Sequence[int],
        sizes: Sequence[Size],
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        num_res_blocks: int,
        fir: bool,
        res: Callable[..., ResBlock],
    ) -> None:
        super().__init__()
        c, skips = widths[-1], list(num_skips)
        self.levels, self.to_finer = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(widths))):
            if i + 1 < len(widths):
                self.to_finer.append(res(c, c, resample=Up(sizes[i], fir=fir)))
            level = nn.ModuleList()
            for block in range(num_res_blocks + 1):
                last = block == num_res_blocks
                level.append(res(c + skips.pop(), widths[i], attention=attends[i] and last))
                c = widths[i]
            self.levels.append(level)

    def forward(
        self, h: Float[Tensor, "b c h w"], skips: list[Tensor], temb: Float[Tensor, "b temb"]
    ) -> Float[Tensor, "b nf h0 w0"]:
        skips = list(skips)
        for i, level in enumerate(self.levels):
            if i:
                h = self.to_finer[i - 1](h, temb)
            for block in level.children():
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
        return h


def level_sizes(shape: Sequence[int], num_levels: int) -> list[Size]:
    """The sides of every level, from the finest.

    Raises:
        ValueError: an image below 8 pixels, or a level below 2.
    """
    _, height, width = shape
    if min(height, width) < 8:
        raise ValueError(f"shape must be (c, h, w) with sides of at least 8 pixels, got {tuple(shape)}")
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(num_levels)]
    if min(sizes[-1]) < 2:
        raise ValueError(f"ch_mult has {num_levels} levels, too many for shape {tuple(shape)}: sides {sizes}")
    return sizes


@final
class UNet(nn.Module):
    """A backbone for images of one shape; the defaults are DDPM++ on CIFAR-10.

    Args:
        shape: (c, h, w) of x and of the output; any c, h and w from 8, odd ones too.
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
        ValueError: an argument out of range; `forward`: x of another shape, y given while num_classes is 0.
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
        if len(shape) != 3 or not ch_mult or min(ch_mult) < 1:
            raise ValueError(f"shape must be (c, h, w) and ch_mult positive, got {shape} and {ch_mult}")
        self.shape = torch.Size(shape)
        sizes = level_sizes(shape, len(ch_mult))
        widths = [nf * mult for mult in ch_mult]
        attends = [max(size) in attention for size in sizes]
        self.embed = ConditionEmbedding(
            nf,
            4 * nf,
            time_feature=time_feature,
            num_classes=num_classes,
            embedding=embedding,
            fourier_scale=fourier_scale,
            generator=generator,
        )
        res = partial(ResBlock, num_temb=4 * nf, dropout=dropout, generator=generator)
        self.encoder = Encoder(
            shape[0],
            nf,
            widths,
            attends,
            num_res_blocks=num_res_blocks,
            fir=fir,
            progressive=progressive_input == "residual",
            res=res,
            generator=generator,
        )
        self.middle_in = res(widths[-1], widths[-1], attention=True)
        self.middle_out = res(widths[-1], widths[-1])
        num_skips = self.encoder.num_skips
        self.decoder = Decoder(num_skips, sizes, widths, attends, num_res_blocks=num_res_blocks, fir=fir, res=res)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], shape[0], 3, scale=NEAR_ZERO, generator=generator)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape (b, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        temb = self.embed(t, y, x.dtype)
        skips = self.encoder(x, temb)
        h = self.middle_out(self.middle_in(skips[-1], temb), temb)
        h = self.decoder(h, skips, temb)
        return self.conv_out(F.silu(self.norm_out(h))).to(x.dtype)
