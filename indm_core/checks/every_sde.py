r"""The identities of every SDE, linear or not.

A learned drift has no closed form to compare `transition` with. But over a short time h two paths that share their noise move
apart as their drifts do, and the noise of one path has the covariance h GG^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.checks.claims import at_least, equal, finite, holds, like, seeded, unbiased
from indm_core.sde import SDE, apply

__all__ = ["EXACT", "FIRST", "LAST", "Case", "has_covariance", "has_shape", "refuses"]

NUM_DRAWS = 4000
"""Of a transition's noise, over all positions."""
EXACT = 1e-12
"""Relative error of a rearranged sum of float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """An SDE, four events of data, and twice four states.

    Args:
        sde: What is checked.
        x: Events (4, *event), in float64 where the SDE takes it.
        u, other: States (4, *event, K) of x's dtype.
    """

    sde: SDE
    x: Tensor
    u: Tensor
    other: Tensor

    @property
    def middle(self) -> Tensor:
        """A 0-d time."""
        return torch.tensor(0.3 * self.sde.t_max, dtype=torch.float64)

    def per_row(self, t: Tensor) -> Tensor:
        """Times (n,) as (n, 1, ..., 1) with the event's rank."""
        return t.reshape(-1, *[1] * (self.u.ndim - 2))


def has_shape(case: Case, name: str, value: Tensor, t: Tensor) -> None:
    """A coefficient at t: of shape broadcast(t, *e) + (K, K), and of t's dtype."""
    k = case.u.shape[-1]
    holds(value.shape[-2:] == (k, k), f"{name} has shape {tuple(value.shape)}, blocks should be ({k}, {k})")
    at_position = torch.broadcast_shapes(t.shape, value.shape[:-2])
    fits = value.shape[:-2] == at_position and (not t.ndim or len(at_position) == t.ndim)
    holds(fits, f"{name} has shape {tuple(value.shape)} at times {tuple(t.shape)}")
    holds(value.dtype == t.dtype, f"{name} is {value.dtype} at times of {t.dtype}")


def _embeds(case: Case) -> None:
    x, u, close = case.x, case.sde.embed(case.x), 10 * EXACT if case.x.dtype == torch.float64 else 1e-5
    holds(u.shape[: x.ndim] == x.shape and u.ndim == x.ndim + 1, f"embed gives {tuple(u.shape)} of {tuple(x.shape)}")
    equal(case.sde.project(u), x, close)
    equal(case.sde.embed(x[1:2]), u[1:2], close, of="embed of a row")


def _diffuses(case: Case) -> None:
    for t in (case.middle, case.per_row(case.middle.repeat(4))):
        GG = case.sde.GG(t)
        has_shape(case, "GG", GG, t)
        equal(GG.mT, GG, EXACT * GG.abs().max())
        at_least(torch.linalg.eigvalsh(GG), -EXACT * float(GG.abs().max()), of="an eigenvalue")
        holds(case.sde.GG(t.float()).dtype == torch.float32, "a float32 time gives another dtype")


def _drifts(case: Case) -> None:
    close = 1e-9 if case.u.dtype == torch.float64 else 1e-4
    times = case.per_row(case.sde.t_max * torch.tensor([1.0, 0.1, 0.5, 0.9], dtype=torch.float64))
    together = case.sde.drift(case.u, times)
    finite(together, of="drift")
    rows = torch.cat([case.sde.drift(case.u[i : i + 1], times[i].squeeze()) for i in range(4)])
    equal(together, rows, close * (1 + rows.abs()), of="drift of rows together")
    score, t = case.other, case.middle
    for lam in (0.0, 1.0):
        expected = case.sde.drift(case.u, t) - apply(0.5 * (1 + lam**2) * case.sde.GG(t), score)
        equal(case.sde.reverse_drift(case.u, t, score, lam), expected, close * (1 + expected.abs()), of="reverse_drift")


