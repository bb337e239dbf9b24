r"""FFJORD: a continuous normalizing flow, the limit g = 0 of DiffFlow, trained by its own likelihood.

    dx = f(x, t) dt   from data at 0 to N(0, I) at T,        log p(x_0) = log N(x_T; 0, I) + int_0^T div f dt.

DiffFlow's bound diverges as 1/g^2 where the two processes do not retrace each other exactly, so that this limit needs its own
loss: -log p itself. It is taken along N steps of the classical fourth-order Runge-Kutta method, with the divergence by one
Hutchinson probe v per sample and path, v^T (df/dx) v, which is unbiased. Each step is a checkpoint: its evaluations are
repeated in the backward pass, so that memory is that of one step and of the states, and the gradient is that of the discrete
loss, exactly.

There is no noise, hence no score: the probability-flow ODE is the flow itself, and likelihoods (`likelihood.nll`, by RK45) and
the ODE sampler work as for every model. The network sees t / T and gives f T.

References:
    Chen et al. 2018, "Neural ordinary differential equations"; Grathwohl et al. 2019, "FFJORD"; Zhang, Chen 2021, "Diffusion
    normalizing flow", Theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from indm_core.model.base import GenerativeModel, Losses, Node
from indm_core.model.repeatable import check_repeatable
from indm_core.noise import Noise, rademacher_like, randn_like
from indm_core.sde import LearnedODE
from indm_core.times import uniform_times

__all__ = ["FFJORD"]

State = tuple[Tensor, Tensor]
"""x (b, *event) and the integral of the divergence (b,)."""


@final
class FFJORD(GenerativeModel):
    """A learned drift between data and N(0, I), without noise.

    Args:
        drift: Backbone of T f: drift(x, t / T, y) -> like x. It may not draw (dropout): a step is evaluated
            anew (see `repeatable`).
        shape: Event of the data.
        t_max: T, positive.
        num_steps: N of training, at least 1; 4 N evaluations of the drift for a sample.

    Raises:
        ValueError: an argument out of range; a network that gives another value at each call.
    """

    one_size = "its ODE is learned, no linear SDE; train an INDM or a linear diffusion"

    def __init__(self, drift: nn.Module, *, shape: tuple[int, ...], t_max: float = 1.0, num_steps: int = 10) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        check_repeatable("drift", drift, shape)
        self.drift_network, self.shape, self.num_steps = drift, tuple(shape), num_steps
        self.sde, self.t_start = LearnedODE(f=self.f, t_max=t_max), t_max

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift at times t (b,)."""
        return self.drift_network(x, t / self.t_start, None) / self.t_start

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """-log p(x) by N steps and one probe per sample."""
        _refuse_labels(y)
        prior, divergence = self._loss(x, rademacher_like(x, generator))
        objective = prior - divergence
        terms = {"nelbo": objective, "prior": prior, "log_det": divergence}
        return Losses(objective, {name: term.detach() for name, term in terms.items()})

    def _loss(self, x: Tensor, probe: Tensor) -> State:
        """-log N(x_T; 0, I) and the integral of the divergence."""
        h = self.t_start / self.num_steps
        state = (x, x.new_zeros(len(x)))
        for i in range(self.num_steps):
            if torch.is_grad_enabled():
                state = checkpoint(self._step, *state, probe, i * h, h, use_reentrant=False)
            else:
                state = self._step(*state, probe, i * h, h)
        x_T, divergence = state
        return -self.log_prob_start(x_T), divergence

    def _step(self, x: Tensor, divergence: Tensor, probe: Tensor, t: float, h: float) -> State:
        """One step of the classical Runge-Kutta method."""
        k_1, d_1 = self._slope(x, t, probe)
        k_2, d_2 = self._slope(x + 0.5 * h * k_1, t + 0.5 * h, probe)
        k_3, d_3 = self._slope(x + 0.5 * h * k_2, t + 0.5 * h, probe)
        k_4, d_4 = self._slope(x + h * k_3, t + h, probe)
        return x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4), divergence + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)

    def _slope(self, x: Tensor, t: float, probe: Tensor) -> State:
        """f and v^T (df/dx) v, from one evaluation."""
        with_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x_in = x if x.requires_grad and with_graph else x.detach().requires_grad_()
            slope = self.f(x_in, torch.full((len(x),), t, dtype=torch.float64, device=x.device))
            (pulled,) = torch.autograd.grad(slope, x_in, probe, create_graph=with_graph)
        divergence = (pulled * probe).flatten(1).sum(1)
        return (slope, divergence) if with_graph else (slope.detach(), divergence.detach())

    @torch.no_grad()
    def nelbo(
        self,
        x: Tensor,
        *,
        residual: bool = True,
        num_draws: int = 1,
        nodes: Sequence[Node] | None = None,
        generator: Noise = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """The training loss, averaged over `num_draws` probes: no bound but -log p itself, by the training's N steps."""
        self.check_data(x)
        if nodes is not None:
            raise ValueError("nodes: FFJORD has no integral over noise and takes no quadrature nodes; give num_draws")
        if num_draws < 1:
            raise ValueError(f"num_draws={num_draws} must be at least 1")
        _refuse_labels(y)
        total = x.new_zeros(len(x))
        for _ in range(num_draws):
            prior, divergence = self._loss(x, rademacher_like(x, generator))
            total = total + prior - divergence
        return total / num_draws

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return self.sde.embed(x), x.new_zeros(len(x))

    def decode(self, u: Tensor) -> Tensor:
        return self.sde.project(u)

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Zero: without noise no process needs it."""
        _refuse_labels(y)
        return u * 0

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        return temperature * randn_like(like, generator)

    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        return -0.5 * (u.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def times(self, num_steps: int, low: float) -> Tensor:
        """Equally spaced."""
        return uniform_times(self.sde, num_steps, low=low, high=self.t_start)

    def evaluations(self) -> dict[str, int]:
        return {"drift": 4 * self.num_steps}

    def networks(self) -> dict[str, nn.Module]:
        """`drift`."""
        return {"drift": self.drift_network}

    def phase(self, step: int) -> str:
        """'flow', from the first step to the last."""
        return "flow"

    def begin_phase(self, phase: str) -> None:
        pass


def _refuse_labels(y: Tensor | None) -> None:
    if y is not None:
        raise ValueError("y: FFJORD has no conditional form; give no labels")
