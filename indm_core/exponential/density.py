r"""The log-density along the probability-flow ODE by an exponential integrator, upwards in time, with an error estimate.

With score = -R^-T eps and w = 1/2 GG^T R^-T eps, the part of the ODE's field v = F u + w that is not linear,

    log p_t(u_t) = log p_T(u_T) + int_t^T div v dtau,        div v = tr F + D,   D = div w,

and everything but eps and D is known in closed form. eps is bounded, and D is of the size of

    c = 1/2 tr M = 1/2 tr(GG^T Sigma^-1),        int_t^s c dtau = 1/2 (log_importance(s) - log_importance(t)),

so that h = D/c is the smooth one of the two: it goes from 0, below the scale of the data, to their dimension, in noise. On an
upward grid eps and h are polynomials in the clock

    z = arctan(rho^{1/3}),        rho the noise in units of the signal (`LinearSDE.log_rho`),

which counts powers of rho where there is little noise and powers of 1/rho where there is little signal, and in which the times
are equally spaced. A step predicts u_s by the polynomial through the last three values of eps, evaluates eps and D there, and
takes both integrals by the polynomials through these values as well (PEC, order 4; the first step has a chord): one evaluation
a step.

    u_s  =  psi(s, t) u_t + sum_j W_j eps_j,          W_j = int_t^s 1/2 psi(s, tau) GG^T R^-T l_j(z(tau)) dtau
    int_t^s D dtau  =  sum_j w_j h_j,                 w_j = int_t^s c l_j(z(tau)) dtau

Error. The gradient of what is computed, in the state at any time, is the score there. So a step that errs by du in the state
and by dh in the integral moves the log-density by score^T du + dh. Both are known from the polynomials of one degree less, the
predictor's for u. Their sum over the steps would be the difference to a method of one order less, but is small by chance where
they cancel; so they are added like independent errors,

    error^2  =  sum over the steps of  (score^T (u_s - predicted u_s)  +  integral - the one of one degree less)^2,

which is several times the error that is left. With random probes, D p^T (dw/du) p in place of div w, the score is that gradient
in the mean only.

References: Zhang, Chen 2023 (DEIS); Zhang 2023 (thesis), section 6.1; Zhao et al. 2023 (UniPC; PEC); Becker, Rannacher 2001
(errors of a functional weighted by its gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from indm_core.exponential.coefficients import PLAN_ENTRIES, Nodes, lagrange, quadrature
from indm_core.exponential.forms import EpsForm
from indm_core.sde import LinearSDE, apply, over_event
from indm_core.sde.algebra import event_sum
from indm_core.times import arctan_times, clock

__all__ = ["Carried", "Local", "carry_density"]

DEGREE = 2
ROOT = 4
"""Integrals are taken in t^(1/4), as those of polynomials in log rho are (`coefficients`)."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """What one evaluation of the score tells at (u, t).

    Args:
        score: Like u.
        probed: D, the divergence of the field's part that is not linear, exact or by probes, (b,).
    """

    score: Tensor
    probed: Tensor


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A state carried upwards.

    Args:
        u: The state at the last time.
        growth: int div v, (b,): log p at the first time is log p at the last one and this.
        error: What log p at the first time may be wrong by, nats (b,).
    """

    u: Tensor
    growth: Tensor
    error: Tensor

    def with_rows(self, rows: Tensor, new: Carried) -> Carried:
        """With some samples replaced."""
        return Carried(
            u=self.u.index_copy(0, rows, new.u),
            growth=self.growth.index_copy(0, rows, new.growth),
            error=self.error.index_copy(0, rows, new.error),
        )


@dataclass(frozen=True, kw_only=True)
class _Step:
    """From t to s. Weights begin with those of the newest value: at t in `prediction`, at s elsewhere.

    Args:
        transfer: psi(s, t).
        prediction, correction: W_j.
        growth: w_j, as floats.
        lower: w_j of one degree less.
    """

    transfer: Tensor
    prediction: list[Tensor]
    correction: list[Tensor]
    growth: list[float]
    lower: list[float]


