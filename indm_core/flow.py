r"""Normalizing flows: bijections x -> z with log|det dz/dx|.

    log p(x) = log p_z(h(x)) + log|det dh/dx|

A flow keeps the event shape of its input; composition is a fold that adds the log-dets.

References:
    Rezende and Mohamed 2015; Dinh et al. 2017 (squeeze); Kingma and Dhariwal 2018 (actnorm).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["ActNorm", "Composed", "Flow", "Identity", "Squeezed", "estimate_log_det"]


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
        data_init: Whether the first forward pass in training sets them, once and for all ranks together, so that z has mean 0
            and standard deviation 1 over its rows on all ranks (the first micro-batch, where a batch has several). The state
            dict then says that it has happened. A standard deviation below `min_std` is taken for `min_std`.
        min_std: Bounds the scale of dimensions that are (nearly) constant, > 0.

    References: Kingma and Dhariwal 2018 (Glow), section 3.1.
    """

    initialised: Tensor | None

    def __init__(
        self, shape: Sequence[int], *, per_pixel: bool = False, data_init: bool = False, min_std: float = 1e-3
    ) -> None:
        super().__init__()
        if min_std <= 0:
            raise ValueError(f"min_std={min_std} must be positive, or a constant dimension has an infinite scale")
        self.min_std = min_std
        size = tuple(shape) if per_pixel or len(shape) == 1 else (shape[0], *[1] * (len(shape) - 1))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))
        self.register_buffer("initialised", torch.tensor(False) if data_init else None)
        self._seen = -1

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        """Raises: ValueError: a first batch for `data_init` that is empty or not finite."""
        if self.training and self.initialised is not None and self._seen != self.initialised._version:
            if not self.initialised:  # waits for the device, so that it is asked once after each write
                self._initialise(x, self.initialised)
            self._seen = self.initialised._version
        z = torch.exp(self.log_scale) * x + self.shift
        return z, self.log_scale.expand(x.shape).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.shift) * torch.exp(-self.log_scale)

    @torch.no_grad()
    def _initialise(self, x: Tensor, initialised: Tensor) -> None:
        """Scale and shift from the moments of the batches of all ranks."""
        axes = [0, *(axis for axis in range(1, x.ndim) if self.shift.shape[axis - 1] == 1)]
        total, square = (power.sum(axes, keepdim=True)[0] for power in (x.double(), x.double().square()))
        moments = torch.stack([total, square, torch.full_like(total, x.numel() / self.shift.numel())])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
        total, square, count = moments
        mean = total / count
        std = (square / count - mean.square()).clamp(min=0).sqrt()
        if not (mean.isfinite() & std.isfinite()).all():
            raise ValueError(
                f"x: the first training batch {tuple(x.shape)} is empty or not finite, and data_init=True takes the scale and "
                "the shift from it; look at the data, or start at the identity (data_init=False)"
            )
        scale = std.clamp(min=self.min_std).reciprocal()
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-mean * scale)
        initialised.fill_(True)


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


@torch.no_grad()
def estimate_log_det(
    flow: Flow, x: Float[Tensor, " b *event"], *, num_draws: int, generator: Noise = None
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The mean of independent draws of a flow's log_det at x, and its standard error, in nats.

    Unbiased where the flow's own log_det is (`ResFlow`: always in value); where that is exact the error is 0. Every draw is a
    forward pass of its own, because the samples of one pass share the lengths of their series.

    Args:
        flow: In evaluation mode for evaluation's estimator.
        num_draws: Draws, at least 2.

    Raises:
        ValueError: fewer than two draws.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws={num_draws} must be at least 2 for a standard error")
    draws = torch.stack([flow(x, generator)[1] for _ in range(num_draws)])
    return draws.mean(0), draws.std(0) / num_draws**0.5
