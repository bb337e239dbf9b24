r"""Points with what the target says there: log mu^(x) and its gradient, from one evaluation each.

Whoever keeps the points keeps both, so that a move, a weight or a change of temperature asks the target nothing twice. Points
that carry a graph, as those that a flow gives in training, keep it: log mu^ and the score are then functions of x, the score by
a second derivative. All others are detached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.pis.draws import Counted
from indm_core.pis.targets.base import log_mu
from indm_core.shapes import Bool, Float, Int

__all__ = ["Points", "evaluated"]


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
    graph = torch.is_grad_enabled() and x.requires_grad
    known = x.isfinite().all(1)
    given = torch.where(known[:, None], x, 0)
    given = given if graph else given.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(graph or gradient):
        found = log_mu(target, given)
        total = found.sum()
    if (graph or gradient) and not found.requires_grad:
        raise ValueError(
            f"target {target.name}: log_prob has no gradient in x; SMC and ParallelTempering ask for none with "
            "moves=RandomWalkMoves(), nor do path integral samplers with NetworkControl and loss='log-variance'"
        )
    score = torch.zeros_like(x)
    if gradient:
        (score,) = torch.autograd.grad(total, given, create_graph=graph)
    found = torch.where(known, found if graph else found.detach(), -math.inf)
    wrong = found.isnan() | (found == math.inf) | (score.isnan().any(1) & (found > -math.inf))
    _refuse(target, x, found, score, wrong if lost is None else wrong & ~lost)
    found = torch.where(wrong, -math.inf, found)
    return Points(x=x, log_mu=found, score=torch.where((found > -math.inf)[:, None], score, 0))


def _refuse(target: Counted, x: Tensor, found: Tensor, score: Tensor, where: Tensor) -> None:
    if where.any():
        i = int(where.nonzero()[0])
        slope = f" with the gradient {_few(score[i])}" if score[i].isnan().any() else ""
        raise ValueError(
            f"target {target.name}: log_prob gave {found[i].item()}{slope} at x = {_few(x[i])}; give a number there, or "
            "-inf where the density is 0"
        )


def _few(x: Tensor) -> str:
    """The first numbers of a vector."""
    shown = ", ".join(f"{v:g}" for v in x[:4].tolist())
    return f"[{shown}{', ...' if len(x) > 4 else ''}]"
