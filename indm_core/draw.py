r"""What takes a model: samples, the paths of data and of samples through it, and what a bridge carries from set to set.

A bridge's flow h takes a second data set y ~ p_2 to the prior pi, at T, and its diffusion takes the latents h(x) of the
first to pi as well. Hence, u_t the state from t_min to T,

    forward    x ~ p_1,  u_T from h(x) by the diffusion or by its probability-flow ODE,     h^-1(u_T) ~ p_2,
    backward   y ~ p_2,  u_T = h(y),  u_{t_min} by a sampler,                                h^-1(u_{t_min}) ~ p_1.

By the ODE both ways are maps, each the other's inverse: an image keeps its partner. The diffusion forgets x by T.

References:
    Kim et al. 2022 (INDM), section 7.3, Figure 8 and appendix F.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.collage.conditions import guided
from indm_core.exponential import check_method
from indm_core.model import GenerativeModel, LinearModel
from indm_core.model.labels import labels_of, null_of
from indm_core.noise import Noise, seeded
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sample import Score
from indm_core.sampling import Sampler, Sampling, sampler_of
from indm_core.sde import SDE, LinearSDE, apply
from indm_core.shapes import Float
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times

__all__ = [
    "Drawn",
    "Sampler",
    "check_sampling",
    "draw",
    "draw_by",
    "forward_path",
    "generative_path",
    "start_times",
    "times_of",
    "translate_backward",
    "translate_forward",
]


class Drawn(NamedTuple):
    """Samples x (n, *shape) and the evaluations of the score that each took on average."""

    x: Tensor
    evaluations: float


def start_times(model: GenerativeModel) -> Float[Tensor, 2]:
    """The two ends of a model's sampling, t_start and t_min: all that an adaptive sampler needs."""
    return torch.tensor([model.t_start, model.sde.t_min], dtype=torch.float64)


@torch.no_grad()
def draw(
    model: GenerativeModel,
    sampler: Sampler,
    ts: Tensor,
    like: Tensor,
    num: int,
    *,
    generator: Noise = None,
    denoise: bool = True,
    temperature: float = 1.0,
    start_temperature: float = 1.0,
    start: Tensor | None = None,
    label: int | Tensor | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """Samples x of a model: its law at t_start, a sampler down to ts[-1], optionally Tweedie's mean there, one decode.

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u, which takes labels as a sixth argument where they are given.
        ts: Decreasing times from the model's t_start; an end above t_min stops early.
        like: Gives dtype and device.
        num: Number of samples.
        generator: One generator per sample makes the samples independent of `num` and of their order.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.
        temperature: Factor of the final latent (as published).
        start_temperature: Factor of the noise that the law at t_start is drawn from; with `start`, of the state there.
        start: Data (num, *shape). Sampling then starts from their diffused latents instead of draws of the model's law at
            t_start, so that the difference between these two laws does not enter the samples.
        label: A class for all samples, one for each (num,), or weights (num, K + 1) over none and the classes; None: the score
            without labels.
        guidance: w of s(u, y) + w (s(u, y) - s(u, none)), not negative.

    Raises:
        ValueError: ts that do not begin at t_start, a label that the model was not trained with, or guidance without one.

    References: Kim et al. 2022, appendix F (temperature, stopping time, z_T^phi).
    """
    check_positive(temperature=temperature, start_temperature=start_temperature)
    score, y = _conditioned(model, num, like, label, guidance)
    if start is None:
        if not math.isclose(float(ts[0]), model.t_start, rel_tol=1e-9):
            raise ValueError(
                f"ts[0]={float(ts[0]):g} must be the model's t_start={model.t_start:g}, where its law is drawn"
            )
        u = model.sample_start(model.state_like(num, like), generator, start_temperature)
    else:
        u_0, _ = model.encode(start.to(like), generator)
        u = start_temperature * model.sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), generator)
    return model.decode(temperature * _descend(model.sde, sampler, score, u, ts, denoise, generator, y))


