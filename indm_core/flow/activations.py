r"""Activations phi whose slope is at most 1, with that slope written out.

A residual block is a contraction only if its activations are: |phi'| <= 1 everywhere. The log-det of a block (`log_det`) needs
phi' at the same points as phi, and its gradient needs phi''. For the sine

    phi(x) = sin(2 pi x) / (2 pi),    phi'(x) = cos(2 pi x),    phi''(x) = -(2 pi)^2 phi(x),

so that whoever keeps phi and phi' needs no other evaluation, however often both are differentiated.

References:
    Chen et al. 2019, "Residual flows" (LipSwish); Lu et al. 2021, "Implicit normalizing flows" (sine).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

__all__ = ["Activation", "LipSwish", "NoActivation", "Sine"]


class Activation(nn.Module, ABC):
    """phi, applied to each entry, with |phi'| <= 1."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """phi(x)."""

    @abstractmethod
    def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x) and phi'(x), both differentiable in x and in the parameters of phi."""


@final
class NoActivation(Activation):
    """phi(x) = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.ones_like(x)


@final
class Sine(Activation):
    """sin(2 pi x) / (2 pi): 1-Lipschitz, smooth, and the identity about 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * x) / (2 * math.pi)

    def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _SineWithSlope.apply(x)  # pyright: ignore[reportReturnType]


@final
class LipSwish(Activation):
    """x sigmoid(beta x) / 1.1 with beta > 0 learned: 1-Lipschitz (Chen et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(functional.softplus(self.raw_beta) * x) / 1.1

    def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """phi' = (p + beta x p (1 - p)) / 1.1 with p = sigmoid(beta x)."""
        beta_x = functional.softplus(self.raw_beta) * x
        p = torch.sigmoid(beta_x)
        return x * p / 1.1, p * (1 + beta_x * (1 - p)) / 1.1


class _SineWithSlope(torch.autograd.Function):
    """The sine and its slope; the gradient is made of these two, no third function is evaluated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * x
        slope, phi = torch.cos(angle), angle.sin_().div_(2 * math.pi)  # in place: a new map costs as much as a sine
        ctx.save_for_backward(phi, slope)
        return phi, slope

    @staticmethod
    def backward(ctx: Any, of_phi: Tensor, of_slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        phi, slope = ctx.saved_tensors
        return (of_phi * slope).addcmul_(phi, of_slope, value=-4 * math.pi**2)
