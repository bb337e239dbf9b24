r"""DiffFlow: a diffusion whose drift is learned together with its score.

    dx = f(x, t) dt + g dw   from data at 0 to N(0, I) at T,        dx = [f - g^2 s] dt + g dw   back.

On a grid 0 = t_0 < ... < t_N = T with steps D_i = t_{i+1} - t_i, r_i = sqrt(D_i) / g and f_i = f(x_i, t_i), s_i = s(x_i, t_i),

    q_i = eps_i + r_i f_i,     x_{i+1} = x_i + g sqrt(D_i) q_i,                     the path, in units of its noise,
    delta_i = -q_i + r_i (f_{i+1} - g^2 s_{i+1}),                                   the noise that retraces it backwards,

and the bound on -log p(x_0), in nats, exact for the discrete process, is

    NELBO(x_0) = E[-log N(x_N; 0, I) + sum_i (1/2 |delta_i|^2 - 1/2 |eps_i|^2)]:

the loss of the paper minus a constant, sample by sample, of lower variance. Differences x_i - x_{i+1}, as in the paper's
delta_i, are avoided: they cancel where a step is short.

Stochastic adjoint. Only x_i and q_i are kept. A sweep from i = N to 0 evaluates f_i and s_i once, which serve the transition
i -> i + 1 as well as delta_{i-1}, and takes the gradient of

    <a_{i+1}, x_i> + <D_i a_{i+1} - r_i delta_i, f_i> + 1/2 |delta_{i-1}(f_i, s_i)|^2

with respect to x_i (this is a_i = dL/dx_i) and to the networks. N evaluations of f make the path, N + 1 of f and N of s the
sweep; memory is that of one evaluation and of the states. The sweep yields the value of the loss too, so that it runs with the
forward pass, and the backward pass only scales the gradients: they are those of the batch's mean.

Seen from outside the learned drift is an SDE like any other: Euler-Maruyama and RK45 sample it, the probability-flow ODE gives
its likelihood. Data enter at t_min, the first time of the finest grid, by one step of the forward process. As g -> 0 the model
becomes the continuous normalizing flow dx = f dt (Theorem 1).

The networks see t / T and give f T and g sqrt(T) s, which are of order one.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Eqs. 8-16, Algorithms 1 and 2 (Eqs. 3.8-3.16 of the thesis).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from indm_core.model import GenerativeModel, Losses, Node
from indm_core.noise import Noise, rand, randn_like
from indm_core.sde import SDE
from indm_core.shapes import Float

__all__ = ["DiffFlow", "LearnedSDE", "fixed_times", "flexible_times"]

Field = Callable[[Tensor, Tensor], Tensor]
"""field(x, t) -> like x, t of shape (b,)."""

POWER = 1 / 0.9
MOST_STEPS = 10_000
"""Of a path: training keeps its states."""


def fixed_times(num_steps: int, t_max: float) -> Float[Tensor, " n"]:
    """t_i = (i/N)^(1/0.9) T for i = 0, ..., N, increasing, float64: longer steps towards the noise.

    References: Zhang, Chen 2021, section 3.3 (the text prints the reciprocal exponent, which would do the opposite).
    """
    return t_max * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) ** POWER


def flexible_times(num_steps: int, t_max: float, like: Tensor, generator: Noise = None) -> Float[Tensor, " n"]:
    """Times drawn anew for each batch: t_i uniform between those of a fixed grid of N - 1 steps, t_0 = 0 and t_N = T."""
    bins = fixed_times(num_steps - 1, t_max)
    inner = bins[:-1] + rand(num_steps - 1, like, generator).cpu() * bins.diff()
    return torch.cat([bins[:1], inner, bins[-1:]])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedSDE(SDE):
    """dx = f(x, t) dt + g dw with a network for f; K = 1.

    Args:
        f: The drift of x, t of shape (b,).
        g: Volatility, positive.
        t_min, t_max: Where samplers and likelihoods stay.
    """

    f: Field
    g: float
    t_min: float
    t_max: float

    @property
    def linear(self) -> None:
        return None

    def drift(self, u: Tensor, t: Tensor) -> Tensor:
        return self.f(u.squeeze(-1), t.to(u.device).reshape(-1).expand(len(u))).unsqueeze(-1)

    def GG(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.g**2)[..., None, None]

    def check_state(self, u: Tensor) -> None:
        if u.shape[-1] != 1:
            raise ValueError(f"u: its blocks have size {u.shape[-1]}, those of a learned SDE 1")

    def embed(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def project(self, u: Tensor) -> Tensor:
        return u.squeeze(-1)

    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """Euler-Maruyama from s to t, in steps of at most a thirtieth of T."""
        ts = torch.linspace(float(s), float(t), 1 + math.ceil(30 * float(t - s) / self.t_max), dtype=torch.float64)
        for start, step in zip(ts[:-1], ts.diff(), strict=True):
            u = u + float(step) * self.drift(u, start) + self.g * math.sqrt(step) * randn_like(u, generator)
        return u

    def enter(self, u_0: Tensor, t: Tensor, eps: Tensor, score: Field) -> tuple[Tensor, Tensor]:
        """One step of the forward process from 0 to t, and 1/2 |delta|^2 - 1/2 |eps|^2."""
        u = u_0 + float(t) * self.drift(u_0, torch.zeros_like(t)) + self.g * math.sqrt(t) * eps
        delta = (u_0 - self.denoise(u, t, score(u, t))) / (self.g * math.sqrt(t))
        return u, 0.5 * (delta.square() - eps.square()).flatten(1).sum(1)

    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """The mean of one backward step from t to 0 (Tweedie)."""
        return u - float(t) * (self.drift(u, t) - self.g**2 * score)


@final
class DiffFlow(GenerativeModel):
    """Drift, score and the path between data and N(0, I).

    Args:
        drift: Backbone of T f: drift(x, t / T, y) -> like x. Neither network may draw (dropout): the sweep evaluates it anew.
        score: Backbone of g sqrt(T) s.
        shape: Event of the data.
        g: Volatility, positive; published: 0.2 in two dimensions, 1 for images.
        t_max: T.
        t_min: Where samplers and likelihoods stop; None takes the first time of the finest fixed grid.
        schedule: (first optimiser step, N) in increasing order, the first at 0: progressive training.
        flexible: Whether times are drawn anew for each batch.
        adjoint: Whether gradients come from the stochastic adjoint, else from plain automatic differentiation.

    Raises:
        ValueError: an argument out of range; N < 2; a network with dropout.
    """

    def __init__(
        self,
        drift: nn.Module,
        score: nn.Module,
        *,
        shape: tuple[int, ...],
        g: float = 1.0,
        t_max: float = 0.05,
        t_min: float | None = None,
        schedule: Sequence[tuple[int, int]] = ((0, 30),),
        flexible: bool = True,
        adjoint: bool = True,
    ) -> None:
        super().__init__()
        if not g > 0 or not t_max > 0:
            raise ValueError(f"g={g} and t_max={t_max} must be positive")
        starts, sizes = [first for first, _ in schedule], [num for _, num in schedule]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"schedule={tuple(schedule)}: its steps must begin at 0 and increase")
        if min(sizes) < 2 or max(sizes) > MOST_STEPS:
            wrong = min(sizes) if min(sizes) < 2 else max(sizes)
            raise ValueError(f"schedule={tuple(schedule)}: N={wrong} must be at least 2 and at most {MOST_STEPS:,}")
        if any(isinstance(m, nn.Dropout) and m.p > 0 for network in (drift, score) for m in network.modules()):
            raise ValueError(
                "dropout: the adjoint evaluates a network twice at a state, and the two must agree; set it to 0"
            )
        self.drift_network, self.score_network = drift, score
        self.shape, self.g, self.t_start = tuple(shape), g, t_max
        self.schedule, self.flexible, self.adjoint = tuple(schedule), flexible, adjoint
        self.num_steps = sizes[-1]
        first = float(fixed_times(max(sizes), t_max)[1])
        if t_min is not None and not 0 <= t_min < t_max:
            raise ValueError(f"t_min={t_min} must lie in [0, t_max={t_max})")
        self.sde = LearnedSDE(f=self.f, g=g, t_min=first if t_min is None else t_min, t_max=t_max)

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift at times t (b,)."""
        return self.drift_network(x, t / self.t_start, None) / self.t_start

    def s(self, x: Tensor, t: Tensor) -> Tensor:
        """The score at times t (b,)."""
        return self.score_network(x, t / self.t_start, None) / (self.g * math.sqrt(self.t_start))

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The bound on one path per sample."""
        _refuse_labels(y)
        ts = fixed_times(self.num_steps, self.t_start)
        if self.flexible and self.training:
            ts = flexible_times(self.num_steps, self.t_start, x, generator)
        path = _Path(self, ts)
        eps = path.noise(x, generator)
        if self.adjoint and torch.is_grad_enabled():
            parameters = [p for network in self.networks().values() for p in network.parameters() if p.requires_grad]
            mean, prior, transitions = _StochasticAdjoint.apply(path, parameters, eps, x, *parameters)  # pyright: ignore
            objective = (prior + transitions).detach() + (mean - mean.detach())
        else:
            prior, transitions = path.losses(x, eps)
            objective = prior + transitions
        terms = {"nelbo": objective, "prior": prior, "transitions": transitions}
        return Losses(objective, {name: term.detach() for name, term in terms.items()})

    def nelbo(
        self,
        x: Tensor,
        *,
        residual: bool,
        num_draws: int,
        nodes: Sequence[Node] | None,
        generator: Noise,
        y: Tensor | None,
    ) -> Tensor:
        """The mean over paths on the fixed grid; the bound is one at time 0, so that there is no residual to leave out."""
        if nodes is not None:
            raise ValueError("nodes: DiffFlow's bound is over paths and takes no quadrature nodes; give num_draws")
        if num_draws < 1:
            raise ValueError(f"num_draws={num_draws} must be at least 1")
        _refuse_labels(y)
        path = _Path(self, fixed_times(self.num_steps, self.t_start))
        total = x.new_zeros(len(x))
        for _ in range(num_draws):
            total = total + sum(path.losses(x, path.noise(x, generator)))
        return total / num_draws

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return self.sde.embed(x), x.new_zeros(len(x))

    def decode(self, u: Tensor) -> Tensor:
        return self.sde.project(u)

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        _refuse_labels(y)
        return self.s(u.squeeze(-1), t.to(u.device).reshape(-1).expand(len(u))).unsqueeze(-1)

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        return temperature * randn_like(like, generator)

    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        return -0.5 * (u.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def times(self, num_steps: int, low: float) -> Tensor:
        """The fixed grid without its last step to 0, which is `denoise`'s; num_steps counts the evaluations of the score.

        Raises:
            ValueError: fewer than two steps, or more than the schedule's finest grid has: the networks know no shorter times.
        """
        finest = max(num for _, num in self.schedule)
        if not 2 <= num_steps <= finest:
            raise ValueError(
                f"num_steps={num_steps}: a DiffFlow trained on N={finest} steps is sampled in 2 to {finest} on its grid"
            )
        ts = fixed_times(num_steps, self.t_start)[1:].flip(0)
        return ts[ts >= low * (1 - 1e-9)]

    def evaluations(self) -> dict[str, int]:
        return {"drift": 2 * self.num_steps + 1, "score": self.num_steps}

    def networks(self) -> dict[str, nn.Module]:
        """`drift` and `score`."""
        return {"drift": self.drift_network, "score": self.score_network}

    def phase(self, step: int) -> str:
        """'N=..', the number of steps that the schedule gives."""
        return f"N={next(num for first, num in reversed(self.schedule) if first <= step)}"

    def begin_phase(self, phase: str) -> None:
        self.num_steps = int(phase.removeprefix("N="))


def _refuse_labels(y: Tensor | None) -> None:
    if y is not None:
        raise ValueError("y: DiffFlow has no conditional form; give no labels")


class _Path:
    """A grid, and what the loss asks at its points."""

    def __init__(self, model: DiffFlow, ts: Tensor) -> None:
        self.model, self.ts = model, ts
        self.steps = [float(step) for step in ts.diff()]
        self.scale = [model.g * math.sqrt(step) for step in self.steps]
        self.r = [math.sqrt(step) / model.g for step in self.steps]

    def noise(self, x: Tensor, generator: Noise) -> list[Tensor]:
        return [randn_like(x, generator) for _ in self.steps]

    def f(self, i: int, x: Tensor) -> Tensor:
        return self.model.f(x, self.ts[i].to(x.device).expand(len(x)))

    def s(self, i: int, x: Tensor) -> Tensor:
        return self.model.s(x, self.ts[i].to(x.device).expand(len(x)))

    def delta(self, i: int, q: Tensor, f: Tensor, s: Tensor) -> Tensor:
        """delta_i from q_i and from f and s at x_{i+1}."""
        return self.r[i] * (f - self.model.g**2 * s) - q

    def losses(self, x: Tensor, eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two terms of the bound, (b,) each; N + 1 evaluations of f and N of s."""
        transitions, f = x.new_zeros(len(x)), self.f(0, x)
        for i, e in enumerate(eps):
            q = e + self.r[i] * f
            x = x + self.scale[i] * q
            f = self.f(i + 1, x)
            transitions = transitions + _half_square(self.delta(i, q, f, self.s(i + 1, x))) - _half_square(e)
        return -self.model.log_prob_start(x), transitions


def _half_square(v: Tensor) -> Tensor:
    return 0.5 * v.square().flatten(1).sum(1)


class _StochasticAdjoint(torch.autograd.Function):
    """The mean loss of a batch, with its gradients by the sweep; and its two terms per sample, without."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, path: _Path, parameters: list[Tensor], eps: list[Tensor], x: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        xs, qs, transitions = [x], [], x.new_zeros(len(x))
        for i, e in enumerate(eps):
            qs.append(e + path.r[i] * path.f(i, xs[i]))
            xs.append(xs[i] + path.scale[i] * qs[i])
            transitions -= _half_square(e)
        gradients = [torch.zeros_like(p) for p in parameters]
        prior = -path.model.log_prob_start(xs[-1])
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
            torch._foreach_add_([total for total, _ in used], [g for _, g in used])
        ctx.mark_non_differentiable(prior, transitions)
        ctx.gradients = [adjoint, *gradients]
        return (prior + transitions).mean(), prior, transitions

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> Any:  # pyright: ignore
        return (None, None, None, *torch._foreach_mul(ctx.gradients, gradient / len(ctx.gradients[0])))
