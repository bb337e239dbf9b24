r"""Convolutions between few channels and many, on processors.

An image has few channels, s, and a block of a flow many, l. With K (l, s, k, k), A = K as a matrix (l, s k^2), Y a feature map
as a matrix (l, positions) and U(x) the patches of x, (s k^2, positions): column p holds all x_{p+d}, 0 outside,

    widened    K x   = A U(x),            the convolution of x by K,
    narrowed   K^T y = U^*(A^T Y),        the transposed one: U^* adds patches up where they came from,

and the gradients are the same two again and U(x) G^T. A library's convolution to few channels fills a fraction of a vector
register: on one thread with 3 channels it reaches a fifth of the rate of a product of matrices, which is what A^T Y is. Adding
up s k^2 planes costs little beside it, as long as they are fewer than the l that they are made of (`pays`).

Both can be differentiated once.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["narrowed", "pays", "widened"]


def pays(kernel: tuple[int, ...], x: Tensor) -> bool:
    """Whether the functions here are faster than the library's: for images on a processor, in the precision that they have,
    with at most half as many planes of patches as there are channels.

    Args:
        kernel: Of K, (l, s, k, k).
        x: Of either side.
    """
    wide, few, *window = kernel
    many_planes = 2 * few * math.prod(window) > wide
    return len(window) == 2 and not many_planes and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def widened(x: Tensor, K: Tensor, bias: Tensor | None = None) -> Tensor:
    """K x + bias, (b, l, h, w) of x (b, s, h, w)."""
    return _Widened.apply(x, K, bias)  # pyright: ignore[reportReturnType]


def narrowed(y: Tensor, K: Tensor, bias: Tensor | None = None) -> Tensor:
    """K^T y + bias, (b, s, h, w) of y (b, l, h, w)."""
    return _Narrowed.apply(y, K, bias)  # pyright: ignore[reportReturnType]


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, K: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, K)
        return _convolution(x, K, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore
        x, K = ctx.saved_tensors
        of_x, of_K, of_bias = ctx.needs_input_grad
        return (
            _transposed(G, K, None) if of_x else None,
            _outer(G, x, K) if of_K else None,
            G.sum((0, 2, 3)) if of_bias else None,
        )


class _Narrowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, K: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, K)
        return _transposed(y, K, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore
        y, K = ctx.saved_tensors
        of_y, of_K, of_bias = ctx.needs_input_grad
        return (
            _convolution(G, K, None) if of_y else None,
            _outer(y, G, K) if of_K else None,
            G.sum((0, 2, 3)) if of_bias else None,
        )


def _convolution(x: Tensor, K: Tensor, bias: Tensor | None) -> Tensor:
    order = torch.channels_last
    x, K = x.contiguous(memory_format=order), K.contiguous(memory_format=order)
    return functional.conv2d(x, K, bias, padding=K.shape[-1] // 2)


def _transposed(y: Tensor, K: Tensor, bias: Tensor | None) -> Tensor:
    """U^*(A^T Y) + bias."""
    b, _, *sides = y.shape
    wide, few, k, _ = K.shape
    planes = (K.reshape(wide, -1).mT @ _as_matrix(y).mT).reshape(few, k, k, b, *sides)
    x = planes.new_zeros(few, b, *[n + k - 1 for n in sides])
    for i, j in product(range(k), repeat=2):
        x[:, :, i : i + sides[0], j : j + sides[1]] += planes[:, i, j]
    x = x[:, :, k // 2 : k // 2 + sides[0], k // 2 : k // 2 + sides[1]]
    return (x if bias is None else x + bias.reshape(-1, 1, 1, 1)).transpose(0, 1).contiguous()


def _outer(y: Tensor, x: Tensor, K: Tensor) -> Tensor:
    """The gradient of <y, K x>, Y U(x)^T, like K."""
    k = K.shape[-1]
    padded = functional.pad(x.transpose(0, 1), [k // 2] * 4)
    U = padded.unfold(2, k, 1).unfold(3, k, 1).permute(0, 4, 5, 1, 2, 3).reshape(K[0].numel(), -1)
    return (U @ _as_matrix(y)).mT.reshape(K.shape)


def _as_matrix(y: Tensor) -> Tensor:
    """(positions, l): no copy where the channels are last."""
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
