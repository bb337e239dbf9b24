r"""The block g of a residual flow x + g(x), and the products with its Jacobian written out.

g is a chain of n bounded layers (`lipschitz`) with an activation before each,

    h_0 = x,    h_i = W_i phi_i(h_{i-1}) + b_i,    g(x) = h_n,

and with D_i = diag phi_i'(h_{i-1}), the slopes, its Jacobian is J = W_n D_n ... W_1 D_1. Once the slopes are known,

    J v = W_n D_n ... W_1 D_1 v,        J^T w = D_1 W_1^T ... D_n W_n^T w

cost n layers each, as g does, and neither builds nor walks a graph. J v is differentiable in x and in the weights where the
slopes are: the gradient of s^T J v for a constant s is then one ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from indm_core.flow.activations import Activation, NoActivation
from indm_core.flow.lipschitz import Constraint, LipschitzLayer

__all__ = ["Chain", "ResidualBlock", "channels_last"]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """g with weights that were bounded once, for all its uses in a step.

    Args:
        activations, layers: phi_i and the layers.
        weights: W_i.
    """

    activations: Sequence[nn.Module]
    layers: Sequence[LipschitzLayer]
    weights: Sequence[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """g(x)."""
        for activation, layer, weight in zip(self.activations, self.layers, self.weights, strict=True):
            x = layer(activation(x), weight)
        return x

    def with_slopes(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """g(x) and the diagonals of D_1, ..., D_n; of activations that tell them (`ResidualBlock.explicit`)."""
        slopes: list[Tensor] = []
        for activation, layer, weight in zip(self.activations, self.layers, self.weights, strict=True):
            x, slope = activation.with_slope(x)  # pyright: ignore[reportCallIssue]
            x = layer.times(x, weight, layer.bias.to(x.dtype))
            slopes.append(slope)
        return x, slopes

    def tangent(self, v: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """J v."""
        for layer, weight, slope in zip(self.layers, self.weights, slopes, strict=True):
            v = layer.times(slope * v, weight)
        return v

    def cotangent(self, w: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """J^T w."""
        for layer, weight, slope in zip(self.layers[::-1], self.weights[::-1], slopes[::-1], strict=True):
            w = layer.transposed_times(w, weight).mul_(slope)
        return w


@final
class ResidualBlock(nn.Module):
    """g with Lip(g) <= coefficient; the block of a residual flow is x + g(x).

    An activation stands before each layer, before the first one where `first_activation` says so. `explicit` says whether all
    of them tell their slopes (`Activation`); one that does not, a module of another kind, leaves the Jacobian to autograd.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        kernels: Sequence[int],
        coefficient: float,
        constraint: Constraint,
        activation: Callable[[], nn.Module],
        first_activation: bool = True,
    ) -> None:
        super().__init__()
        sizes = [shape[0], *[width] * (len(kernels) - 1), shape[0]]
        self.layers = nn.ModuleList(
            LipschitzLayer(
                (sizes[i], *shape[1:]),
                sizes[i + 1],
                coefficient=coefficient ** (1 / len(kernels)),
                constraint=constraint,
                kernel=kernel,
                zero=i == len(kernels) - 1,
            )
            for i, kernel in enumerate(kernels)
        )
        firsts: list[nn.Module] = [activation() if first_activation else NoActivation()]
        self.activations = nn.ModuleList(firsts + [activation() for _ in kernels[1:]])
        self.explicit = all(isinstance(activation, Activation) for activation in self.activations)

    def bound(self, dtype: torch.dtype) -> Chain:
        """x -> g(x) for x of a dtype, with the weights bounded once."""
        layers: list[LipschitzLayer] = list(self.layers)  # pyright: ignore[reportAssignmentType]
        weights = [channels_last(layer.bounded_weight().to(dtype)) for layer in layers]
        return Chain(activations=list(self.activations), layers=layers, weights=weights)


def channels_last(weight: Tensor) -> Tensor:
    """A weight in the order of entries that convolutions of images keep from there on; on a CPU they, and above all their
    transposes, are faster in it (benchmarks/training_step.py). Elsewhere it has not been measured, and nothing is changed."""
    if weight.ndim != 4 or weight.device.type != "cpu":
        return weight
    return weight.clone(memory_format=torch.channels_last)  # `contiguous` would leave the strides of a single channel
