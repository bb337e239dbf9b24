r"""Layers whose Lipschitz constant is bounded.

With coefficient c < 1 for a network g as a whole (c^{1/layers} per layer), a weight W becomes W min(1, c/|W|) with |W| the
spectral norm (for a convolution that of the operator on the image) or the infinity norm (the largest absolute row sum, in
closed form: each row is scaled by its own sum). Either makes g a contraction in that norm, if its activations are 1-Lipschitz.

**Which images.** The infinity norm bounds a convolution on images of every size. The spectral norm is that on images of one
size, `shape`; on larger images it is larger. The constraint "torus" bounds the spectral norms of all sizes at once, too high by
1 % at most (`torus`). A kernel of one point has the same spectral norm at every size.

**Spectral norm.** A layer keeps k approximate singular vectors. For each new W they and a random vector that never changes are
improved in a block Krylov space of p powers (`spectral_norm`). One tracked vector is not enough: when another singular value
overtakes its own, a power iteration rests on the old one. What comes near is in the block before it overtakes, and the random
vector holds a part of everything else. p is 8 in training, where W moves little from step to step; in evaluation the search
is repeated until the residual |A v - theta^2 v| of the largest value theta^2 has gone. Both are one map, up to what 8 powers
leave.

**Gradient.** Either norm is <W, P> with a form P that is held: P is its gradient.

References:
    Behrmann et al. 2019, "Invertible residual networks" (spectral norm).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, final, get_args

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.flow.few_channels import narrowed, pays, widened
from indm_core.flow.spectral_norm import Maps
from indm_core.flow.torus import steepest_form

__all__ = ["Constraint", "LipschitzLayer", "look_for_norms"]

Constraint = Literal["spectral", "torus", "infinity"]
"""The norm that is bounded: the spectral norm at one size, the spectral norm at every size, the infinity norm at every size."""

TRACKED = 2
POWERS = {True: 8, False: 24}
"""p in training and in evaluation."""
MOST_ROUNDS = 100


@final
class LipschitzLayer(nn.Module):
    """A linear map or a convolution (stride 1, zero padding) whose operator norm is at most `coefficient`.

    Args:
        shape: Input event: (d,) for a linear map, (c, l) or (c, h, w) for a convolution.
        num_out: Output dimensions or channels.
        coefficient: Upper bound of the norm, in (0, 1].
        constraint: Norm that is bounded (`Constraint`).
        kernel: Odd side of the convolution's kernel.
        zero: Whether the weight starts at 0.
    """

    vectors: Tensor
    fresh: Tensor

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
        if constraint not in get_args(Constraint):
            raise ValueError(f"constraint={constraint!r} is none of {', '.join(map(repr, get_args(Constraint)))}")
        self.num_axes = len(shape) - 1
        self.padding = kernel // 2 if self.num_axes else 0
        self.coefficient, self.constraint = coefficient, constraint
        weight = torch.empty(num_out, shape[0], *[kernel] * self.num_axes)
        nn.init.zeros_(weight) if zero else nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_out))
        event = shape[1:] if kernel > 1 else ()  # a convolution of kernel 1 has the norm of its matrix
        sides = (shape[0], *event), (num_out, *event)
        self.from_input = math.prod(sides[0]) <= math.prod(sides[1])
        self.on_torus = constraint == "torus" and self.padding > 0
        num = 0 if constraint == "infinity" or self.on_torus else TRACKED
        side = sides[0] if self.from_input else sides[1]
        start = torch.randn(2 * num, *side, generator=torch.Generator().manual_seed(num_out))
        self.register_buffer("vectors", _units(start[:num]))
        self.register_buffer("fresh", _units(start[num : num + 1]), persistent=False)
        self.kernel = tuple(self.narrow(weight).shape)
        self.found: tuple[int, int, bool] | None = None  # the W that `form` is of
        self.form = weight.new_zeros(())  # P: |W| = <W, P>, and P is its gradient

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The map in x's dtype with a weight from `bounded_weight`, which is computed once for all uses in a step."""
        bias = self.bias.to(x.dtype)
        return self._map(x, weight, bias) if torch.is_grad_enabled() else self.times(x, weight, bias)

    def times(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x, and the shift where it is given; it can be differentiated once."""
        if not pays(self.kernel, x):
            return self._map(x, weight, bias)
        return (widened if self.from_input else narrowed)(x, self.narrow(weight), bias)

    def transposed_times(self, y: Tensor, weight: Tensor) -> Tensor:
        """W^T y; a convolution of stride 1 keeps the sides, and so does its transpose. It can be differentiated once."""
        if pays(self.kernel, y):
            return (narrowed if self.from_input else widened)(y, self.narrow(weight))
        if not self.num_axes:
            return functional.linear(y, weight.mT)
        transposed = functional.conv_transpose1d if self.num_axes == 1 else functional.conv_transpose2d
        return transposed(y, weight, padding=self.padding)

    def bounded_weight(self) -> Tensor:
        """W min(1, c/|W|), with its gradient.

        The norm is looked for once for each new W, so that the micro-batches of an optimiser step share it.
        """
        if self.constraint == "infinity":
            norm = self.weight.abs().flatten(1).sum(1).reshape(-1, *[1] * (self.weight.ndim - 1))
        else:
            look_for_norms([self])
            norm = (self.weight * self.form).sum()
        return self.weight * (self.coefficient / norm.clamp(min=1e-12)).clamp(max=1.0)

    @property
    def present(self) -> tuple[int, int, bool]:
        """Tells one W from the next, and where they differ the norm of training from that of evaluation."""
        return self.weight.data_ptr(), self.weight._version, self.training or self.on_torus

    def narrow(self, weight: Tensor) -> Tensor:
        """K of W, seen from the side with fewer dimensions (`spectral_norm`), and W of K; without the axes of a kernel of 1."""
        weight = weight if self.padding else weight.flatten(1)
        return weight if self.from_input else weight.transpose(0, 1).flip(tuple(range(2, weight.ndim)))

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.num_axes:
            return functional.linear(x, weight, bias)
        convolution = functional.conv1d if self.num_axes == 1 else functional.conv2d
        return convolution(x, weight, bias, padding=self.padding)

    def of_today(self, state: dict[str, Tensor], prefix: str) -> None:
        """Brings the state of a layer that tracked one vector, `left`, up to date; the norm of its weight is found anew."""
        if state.pop(f"{prefix}left", None) is not None:
            state[f"{prefix}vectors"] = self.vectors


def look_for_norms(layers: Iterable[LipschitzLayer]) -> None:
    """Finds the norms of the layers whose weights are new, those of one shape together: a step of a flow takes a few searches
    of many layers, not many of one."""
    alike: dict[tuple[Any, ...], list[LipschitzLayer]] = {}
    for layer in layers:
        if layer.constraint != "infinity" and layer.found != layer.present:
            place = layer.weight.dtype, layer.weight.device
            alike.setdefault((layer.kernel, layer.fresh.shape, layer.training, *place), []).append(layer)
    for (*_, device), group in alike.items():
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # bfloat16 would move a norm by 0.4 %
            forms = [steepest_form(layer.weight) for layer in group] if group[0].on_torus else _searched(group)
        for layer, form in zip(group, forms, strict=True):
            layer.form, layer.found = form, layer.present


def _searched(layers: Sequence[LipschitzLayer]) -> list[Tensor]:
    """P of layers of one kind, whose vectors are moved to the largest singular values of their present weights."""
    training = layers[0].training
    before, fresh = torch.stack([layer.vectors for layer in layers]), torch.stack([layer.fresh for layer in layers])
    maps = Maps(torch.stack([layer.narrow(layer.weight) for layer in layers]), fresh.shape[2:])
    vectors, rest = maps.search(before, fresh, POWERS[training])
    for _ in range(0 if training else MOST_ROUNDS):  # in training it does not wait for the device
        if not (rest > torch.finfo(rest.dtype).eps ** 0.75).any():
            break
        vectors, rest = maps.search(vectors, fresh, POWERS[training])
    forms = maps.steepest(vectors[:, 0])
    usable = vectors.flatten(1).isfinite().all(1) & (vectors.flatten(1).abs().sum(1) > 0)
    kept = torch.where(usable.reshape(-1, *[1] * (vectors.ndim - 1)), vectors, before)
    torch._foreach_copy_([layer.vectors for layer in layers], list(kept))
    return [layer.narrow(form).reshape(layer.weight.shape) for layer, form in zip(layers, forms, strict=True)]


def _units(x: Tensor) -> Tensor:
    """Each row with norm 1."""
    return x / x.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (x.ndim - 1))
