r"""Samplers: from a state at ts[0] down to ts[-1], for any SDE and any score.

Every sampler has the form  sample_x(sde, score, u, ts, *, generator=None, ...) -> u  with ts a decreasing 1-D float64 tensor
inside [t_min, t_max]. Noise comes from `generator`; a sequence of generators, one per sample, makes each sample independent of
its batch.

    EM      u_s = u_t - h [drift - GG^T score] + sqrt(h) G z,   h = t - s                    (weak order 1)
    PC      Langevin steps at t, then EM to s                                                 (Song et al. 2021, Alg. 2-5)
    ODE     the probability-flow ODE by an adaptive Dormand-Prince 5(4), a step size per sample

References:
    Song et al. 2021, "Score-based generative modeling through SDEs"; Karras et al. 2022 (EDM grid).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.noise import Noise, randn_like
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.sde import SDE, LinearSDE, apply, sqrt_psd
from indm_core.shapes import Float

__all__ = [
    "Score",
    "draw",
    "edm_times",
    "forward_path",
    "generative_path",
    "log_rho_times",
    "power_times",
    "sample_em",
    "sample_ode",
    "sample_pc",
    "start_times",
    "uniform_times",
]

Sampler = Callable[[SDE, "Score", Tensor, Tensor, Noise], Tensor]


@runtime_checkable
class Score(Protocol):
    """grad log p_t(u), like u; t is 0-d or (b, 1, ..., 1), y a label or another condition."""

    def __call__(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor: ...


def uniform_times(
    sde: SDE, num_steps: int, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """num_steps + 1 equally spaced times from t_max down to t_min, float64.

    Args:
        low, high: Other ends: where sampling stops, where it starts.
    """
    return power_times(sde, num_steps, 1.0, low=low, high=high)


def power_times(
    sde: SDE, num_steps: int, power: float, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in t^(1/power): power 2 is the quadratic grid, dense at small t."""
    if power <= 0:
        raise ValueError(f"power={power} must be positive")
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = low ** (1 / power), high ** (1 / power)
    return ((first + share * (last - first)) ** power).clamp(low, high)


def log_rho_times(
    sde: LinearSDE, num_steps: int, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in log rho, the noise in units of the signal (`LinearSDE.log_rho`)."""
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = _log_rho(sde, low, high)
    return _times_of(sde, first + share * (last - first), low, high)


def edm_times(
    sde: LinearSDE, num_steps: int, power: float = 7.0, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in rho^(1/power) (Karras et al. 2022, Eq. 5)."""
    if power <= 0:
        raise ValueError(f"power={power} must be positive")
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = (torch.exp(v / power) for v in _log_rho(sde, low, high))
    return _times_of(sde, power * torch.log(first + share * (last - first)), low, high)


def start_times(model: GenerativeModel) -> Float[Tensor, 2]:
    """The two ends of a model's sampling, t_start and t_min: all that an adaptive sampler needs."""
    return torch.tensor([model.t_start, model.sde.t_min], dtype=torch.float64)


def _descending(num_steps: int) -> Tensor:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def _ends(sde: SDE, low: float | None, high: float | None) -> tuple[float, float]:
    """The ends of a grid inside [t_min, t_max]."""
    low, high = sde.t_min if low is None else low, sde.t_max if high is None else high
    sde.check_time("low", low)
    sde.check_time("high", high)
    if not low < high:
        raise ValueError(f"low={low} must lie below high={high}")
    return low, high


def _log_rho(sde: LinearSDE, low: float, high: float) -> tuple[Tensor, Tensor]:
    first, last = sde.log_rho(torch.tensor([low, high], dtype=torch.float64).reshape(-1, 1, 1, 1)).flatten()
    return first, last


def _times_of(sde: LinearSDE, log_rho: Tensor, low: float, high: float) -> Tensor:
    """Where log rho takes the given values, by bisection in log t; the ends are exact."""
    a, b = torch.full_like(log_rho, math.log(low)), torch.full_like(log_rho, math.log(high))
    for _ in range(60):
        middle = 0.5 * (a + b)
        below = sde.log_rho(middle.exp().reshape(-1, 1, 1, 1)).flatten() < log_rho
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    t = torch.exp(0.5 * (a + b)).clamp(low, high)
    t[0], t[-1] = high, low
    if not (sde.log_rho(t.reshape(-1, 1, 1, 1)).flatten().diff() < 0).all() or not (t.diff() < 0).all():
        raise ValueError(
            f"log-rho and EDM grids need a rho that grows with t, which {sde}'s does not; take a power grid"
        )
    return t


def check_times(sde: SDE, ts: Tensor) -> None:
    """Refuses a grid that is not strictly decreasing or leaves [t_min, t_max]."""
    if ts.dtype != torch.float64:
        raise ValueError(
            f"ts: times of type {ts.dtype}; give float64, or the smallest time is rounded out of the range"
        )
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"ts: a grid needs at least two times in one dimension, got shape {tuple(ts.shape)}")
    steps = ts[1:] - ts[:-1]
    if not bool((steps < 0).all()):
        i = int((~(steps < 0)).nonzero()[0])
        raise ValueError(f"ts must decrease: ts[{i}]={float(ts[i]):g} is followed by ts[{i + 1}]={float(ts[i + 1]):g}")
    sde.check_time("ts[0]", float(ts[0]))
    sde.check_time("ts[-1]", float(ts[-1]))


