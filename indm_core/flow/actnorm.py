r"""ActNorm: z = exp(a) x + b, a learned scale and shift; log_det = sum a.

References:
    Kingma and Dhariwal 2018, "Glow", section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from indm_core.flow.base import Flow
from indm_core.noise import Noise
from indm_core.ranges import check_positive

__all__ = ["ActNorm"]


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
        check_positive(min_std=min_std)
        self.min_std, self.size_free = min_std, not per_pixel and len(shape) > 1
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
