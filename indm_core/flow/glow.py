r"""Glow: a multi-scale flow of actnorms, invertible 1x1 convolutions and affine couplings, with closed log-dets.

One level squeezes the image (2 x 2 pixels to channels), takes K steps

    actnorm     z = exp(a) x + b                                            per channel
    1x1 conv    z = W x at every position,  W = P L (U + diag(s e^l))       log_det = (positions) sum l
    coupling    z_a = x_a,  z_b = e^{c(x_a)} (x_b + d(x_a))                 log_det = sum c

and hands one half of the channels to the next level, which sees an image of half the side. The other half leaves, standardised
by a mean and a scale that depend on the half that stays: what Glow writes as a conditional Gaussian prior is here one more
coupling, so that the base law of every coordinate is N(0, 1). The halves are put together and un-squeezed at the end: z has the
shape of x. A temperature T is a base law N(0, T^2).

All of these are bijections of images of every size that the squeezes divide: the coupling's networks are convolutions, and the
rest is the same at every position.

A vector takes one level without a squeeze, an MLP in place of the convolutions of a coupling.

References:
    Dinh, Sohl-Dickstein, Bengio 2017 (coupling, squeeze, multi-scale); Kingma and Dhariwal 2018, "Glow", Table 1 and
    section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from indm_core.flow.actnorm import ActNorm
from indm_core.flow.base import Flow, check_event
from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["AffineCoupling", "Glow", "InvertibleConv"]

MAX_LOG_SCALE = 2.0
"""Bound of |c| in a coupling: a step then loses at most a digit when it is inverted."""


@final
class InvertibleConv(Flow):
    """z = W x over the channels (or the coordinates of a vector), W held by its LU decomposition.

    Args:
        num_channels: Side of W.
        rotation: Whether W starts as a random rotation, else as the identity.

    References: Kingma and Dhariwal 2018, section 3.2 and Eq. 10.
    """

    size_free = True
    permutation: Tensor
    sign: Tensor

    def __init__(self, num_channels: int, *, rotation: bool = True) -> None:
        super().__init__()
        W = torch.eye(num_channels, dtype=torch.float64)
        if rotation:
            W = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64)).Q
        P, L, U = torch.linalg.lu(W)
        diagonal = U.diagonal()
        self.register_buffer("permutation", P.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(L.tril(-1).float())
        self.upper = nn.Parameter(U.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())

    def weight(self) -> Float[Tensor, "c c"]:
        """W."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ (self.lower.tril(-1) + eye) @ upper

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would not be inverted
            z = _mixed(self.weight(), x)
            log_det = math.prod(x.shape[2:]) * self.log_diagonal.sum()
        return z, log_det.to(x.dtype).expand(x.shape[0])

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return _mixed(torch.linalg.inv(self.weight().double()), z)


def _mixed(W: Tensor, x: Tensor) -> Tensor:
    """W x over the first axis of the event."""
    return (W.to(x.dtype) @ x.reshape(*x.shape[:2], -1)).reshape(x.shape)


