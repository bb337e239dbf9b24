r"""Residual flows: z = x + g(x) with Lip(g) < 1, inverted by an accelerated fixed point.

g is a small network whose every layer is kept below a Lipschitz bound (`residual_block`, `lipschitz`). The log-determinant is
a power series in dg/dx, cut by a Russian roulette, or exact in few dimensions (`log_det`). The inverse is a fast fixed point
(`anderson`).

Convolutions with the constraint "torus" or "infinity" are contractions on images of every size, so that the flow is a bijection
there. With "spectral" Lip(g) < 1 is bounded at the size that the flow was built for, and other sizes are refused.

References:
    Behrmann et al. 2019, "Invertible residual networks", Algorithm 1; Chen et al. 2019, "Residual flows", Eqs. 6-8; Kim et al.
    2022 (INDM), appendix F.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.flow.activations import Sine
from indm_core.flow.anderson import invert_block
from indm_core.flow.base import Flow, check_event
from indm_core.flow.lipschitz import Constraint, LipschitzLayer, look_for_norms
from indm_core.flow.log_det import (
    Roulette,
    Series,
    Stop,
    exact_log_det,
    explicit_step,
    residual_step,
    series_log_det,
)
from indm_core.flow.residual_block import ResidualBlock
from indm_core.noise import Noise
from indm_core.ranges import check_positive
from indm_core.shapes import Float

__all__ = ["ResFlow"]

WORTH_OF_IMAGES, WORTH_OF_VECTORS = 2, 8
"""Plain steps of the inverse from which acceleration pays (`invert_block`): an accelerated step takes as long as a few small
matrix products, and little beside a convolution (benchmarks/inverse.py)."""


@final
class ResFlow(Flow):
    """A multi-scale residual flow; starts at the identity.

    Args:
        shape: Event, (d,), (c, l) or (c, h, w); where the flow is size-free, one of the sizes that it takes.
        blocks: Residual blocks at each scale; the image is squeezed (2 x 2 pixels, or 2 places of a sequence, to channels)
            between scales, so that (0, 8) is eight blocks at half the size. Vectors take one scale.
        width: Hidden units or channels of a block.
        kernels: Kernel sides of a block's convolutions; vectors and `dense` use only their number.
        dense: Whether an image is treated as a vector (small images: every pixel has its own weights).
        coefficient: Lipschitz bound of each g, in (0, 1).
        constraint: Norm in which g is a contraction; "torus" costs least where each convolution with a kernel above 1 has few
            channels on one side, as with the default kernels.
        activation: Constructor of a 1-Lipschitz activation.
        first_activation: Whether an activation stands before the very first layer too. With the sine the flow then commutes
            with integer shifts, so that black, grey and white images cannot be told apart; the published form has none.
        roulette: Law of the series in training.
        eval_terms: Terms of a series that evaluation takes before the roulette, unless the rest is below `Stop.tolerance`.
        exact_train, exact_eval: Largest dimension at which the log-det is exact in training, in evaluation.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        blocks: Sequence[int] = (16, 16),
        width: int = 512,
        kernels: Sequence[int] = (3, 1, 3),
        dense: bool = False,
        coefficient: float = 0.98,
        constraint: Constraint = "spectral",
        activation: Callable[[], nn.Module] = Sine,
        first_activation: bool = False,
        roulette: Roulette | None = None,
        eval_terms: int = 100,
        exact_train: int = 4,
        exact_eval: int = 64,
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(f"coefficient={coefficient} must lie in (0, 1), or the blocks are not invertible")
        if width < 1 or not kernels or not blocks or min(blocks) < 0:
            raise ValueError(
                f"width={width}, kernels={tuple(kernels)}, blocks={tuple(blocks)}: none may be empty or below 1"
            )
        self.dense = dense or len(shape) == 1
        num_scales = len(blocks)
        if self.dense and num_scales > 1:
            raise ValueError(f"blocks={tuple(blocks)}: vectors and dense flows have one scale, so give one number")
        fold = 2 ** (num_scales - 1)
        if not self.dense and any(side % fold for side in shape[1:]):
            raise ValueError(f"blocks={tuple(blocks)}: {num_scales} scales need sides divisible by {fold}, not {shape}")
        self.shape, self.fold = tuple(shape), fold
        self.size_free = not self.dense and constraint != "spectral"
        num_dims = math.prod(shape)
        self.roulette = roulette or Roulette()
        self.eval_roulette = Roulette(law="geometric", parameter=coefficient, exact=eval_terms)
        self.stop: Stop | None = Stop(lipschitz=coefficient, norm=constraint)
        self.exact_train, self.exact_eval = exact_train, exact_eval
        self.scales = nn.ModuleList()
        first_scale = next((scale for scale, num_blocks in enumerate(blocks) if num_blocks), 0)
        for scale, num_blocks in enumerate(blocks):
            at_scale = (shape[0] * 2 ** (scale * (len(shape) - 1)), *[side // 2**scale for side in shape[1:]])
            self.scales.append(
                nn.ModuleList(
                    ResidualBlock(
                        (num_dims,) if self.dense else at_scale,
                        width=width,
                        kernels=kernels,
                        coefficient=coefficient,
                        constraint=constraint,
                        activation=activation,
                        first_activation=first_activation or scale > first_scale or block > 0,
                    )
                    for block in range(num_blocks)
                )
            )

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        """z and log_det: unbiased, or exact where the event has at most `exact_train` / `exact_eval` dimensions.

        Raises:
            ValueError: an x of another shape than the flow takes.
        """
        check_event(x, self.shape, size_free=self.size_free, fold=self.fold)
        exact = math.prod(x.shape[1:]) <= (self.exact_train if self.training else self.exact_eval)
        roulette, stop = (self.roulette, None) if self.training else (self.eval_roulette, self.stop)
        num_blocks = sum(len(scale) for scale in self.scales)  # pyright: ignore[reportArgumentType]
        counts = iter([[0]] * num_blocks if exact else roulette.draws(num_blocks, generator))
        look_for_norms(self._bounded)
        z, log_det = self._flatten(x), x.new_zeros(x.shape[0])
        for index, scale in enumerate(self.scales):
            z = squeeze(z) if index else z
            for block in scale:  # pyright: ignore[reportGeneralTypeIssues]
                series = Series(roulette=roulette, num_extra=next(counts), generator=generator, stop=stop)
                g = block.bound(z.dtype)
                if block.explicit and not exact:
                    z, term = explicit_step(g, z, series)
                else:
                    with torch.autocast(z.device.type, enabled=False):  # the Jacobian is that of all of g
                        z, term = residual_step(g, z, exact_log_det if exact else series_log_det(series))
                log_det = log_det + term
        for _ in range(len(self.scales) - 1):
            z = unsqueeze(z)
        return z.reshape(x.shape), log_det

    @torch.no_grad()
    def inverse(
        self,
        z: Float[Tensor, " b *event"],
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
        double: bool = False,
    ) -> Float[Tensor, " b *event"]:
        """h^-1(z), block by block (`invert_block`), in z's dtype, and in float64 for the samples that rounding stalls.

        Args:
            tolerance: Bound on the last change of x, relative to max(1, |x|), in each block; the error may be
                Lip(g) / (1 - Lip(g)) times as large.
            max_iterations: Evaluations of g per block.
            double: Whether to compute in float64, for tolerances that z's dtype cannot resolve.

        Raises:
            ConvergenceError: a block that did not reach the tolerance.
            ValueError: a tolerance or a number of iterations that is not positive and finite; a z of another shape than the
                flow takes.
        """
        check_event(z, self.shape, size_free=self.size_free, fold=self.fold)
        check_positive(tolerance=tolerance, max_iterations=max_iterations)
        look_for_norms(self._bounded)
        x = self._flatten(z.double() if double else z)
        for _ in range(len(self.scales) - 1):
            x = squeeze(x)
        for index in reversed(range(len(self.scales))):
            for block in list(self.scales[index])[::-1]:  # pyright: ignore[reportArgumentType]
                x = invert_block(
                    block.bound(x.dtype),
                    x,
                    tolerance=tolerance,
                    max_iterations=max_iterations,
                    worth=WORTH_OF_VECTORS if self.dense else WORTH_OF_IMAGES,
                    g_double=lambda v, block=block: block.bound(torch.float64)(v),
                )
            x = unsqueeze(x) if index else x
        return x.reshape(z.shape).to(z.dtype)

    @property
    def _bounded(self) -> list[LipschitzLayer]:
        """The layers of all blocks."""
        return [layer for scale in self.scales for block in scale for layer in block.layers]  # pyright: ignore

    def _flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.dense else x


def squeeze(x: Tensor) -> Tensor:
    """2 x 2 pixels of an image, or 2 places of a sequence, to channels: half the sides, and 4 or 2 times the channels."""
    if x.ndim == 4:
        return functional.pixel_unshuffle(x, 2)
    return x.unflatten(2, (-1, 2)).movedim(3, 2).flatten(1, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of `squeeze`."""
    if x.ndim == 4:
        return functional.pixel_shuffle(x, 2)
    return x.unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)
