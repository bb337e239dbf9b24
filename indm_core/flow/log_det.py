r"""The log-determinant of a residual block x + g(x), Lip(g) < 1.

With J = dg/dx the log-determinant and its gradient are power series in J,

    log det(I + J) = sum_{k>=1} (-1)^{k+1}/k tr J^k,          d log det(I + J) = tr[(I + J)^-1 dJ],
    (I + J)^-1     = sum_{k>=0} (-J)^k,

whose traces are estimated with one Rademacher probe v, tr A ~ v^T A v, and whose tails are cut by a Russian roulette: the
first m terms are always taken, N more with P(N >= k) known, and term m + k is divided by P(N >= k). Both the value and the
gradient are then unbiased. N is Poisson (the published law; its variance is infinite in theory) or geometric (finite variance
where the continuation probability exceeds Lip(g)^2). The gradient is that of

    s^T J v,    s = sum_k (-1)^k c_k (J^T)^k v held constant  (c_k the roulette's weights),

so that only one product with J is differentiated and memory does not grow with the number of terms. Where the products with J
and J^T can be written out (`residual_block`), s^T J v is taken from J v, a forward pass beside g's own, and one backward pass
gives its gradient; else from J^T s by autograd, which is differentiated twice. Where the event has few dimensions the Jacobian
is formed and log det is exact.

**Evaluation.** In theory 20 terms and a Poisson tail are unbiased too; in practice, on a block that contracts (J near -0.98 I),
much of the value lies in draws that never come: the likelihood looks too good, by more than its standard error tells. As many
terms are taken as the Lipschitz constant asks for (`Stop`). With |J| <= L in a norm |.| whose dual is |.|_*,

    |sum_{k>n} v^T (J^T)^k v / k|  <=  |v| |(J^T)^n v|_* sum_{k>n} L^{k-n} / k  <=  |v| |(J^T)^n v|_* L / ((n + 1)(1 - L)),

and a sample has its value when that is below a tolerance: in 784 dimensions, for L = .98, after 28 terms where J = 0.6 I, after
552 where J = -0.98 I. Terms beyond a limit are left to a roulette of the geometric law with continuation probability L > L^2,
whose variance is finite.

References:
    Chen et al. 2019, "Residual flows", Eqs. 6-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from indm_core.flow.lipschitz import Constraint
from indm_core.flow.residual_block import Chain
from indm_core.noise import Noise, on_host, rademacher_like

__all__ = [
    "LogDet",
    "Roulette",
    "Series",
    "Stop",
    "exact_log_det",
    "explicit_step",
    "residual_step",
    "series_log_det",
]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When the rest of a sample's series may be left out.

    Args:
        lipschitz: L, the bound of the block's Lipschitz constant, in (0, 1).
        norm: Its norm: 'infinity' (dual to the 1-norm), or a bound of the spectral norm (dual to itself).
        tolerance: Of what is left out, nats for each block and probe.
    """

    lipschitz: float
    norm: Constraint
    tolerance: float = 1e-3

    def remainder(self, v: Tensor, w: Tensor, k: int) -> Tensor:
        """The bound on the terms after k, (b,), from the probe v and w = (J^T)^k v."""
        order = 1 if self.norm == "infinity" else 2
        size = v.flatten(1).norm(2 if order == 2 else math.inf, dim=1) * w.flatten(1).norm(order, dim=1)
        return size * (self.lipschitz / ((k + 1) * (1 - self.lipschitz)))


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
        most = 1 if self.law == "geometric" else math.inf
        if not 0 < self.parameter < most:
            raise ValueError(f"parameter={self.parameter} is no parameter of the {self.law} law")
        if not 1 <= self.exact < math.inf:
            raise ValueError(f"exact={self.exact} must be at least 1")

    def draws(self, num: int, generator: Noise) -> list[list[int]]:
        """`num` times N: one for the whole batch, or from generators of the samples one for each."""
        generator = on_host(generator)
        if generator is None or isinstance(generator, torch.Generator):
            return [[n] for n in self.draw(num, generator)]
        if not generator:
            return [[0]] * num
        return [list(of_all) for of_all in zip(*(self.draw(num, one) for one in generator), strict=True)]

    def draw(self, num: int, generator: torch.Generator | None) -> list[int]:
        """`num` independent N from one generator, which is asked once."""
        device = generator.device if generator else torch.device("cpu")
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


