r"""The U-Net of DDPM, for weights that others have trained: eps_hat(x, i) at the level i of a chain of discrete noise levels.

Levels k = 0 .. L-1 have C_k channels and half the sides of the one before. GN is a group norm, swish(a) = a sigmoid(a), conv_3
a 3 x 3 convolution, temb = W_2 swish(W_1 waves(i) + b_1) + b_2, [A] an attention after each block of the levels that have one:

    Res(x)  = skip(x) + conv_3(dropout(swish(GN(conv_3(swish(GN(x))) + W swish(temb) + b)))),   skip a conv_1 or the identity
    A(x)    = x + W_o softmax(Q^T K / sqrt(d)) V,      Q, K, V linear in GN(x), heads of d channels
    down    conv_3; per level n x (Res [A]); between levels conv_3 at every second pixel
    middle  Res [A] Res
    up      per level (n + 1) x (Res [A]), each with a feature map of the way down beside it; between levels repetition, conv_3
    out     GN, swish, conv_3

The network was trained on x = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps with abar_i = prod_{j <= i} (1 - beta_j). A linear
diffusion whose state is u_t = alpha x_0 + sigma eps at the time t has, up to a factor, the same law at the level of equal
log-SNR,

    log(abar_i / (1 - abar_i)) = log(alpha^2 / sigma^2),          x = u_t / sqrt(alpha^2 + sigma^2),

so that eps_hat(x, i) is its eps, whatever the diffusion. i is not a whole number then: between two levels it is linear in the
log-SNR, and beyond the first and the last it goes on as in the interval at the end.

The modules are named as the tensors of `UNet2DModel` of the library diffusers, so that its state is this network's state.

References:
    Ho, Jain, Abbeel 2020, "Denoising diffusion probabilistic models", section 4 and appendix B; Kingma et al. 2021 (the
    log-SNR is all that tells two variance-preserving diffusions apart).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.compiled import Repeated
from indm_core.nn.embedding import NEAR_ZERO, initialised
from indm_core.shapes import Float, Int

__all__ = ["BetaSchedule", "DDPMUNet", "discrete_log_snr", "level_of"]

BetaSchedule = Literal["linear", "scaled_linear"]


def discrete_log_snr(num_levels: int, beta_first: float, beta_last: float, schedule: BetaSchedule) -> Tensor:
    """log(abar_i / (1 - abar_i)) of a chain, (num_levels,), float64, decreasing.

    Args:
        num_levels: N, at least 2.
        beta_first, beta_last: beta_0 and beta_{N-1}, in (0, 1).
        schedule: beta_i, or with scaled_linear its square root, is linear in i.
    """
    if schedule not in get_args(BetaSchedule):
        raise ValueError(f"schedule={schedule!r} is none of {', '.join(get_args(BetaSchedule))}")
    if num_levels < 2 or not 0 < beta_first <= beta_last < 1:
        raise ValueError(
            f"num_levels={num_levels} must be at least 2, beta_first={beta_first} and beta_last={beta_last} in (0, 1) and rise"
        )
    power = 2 if schedule == "scaled_linear" else 1
    beta = torch.linspace(beta_first ** (1 / power), beta_last ** (1 / power), num_levels, dtype=torch.float64) ** power
    log_abar = torch.log1p(-beta).cumsum(0)
    return log_abar - torch.log(-torch.expm1(log_abar))


def level_of(log_snr: Float[Tensor, " n"], table: Float[Tensor, " levels"]) -> Float[Tensor, " n"]:
    """The level i, fractional, at which a decreasing table has a log-SNR; beyond its ends as in the interval there."""
    below = torch.searchsorted(-table, -log_snr) - 1
    i = below.clamp(0, len(table) - 2)
    return i + (table[i] - log_snr) / (table[i] - table[i + 1])


class Waves(nn.Module):
    """i -> (sin w_k i, cos w_k i), w_k = 10000^(-k / (n/2 - shift)); the cosines first where `cosine_first`."""

    def __init__(self, num_features: int, *, cosine_first: bool, shift: int) -> None:
        super().__init__()
        self.num_waves, self.cosine_first, self.shift = num_features // 2, cosine_first, shift

    def forward(self, i: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        k = torch.arange(self.num_waves, dtype=i.dtype, device=i.device)
        phase = i[:, None] * 10000.0 ** (-k / (self.num_waves - self.shift))
        waves = (phase.cos(), phase.sin()) if self.cosine_first else (phase.sin(), phase.cos())
        return torch.cat(waves, dim=-1)


class Embedding(nn.Module):
    """waves -> temb."""

    def __init__(self, num_in: int, num_out: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.linear_1 = initialised(nn.Linear(num_in, num_out), generator=generator)
        self.linear_2 = initialised(nn.Linear(num_out, num_out), generator=generator)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class Res(Repeated):
    """Res of the module docstring."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        num_temb: int,
        dropout: float,
        norm: Callable[[int], nn.GroupNorm],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.norm1 = norm(num_in)
        self.conv1 = initialised(nn.Conv2d(num_in, num_out, 3, padding=1), generator=generator)
        self.time_emb_proj = initialised(nn.Linear(num_temb, num_out), generator=generator)
        self.norm2 = norm(num_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = initialised(nn.Conv2d(num_out, num_out, 3, padding=1), scale=NEAR_ZERO, generator=generator)
        self.conv_shortcut = (
            nn.Identity() if num_in == num_out else initialised(nn.Conv2d(num_in, num_out, 1), generator=generator)
        )

    def forward(self, x: Float[Tensor, "b c h w"], temb: Float[Tensor, "b temb"]) -> Float[Tensor, "b c2 h w"]:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(temb))[..., None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """A of the module docstring."""

    def __init__(
        self,
        num_channels: int,
        *,
        head_dim: int,
        norm: Callable[[int], nn.GroupNorm],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if num_channels % (head_dim or num_channels):
            raise ValueError(
                f"head_dim={head_dim} does not divide the {num_channels} channels of a level with attention"
            )
        self.heads = num_channels // (head_dim or num_channels)
        linear = partial(nn.Linear, num_channels, num_channels)
        self.group_norm = norm(num_channels)
        self.to_q, self.to_k, self.to_v = (initialised(linear(), generator=generator) for _ in range(3))
        self.to_out = nn.Sequential(initialised(linear(), scale=NEAR_ZERO, generator=generator))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            to(pixels).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out(h).transpose(1, 2).reshape(x.shape)


class Halve(nn.Module):
    """conv_3 at every second pixel; zeros on both sides of the image, or, with padding 0, behind it alone."""

    def __init__(self, num_channels: int, *, padding: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.border = (1, 1, 1, 1) if padding else (0, 1, 0, 1)
        self.conv = initialised(nn.Conv2d(num_channels, num_channels, 3, stride=2), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.border))


class Double(nn.Module):
    """Every pixel four times, then conv_3."""

    def __init__(self, num_channels: int, *, generator: torch.Generator | None) -> None:
        super().__init__()
        self.conv = initialised(nn.Conv2d(num_channels, num_channels, 3, padding=1), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Blocks of one size of the image, with or without attention, and what changes the size after them.

    Args:
        way: On the way down every feature map is kept beside, on the way up each block takes the last that was kept.
    """

    def __init__(
        self, way: Literal["down", "middle", "up"], resnets: Sequence[Res], attentions: Sequence[Attention]
    ) -> None:
        super().__init__()
        self.way = way
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def forward(self, h: Tensor, temb: Float[Tensor, "b temb"], kept: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(torch.cat([h, kept.pop()], dim=1) if self.way == "up" else h, temb)
            h = self.attentions[i](h) if i < len(self.attentions) else h
            if self.way == "down":
                kept.append(h)
        for resample in (*self.downsamplers, *self.upsamplers):
            h = resample(h)
            if self.way == "down":
                kept.append(h)
        return h


@final
class DDPMUNet(nn.Module):
    """A backbone for images, of the architecture and the tensor names of `UNet2DModel`; fresh, it begins at ~ 0.

    Args:
        shape: (c, h, w) of x and of the output; h and w multiples of 2^(L - 1).
        level: i as a function of t (b,), in float64; see `level_of`.
        scale: sqrt(alpha^2 + sigma^2) as a function of t (b,).
        channels: C_k, multiples of `groups`.
        num_res_blocks: n.
        attention_down, attention_up: Levels k, from the finest, with attention on the way down and on the way up.
        attention_middle: Whether there is one in the middle.
        head_dim: d; 0 for one head.
        groups: Of the group norms.
        eps: Of the group norms.
        padding: Where zeros lie at a halving: 1 around the image, 0 behind it.
        cosine_first, shift: Of the waves.
        dropout: In the blocks.
        num_temb: Length of temb; 0 takes 4 C_0.
        generator: Of the initial weights.

    Raises:
        ValueError: an argument out of range; `forward`: x of another shape, or labels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        level: Callable[[Tensor], Tensor],
        scale: Callable[[Tensor], Tensor],
        channels: Sequence[int] = (128, 256, 256, 256),
        num_res_blocks: int = 2,
        attention_down: Sequence[int] = (1,),
        attention_up: Sequence[int] = (1,),
        attention_middle: bool = True,
        head_dim: int = 0,
        groups: int = 32,
        eps: float = 1e-6,
        padding: int = 0,
        cosine_first: bool = False,
        shift: int = 1,
        dropout: float = 0.0,
        num_temb: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(shape, channels, groups, num_res_blocks, padding)
        self.shape, self.level, self.scale = torch.Size(shape), level, scale
        num_temb = num_temb or 4 * channels[0]
        norm = partial(_group_norm, groups, eps)
        res = partial(Res, num_temb=num_temb, dropout=dropout, norm=norm, generator=generator)
        attend = partial(Attention, head_dim=head_dim, norm=norm, generator=generator)
        self.waves = Waves(channels[0], cosine_first=cosine_first, shift=shift)
        self.time_embedding = Embedding(channels[0], num_temb, generator)
        self.conv_in = initialised(nn.Conv2d(shape[0], channels[0], 3, padding=1), generator=generator)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [channels[0]]
        for k, width in enumerate(channels):
            widths = [channels[max(k - 1, 0)], *[width] * num_res_blocks]
            attentions = [attend(width) for _ in range(num_res_blocks) if k in attention_down]
            blocks = Level("down", [res(a, b) for a, b in pairwise(widths)], attentions)
            skips += widths[1:]
            if k + 1 < len(channels):
                blocks.downsamplers.append(Halve(width, padding=padding, generator=generator))
                skips.append(width)
            self.down_blocks.append(blocks)
        deepest = channels[-1]
        self.mid_block = Level(
            "middle", [res(deepest, deepest), res(deepest, deepest)], [attend(deepest)] if attention_middle else []
        )
        c = deepest
        for k in reversed(range(len(channels))):
            resnets = [res(c + skips.pop(), channels[k])]
            resnets += [res(channels[k] + skips.pop(), channels[k]) for _ in range(num_res_blocks)]
            attentions = [attend(channels[k]) for _ in resnets if k in attention_up]
            blocks, c = Level("up", resnets, attentions), channels[k]
            if k:
                blocks.upsamplers.append(Double(c, generator=generator))
            self.up_blocks.append(blocks)
        self.conv_norm_out = norm(channels[0])
        self.conv_out = initialised(
            nn.Conv2d(channels[0], shape[0], 3, padding=1), scale=NEAR_ZERO, generator=generator
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape (b, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if y is not None:
            raise ValueError("y: this network knows no labels; give none")
        t = t.double()
        temb = self.time_embedding(self.waves(self.level(t)).to(x.dtype))
        h = self.conv_in(x / self.scale(t).to(x.dtype).reshape(-1, 1, 1, 1))
        kept = [h]
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            h = level(h, temb, kept)
        return self.conv_out(F.silu(self.conv_norm_out(h))).to(x.dtype)


def _group_norm(groups: int, eps: float, num_channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, num_channels, eps=eps)


def _check(shape: Sequence[int], channels: Sequence[int], groups: int, num_res_blocks: int, padding: int) -> None:
    if not channels or num_res_blocks < 1 or groups < 1 or any(c < 4 or c % groups for c in channels):
        raise ValueError(
            f"channels={tuple(channels)} must be multiples of groups={groups}, num_res_blocks={num_res_blocks} positive"
        )
    multiple = 2 ** (len(channels) - 1)
    if len(shape) != 3 or any(side < 1 or side % multiple for side in shape[1:]):
        raise ValueError(
            f"shape={tuple(shape)}: {len(channels)} levels need images (c, h, w) with sides that are multiples of {multiple}"
        )
    if padding not in (0, 1):
        raise ValueError(f"padding={padding} must be 0 or 1")