def _conditioned(
    model: GenerativeModel, num: int, like: Tensor, label: int | Tensor | None, guidance: float
) -> tuple[Score, Tensor | None]:
    """The score, guided where it is to be, and the labels that it takes."""
    check_not_negative(guidance=guidance)
    if label is None:
        if guidance:
            raise ValueError(f"guidance={guidance:g}: it leads towards a class; give a label, or no guidance")
        return model.score, None
    y = labels_of(label, num, model.num_classes).to(like.device)
    return guided(model.score, guidance, null_of(y)), y


def _descend(
    sde: SDE,
    sampler: Sampler,
    score: Score,
    u: Tensor,
    ts: Tensor,
    denoise: bool,
    generator: Noise,
    y: Tensor | None = None,
) -> Tensor:
    """From a state at ts[0] down to ts[-1], and optionally Tweedie's mean there."""
    given = () if y is None else (y,)  # a sampler of one's own need not know labels
    u = sampler(sde, score, u, ts, generator, *given)
    return sde.denoise(u, ts[-1], score(u, ts[-1], *given)) if denoise else u


def draw_by(
    model: GenerativeModel,
    seeds: Sequence[int],
    sampling: Sampling,
    start: Tensor | None = None,
    label: int | Tensor | None = None,
    guidance: float = 0.0,
) -> Drawn:
    """One sample per seed, in the model's dtype and on its device: a sample depends on its seed alone, not on its neighbours.

    Args:
        start: Data (n, *shape) whose diffused latents sampling starts from; None starts from the model's own law.
        label, guidance: See `draw`. A guided evaluation counts as the two of the network that it is.
    """
    evaluated, each = 0, 2 if guidance and label is not None else 1
    check_sampling(model, sampling)
    chosen = sampler_of(sampling)

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise, *y: Tensor) -> Tensor:
        def counted(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            nonlocal evaluated
            evaluated += each * len(u)
            return score(u, t, y)

        return chosen(sde, counted, u, ts, generator, *y)

    x = draw(
        model,
        sampler,
        times_of(model, sampling),
        next(model.parameters(), torch.zeros(())).new_zeros(()),
        len(seeds),
        generator=seeded(seeds),
        denoise=sampling.denoise,
        temperature=sampling.temperature,
        start_temperature=sampling.start_temperature,
        start=start,
        label=label,
        guidance=guidance,
    )
    return Drawn(x, evaluated / len(seeds) + each * sampling.denoise)


def times_of(model: GenerativeModel, sampling: Sampling) -> Tensor:
    """The decreasing times that a sampling asks for, from where the model starts."""
    sde, steps, low, high = model.sde, sampling.num_steps, sampling.stop or model.sde.t_min, model.t_start
    if sampling.sampler == "ode":
        return uniform_times(sde, 1, low=low, high=high)
    grids: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform_times(sde, steps, low=low, high=high),
        "power": lambda: power_times(sde, steps, sampling.exponent, low=low, high=high),
        "log-rho": lambda: log_rho_times(_linear(sde, "grid=log-rho"), steps, low=low, high=high),
        "edm": lambda: edm_times(_linear(sde, "grid=edm"), steps, sampling.exponent, low=low, high=high),
        "trained": lambda: model.times(steps, low),
    }
    return grids[sampling.spacing]()


def check_sampling(model: GenerativeModel, sampling: Sampling) -> None:
    """Refuses a sampler that the model does not allow, before any work.

    Raises:
        ValueError: what needs a linear diffusion on a learned one, a method or grid that its SDE has not, too few evaluations.
    """
    if sampling.sampler == "deis":
        check_method(_linear(model.sde, "sampler=deis"), sampling.method)
    times_of(model, sampling)


def _linear(sde: SDE, what: str) -> LinearSDE:
    """The SDE, if it is linear."""
    linear = sde.linear
    if linear is None:
        raise ValueError(f"{what} needs a linear diffusion, and the drift of this model is learned; take em, pc or ode")
    return linear


