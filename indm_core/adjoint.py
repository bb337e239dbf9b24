r"""A path of a learned drift, what it costs, and the gradient of its cost by the stochastic adjoint.

On a grid t_0 < ... < t_N a path of an SDE takes Euler steps, written in units of their noise eps_i ~ N(0, I),

    q_i = eps_i + r_i f_i,      x_{i+1} = x_i + c_i q_i,        f_i = f(x_i, t_i),      r_i, c_i > 0 numbers,

and pays at every point a cost that depends on x_i, on f_i and on the step q_{i-1} that led there,

    L = sum_{i=0}^N l_i(x_i, f_i, q_{i-1}) + constants.

Stochastic adjoint. Only x_i and q_i are kept. A sweep from i = N to 0 evaluates f_i and l_i anew, and takes the gradient of

    <a_{i+1}, x_i> + <p_i, f_i> + l_i(x_i, f_i, q_{i-1})

with respect to x_i (this is a_i = dL/dx_i), to q_{i-1} (call it b_i) and to the networks, p_i = r_i (c_i a_{i+1} + b_{i+1})
being what f_i does to the rest of the path. Memory is that of one evaluation and of the states. The sweep yields the cost too,
so that it runs with the forward pass, and the backward pass only scales the gradients: they are those of the batch's mean, and
of the discrete cost, exactly.

References:
    Li et al. 2020, "Scalable gradients for stochastic differential equations"; Zhang, Chen 2021, "Diffusion normalizing flow",
    Algorithm 2 (Eqs. 3.12-3.15 of the thesis).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from indm_core.noise import Noise, randn_like

__all__ = ["Path", "StochasticAdjoint", "mean_by_adjoint"]

State = tuple[Tensor, Tensor | None, Tensor]
"""x_i, f_i and the cost so far."""


class Path(ABC):
    """A grid, a drift, and what is paid at its points, in m terms.

    Args:
        scale, rate: c_i and r_i, of each of the N steps.
    """

    def __init__(self, scale: Sequence[float], rate: Sequence[float]) -> None:
        self.scale, self.rate = tuple(scale), tuple(rate)

    @abstractmethod
    def f(self, i: int, x: Tensor) -> Tensor:
        """The drift at point i < N, like x."""

    @abstractmethod
    def point(self, i: int, x: Tensor, q: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """f_i, or None at the last point where nothing asks for it, and the terms of l_i, (m, b); q is None at the first."""

    @abstractmethod
    def constants(self, x: Tensor, eps: Sequence[Tensor]) -> Tensor:
        """What the cost has that no network changes, (m, b)."""

    def noise(self, x: Tensor, generator: Noise) -> list[Tensor]:
        """eps_0, ..., eps_{N-1}, like x."""
        return [randn_like(x, generator) for _ in self.scale]

    def costs(self, x: Tensor, eps: Sequence[Tensor], segments: int = 1) -> Tensor:
        """The terms of the cost of a path from x, (m, b), for automatic differentiation.

        Args:
            segments: Of more than one, the states between them are kept and the rest is computed anew in the backward pass.
        """
        f, total = self.point(0, x, None)
        total = total + self.constants(x, eps)
        size = -(-len(eps) // segments)
        for first in range(0, len(eps), size):
            given = (first, x, f, total, *eps[first : first + size])
            x, f, total = checkpoint(self._walk, *given, use_reentrant=False) if segments > 1 else self._walk(*given)
        return total

    def _walk(self, first: int, x: Tensor, f: Tensor | None, total: Tensor, *eps: Tensor) -> State:
        for i, e in enumerate(eps, first):
            q = e if f is None else e + self.rate[i] * f
            x = x + self.scale[i] * q
            f, cost = self.point(i + 1, x, q)
            total = total + cost
        return x, f, total


@final
class StochasticAdjoint(torch.autograd.Function):
    """The mean cost of a batch, with its gradients by the sweep; and its terms (m, b), without."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, path: Path, parameters: list[Tensor], eps: list[Tensor], x: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        xs, qs, total = [x], [], path.constants(x, eps)
        for i, e in enumerate(eps):
            qs.append(e + path.rate[i] * path.f(i, xs[i]))
            xs.append(xs[i] + path.scale[i] * qs[i])
        gradients = [torch.zeros_like(p) for p in parameters]
        adjoint = pull = torch.zeros_like(x)
        for i in reversed(range(len(xs))):
            with torch.enable_grad():
                x_i = xs.pop().detach().requires_grad_()
                q = qs.pop().requires_grad_() if i > 0 else None
                f, cost = path.point(i, x_i, q)
                local = (adjoint * x_i).sum() + cost.sum()
                local = local if f is None else local + (pull * f).sum()
                leaves = [x_i, *([] if q is None else [q]), *parameters]
                adjoint, *found = torch.autograd.grad(local, leaves, allow_unused=True)
            total = total + cost.detach()
            if q is not None:
                pushed, found = found[0], found[1:]
                pull = path.scale[i - 1] * adjoint if pushed is None else path.scale[i - 1] * adjoint + pushed
                pull = path.rate[i - 1] * pull
            used = [(sum_, g) for sum_, g in zip(gradients, found, strict=True) if g is not None]
            if used:  # none at a point where the drift is fixed
                torch._foreach_add_([sum_ for sum_, _ in used], [g for _, g in used])
        ctx.mark_non_differentiable(total)
        ctx.gradients = [adjoint, *gradients]
        return total.sum(0).mean(), total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> Any:  # pyright: ignore
        return (None, None, None, *torch._foreach_mul(ctx.gradients, gradient / len(ctx.gradients[0])))


def mean_by_adjoint(path: Path, parameters: Sequence[Tensor], eps: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample cost (b,) whose mean has the gradient of the sweep, and its terms (m, b), detached."""
    mean, terms = StochasticAdjoint.apply(path, list(parameters), eps, x, *parameters)  # pyright: ignore
    return terms.sum(0) + (mean - mean.detach()), terms
