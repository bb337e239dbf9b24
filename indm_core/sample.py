r"""Samplers: from a state at ts[0] down to ts[-1], for any SDE and any score.

Every sampler has the form  sample_x(sde, score, u, ts, *, generator=None, ...) -> u  with ts a decreasing 1-D float64 tensor
inside [t_min, t_max]. Noise comes from `generator`; a sequence of generators, one per sample, makes each sample independent of
its batch.

    EM      u_s = u_t - h [drift - GG^T score] + sqrt(h) G z,   h = t - s        (weak order 1; order 1 without noise, lam = 0)
    PC      Langevin steps at t, then EM to s    (Song et al. 2021, Alg. 2-5; no order: the Langevin steps keep their length)
    ODE     the probability-flow ODE by an adaptive Dormand-Prince 5(4), a step size per sample; to a tolerance

References:
    Song et al. 2021, "Score-based generative modeling through SDEs".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sde import SDE, apply, sqrt_psd
from indm_core.times import check_times, edm_times, log_rho_times, on_device, power_times, uniform_times

__all__ = [
    "Sampler",
    "Score",
    "edm_times",
    "log_rho_times",
    "power_times",
    "sample_em",
    "sample_ode",
    "sample_pc",
    "uniform_times",
]


@runtime_checkable
class Score(Protocol):
    """grad log p_t(u), like u; t is 0-d or (b, 1, ..., 1), y a label or another condition."""

    def __call__(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor: ...


Sampler = Callable[..., Tensor]
"""sampler(sde, score, u, ts, generator) -> u; of labels y (b, ...) sampler(sde, score, u, ts, generator, y)."""


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
    check_not_negative(lam=lam)
    for t, s in pairwise(on_device(ts, u.device)):
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
    check_positive(snr=snr)
    if corrector_steps < 0:
        raise ValueError(f"corrector_steps={corrector_steps} must not be negative")
    for t, s in pairwise(on_device(ts, u.device)):
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
    y: Tensor | None = None,
) -> Tensor:
    """The probability-flow ODE from ts[0] to ts[-1] by RK45 (the times between are not used, nor is the generator).

    Args:
        rtol, atol: Tolerances per sample.
        y: Labels of the samples (b, ...), handed to the score with those that are still under way.

    Raises:
        ConvergenceError: the tolerance is not reached.
    """
    check_times(sde, ts)
    sde.check_state(u)

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        s = score(state[0], t) if y is None else score(state[0], t, y[rows])
        return (sde.reverse_drift(state[0], t, s, lam=0.0),)

    ends = math.sqrt(ts[0]), math.sqrt(ts[-1])
    (u,), _ = rk45(in_sqrt_time(field), (u,), *ends, rtol=rtol, atol=atol)
    return u
