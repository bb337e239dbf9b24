r"""Layers whose Lipschitz constant is bounded.

With coefficient c < 1 for a network g as a whole (c^{1/layers} per layer), a weight W becomes W min(1, c/|W|) with |W| the
spectral norm (for a convolution that of the operator on the image) or the infinity norm (the largest absolute row sum, in
closed form: each row is scaled by its own sum). Either makes g a contraction in that norm, if its activations are 1-Lipschitz.

**Which images.** The infinity norm bounds a convolution on images of every size. The spectral norm is that on images of one
size, `shape`; on larger images it is larger. The constraint "torus" bounds the spectral norms of all sizes at once, too high by
1 % at most (`torus`). A kernel of one point has the same spectral norm at every size.

**Spectral norm.** On the side of W, input or output, that has fewer dimensions, a layer keeps k approximate singular vectors V.
For each new W they and a random vector that never changes are improved in the block Krylov space

    span{V, A V, ..., A^p V},    A = W^T W  (W W^T on the output's side),

in which Rayleigh-Ritz gives the largest singular values. One tracked vector is not enough: when another singular value
overtakes its own, a power iteration rests on the old one. What comes near is in the block before it overtakes, and the random
vector holds a part of everything else. p is 8 in training, where W moves little from step to step; in evaluation the iteration
is repeated until the residual |A v - theta^2 v| of the largest value theta^2 has gone. Both are one map, up to what 8 powers
leave.

References:
    Behrmann et al. 2019, "Invertible residual networks" (spectral norm); Musco and Musco 2015, "Randomized block Krylov methods
    for stronger and faster approximate singular value decomposition", Algorithm 2.
"""

from __future__ import annotations

import math
from typing import Literal, final, get_args

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.flow.torus import steepest_form

__all__ = ["Constraint", "LipschitzLayer"]

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
        self._kept: tuple[tuple[int, int, bool], tuple[Tensor, ...]] | None = None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The map in x's dtype with a weight from `bounded_weight`, which is computed once for all uses in a step."""
        return self._map(x, weight, self.bias.to(x.dtype))

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x: the map without its shift."""
        return self._map(x, weight, None)

    def transposed_times(self, y: Tensor, weight: Tensor) -> Tensor:
        """W^T y; a convolution of stride 1 keeps the sides, and so does its transpose."""
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
            with torch.autocast(self.weight.device.type, enabled=False):  # bfloat16 would move the norm by 0.4 %
                norm = self._torus_norm() if self.on_torus else self._spectral_norm()
        return self.weight * (self.coefficient / norm.clamp(min=1e-12)).clamp(max=1.0)

    def _torus_norm(self) -> Tensor:
        """<W, P>: P is held, and so the gradient is the norm's. It is the same in training and in evaluation."""
        key = (self.weight.data_ptr(), self.weight._version, True)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, (steepest_form(self.weight),))
        (P,) = self._kept[1]
        return (self.weight * P).sum()

    def _spectral_norm(self) -> Tensor:
        """<left, W right>: the vectors are held, and so the gradient is the norm's."""
        left, right = self._singular_vectors()
        return (left * self._times(right)).sum()

    @torch.no_grad()
    def _singular_vectors(self) -> tuple[Tensor, ...]:
        """The vectors (left, right) of the largest singular value of the present W, kept until W or the mode changes."""
        key = (self.weight.data_ptr(), self.weight._version, self.training)
        if self._kept is None or self._kept[0] != key:
            found, rest = self._iteration(self.vectors)
            for _ in range(0 if self.training else MOST_ROUNDS):  # in training it does not wait for the device
                if float(rest) <= torch.finfo(found.dtype).eps ** 0.75:
                    break
                found, rest = self._iteration(found)
            usable = found.isfinite().all() & (found.abs().sum() > 0)
            self.vectors.copy_(torch.where(usable, found, self.vectors))
            first = found[:1]
            other = _units(self._there(first))
            self._kept = (key, (other, first) if self.from_input else (first, other))
        return self._kept[1]

    def _iteration(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The leading singular vectors in the Krylov space of those so far, and |A v - theta^2 v| / theta^2 of the first.

        Args:
            vectors: (k, ...); where the side has fewer than k dimensions the last rows are 0.
        """
        V = torch.cat([vectors, self.fresh])
        spanned = [V]
        for _ in range(POWERS[self.training]):
            V = _units(self._back(self._there(V)))
            spanned.append(V)
        K = torch.cat(spanned).flatten(1)
        Q = torch.linalg.qr(K.mT).Q.mT.reshape(-1, *V.shape[1:])
        mapped = self._there(Q).flatten(1).double()
        values, weights = torch.linalg.eigh(torch.nan_to_num(mapped @ mapped.mT))  # of weights that are no numbers
        found = torch.zeros_like(vectors)
        for row, weight in zip(found, weights.flip(1).mT.to(Q.dtype), strict=False):
            row.copy_(torch.tensordot(weight, Q, 1))
        square = values[-1].clamp(min=1e-24).to(Q.dtype)
        rest = (self._back(self._there(found[:1])) - square * found[:1]).norm() / square
        return found, rest

    def _there(self, v: Tensor) -> Tensor:
        """From the side of the vectors to the other one."""
        return self._times(v) if self.from_input else self._transposed(v)

    def _back(self, w: Tensor) -> Tensor:
        return self._transposed(w) if self.from_input else self._times(w)

    def _times(self, x: Tensor) -> Tensor:
        """W x, of a convolution of kernel 1 at one position."""
        return self._map(x, self.weight, None) if self.padding else functional.linear(x, self.weight.flatten(1))

    def _transposed(self, y: Tensor) -> Tensor:
        return self.transposed_times(y, self.weight) if self.padding else y @ self.weight.flatten(1)

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.num_axes:
            return functional.linear(x, weight, bias)
        convolution = functional.conv1d if self.num_axes == 1 else functional.conv2d
        return convolution(x, weight, bias, padding=self.padding)

    def of_today(self, state: dict[str, Tensor], prefix: str) -> None:
        """Brings the state of a layer that tracked one vector, `left`, up to date; the norm of its weight is found anew."""
        if state.pop(f"{prefix}left", None) is not None:
            state[f"{prefix}vectors"] = self.vectors


def _units(x: Tensor) -> Tensor:
    """Each row with norm 1; the largest entry is divided out first, so that no square overflows."""
    one = [1] * (x.ndim - 1)
    x = x / x.flatten(1).abs().amax(1).clamp(min=torch.finfo(x.dtype).tiny).reshape(-1, *one)
    return x / x.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *one)
