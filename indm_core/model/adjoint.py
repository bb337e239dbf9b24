r"""The bound of a path of learned transitions, and its gradient by the stochastic adjoint.

On a grid t_0 < ... < t_N with steps D_i = t_{i+1} - t_i, g_i = g(t_i), f_i = f(x_i, t_i), s_i = s(x_i, t_i) and
r_i = sqrt(D_i) / g_{i+1},

    q_i = eps_i + sqrt(D_i)/g_i f_i,     x_{i+1} = x_i + g_i sqrt(D_i) q_i,         the path, in units of its noise,
    delta_i = -(g_i/g_{i+1}) q_i + r_i (f_{i+1} - g_{i+1}^2 s_{i+1}),               the noise that retraces it backwards,

and the loss of a sample is -log p_N(x_N) + sum_i (1/2 |delta_i|^2 - 1/2 |eps_i|^2) + d log(g_N/g_0), whose last term is what
the normalising constants of the 2 N Gaussians leave. Differences x_i - x_{i+1}, as in the paper's delta_i, are avoided: they
cancel where a step is short.

Stochastic adjoint. Only x_i and q_i are kept. A sweep from i = N to 0 evaluates f_i and s_i once, which serve the transition
i -> i + 1 as well as delta_{i-1}, and takes the gradient of

    <a_{i+1}, x_i> + <D_i a_{i+1} - r_i delta_i, f_i> + 1/2 |delta_{i-1}(f_i, s_i)|^2

with respect to x_i (this is a_i = dL/dx_i) and to the networks. N evaluations of f make the path, N + 1 of f and N of s the
sweep; memory is that of one evaluation and of the states. The sweep yields the value of the loss too, so that it runs with the
forward pass, and the backward pass only scales the gradients: they are those of the batch's mean.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Algorithm 2 (Eqs. 3.12-3.15 of the thesis).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.sde import Volatility

__all__ = ["Path", "StochasticAdjoint"]

Function = Callable[[Tensor, Tensor], Tensor]
"""function(x, t) -> like x, t of shape (b,)."""


@final
class Path:
    """A grid, and what the loss asks at its points.

    Args:
        f, s: Drift and score, of x and of times t (b,).
        log_prob_end: Log-density of the law at the last time, nats (b,).
        ts: Increasing times t_0, ..., t_N, float64.
        g: Volatility.
    """

    def __init__(
        self, f: Function, s: Function, log_prob_end: Callable[[Tensor], Tensor], ts: Tensor, g: Volatility
    ) -> None:
        self.drift, self.score, self.log_prob_end, self.ts = f, s, log_prob_end, ts
        self.steps, self.g = [float(step) for step in ts.diff()], [g.at(float(t)) for t in ts]
        self.scale = [g * math.sqrt(step) for g, step in zip(self.g[:-1], self.steps, strict=True)]
        self.rate = [math.sqrt(step) / g for g, step in zip(self.g[:-1], self.steps, strict=True)]
        self.r = [math.sqrt(step) / g for g, step in zip(self.g[1:], self.steps, strict=True)]

    def change(self, x: Tensor) -> float:
        """d log(g_N/g_0)."""
        return math.log(self.g[-1] / self.g[0]) * x[0].numel()

    def noise(self, x: Tensor, generator: Noise) -> list[Tensor]:
        return [randn_like(x, generator) for _ in self.steps]

    def f(self, i: int, x: Tensor) -> Tensor:
        return self.drift(x, self.ts[i].to(x.device).expand(len(x)))

    def s(self, i: int, x: Tensor) -> Tensor:
        return self.score(x, self.ts[i].to(x.device).expand(len(x)))

    def delta(self, i: int, q: Tensor, f: Tensor, s: Tensor) -> Tensor:
        """delta_i from q_i and from f and s at x_{i+1}."""
        return self.r[i] * (f - self.g[i + 1] ** 2 * s) - self.g[i] / self.g[i + 1] * q

    def losses(self, x: Tensor, eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two terms of the bound, (b,) each; N + 1 evaluations of f and N of s."""
        transitions, f = x.new_full((len(x),), self.change(x)), self.f(0, x)
        for i, e in enumerate(eps):
            q = e + self.rate[i] * f
            x = x + self.scale[i] * q
            f = self.f(i + 1, x)
            transitions = transitions + _half_square(self.delta(i, q, f, self.s(i + 1, x))) - _half_square(e)
        return -self.log_prob_end(x), transitions


def _half_square(v: Tensor) -> Tensor:
    return 0.5 * v.square().flatten(1).sum(1)


@final
class StochasticAdjoint(torch.autograd.Function):
    """The mean loss of a batch, with its gradients by the sweep; and its two terms per sample, without."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, path: Path, parameters: list[Tensor], eps: list[Tensor], x: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        xs, qs, transitions = [x], [], x.new_full((len(x),), path.change(x))
        for i, e in enumerate(eps):
            qs.append(e + path.rate[i] * path.f(i, xs[i]))
            xs.append(xs[i] + path.scale[i] * qs[i])
            transitions -= _half_square(e)
        gradients = [torch.zeros_like(p) for p in parameters]
        prior = -path.log_prob_end(xs[-1])
        adjoint, pull = xs[-1], torch.zeros_like(x)  # dL/dx_N of the prior; no transition leaves x_N
        for i in reversed(range(len(xs))):
            with torch.enable_grad():
                x_i = xs.pop().detach().requires_grad_()
                f = path.f(i, x_i)
                local = (adjoint * x_i).sum() + (pull * f).sum()
                if i > 0:
                    delta = path.delta(i - 1, qs.pop(), f, path.s(i, x_i))
                    error = _half_square(delta)
                    local = local + error.sum()
                    transitions += error.detach()
                adjoint, *found = torch.autograd.grad(local, [x_i, *parameters], allow_unused=True)
            if i > 0:
                pull = path.steps[i - 1] * adjoint - path.r[i - 1] * delta.detach()
            used = [(total, g) for total, g in zip(gradients, found, strict=True) if g is not None]
            if used:  # none at x_0 where the drift is fixed
                torch._foreach_add_([total for total, _ in used], [g for _, g in used])
        ctx.mark_non_differentiable(prior, transitions)
        ctx.gradients = [adjoint, *gradients]
        return (prior + transitions).mean(), prior, transitions

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> Any:  # pyright: ignore
        return (None, None, None, *torch._foreach_mul(ctx.gradients, gradient / len(ctx.gradients[0])))