@torch.no_grad()
def forward_path(model: GenerativeModel, x: Tensor, ts: Tensor, generator: Noise = None) -> Tensor:
    """The data-space path x_t = h^-1(z_t) of one forward diffusion of each x.

    Args:
        x: Data (b, *shape).
        ts: Increasing times, from 0 on; between them the diffusion is drawn by `SDE.transition`, which is exact for a linear
            SDE.

    Returns:
        (len(ts), b, *shape); at t = 0 the data themselves.

    References: Kim et al. 2022, Figure 8 (with a bridge: from one data set to the other).
    """
    inside = bool(ts.numel()) and 0 <= float(ts.min()) <= float(ts.max()) <= model.sde.t_max
    if ts.ndim != 1 or not inside or not bool((ts.diff() > 0).all()):
        raise ValueError(f"ts={ts.tolist()} must increase within [0, {model.sde.t_max:g}]")
    sde, rungs = model.sde, []
    u, _ = model.encode(x, generator)
    s = torch.zeros((), dtype=torch.float64)
    for t in ts:
        u = sde.transition(u, t, s, generator) if t > 0 else u
        s = t
        rungs.append(model.decode(u))
    return torch.stack(rungs)


@torch.no_grad()
def generative_path(
    model: GenerativeModel, sampler: Sampler, u: Tensor, ts: Tensor, rungs: int, generator: Noise = None
) -> Tensor:
    """The data-space path x_t = h^-1(z_t) of a sampler from the states u at ts[0].

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Its decreasing times.
        rungs: Points of the path, ends included; they lie at grid times spread evenly over the grid.

    Returns:
        (rungs, b, *shape), from ts[0] down to ts[-1].
    """
    if not 2 <= rungs <= len(ts):
        raise ValueError(f"rungs={rungs} must lie between 2 and the {len(ts)} times of the grid")
    at = torch.linspace(0, len(ts) - 1, rungs).round().long().tolist()
    path = [model.decode(u)]
    for first, last in pairwise(at):
        u = sampler(model.sde, model.score, u, ts[first : last + 1], generator)
        path.append(model.decode(u))
    return torch.stack(path)


@torch.no_grad()
def translate_forward(
    model: LinearModel,
    x: Float[Tensor, " b *event"],
    *,
    deterministic: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: Noise = None,
) -> Float[Tensor, " b *event"]:
    """Data of a bridge's first set, carried to its second: h^-1(u_T).

    Args:
        x: Of the first set.
        deterministic: Whether u_T comes from h(x) at t_min by the probability-flow ODE, else by the diffusion from time 0.
        rtol, atol: Tolerances of the ODE, per sample.

    Raises:
        ConvergenceError: the ODE does not reach its tolerance, or the flow is not inverted.

    References: Kim et al. 2022, section 7.3.
    """
    sde = model.sde
    u, _ = model.encode(x, generator)
    if not deterministic:
        t = torch.tensor(model.t_start, dtype=torch.float64)
        return model.decode(sde.transition(u, t, torch.zeros_like(t), generator))

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        return (sde.reverse_drift(state[0], t, model.score(state[0], t), lam=0.0),)

    ends = math.sqrt(sde.t_min), math.sqrt(model.t_start)
    (u_T,), _ = rk45(in_sqrt_time(field), (u,), *ends, rtol=rtol, atol=atol)
    return model.decode(u_T)


@torch.no_grad()
def translate_backward(
    model: LinearModel,
    y: Float[Tensor, " b *event"],
    sampler: Sampler,
    ts: Float[Tensor, " n"],
    *,
    denoise: bool = True,
    generator: Noise = None,
) -> Float[Tensor, " b *event"]:
    """Data of a bridge's second set, carried to its first: a sampler from u_T = h(y).

    Of a state that is more than positions (CLD) h(y) gives the positions alone; the velocities are drawn from pi, given them.

    Args:
        y: Of the second set.
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Decreasing times from T.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.

    References: Kim et al. 2022, section 7.3.
    """
    u, _ = model.encode(y, generator)
    u_T = _prior_given_positions(model.sde, u, generator)
    return model.decode(_descend(model.sde, sampler, model.score, u_T, ts, denoise, generator))


def _prior_given_positions(sde: LinearSDE, u: Tensor, generator: Noise) -> Tensor:
    """A draw of pi whose first coordinates are those of u: s + Cov(., first) Var(first)^-1 (u - s)_first with s ~ pi."""
    pi = sde.prior_cov().to(u.device)
    if pi.shape[-1] == 1:
        return u
    s, gain = sde.sample_prior(u, generator), torch.zeros_like(pi)
    gain[..., 0] = pi[..., 0] / pi[..., :1, 0]
    return s + apply(gain, u - s)
