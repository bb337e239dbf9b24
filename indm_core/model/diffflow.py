r"""DiffFlow: a diffusion whose drift is learned together with its score.

    dx = f(x, t) dt + g(t) dw   from data at 0 to N(0, I) at T,        dx = [f - g^2 s] dt + g dw   back.

On a grid 0 = t_0 < ... < t_N = T the bound on -log p(x_0), in nats, exact for the discrete process, is

    NELBO(x_0) = E[-log N(x_N; 0, I) + sum_i (1/2 |delta_i|^2 - 1/2 |eps_i|^2)] + d log(g(T)/g(0)),

eps_i the noise of the path and delta_i the noise that retraces it backwards (see `retraced`): the loss of the paper minus a
constant, sample by sample, of lower variance.

Seen from outside the learned drift is an SDE like any other: Euler-Maruyama and RK45 sample it, the probability-flow ODE gives
its likelihood. Data enter at t_min, the first time of the finest grid, by one step of the forward process. As g -> 0 the model
becomes the continuous normalizing flow dx = f dt (Theorem 1); the bound above diverges there, and `ffjord` has its own loss.
With a drift that is given and not learned (`LinearDrift`) it becomes a diffusion model, trained by the bound on whole paths.

The networks see t / T and give f T and g sqrt(T) s, which are of order one.

References:
    Zhang, Chen 2021, "Diffusion normalizing flow", Eqs. 8-16, Algorithms 1 and 2 (Eqs. 3.8-3.16 of the thesis).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from indm_core.adjoint import mean_by_adjoint
from indm_core.model.base import GenerativeModel, Losses, Node
from indm_core.model.diffusion import with_parameters
from indm_core.model.repeatable import check_repeatable
from indm_core.model.retraced import RetracedPath
from indm_core.noise import Noise, on_host, rand, randn_like
from indm_core.ranges import check_positive
from indm_core.sde import LearnedSDE, Volatility
from indm_core.shapes import Float

__all__ = ["DiffFlow", "LinearDrift", "fixed_times", "flexible_times"]

BETA = 0.9
MOST_STEPS = 10_000
"""Of a path: training keeps its states."""


def fixed_times(num_steps: int, t_max: float, beta: float = BETA) -> Float[Tensor, " n"]:
    """t_i = (i/N)^(1/beta) T for i = 0, ..., N, increasing, float64: longer steps towards the noise where beta < 1.

    Raises:
        ValueError: N < 1, or a T or beta that is not positive and finite or leaves steps without length.

    References: Zhang, Chen 2021, section 3.3 (the text prints the reciprocal exponent, which would do the opposite).
    """
    check_positive(t_max=t_max, beta=beta)
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    ts = t_max * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) ** (1 / beta)
    if not (ts.diff() > 0).all():
        raise ValueError(f"beta={beta}: of the {num_steps} steps some have no length; take one nearer to 1")
    return ts


def flexible_times(num_steps: int, t_max: float, generator: Noise = None, beta: float = BETA) -> Float[Tensor, " n"]:
    """Times drawn anew for each batch, by the host: t_i uniform between those of a fixed grid of N - 1 >= 1 steps, t_0 = 0 and
    t_N = T."""
    bins = fixed_times(num_steps - 1, t_max, beta)
    inner = bins[:-1] + rand(num_steps - 1, bins, on_host(generator)) * bins.diff()
    return torch.cat([bins[:1], inner, bins[-1:]])


@final
class LinearDrift(nn.Module):
    """T f = -rate x in the place of a drift network: the linear drift of a diffusion model, not learned.

    With rate = g^2 T / 2 the law N(0, I) is stationary, as for VP; what is left of x at T is exp(-rate).

    Args:
        rate: Finite and not negative; 0 is Brownian motion.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate={rate} must be finite and not negative")
        self.rate = rate

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return -self.rate * x