@dataclass(frozen=True, kw_only=True)
class Series:
    """The roulette estimate of one block.

    Args:
        roulette: The law.
        num_extra: N, one for all samples or one for each.
        generator: Draws the probe.
        stop: When a sample's series has said enough; None takes all terms.
    """

    roulette: Roulette
    num_extra: Sequence[int]
    generator: Noise = None
    stop: Stop | None = None

    def sums(self, v: Tensor, transposed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The estimate of log det(I + J), (b,), and s like v.

        Args:
            v: The probe.
            transposed: w -> J^T w.
        """
        w, s, value = v, v, v.new_zeros(v.shape[0])
        last = torch.stack([torch.full((), self.roulette.exact + n, device=v.device) for n in self.num_extra])
        for k, weight in enumerate(self.roulette.weights(max(self.num_extra)), start=1):
            w = transposed(w)  # (J^T)^k v
            signed = (-weight if k % 2 else weight) * (k <= last).to(v)
            s = s + signed.reshape(-1, *[1] * (v.ndim - 1)) * w
            value = value - signed / k * (w * v).flatten(1).sum(1)
            if self.stop is not None:
                last = last.where(self.stop.remainder(v, w, k) > self.stop.tolerance, k)
                if not (last > k).any():
                    break
        return value, s


LogDet = Callable[[Tensor, Tensor, bool], Tensor]
"""log_det(g(x), x, with_graph) -> log|det(I + dg/dx)|, (b,), by autograd through the graph of g(x)."""


def explicit_step(g: Chain, x: Tensor, series: Series) -> tuple[Tensor, Tensor]:
    """x + g(x) and the series' estimate of its log-det, with the products by J and J^T written out.

    What `residual_step` with `series_log_det` gives, of the same draws, without a graph for each term; s^T J v comes from J v.
    Where g is computed in bfloat16 by autocast, the products are not: each would add its rounding to the series.
    """
    g_x, slopes = g.with_slopes(x)
    v = rademacher_like(x, series.generator)
    with torch.autocast(x.device.type, enabled=False):
        slopes = [slope.to(x.dtype) for slope in slopes]
        with torch.no_grad():
            value, s = series.sums(v, lambda w: g.cotangent(w, slopes))
        log_det = _with_gradient_of(value, s, g.tangent(v, slopes)) if torch.is_grad_enabled() else value
    return x + g_x, log_det


def residual_step(g: Callable[[Tensor], Tensor], x: Tensor, log_det_of: LogDet) -> tuple[Tensor, Tensor]:
    """x + g(x) and its log-det; differentiable where gradients are on."""
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x_in = x if x.requires_grad and with_graph else x.detach().requires_grad_()
        g_x = g(x_in)
        log_det = log_det_of(g_x, x_in, with_graph)
    z = x_in + g_x
    return (z, log_det) if with_graph else (z.detach(), log_det.detach())


def exact_log_det(g_x: Tensor, x: Tensor, with_graph: bool) -> Tensor:
    """log|det(I + J)| from the Jacobian's rows, all vector-Jacobian products in one batch."""
    b, num_dims = x.shape[0], x[0].numel()
    eye = torch.eye(num_dims, dtype=x.dtype, device=x.device)
    rows = eye.reshape(num_dims, 1, *x.shape[1:]).expand(num_dims, *x.shape)
    (J,) = torch.autograd.grad(g_x, x, rows, create_graph=with_graph, is_grads_batched=True, retain_graph=True)
    return torch.linalg.slogdet(eye + J.reshape(num_dims, b, num_dims).transpose(0, 1)).logabsdet


def series_log_det(series: Series) -> LogDet:
    """The series by vector-Jacobian products of autograd: for every g, and the oracle of `explicit_step`."""

    def estimate(g_x: Tensor, x: Tensor, with_graph: bool) -> Tensor:
        v = rademacher_like(x, series.generator)
        value, s = series.sums(v, lambda w: torch.autograd.grad(g_x, x, w, retain_graph=True)[0])
        if not with_graph:
            return value
        (J_t_s,) = torch.autograd.grad(g_x, x, s, create_graph=True)
        return _with_gradient_of(value, v, J_t_s)

    return estimate


def _with_gradient_of(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The value, with the gradient of a^T b."""
    surrogate = (a * b).flatten(1).sum(1)
    return value + surrogate - surrogate.detach()
