r"""The geometric path of densities from a Gaussian to a target, differentiable in x.

    log gamma_b(x) = (1 - b) log N(x; 0, sigma^2 I) + b log mu^(x),         b in [0, 1]:

gamma_0 is normalised and gamma_1 is the target with its constant Z. What the target says is asked for once per point and kept
beside it. Where gradients are on, log mu^ and its score carry the graph of x, the score by a second derivative.

References:
    Neal 2001, "Annealed importance sampling".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.errors import NonFiniteLossError
from indm_core.pis.draws import Counted
from indm_core.pis.targets.base import Target
from indm_core.shapes import Bool, Float, Int

__all__ = ["Annealed", "Points", "gaussian_log_prob", "like", "log_mu", "points"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points with what the target says there.

    Args:
        x: (n, d).
        log_mu: log mu^(x), (n,); -inf where the density is 0.
        score: grad log mu^(x), (n, d); zeros where the density is 0.
    """

    x: Float[Tensor, "n d"]
    log_mu: Float[Tensor, " n"]
    score: Float[Tensor, "n d"]

    def __getitem__(self, index: Int[Tensor, " m"]) -> Points:
        return Points(x=self.x[index], log_mu=self.log_mu[index], score=self.score[index])

    def moved(self, other: Points, where: Bool[Tensor, " n"]) -> Points:
        """The other's points where it says so, these elsewhere."""
        return Points(
            x=torch.where(where[:, None], other.x, self.x),
            log_mu=torch.where(where, other.log_mu, self.log_mu),
            score=torch.where(where[:, None], other.score, self.score),
        )


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """gamma_b.

    Args:
        beta: b in (0, 1].
        sigma: Standard deviation of the Gaussian.
    """

    beta: float
    sigma: float

    def log_prob(self, x: Float[Tensor, "n d"], log_mu: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log gamma_b(x), nats, where the target has log mu^."""
        return (1 - self.beta) * gaussian_log_prob(x, self.sigma) + self.beta * log_mu

    def score(self, points: Points) -> Float[Tensor, "n d"]:
        """grad log gamma_b(x)."""
        return self.beta * points.score - (1 - self.beta) / self.sigma**2 * points.x


def gaussian_log_prob(x: Float[Tensor, "n d"], sigma: float) -> Float[Tensor, " n"]:
    """log N(x; 0, sigma^2 I), nats."""
    return -0.5 * (x.square() / sigma**2 + math.log(2 * math.pi * sigma**2)).sum(1)


def log_mu(target: Counted, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """log mu^(x), nats.

    Raises:
        NonFiniteLossError: x is not finite, which is no fault of the target.
        ValueError: log mu^ of another shape, nan or +inf.
    """
    if not x.isfinite().all():
        raise NonFiniteLossError(
            "a flow gave points that are not finite; lower lr or clip, or begin with a smaller step"
        )
    found = target.log_prob(x)
    name = type(target.target).__name__
    if found.shape != (len(x),):
        raise ValueError(
            f"target {name}: log_prob gave the shape {tuple(found.shape)} for x of {tuple(x.shape)}; it gives ({len(x)},)"
        )
    wrong = found.isnan() | (found == math.inf)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"target {name}: log_prob gave {found[i].item()} at x={x[i].tolist()[:4]} (its first coordinates), one of "
            f"{int(wrong.sum())} such points of {len(x)}; give a number, or -inf where the density is 0"
        )
    return found


def points(target: Counted, x: Float[Tensor, "n d"]) -> Points:
    """x with log mu^ and its score, from one evaluation of each point.

    Raises:
        NonFiniteLossError, ValueError: see `log_mu`; no gradient in x, or one that is nan.
    """
    with_graph, name = torch.is_grad_enabled(), type(target.target).__name__
    with torch.enable_grad():
        x = x if with_graph and x.requires_grad else x.detach().requires_grad_()
        found = log_mu(target, x)
        check_gradient(target, found)
        (score,) = torch.autograd.grad(found.sum(), x, create_graph=with_graph)
    score = torch.where((found > -math.inf)[:, None], score, 0)
    if score.isnan().any():
        raise ValueError(
            f"target {name}: the gradient of log_prob is nan; give one that is finite where the density is"
        )
    return (
        Points(x=x, log_mu=found, score=score)
        if with_graph
        else Points(x=x.detach(), log_mu=found.detach(), score=score)
    )


def check_gradient(target: Counted, log_mu: Tensor) -> None:
    """Refuses a target that reverse KL cannot be differentiated through.

    Raises:
        ValueError: log mu^ has no gradient.
    """
    if not log_mu.requires_grad:
        raise ValueError(
            f"target {type(target.target).__name__}: log_prob has no gradient in x, and flows are trained by it; a path "
            "integral sampler with a NetworkControl and loss='log-variance' asks for none"
        )


def like(target: Target) -> Tensor:
    """A tensor of the dtype and on the device of a target's constants; of the default ones where it has none."""
    tensors = (t for t in (*target.buffers(), *target.parameters()) if t.is_floating_point())
    return next(tensors, torch.zeros(()))