@final
class DiffFlow(GenerativeModel):
    """Drift, score and the path between data and N(0, I).

    Args:
        drift: Backbone of T f: drift(x, t / T, y) -> like x. Neither network may draw (dropout): the sweep evaluates it anew
            (see `repeatable`).
            Without parameters (`LinearDrift`) it is fixed.
        score: Backbone of g(t) sqrt(T) s.
        shape: Event of the data.
        g: Volatility at 0, positive; published: 0.2 in two dimensions, 1 for images.
        g_end: Volatility at T, towards which it moves geometrically; None keeps it at g, as published.
        t_max: T.
        beta: Of the grid t_i = (i/N)^(1/beta) T, positive; published: 0.9.
        t_min: Where samplers and likelihoods stop, above 0; None takes the first time of the finest fixed grid.
        schedule: (first optimiser step, N) in increasing order, the first at 0: progressive training.
        flexible: Whether times are drawn anew for each batch.
        adjoint: Whether gradients come from the stochastic adjoint, else from plain automatic differentiation.

    Raises:
        ValueError: an argument out of range; N < 2; a network that gives another value at each call.
    """

    one_size = "its diffusion is learned, no linear SDE; train an INDM or a linear diffusion"

    def __init__(
        self,
        drift: nn.Module,
        score: nn.Module,
        *,
        shape: tuple[int, ...],
        g: float = 1.0,
        g_end: float | None = None,
        t_max: float = 0.05,
        beta: float = BETA,
        t_min: float | None = None,
        schedule: Sequence[tuple[int, int]] = ((0, 30),),
        flexible: bool = True,
        adjoint: bool = True,
    ) -> None:
        super().__init__()
        volatility = Volatility(first=g, last=g if g_end is None else g_end, t_max=t_max)
        starts, sizes = [first for first, _ in schedule], [num for _, num in schedule]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"schedule={tuple(schedule)}: its steps must begin at 0 and increase")
        if min(sizes) < 2 or max(sizes) > MOST_STEPS:
            wrong = min(sizes) if min(sizes) < 2 else max(sizes)
            raise ValueError(f"schedule={tuple(schedule)}: N={wrong} must be at least 2 and at most {MOST_STEPS:,}")
        for name, network in (("drift", drift), ("score", score)):
            check_repeatable(name, network, shape)
        self.drift_network, self.score_network = drift, score
        self.shape, self.g, self.t_start, self.beta = tuple(shape), volatility, t_max, beta
        self.schedule, self.flexible, self.adjoint = tuple(schedule), flexible, adjoint
        self.num_steps = sizes[-1]
        first = float(fixed_times(max(sizes), t_max, beta)[1])
        if t_min is not None and not 0 < t_min < t_max:
            raise ValueError(
                f"t_min={t_min} must lie strictly between 0 and t_max={t_max}: data enter by a step from 0 to t_min"
            )
        self.sde = LearnedSDE(f=self.f, g=volatility, t_min=first if t_min is None else t_min, t_max=t_max)

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift at times t (b,)."""
        return self.drift_network(x, t / self.t_start, None) / self.t_start

    def s(self, x: Tensor, t: Tensor) -> Tensor:
        """The score at times t (b,)."""
        scale = (self.g(t) * math.sqrt(self.t_start)).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return self.score_network(x, t / self.t_start, None) / scale

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The bound on one path per sample."""
        _refuse_labels(y)
        if self.flexible and self.training:
            ts = flexible_times(self.num_steps, self.t_start, generator, self.beta)
        else:
            ts = self._fixed_times(self.num_steps)
        path = self._path(ts)
        eps = path.noise(x, generator)
        if self.adjoint and torch.is_grad_enabled():
            parameters = [p for network in self.networks().values() for p in network.parameters() if p.requires_grad]
            objective, terms = mean_by_adjoint(path, parameters, eps, x)
        else:
            terms = path.costs(x, eps)
            objective = terms.sum(0)
        prior, transitions = terms.detach()
        terms = {"nelbo": objective, "prior": prior, "transitions": transitions}
        return Losses(objective, {name: term.detach() for name, term in terms.items()})

    def _fixed_times(self, num_steps: int) -> Tensor:
        return fixed_times(num_steps, self.t_start, self.beta)

    def _path(self, ts: Tensor) -> RetracedPath:
        return RetracedPath(self.f, self.s, self.log_prob_start, ts, self.g)

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
        """The mean over paths on the fixed grid; the bound is one at time 0, so that there is no residual to leave out."""
        self.check_data(x)
        if nodes is not None:
            raise ValueError("nodes: DiffFlow's bound is over paths and takes no quadrature nodes; give num_draws")
        if num_draws < 1:
            raise ValueError(f"num_draws={num_draws} must be at least 1")
        _refuse_labels(y)
        path = self._path(self._fixed_times(self.num_steps))
        total = x.new_zeros(len(x))
        for _ in range(num_draws):
            total = total + path.costs(x, path.noise(x, generator)).sum(0)
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
                f"num_steps={num_steps}: a DiffFlow trained on N={finest} steps is sampled in 2 to {finest} on its grid; take "
                "so many, or grid=uniform"
            )
        ts = self._fixed_times(num_steps)[1:].flip(0)
        return ts[ts >= low * (1 - 1e-9)]

    def evaluations(self) -> dict[str, int]:
        counts = {"drift": 2 * self.num_steps + 1, "score": self.num_steps}
        return {name: counts[name] for name in self.networks()}

    def networks(self) -> dict[str, nn.Module]:
        """`score` and, where it is learned, `drift`."""
        return with_parameters(drift=self.drift_network, score=self.score_network)

    def phase(self, step: int) -> str:
        """'N=..', the number of steps that the schedule gives."""
        return f"N={next(num for first, num in reversed(self.schedule) if first <= step)}"

    def begin_phase(self, phase: str) -> None:
        self.num_steps = int(phase.removeprefix("N="))


def _refuse_labels(y: Tensor | None) -> None:
    if y is not None:
        raise ValueError("y: DiffFlow has no conditional form; give no labels")