@final
class AffineCoupling(Flow):
    """One half of the channels is scaled and shifted by functions of the other; starts at the identity.

    Args:
        shape: Event, (c, h, w) or (d,), at least two channels or coordinates.
        hidden: Channels or units of the network's two hidden layers; 0 makes it one linear layer.
        flip: Whether the first half is transformed, instead of the second.
    """

    def __init__(self, shape: Sequence[int], *, hidden: int, flip: bool = False) -> None:
        super().__init__()
        if shape[0] < 2:
            raise ValueError(f"shape={tuple(shape)}: a coupling needs at least two channels or coordinates")
        self.flip, self.sizes = flip, (shape[0] // 2, shape[0] - shape[0] // 2)
        self.size_free = len(shape) == 3
        num_in, num_out = self.sizes[flip], 2 * self.sizes[not flip]
        last = _layer(hidden or num_in, num_out, 3, images=len(shape) == 3)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        layers: list[nn.Module] = [last]
        if hidden:
            first, middle = (_layer(n, hidden, k, images=len(shape) == 3) for n, k in ((num_in, 3), (hidden, 1)))
            layers = [first, nn.ReLU(), middle, nn.ReLU(), last]
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        given, changed = self._halves(x)
        log_scale, shift = self._scale_and_shift(given)
        return self._joined(given, log_scale.exp() * (changed + shift)), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        given, changed = self._halves(z)
        log_scale, shift = self._scale_and_shift(given)
        return self._joined(given, torch.exp(-log_scale) * changed - shift)

    def _scale_and_shift(self, given: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(given).to(given.dtype).chunk(2, dim=1)
        return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE), shift

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half that stays and the half that is transformed."""
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.flip else (first, second)

    def _joined(self, given: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, given) if self.flip else (given, changed), dim=1)


def _layer(num_in: int, num_out: int, kernel: int, *, images: bool) -> nn.Conv2d | nn.Linear:
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2) if images else nn.Linear(num_in, num_out)


@final
class Glow(Flow):
    """L levels of K steps each.

    Args:
        shape: Event, (c, h, w) with sides divisible by 2^levels, or (d,) with d >= 2 and one level.
        levels: L.
        steps: K.
        hidden: Channels or units of a coupling's network.
        start: 'data': random rotations, and actnorms set by the first training batch, as published; 'identity': h(x) = x.

    Raises:
        ValueError: an argument out of range; a side that 2^levels does not divide names the largest number of levels that fits.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int = 3,
        steps: int = 16,
        hidden: int = 256,
        start: Literal["data", "identity"] = "data",
    ) -> None:
        super().__init__()
        for name, value in (("levels", levels), ("steps", steps), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.shape, self.images = tuple(shape), len(shape) == 3
        self.size_free = self.images
        if not self.images and levels > 1:
            raise ValueError(f"levels={levels}: a vector {self.shape} takes one level")
        for side in self.shape[1:]:
            if side % 2**levels:
                fits = min(_powers_of_two(side) for side in self.shape[1:])
                most = f"at most {fits} fit" if fits else "Glow squeezes images of even sides only"
                raise ValueError(f"levels={levels}: 2^{levels} does not divide the side {side} of {self.shape}; {most}")
        self.levels, self.splits = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            if self.images:
                shape = (4 * shape[0], *[side // 2 for side in shape[1:]])
            self.levels.append(nn.ModuleList(f for k in range(steps) for f in _step(shape, hidden, k, start)))
            if level + 1 < levels:
                self.splits.append(AffineCoupling(shape, hidden=0))
                shape = (shape[0] // 2, *shape[1:])
        self.top = ActNorm(shape)

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.shape, size_free=self.size_free, fold=2 ** len(self.levels))
        log_det, left = x.new_zeros(x.shape[0]), []
        for level, steps in enumerate(self.levels):
            x = self._squeeze(x)
            for flow in steps:  # pyright: ignore[reportGeneralTypeIssues]
                x, term = flow(x, generator)
                log_det = log_det + term
            if level < len(self.splits):
                x, term = self.splits[level](x, generator)
                log_det = log_det + term
                x, out = x.chunk(2, dim=1)
                left.append(out)
        x, term = self.top(x)
        x = self._unsqueeze(x)
        for out in reversed(left):
            x = self._unsqueeze(torch.cat((x, out), dim=1))
        return x, log_det + term

    def inverse(self, z: Tensor) -> Tensor:
        check_event(z, self.shape, size_free=self.size_free, fold=2 ** len(self.levels))
        left = []
        for _ in self.splits:
            z, out = self._squeeze(z).chunk(2, dim=1)
            left.append(out)
        z = self.top.inverse(self._squeeze(z))
        for level in reversed(range(len(self.levels))):
            if level < len(self.splits):
                z = self.splits[level].inverse(torch.cat((z, left[level]), dim=1))  # pyright: ignore[reportCallIssue]
            for flow in list(self.levels[level])[::-1]:  # pyright: ignore[reportArgumentType]
                z = flow.inverse(z)
            z = self._unsqueeze(z)
        return z

    def _squeeze(self, x: Tensor) -> Tensor:
        return functional.pixel_unshuffle(x, 2) if self.images else x

    def _unsqueeze(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(x, 2) if self.images else x


def _step(shape: Sequence[int], hidden: int, k: int, start: str) -> tuple[Flow, Flow, Flow]:
    """Step k of a level; the transformed half alternates, so that a start at the identity reaches every coordinate."""
    return (
        ActNorm(shape, data_init=start == "data"),
        InvertibleConv(shape[0], rotation=start == "data"),
        AffineCoupling(shape, hidden=hidden, flip=k % 2 == 1),
    )


def _powers_of_two(side: int) -> int:
    """The largest L with 2^L dividing the side."""
    return (side & -side).bit_length() - 1
