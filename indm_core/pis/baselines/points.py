r"""Points with what the target says there: log mu^(x) and its gradient, from one evaluation each.

Whoever keeps the points keeps both, so that a move, a weight or a change of temperature asks the target nothing twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.pis.draws import Counted
from indm_core.pis.targets.base import Target
from indm_core.shapes import Bool, Float, Int

__all__ = ["Points", "evaluated", "like"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of n particles.

    Args:
        x: (n, d).
        log_mu: log mu^(x), (n,); -inf where the density is 0.
        score: grad log mu^(x), (n, d); zeros where the density is 0, and everywhere where nothing asks for a gradient.
    """

    x: Float[Tensor, "n d"]
    log_mu: Float[Tensor, " n"]
    score: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Int[Tensor, " m"] | slice) -> Points:
        return Points(x=self.x[index], log_mu=self.log_mu[index], score=self.score[index])

    def moved(self, other: Points, where: Bool[Tensor, " n"]) -> Points:
        """The other's points where it says so, these elsewhere."""
        return Points(
            x=torch.where(where[:, None], other.x, self.x),
            log_mu=torch.where(where, other.log_mu, self.log_mu),
            score=torch.where(where[:, None], other.score, self.score),
        )

    def joined(self, other: Points) -> Points:
        """These points, then the other's."""
        return Points(
            x=torch.cat([self.x, other.x]),
            log_mu=torch.cat([self.log_mu, other.log_mu]),
            score=torch.cat([self.score, other.score]),
        )


def evaluated(
    target: Counted,
    x: Float[Tensor, "n d"],
    *,
    gradient: bool = True,
    lost: Bool[Tensor, " n"] | None = None,
) -> Points:
    """Asks a target once per point.

    Args:
        target: What is asked; it counts.
        x: Points. One that is not finite is asked at 0, and its density is 0.
        gradient: Whether the score is asked for.
        lost: Where a trajectory has left its energy behind, so that nan counts as density 0.

    Raises:
        ValueError: log mu^ is nan or +inf elsewhere, has another shape, or has no gradient.
    """
    finite = x.isfinite().all(1)
    given = torch.where(finite[:, None], x, 0).detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        log_mu = target.log_prob(given)
    _check_shape(target, log_mu, x)
    score = _score(target, log_mu, given) if gradient else torch.zeros_like(x)
    log_mu = torch.where(finite, log_mu.detach(), -math.inf)
    wrong = log_mu.isnan() | (log_mu == math.inf) | (score.isnan().any(1) & (log_mu > -math.inf))
    refused = wrong if lost is None else wrong & ~lost
    if refused.any():
        i = int(refused.nonzero()[0])
        raise ValueError(
            f"target {_name(target)}: log_prob gave {float(log_mu[i])} with the gradient {_few(score[i])} "
            f"at x = {_few(x[i])}; give a number there, or -inf where the density is 0"
        )
    log_mu = torch.where(wrong, -math.inf, log_mu)
    return Points(x=x, log_mu=log_mu, score=torch.where((log_mu > -math.inf)[:, None], score, 0))


def like(target: Target) -> Tensor:
    """A tensor of the dtype and on the device of a target's constants; of the default ones where it has none."""
    tensors = (t for t in (*target.buffers(), *target.parameters()) if t.is_floating_point())
    return next(tensors, torch.zeros(()))


def _score(target: Counted, log_mu: Tensor, given: Tensor) -> Tensor:
    if not log_mu.requires_grad:
        raise ValueError(
            f"target {_name(target)}: log_prob has no gradient in x; SMC and ParallelTempering ask for none with "
            "moves=RandomWalkMoves()"
        )
    return torch.autograd.grad(log_mu.sum(), given)[0]


def _check_shape(target: Counted, log_mu: Tensor, x: Tensor) -> None:
    if log_mu.shape != (len(x),):
        raise ValueError(
            f"target {_name(target)}: log_prob gave the shape {tuple(log_mu.shape)} for x of {tuple(x.shape)}; "
            f"it gives ({len(x)},)"
        )


def _name(target: Counted) -> str:
    asked: Target = target
    while isinstance(asked, Counted):
        asked = asked.target
    return type(asked).__name__


def _few(x: Tensor) -> str:
    """The first numbers of a vector."""
    shown = ", ".join(f"{v:g}" for v in x[:4].tolist())
    return f"[{shown}{', ...' if len(x) > 4 else ''}]"
