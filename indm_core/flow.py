r"""Normalizing flows: bijections x -> z with log|det dz/dx|.

    log p(x) = log p_z(h(x)) + log|det dh/dx|

A flow keeps the event shape of its input; composition is a fold that adds the log-dets.

References:
    Rezende and Mohamed 2015; Dinh et al. 2017 (squeeze).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["ActNorm", "Composed", "Flow", "Identity", "Squeezed"]


class Flow(nn.Module, ABC):
    """A bijection of (b, *event) with its log-determinant."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, " b *event"], generator: Noise = None
    ) -> tuple[Float[Tensor, " b *event"], Float[Tensor, " b"]]:
        """z = h(x) and log|det dz/dx| in nats; the generator drives the log-det's estimator where it has one."""

    @abstractmethod
    def inverse(self, z: Float[Tensor, " b *event"]) -> Float[Tensor, " b *event"]:
        """x = h^-1(z)."""


@final
class Identity(Flow):
    """h(x) = x: turns an INDM into the linear diffusion it generalises."""

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor) -> Tensor:
        return z


@final
class ActNorm(Flow):
    """z = exp(log_scale) x + shift, a scale and a shift per dimension; starts at the identity.

    Args:
        shape: Event of x. The parameters have the shape (c, 1, 1) of an image's channels, or the whole event.
        per_pixel: Whether every pixel has its own, instead of every channel.

    References: Kingma and Dhariwal 2018 (Glow), section 3.1.
    """

    def __init__(self, shape: Sequence[int], *, per_pixel: bool = False) -> None:
        super().__init__()
        size = tuple(shape) if per_pixel or len(shape) == 1 else (shape[0], *[1] * (len(shape) - 1))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        z = torch.exp(self.log_scale) * x + self.shift
        return z, self.log_scale.expand(x.shape).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.shift) * torch.exp(-self.log_scale)


@final
class Composed(Flow):
    """h = h_n o ... o h_1."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for flow in self.flows:
            x, term = flow(x, generator)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for flow in reversed(self.flows):
            z = flow.inverse(z)  # pyright: ignore[reportCallIssue]
        return z


@final
class Squeezed(Flow):
    """A flow of 4 c channels at half the size, applied to (b, c, h, w): squeeze, flow, un-squeeze.

    The squeeze permutes coordinates, so its log-det is 0.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(_squeeze(x), generator)
        return functional.pixel_shuffle(z, 2), log_det

    def inverse(self, z: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.flow.inverse(_squeeze(z)), 2)


def _squeeze(x: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape[-1] % 2 or x.shape[-2] % 2:
        raise ValueError(f"x: an event of shape {tuple(x.shape[1:])} cannot be squeezed; images of even sides can")
    return functional.pixel_unshuffle(x, 2)
