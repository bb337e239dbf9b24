r"""Residual flows: z = x + g(x) with Lip(g) < 1, inverted by an accelerated fixed point.

With J = dg/dx the log-determinant and its gradient are power series in J,

    log det(I + J) = sum_{k>=1} (-1)^{k+1}/k tr J^k,          d log det(I + J) = tr[(I + J)^-1 dJ],
    (I + J)^-1     = sum_{k>=0} (-J)^k,

whose traces are estimated with one Rademacher probe v, tr A ~ v^T A v, and whose tails are cut by a Russian roulette: the
first m terms are always taken, N more with P(N >= k) known, and term m + k is divided by P(N >= k). Both the value and the
gradient are then unbiased. N is Poisson (the published law; its variance is infinite in theory) or geometric (finite variance
where the continuation probability exceeds Lip(g)^2). The gradient is that of

    s^T J v,    s = sum_k (-1)^k c_k (J^T)^k v held constant  (c_k the roulette's weights),

so that only one vector-Jacobian product is differentiated and memory does not grow with the number of terms. Where the event
has few dimensions the Jacobian is formed and log det is exact.

Lipschitz constraint, coefficient c < 1 for g as a whole (c^{1/layers} per layer): a weight W becomes W min(1, c/|W|) with |W|
the spectral norm (power iteration; for a convolution that of the operator on the image) or the infinity norm (the largest
absolute row sum, closed form: each row is scaled by its own sum). Either makes g a contraction in that norm.

The inverse is a fixed point, accelerated (`anderson`).

References:
    Behrmann et al. 2019, "Invertible residual networks", Algorithm 1; Chen et al. 2019, "Residual flows", Eqs. 6-8; Kim et al.
    2022 (INDM), appendix F; Lu et al. 2021, "Implicit normalizing flows" (sin activation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from indm_core.anderson import invert_block
from indm_core.flow import Flow
from indm_core.noise import Noise, rademacher_like
from indm_core.shapes import Float

__all__ = ["Constraint", "LipSwish", "LipschitzLayer", "ResFlow", "ResidualBlock", "Roulette", "Sine"]

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


@dataclass(frozen=True, kw_only=True)
class Roulette:
    """The law of the number of series terms: `exact` always, N more at random.

    Args:
        law: 'poisson' with mean `parameter`, or 'geometric' with continuation probability `parameter` in (0, 1); choose
            it above Lip(g)^2 for a finite variance.
        parameter: See `law`.
        exact: Leading terms m that are always taken.
    """

    law: Literal["poisson", "geometric"] = "poisson"
    parameter: float = 2.0
    exact: int = 2

    def __post_init__(self) -> None:
        if self.law not in ("poisson", "geometric"):
            raise ValueError(f"law={self.law!r} is neither 'poisson' nor 'geometric'")
        if self.parameter <= 0 or (self.law == "geometric" and self.parameter >= 1):
            raise ValueError(f"parameter={self.parameter} is no parameter of the {self.law} law")
        if self.exact < 1:
            raise ValueError(f"exact={self.exact} must be at least 1")

    def draw(self, num: int, like: Tensor, generator: torch.Generator | None) -> list[int]:
        """`num` independent N, in one transfer from the device."""
        device = generator.device if generator else like.device
        if self.law == "poisson":
            rate = torch.full((num,), self.parameter, device=device)
            return [int(n) for n in torch.poisson(rate, generator=generator).tolist()]
        uniform = torch.rand(num, dtype=torch.float64, device=device, generator=generator)
        return [int(math.log(max(u, 1e-300)) / math.log(self.parameter)) for u in uniform.tolist()]

    def weights(self, num_extra: int) -> list[float]:
        """1/P(the term is taken) for terms 1, ..., exact + num_extra."""
        if self.law == "geometric":
            tail = [self.parameter**k for k in range(1, num_extra + 1)]
        else:
            mass = math.exp(-self.parameter)
            tail, survival = [], 1.0
            for k in range(1, num_extra + 1):
                survival -= mass
                mass *= self.parameter / k
                tail.append(survival)
        return [1.0] * self.exact + [1 / p for p in tail]


@final
class ResidualBlock(nn.Module):
    """g with Lip(g) <= coefficient; the block of a residual flow is x + g(x)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        kernels: Sequence[int],
        coefficient: float,
        constraint: Constraint,
        activation: Callable[[], nn.Module],
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
        self.activations = nn.ModuleList(activation() for _ in kernels)

    def bound(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """x -> g(x) for x of a dtype, with the weights bounded once."""
        weights = [layer.bounded_weight().to(dtype) for layer in self.layers]  # pyright: ignore[reportCallIssue]

        def g(x: Tensor) -> Tensor:
            for activation, layer, weight in zip(self.activations, self.layers, weights, strict=True):
                x = layer(activation(x), weight)
            return x

        return g


@final
class ResFlow(Flow):
    """A multi-scale residual flow; starts at the identity.

    Args:
        shape: Event, (d,) or (c, h, w).
        blocks: Residual blocks at each scale; the image is squeezed (2 x 2 pixels to channels) between scales, so that
            (0, 8) is eight blocks at half the size. Vectors take one scale.
        width: Hidden units or channels of a block.
        kernels: Kernel sides of a block's convolutions; vectors and `dense` use only their number.
        dense: Whether an image is treated as a vector (small images: every pixel has its own weights).
        coefficient: Lipschitz bound of each g, in (0, 1).
        constraint: Norm in which g is a contraction.
        activation: Constructor of a 1-Lipschitz activation.
        roulette: Law of the series in training; evaluation takes `eval_terms` exact terms before it.
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
        roulette: Roulette | None = None,
        eval_terms: int = 20,
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
        self.num_dims = math.prod(shape)
        self.roulette = roulette or Roulette()
        self.eval_roulette = Roulette(law=self.roulette.law, parameter=self.roulette.parameter, exact=eval_terms)
        self.exact_train, self.exact_eval = exact_train, exact_eval
        self.scales = nn.ModuleList()
        for scale, num_blocks in enumerate(blocks):
            at_scale = (shape[0] * 4**scale, *[side // 2**scale for side in shape[1:]])
            self.scales.append(
                nn.ModuleList(
                    ResidualBlock(
                        (self.num_dims,) if self.dense else at_scale,
                        width=width,
                        kernels=kernels,
                        coefficient=coefficient,
                        constraint=constraint,
                        activation=activation,
                    )
                    for _ in range(num_blocks)
                )
            )

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        """z and log_det: unbiased, or exact where the event has at most `exact_train` / `exact_eval` dimensions."""
        exact = self.num_dims <= (self.exact_train if self.training else self.exact_eval)
        roulette = self.roulette if self.training else self.eval_roulette
        num_blocks = sum(len(scale) for scale in self.scales)  # pyright: ignore[reportArgumentType]
        stream = generator if generator is None or isinstance(generator, torch.Generator) else generator[0]
        counts = iter([0] * num_blocks if exact else roulette.draw(num_blocks, x, stream))
        z, log_det = self._flatten(x), x.new_zeros(x.shape[0])
        for index, scale in enumerate(self.scales):
            z = functional.pixel_unshuffle(z, 2) if index else z
            for block in scale:  # pyright: ignore[reportGeneralTypeIssues]
                num_extra = next(counts)
                estimate = _exact_log_det if exact else _series_log_det(roulette, num_extra, generator)
                z, term = _residual_step(block.bound(z.dtype), z, estimate)
                log_det = log_det + term
        for _ in range(len(self.scales) - 1):
            z = functional.pixel_shuffle(z, 2)
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
        """
        x = self._flatten(z.double() if double else z)
        for _ in range(len(self.scales) - 1):
            x = functional.pixel_unshuffle(x, 2)
        for index in reversed(range(len(self.scales))):
            for block in list(self.scales[index])[::-1]:  # pyright: ignore[reportArgumentType]
                x = invert_block(
                    block.bound(x.dtype),
                    x,
                    tolerance=tolerance,
                    max_iterations=max_iterations,
                    g_double=lambda v, block=block: block.bound(torch.float64)(v),
                )
            x = functional.pixel_shuffle(x, 2) if index else x
        return x.reshape(z.shape).to(z.dtype)

    def _flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.dense else x


Estimate = Callable[[Tensor, Tensor, bool], Tensor]


def _residual_step(g: Callable[[Tensor], Tensor], x: Tensor, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """x + g(x) and its log-det; differentiable where gradients are on."""
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x_in = x if x.requires_grad and with_graph else x.detach().requires_grad_()
        g_x = g(x_in)
        log_det = estimate(g_x, x_in, with_graph)
    z = x_in + g_x
    return (z, log_det) if with_graph else (z.detach(), log_det.detach())


def _exact_log_det(g_x: Tensor, x: Tensor, with_graph: bool) -> Tensor:
    """log|det(I + J)| from the Jacobian's rows, all vector-Jacobian products in one batch."""
    b, num_dims = x.shape[0], x[0].numel()
    eye = torch.eye(num_dims, dtype=x.dtype, device=x.device)
    rows = eye.reshape(num_dims, 1, *x.shape[1:]).expand(num_dims, *x.shape)
    (J,) = torch.autograd.grad(g_x, x, rows, create_graph=with_graph, is_grads_batched=True, retain_graph=True)
    return torch.linalg.slogdet(eye + J.reshape(num_dims, b, num_dims).transpose(0, 1)).logabsdet


def _series_log_det(roulette: Roulette, num_extra: int, generator: Noise) -> Estimate:
    """The roulette estimate: an unbiased value that carries the unbiased Neumann-series gradient."""

    def estimate(g_x: Tensor, x: Tensor, with_graph: bool) -> Tensor:
        v = rademacher_like(x, generator)
        w, s, value = v, v, x.new_zeros(x.shape[0])
        for k, weight in enumerate(roulette.weights(num_extra), start=1):
            (w,) = torch.autograd.grad(g_x, x, w, retain_graph=True)  # (J^T)^k v
            sign = -1.0 if k % 2 else 1.0
            s = s + sign * weight * w
            value = value - sign * weight / k * (w * v).flatten(1).sum(1)
        if not with_graph:
            return value
        (J_t_s,) = torch.autograd.grad(g_x, x, s, create_graph=True)
        surrogate = (J_t_s * v).flatten(1).sum(1)
        return value + surrogate - surrogate.detach()

    return estimate