@torch.no_grad()
def sample_em(sde: SDE, score: Score, u: Tensor, ts: Tensor, *, generator: Noise = None, lam: float = 1.0) -> Tensor:
    """Euler-Maruyama for the reverse SDE (lam = 1) or any process of the same marginals (0 <= lam).

    Args:
        u: State at ts[0], (b, *event, K).
        ts: Decreasing times.
        lam: Stochasticity; 0 is Euler's method for the ODE.

    Returns:
        The state at ts[-1]; len(ts) - 1 evaluations of the score.
    """
    check_times(sde, ts)
    sde.check_state(u)
    if lam < 0:
        raise ValueError(f"lam={lam} must not be negative")
    for t, s in pairwise(ts):
        u = _em_step(sde, score, u, t, s, lam, generator)
    return u


def _em_step(sde: SDE, score: Score, u: Tensor, t: Tensor, s: Tensor, lam: float, generator: Noise) -> Tensor:
    h = t - s
    mean = u - h.to(u.dtype) * sde.reverse_drift(u, t, score(u, t), lam)
    if lam == 0:
        return mean
    return mean + apply(lam * sqrt_psd(h * sde.GG(t)), randn_like(u, generator))


@torch.no_grad()
def sample_pc(
    sde: SDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    generator: Noise = None,
    snr: float = 0.16,
    corrector_steps: int = 1,
) -> Tensor:
    """Predictor-corrector: at each time `corrector_steps` Langevin steps, then Euler-Maruyama.

    A Langevin step is u + a score + sqrt(2 a) z with a = 2 (snr |z| / |score|)^2, the norms taken per sample. Such a step
    depends on the state, so that the corrector leaves the law invariant only where |z| / |score| hardly varies: in many
    dimensions (images). In two dimensions its samples are wrong; use `sample_em` or `sample_ode` there.

    Args:
        snr: Signal-to-noise ratio of the corrector (0.16 for CIFAR-10 with VE).
        corrector_steps: Langevin steps per time.

    Returns:
        The state at ts[-1]; (corrector_steps + 1) (len(ts) - 1) evaluations of the score.
    """
    check_times(sde, ts)
    sde.check_state(u)
    if snr <= 0:
        raise ValueError(f"snr={snr} must be positive")
    if corrector_steps < 0:
        raise ValueError(f"corrector_steps={corrector_steps} must not be negative")
    for t, s in pairwise(ts):
        for _ in range(corrector_steps):
            u = _langevin_step(u, score(u, t), snr, generator)
        u = _em_step(sde, score, u, t, s, 1.0, generator)
    return u


def _langevin_step(u: Tensor, score: Tensor, snr: float, generator: Noise) -> Tensor:
    z = randn_like(u, generator)
    ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp(min=1e-12)
    a = (2 * (snr * ratio).square()).reshape(-1, *[1] * (u.ndim - 1))
    return u + a * score + (2 * a).sqrt() * z


@torch.no_grad()
def sample_ode(
    sde: SDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    generator: Noise = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """The probability-flow ODE from ts[0] to ts[-1] by RK45 (the times between are not used, nor is the generator).

    Args:
        rtol, atol: Tolerances per sample.

    Raises:
        ConvergenceError: the tolerance is not reached.
    """
    check_times(sde, ts)
    sde.check_state(u)

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        return (sde.reverse_drift(state[0], t, score(state[0], t), lam=0.0),)

    ends = math.sqrt(ts[0]), math.sqrt(ts[-1])
    (u,), _ = rk45(in_sqrt_time(field), (u,), *ends, rtol=rtol, atol=atol)
    return u


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
) -> Tensor:
    """Samples x of a model: its law at t_start, a sampler down to ts[-1], optionally Tweedie's mean there, one decode.

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Decreasing times from the model's t_start; an end above t_min stops early.
        like: Gives dtype and device.
        num: Number of samples.
        generator: One generator per sample makes the samples independent of `num` and of their order.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.
        temperature: Factor of the final latent (as published).
        start_temperature: Factor of the noise that the law at t_start is drawn from; with `start`, of the state there.
        start: Data (num, *shape) whose diffused latents are the states at t_start, instead of draws of the model's law there:
            what is lost between the two laws is then no part of the samples.

    References: Kim et al. 2022, appendix F (temperature, stopping time, z_T^phi).
    """
    if not (temperature > 0 and start_temperature > 0):
        raise ValueError(f"temperature={temperature} and start_temperature={start_temperature} must be positive")
    if start is None:
        u = model.sample_start(model.state_like(num, like), generator, start_temperature)
    else:
        u_0, _ = model.encode(start.to(like), generator)
        u = start_temperature * model.sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), generator)
    u = sampler(model.sde, model.score, u, ts, generator)
    if denoise:
        t = ts[-1]
        u = model.sde.denoise(u, t, model.score(u, t))
    return model.decode(temperature * u)


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
    if ts.ndim != 1 or not bool((ts.diff() > 0).all()) or not 0 <= float(ts[0]) <= float(ts[-1]) <= model.sde.t_max:
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