def carry_density(
    sde: LinearSDE, local: Callable[[Tensor, Tensor], Local], u: Tensor, low: float, high: float, *, num_steps: int
) -> Carried:
    """From `low` up to `high`, at num_steps + 1 evaluations.

    Args:
        sde: Any linear SDE whose rho grows with t.
        local: The score and the divergence at a state and a time (0-d, float64).
        u: States at `low`, (b, *event, K).
        low, high: Times in [t_min, t_max].

    Raises:
        ValueError: a rho that does not grow.
    """
    times = arctan_times(sde, num_steps, low=low, high=high).flip(0)
    rates = 0.5 * sde.trace_M(times)
    growth = squares = u.new_zeros(len(u))
    now = local(u, times[0].to(u.device))
    past = [(_eps(sde, now, times[0]), now.probed / rates[0].to(u))]
    for i, step in enumerate(_plan(sde, tuple(times.tolist()))):
        moved, t = apply(step.transfer, u), times[i + 1].to(u.device)
        predicted = moved + _sum(step.prediction, [eps for eps, _ in past])
        now = local(predicted, t)
        past = [(_eps(sde, now, t), now.probed / rates[i + 1].to(u)), *past]
        u = moved + _sum(step.correction, [eps for eps, _ in past])
        gained = sum((w * h for w, (_, h) in zip(step.growth, past, strict=False)), torch.zeros_like(growth))
        less = sum((w * h for w, (_, h) in zip(step.lower, past, strict=False)), torch.zeros_like(growth))
        growth = growth + gained
        squares = squares + ((now.score * (u - predicted)).flatten(1).sum(1) + gained - less).square()
        past = past[: DEGREE + 1]
    closed = sde.log_det_psi0(times[-1]) - sde.log_det_psi0(times[0])
    return Carried(u=u, growth=growth + event_sum(closed.to(u.device), u).to(u.dtype), error=squares.sqrt())


def _eps(sde: LinearSDE, local: Local, t: Tensor) -> Tensor:
    return sde.eps_from_score(local.score, t)


def _sum(weights: list[Tensor], values: list[Tensor]) -> Tensor:
    first, *others = (apply(w.to(eps.device), eps) for w, eps in zip(weights, values, strict=False))
    return sum(others, first)


@lru_cache(maxsize=16)
def _plan(sde: LinearSDE, times: tuple[float, ...]) -> list[_Step]:
    """The weights of every step, in float64, once per grid."""
    ts = torch.tensor(times, dtype=torch.float64)
    t, s, z, form, steps = ts[:-1], ts[1:], clock(sde, ts), EpsForm("R"), []
    transfer = form.transfer(sde, over_event(s), over_event(t))
    whole = form.whole(sde, over_event(s), over_event(t), transfer)
    totals = 0.5 * sde.log_importance(ts).diff()
    share = max(1, PLAN_ENTRIES // (form.num_nodes * transfer[0].numel()))  # steps whose nodes are in memory together
    for i in range(len(t)):
        rows, j = slice(i, i + share), i % share
        if j == 0:
            nodes = Nodes.between(
                sde, t[rows], s[rows], form, ROOT, partial(_clock, sde), None if whole is None else whole[rows]
            )
            masses = _masses(sde, t[rows], s[rows], form.num_nodes)
        known = list(z[max(0, i - DEGREE) : i + 1].flip(0))
        corrected = [z[i + 1], *known]
        steps.append(
            _Step(
                transfer=transfer[i],
                prediction=nodes.weights(j, known),
                correction=nodes.weights(j, corrected),
                growth=_integrals(lagrange(corrected, nodes.z[j]), masses[j], totals[i]),
                lower=_integrals(lagrange(corrected[:-1], nodes.z[j]), masses[j], totals[i]),
            )
        )
    return steps


def _clock(sde: LinearSDE, tau: Tensor) -> Tensor:
    """z in the shape of tau."""
    return clock(sde, tau.flatten()).reshape(tau.shape)


def _masses(sde: LinearSDE, t: Tensor, s: Tensor, num_nodes: int) -> Tensor:
    """c dtau at the nodes (N, n) of the steps."""
    tau, weight = quadrature(t, s, num_nodes, ROOT)
    return 0.5 * sde.trace_M(tau.flatten()).reshape(tau.shape) * weight


def _integrals(polynomials: Tensor, masses: Tensor, total: Tensor) -> list[float]:
    """The integral of each polynomial (j, n); together they are exactly that of c."""
    found = polynomials @ masses
    found[0] = total - found[1:].sum()
    return found.tolist()