def _refuses_times(case: Case) -> None:
    sde = case.sde
    holds(0 <= sde.t_min < sde.t_max, f"t_min={sde.t_min} and t_max={sde.t_max}, should be 0 <= t_min < t_max")
    sde.check_time("t", sde.t_min)
    sde.check_time("t", sde.t_max)
    early = [0.9 * sde.t_min] if sde.t_min > 0 else []
    for t in (*early, -0.1 * sde.t_max, 1.01 * sde.t_max, math.nan):
        holds(refuses(lambda t=t: sde.check_time("t", t)), f"t={t:g} is accepted, should raise ValueError")


def _refuses_states(case: Case) -> None:
    case.sde.check_state(case.u)
    wrong = torch.cat([case.u, case.u[..., :1]], -1)
    holds(refuses(lambda: case.sde.check_state(wrong)), f"blocks of {wrong.shape[-1]} are accepted, ValueError is due")


def refuses(call: Callable[[], object]) -> bool:
    """Whether a call raises ValueError."""
    try:
        call()
    except ValueError:
        return True
    return False


def _moves_a_short_way(case: Case) -> None:
    """The noise of two states that share a generator cancels in their difference."""
    double = case.u.dtype == torch.float64
    s, h = case.middle, (1e-5 if double else 1e-3) * case.sde.t_max
    ends = [case.sde.transition(u, s + h, s, seeded(1)) for u in (case.u, case.other)]
    apart, drift = case.u - case.other, case.sde.drift(case.u, s) - case.sde.drift(case.other, s)
    limit = 0.05 * drift.abs().max() + (1e-9 if double else 1e-5) * apart.abs().max() / h
    equal((ends[0] - ends[1] - apart) / h, drift, limit, of="how two paths move apart, against their drifts")
    GG = case.sde.GG(s).to(case.u)
    has_covariance(case, s + h, s, h * GG, of="covariance of the noise, against h GG")


def has_covariance(case: Case, t: Tensor, s: Tensor, cov: Tensor, of: str) -> None:
    """The noise of `transition`, its second moments averaged over positions, against `cov`."""
    num = max(NUM_DRAWS // case.u[0, ..., 0].numel(), 100)
    still = torch.zeros_like(case.u[:1]).expand(num, *case.u.shape[1:])
    noise = (case.sde.transition(still, t, s, seeded(2)) - case.sde.transition(still, t, s, seeded(3))).flatten(1, -2)
    draws = torch.einsum("bik,bil->bkl", noise, noise) / (2 * noise.shape[1])
    expected = cov.expand(*case.u.shape[1:], case.u.shape[-1]).flatten(0, -3).mean(0)
    unbiased(draws, expected, 0.02 * expected.abs() + 1e-3 * expected.abs().max(), of=of)


def _has_streams(case: Case) -> None:
    s, t = 0.5 * case.middle, case.middle
    together = case.sde.transition(case.u, t, s, [seeded(i) for i in range(4)])
    alone = case.sde.transition(case.u[2:3], t, s, [seeded(2)])
    equal(together[2:3], alone, 1e-5 if case.u.dtype == torch.float32 else 1e-9 * (1 + alone.abs()))


def _enters(case: Case) -> None:
    t = torch.tensor(max(case.sde.t_min, 1e-3 * case.sde.t_max), dtype=torch.float64)
    u, correction = case.sde.enter(case.u, t, case.other, lambda u, t: -u)
    for name, value, expected in (("u", u, case.u), ("log q - log p", correction, case.u.flatten(1)[:, 0])):
        like(value, expected, of=name)
        finite(value, of=name)
    like(case.sde.denoise(u, t, -u), u, of="denoise")


FIRST = {
    "project(embed(x)) = x": _embeds,
    "check_time accepts [t_min, t_max] and nothing else": _refuses_times,
    "check_state accepts states and refuses other blocks": _refuses_states,
    "GG is symmetric, positive semi-definite, of shape broadcast(t, *e) + (K, K) and of t's dtype": _diffuses,
}
LAST = {
    "drift is finite and each row's own; reverse_drift = drift - (1 + lam^2)/2 GG score": _drifts,
    "a short transition follows drift and GG": _moves_a_short_way,
    "the transition of a row follows the row's generator": _has_streams,
    "enter and denoise give a state, and nats (b,)": _enters,
}
"""Of every SDE, before and after those of a linear one."""
