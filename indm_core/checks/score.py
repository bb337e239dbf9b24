r"""The identities of a score, a callable score(u, t, y=None) -> like u.

Whatever it has learned, it is a function of (u, t) for each row by itself, and t is one time or a time for each row. A learned
score need be neither a gradient field nor of mean zero, and neither is asked. Where the law is known, the score is the gradient
of its log-density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.checks.claims import equal, finite, like, seeded, verify
from indm_core.sample import Score
from indm_core.sde import SDE

__all__ = ["SCORE", "States", "check_score"]

LogProb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class States:
    """A score, four states and a time for each of them.

    Args:
        dtypes: Of states that the score accepts.
        log_prob: log p_t(u), (b,); None: not known.
    """

    score: Score
    u: Tensor
    t: Tensor
    dtypes: tuple[torch.dtype, ...]
    log_prob: LogProb | None

    @property
    def t_rows(self) -> Tensor:
        """(b, 1, ..., 1) with the event's rank."""
        return self.t.reshape(-1, *[1] * (self.u.ndim - 2))

    def limit(self, value: Tensor) -> Tensor:
        """Of what is computed twice in another order."""
        close = 1e-9 if value.dtype == torch.float64 else 1e-4
        return close * (value.abs() + value.abs().flatten(1).amax(1).reshape(-1, *[1] * (value.ndim - 1)))


def _is_like_u(case: States) -> None:
    if not case.dtypes:
        case.score(case.u, case.t[1])  # raises: what it says belongs to the message
    for dtype in case.dtypes:
        u = case.u.to(dtype, copy=True)
        for t in (case.t[1], case.t_rows):
            value = case.score(u, t)
            like(value, u, of=f"at float64 times {tuple(t.shape)}")
            finite(value, of=f"at times {tuple(t.shape)}")
            equal(u, case.u.to(dtype), of="u, which it writes to")


def _takes_a_condition(case: States) -> None:
    bare = case.score(case.u, case.t_rows)
    equal(case.score(case.u, case.t_rows, None), bare, case.limit(bare), of="score(u, t, None)")
    equal(case.score(case.u, case.t_rows, y=None), bare, case.limit(bare), of="score(u, t, y=None)")


def _is_a_function(case: States) -> None:
    first, again = (case.score(case.u, case.t_rows) for _ in range(2))
    equal(again, first, case.limit(first), of="a second call (networks with dropout are to be in evaluation mode)")


def _takes_both_times(case: States) -> None:
    for t in case.t:
        single = case.score(case.u, t)
        repeated = case.score(case.u, t.expand_as(case.t).reshape(case.t_rows.shape))
        equal(repeated, single, case.limit(single), of=f"a time for each row, all of them t={float(t):.4g}")


def _keeps_rows_apart(case: States) -> None:
    together = case.score(case.u, case.t_rows)
    for i in range(len(case.u)):
        alone = case.score(case.u[i : i + 1], case.t_rows[i : i + 1])
        equal(together[i : i + 1], alone, case.limit(alone), of=f"row {i} in a batch, against the same alone")


def _is_the_gradient(case: States) -> None:
    if case.log_prob is None:
        return
    for t in case.t:
        with torch.enable_grad():
            u = case.u.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(case.log_prob(u, t).sum(), u)
        equal(case.score(case.u, t), gradient, 100 * case.limit(gradient), of=f"at t={float(t):.4g}")


SCORE = {
    "score(u, t) is like u and finite": _is_like_u,
    "score(u, t) is a function of u and t": _is_a_function,
    "score(u, t, y=None) takes a condition": _takes_a_condition,
    "one time and the same time for each row give one score": _takes_both_times,
    "a row is the same alone and in a batch": _keeps_rows_apart,
    "score = grad log p_t": _is_the_gradient,
}


def check_score(score: Score, sde: SDE, shape: tuple[int, ...], *, log_prob: LogProb | None = None) -> None:
    """The identities of any score (`SCORE`), on the CPU, in float64 where the score takes it.

    Args:
        score: score(u, t, y=None) -> like u. A network is given in evaluation mode.
        sde: What u and t belong to.
        shape: Event of the data, (d,) or (c, h, w).
        log_prob: log_prob(u, t) -> (b,) at a 0-d t: the log-density whose gradient the score should be; None: not known.

    Raises:
        AssertionError: an identity does not hold. The message names it, its largest error, where and what should be there.
    """
    x = torch.randn(4, *shape, generator=seeded(5), dtype=torch.float64)
    u = torch.randn(sde.embed(x).shape, generator=seeded(4), dtype=torch.float64)
    t = torch.tensor([max(sde.t_min, 1e-6 * sde.t_max), 0.1, 0.5, 1.0], dtype=torch.float64)
    t[1:] = sde.t_min + t[1:] * (sde.t_max - sde.t_min)
    dtypes = tuple(dtype for dtype in (torch.float64, torch.float32) if _accepts(score, u.to(dtype, copy=True), t[1]))
    case = States(score=score, u=u.to(dtypes[0]) if dtypes else u, t=t, dtypes=dtypes, log_prob=log_prob)
    verify(getattr(score, "__qualname__", type(score).__name__), SCORE, case)


def _accepts(score: Score, u: Tensor, t: Tensor) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            score(u, t)
    except Exception:
        return False
    return True
