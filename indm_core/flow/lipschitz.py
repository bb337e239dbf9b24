r"""Layers and activations whose Lipschitz constant is bounded.

With coefficient c < 1 for a network g as a whole (c^{1/layers} per layer), a weight W becomes W min(1, c/|W|) with |W| the
spectral norm (power iteration; for a convolution that of the operator on the image) or the infinity norm (the largest absolute
row sum, in closed form: each row is scaled by its own sum). Either makes g a contraction in that norm, if its activations are
1-Lipschitz.

References:
    Behrmann et al. 2019, "Invertible residual networks" (spectral norm); Chen et al. 2019, "Residual flows" (LipSwish);
    Lu et al. 2021, "Implicit normalizing flows" (sine).
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

__all__ = ["Constraint", "LipSwish", "LipschitzLayer", "Sine"]

Constraint = Literal["spectral", "infinity"]


@final
class Sine(nn.Module):
    """sin(2 pi x) / (2 pi): 1-Lipschitz, smooth, and the identity about 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * x) / (2 * math.pi)


@final
class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1 with beta > 0 learned: 1-Lipschitz (Chen et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(functional.softplus(self.raw_beta) * x) / 1.1


@final
class LipschitzLayer(nn.Module):
    """A linear map or a convolution (stride 1, zero padding) whose operator norm is at most `coefficient`.

    Args:
        shape: Input event: (d,) for a linear map, (c, h, w) for a convolution.
        num_out: Output dimensions or channels.
        coefficient: Upper bound of the norm, in (0, 1].
        constraint: Norm that is bounded.
        kernel: Odd side of the convolution's kernel.
        zero: Whether the weight starts at 0.
    """

    left: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        num_out: int,
        *,
        coefficient: float,
        constraint: Constraint = "spectral",
        kernel: int = 1,
        zero: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < coefficient <= 1:
            raise ValueError(f"coefficient={coefficient} must lie in (0, 1]")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd")
        if constraint not in ("spectral", "infinity"):
            raise ValueError(f"constraint={constraint!r} is neither 'spectral' nor 'infinity'")
        self.is_conv, self.padding = len(shape) == 3, kernel // 2
        self.coefficient, self.constraint = coefficient, constraint
        weight = torch.empty(num_out, shape[0], *((kernel, kernel) if self.is_conv else ()))
        nn.init.zeros_(weight) if zero else nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_out))
        left = torch.randn(1, num_out, *shape[1:], generator=torch.Generator().manual_seed(num_out))
        self.register_buffer("left", left / left.norm())
        self._kept: tuple[tuple[int, int, bool], Tensor, Tensor] | None = None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The map in x's dtype with a weight from `bounded_weight`, which is computed once for all uses in a step."""
        return self._map(x, weight, self.bias.to(x.dtype))

    def bounded_weight(self) -> Tensor:
        """W min(1, c/|W|), with its gradient.

        The power iteration runs once for each new W: a single iteration in training, which the micro-batches of an optimiser
        step thus share; to convergence in evaluation.
        """
        if self.constraint == "infinity":
            norm = self.weight.abs().flatten(1).sum(1).reshape(-1, *[1] * (self.weight.ndim - 1))
        else:
            with torch.autocast(self.weight.device.type, enabled=False):  # bfloat16 would move the norm by 0.4 %
                left, right = self._singular_vectors()
                norm = (left * self._map(right, self.weight, None)).sum()  # vectors held: with the norm's gradient
        return self.weight * (self.coefficient / norm.clamp(min=1e-12)).clamp(max=1.0)

    @torch.no_grad()
    def _singular_vectors(self) -> tuple[Tensor, Tensor]:
        """The vectors (left, right) of the largest singular value of the present W, kept until W or the mode changes."""
        key = (self.weight.data_ptr(), self.weight._version, self.training)
        if self._kept is None or self._kept[0] != key:
            left, right = self._half_steps(self.left) if self.training else self._converged(self.left)
            usable = left.isfinite().all() & (left.abs().sum() > 0)
            self.left.copy_(torch.where(usable, left, self.left))
            self._kept = (key, left, right)
        return self._kept[1], self._kept[2]

    def _half_steps(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """One power iteration; it does not wait for the device."""
        right = _unit(self._transposed(left))
        return _unit(self._map(right, self.weight, None)), right

    def _converged(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Power iterations until the norm rests."""
        last = math.inf
        for _ in range(10_000):
            mapped = self._map(_unit(self._transposed(left)), self.weight, None)
            left, norm = _unit(mapped), float(mapped.norm())
            if abs(norm - last) <= 2 * torch.finfo(mapped.dtype).eps * norm:
                break
            last = norm
        return left, _unit(self._transposed(left))

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_conv:
            return functional.conv2d(x, weight, bias, padding=self.padding)
        return functional.linear(x, weight, bias)

    def _transposed(self, y: Tensor) -> Tensor:
        if self.is_conv:
            return functional.conv_transpose2d(y, self.weight, padding=self.padding)
        return y @ self.weight


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-12)
