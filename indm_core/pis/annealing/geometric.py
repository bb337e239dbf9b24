r"""The geometric bridge from a wide Gaussian to a target, and what moves points along it.

At the inverse temperature beta in [0, 1]

    log pi_beta(x) = (1 - beta) log N(x; 0, sigma^2 I) + beta log mu^(x),

so that pi_0 is normalised, pi_1 is the target with its constant Z, and between two temperatures points are weighted by

    log pi_b(x) - log pi_a(x) = (b - a) L(x),        L(x) = log mu^(x) - log N(x; 0, sigma^2 I).

References:
    Neal 2001, "Annealed importance sampling".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from indm_core.noise import Noise, rand_like, randn_like
from indm_core.pis.annealing.points import Points, evaluated
from indm_core.pis.draws import Counted
from indm_core.pis.targets.base import like
from indm_core.shapes import Bool, Float

__all__ = ["Bridge", "Moves", "metropolis"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Bridge:
    """pi_beta of a target, each point with a temperature of its own.

    Args:
        target: The target, counted.
        sigma: Standard deviation of the Gaussian.
        gradient: Whether points have the target's score.
    """

    target: Counted
    sigma: float
    gradient: bool = True

    def drawn(self, num: int, generator: Noise) -> Float[Tensor, "num d"]:
        """Draws of pi_0, at which the target is not asked."""
        return self.sigma * randn_like(like(self.target).new_empty(num, self.target.dim), generator)

    def begin(self, num: int, generator: Noise) -> Points:
        """Points drawn from pi_0."""
        return self.at(self.drawn(num, generator))

    def begin_inside(self, num: int, generator: Noise) -> Points:
        """Points drawn from pi_0 for chains, which may begin anywhere: where the density is 0, another of them takes the place.

        Raises:
            ValueError: the density is 0 at all of them.
        """
        points = self.begin(num, generator)
        inside = (points.log_mu > -math.inf).nonzero()[:, 0]
        if not len(inside):
            raise ValueError(
                f"sigma={self.sigma}: the target's density is 0 at every start; give a sigma that reaches the target, or "
                "more chains"
            )
        index = torch.arange(num, device=inside.device)
        index = torch.where(points.log_mu > -math.inf, index, inside[index % len(inside)])
        return points[index]

    def at(self, x: Float[Tensor, "n d"], lost: Bool[Tensor, " n"] | None = None) -> Points:
        """See `evaluated`."""
        return evaluated(self.target, x, gradient=self.gradient, lost=lost)

    def gain(self, points: Points) -> Float[Tensor, " n"]:
        """L(x)."""
        return points.log_mu - self.log_start(points.x)

    def log_prob(self, points: Points, beta: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log pi_beta(x); where beta = 0, a density that is 0 has no say."""
        log_mu = torch.where(beta > 0, beta * points.log_mu, 0)
        return (1 - beta) * self.log_start(points.x) + log_mu

    def score(self, points: Points, beta: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """grad log pi_beta(x)."""
        return beta[:, None] * points.score - (1 - beta)[:, None] * points.x / self.sigma**2

    def log_start(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log pi_0(x), nats."""
        return -0.5 * (x.square() / self.sigma**2 + math.log(2 * math.pi * self.sigma**2)).sum(1)


@runtime_checkable
class Moves(Protocol):
    """A Markov kernel that leaves pi_beta of every particle as it is, whatever the steps.

    Attributes:
        wanted: The share of accepted moves that steps are adapted to.
        gradient: Whether it asks for the target's score.
    """

    @property
    def wanted(self) -> float: ...
    @property
    def gradient(self) -> bool: ...
    def __call__(
        self,
        bridge: Bridge,
        points: Points,
        beta: Float[Tensor, " n"],
        step: Float[Tensor, "#n #d"],
        generator: Noise,
    ) -> tuple[Points, Float[Tensor, " n"]]:
        """The points moved once, and the probabilities with which each move was accepted."""
        ...


def metropolis(
    points: Points, proposed: Points, log_ratio: Float[Tensor, " n"], generator: Noise
) -> tuple[Points, Float[Tensor, " n"]]:
    """Takes each proposal with probability min(1, exp(log_ratio)); nan, of a point where the density is 0, is refused."""
    accept = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    return points.moved(proposed, rand_like(accept, generator) < accept), accept
