r"""Sampling a collage: a predictor, and Langevin steps at each level.

On a graph without cycles the collage's score at t is that of q_t ~ prod_r q_t(u_r)^{c_r}, a path of laws that begins near the
prior and ends in the joint law q_0. q_t is not q_0 noised, so the ODE and the reverse SDE of the diffusion leave the path. What
stays on it are Langevin steps at each of its laws, between which a predictor goes from one level to the next:

    u <- u + h Sigma_t s(u, t) + sqrt(2 h) R_t z,          R R^T = Sigma,

which leaves q_t as it is but for O(h) (a Gaussian coordinate of precision a in units of Sigma^-1 gets the variance
1/(a - h a^2 / 2)). Where every noised piece has a precision of at most 1/Sigma, h < 2/L is stable for L the largest eigenvalue
of the collage's in these units: 1 for independent positions, up to 3 in a chain. Norms of single samples play no part, unlike
in `sample_pc`.

A Metropolis test removes the bias. The ratio of the densities is the line integral of the score, by the trapezoidal rule exact
for a Gaussian law,

    log q_t(u') - log q_t(u) = int_0^1 s(u + tau d, t) . d dtau,     d = u' - u,

per canvas: the larger a canvas, the smaller h must be for moves to be taken.

References:
    Zhang 2023 (thesis), chapter 4; Song, Ermon 2019 (annealed Langevin dynamics); Roberts, Tweedie 1996 (the Metropolis test).
    Du et al. 2023, "Reduce, reuse, recycle", section 4 (why products of noised laws need such steps).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from indm_core.exponential import sample_deis
from indm_core.noise import Noise, rand_like, randn_like
from indm_core.ranges import check_count, check_positive
from indm_core.sample import Score, sample_em
from indm_core.sde import LinearSDE, apply, inverse
from indm_core.shapes import Float
from indm_core.times import check_times

__all__ = ["Predictor", "evaluations", "langevin_steps_of", "sample_collage"]

Predictor = Literal["deis", "em"]
FADE = 0.1
"""The share of the levels, the last ones, over which the step falls to `final_step`."""


@torch.no_grad()
def sample_collage(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    generator: Noise = None,
    langevin_steps: int = 4,
    step: float = 0.5,
    final_step: float = 0.1,
    predictor: Predictor = "deis",
    metropolis: bool = False,
) -> Tensor:
    """From ts[0] down to ts[-1]: at each level a step of the predictor, then Langevin steps.

    Args:
        sde: A linear SDE whose noise is independent per position.
        score: A collage's, or any other.
        u: State at ts[0], (b, *canvas, K).
        ts: Decreasing times in [t_min, t_max], float64: the levels; `power_times(sde, n, 2.0)` is a good grid.
        langevin_steps: At each level after the first; 0 is the predictor alone.
        step: h, in units of Sigma_t.
        final_step: h at the last level; over the last tenth of the levels it falls from `step`, as a power.
        predictor: "deis", a gDDIM step (the ODE), or "em", a step of the reverse SDE.
        metropolis: Whether a Langevin step is taken with the probability that makes q_t invariant, per canvas.

    Returns:
        The state at ts[-1]; `evaluations` counts the evaluations of the score.

    Raises:
        ValueError: an SDE whose noise is not independent per position, an option out of range.
    """
    check_pixelwise(sde)
    check_times(sde, ts)
    sde.check_state(u)
    check_positive(step=step, final_step=final_step)
    if langevin_steps != 0:
        check_count(langevin_steps=langevin_steps)
    if predictor not in get_args(Predictor):
        raise ValueError(f"predictor={predictor!r} is none of {', '.join(get_args(Predictor))}")
    for h, (t, s) in zip(_steps(len(ts) - 1, step, final_step), pairwise(ts), strict=True):
        level = torch.stack([t, s])
        if predictor == "deis":
            u = sample_deis(sde, score, u, level, order=0)
        else:
            u = sample_em(sde, score, u, level, generator=generator)
        u = langevin_steps_of(sde, score, u, s, langevin_steps, h, metropolis=metropolis, generator=generator)
    return u


def evaluations(num_steps: int, *, langevin_steps: int = 4, metropolis: bool = False) -> int:
    """Evaluations of the score that `sample_collage` takes on a grid of `num_steps` steps."""
    return num_steps * (1 + langevin_steps + (metropolis and langevin_steps > 0))


def langevin_steps_of(
    sde: LinearSDE,
    score: Score,
    u: Float[Tensor, "b *canvas k"],
    t: Tensor,
    num: int,
    h: float,
    *,
    metropolis: bool = False,
    generator: Noise = None,
) -> Float[Tensor, "b *canvas k"]:
    """`num` Langevin steps at the time t, 0-d, of length h in units of Sigma_t.

    With the Metropolis test each but the first evaluation serves two steps: num + 1 evaluations.
    """
    R, cov = sde.R(t), sde.cov(t)
    s_u = score(u, t) if metropolis and num else None
    for _ in range(num):
        s = score(u, t) if s_u is None else s_u
        moved = u + h * apply(cov, s) + (2 * h) ** 0.5 * apply(R, randn_like(u, generator))
        if s_u is None:
            u = moved
            continue
        s_moved = score(moved, t)
        taken = (
            _log_ratio(sde, u, moved, s, s_moved, t, h) >= rand_like(u.flatten(1)[:, :1], generator).squeeze(1).log()
        )
        mask = taken.reshape(-1, *[1] * (u.ndim - 1))
        u, s_u = torch.where(mask, moved, u), torch.where(mask, s_moved, s)
    return u


def check_pixelwise(sde: LinearSDE) -> None:
    """Refuses an SDE under which a piece's noised law is not the noised law of the piece."""
    if not sde.pixelwise:
        raise ValueError(
            f"{type(sde).__name__}: its noise is not independent per position, so that a piece of the noised canvas is not "
            "a noised piece; take VP, SubVP, VE or CLD"
        )


def _log_ratio(
    sde: LinearSDE, u: Tensor, moved: Tensor, s: Tensor, s_moved: Tensor, t: Tensor, h: float
) -> Float[Tensor, " b"]:
    """log of q_t(u') g(u | u') / (q_t(u) g(u' | u)), g the law of a Langevin step; nats."""
    R, step = sde.R(t), moved - u
    rise = 0.5 * ((s + s_moved) * step).flatten(1).sum(1)
    whitened, ahead, back = (apply(A, v) for A, v in ((inverse(R), step), (R.mT, s), (R.mT, s_moved)))
    forth_square = (whitened - h * ahead).square().flatten(1).sum(1)
    back_square = (-whitened - h * back).square().flatten(1).sum(1)
    return rise + (forth_square - back_square) / (4 * h)


def _steps(num: int, step: float, final: float) -> list[float]:
    """h at each level."""
    fading = max(1, round(FADE * num))
    shares = [max(0.0, (i + 1 - (num - fading)) / fading) for i in range(num)]
    return [step * (final / step) ** share for share in shares]
