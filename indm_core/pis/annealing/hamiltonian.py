r"""Hamiltonian moves.

With momenta p ~ N(0, I) and the energy H(x, p) = -log pi(x) + |p|^2/2, a move takes K leapfrog steps

    p <- p + h/2 grad log pi(x),      x <- x + h p,      p <- p + h/2 grad log pi(x),

a map that keeps volume, is undone by itself after p <- -p, and changes H by O(h^2); its end is accepted with probability
min(1, exp(H_before - H_after)). A step h_j per coordinate is the same as a diagonal mass 1/h_j^2. The step is drawn anew
for each move, h e^{s v} (1 + j v) with v uniform in (-1, 1), so that no trajectory returns to its start move after move.
Its law does not depend on x, so that every s and j leave pi as it is; a scale of pi that differs from place to place, as in
a funnel, asks for steps of all sizes, s = 1 or 2. Where nan is met after the kinetic energy has risen by 1000, the trajectory
has diverged and the density counts as 0 there; nan met at an ordinary energy is an error of the target.

References:
    Neal 2011, "MCMC using Hamiltonian dynamics"; Beskos et al. 2013, "Optimal tuning of the hybrid Monte Carlo
    algorithm" (0.651).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from indm_core.noise import Noise, rand_like, randn_like
from indm_core.pis.annealing.geometric import Bridge, metropolis
from indm_core.pis.annealing.points import Points
from indm_core.ranges import check_count, check_not_negative
from indm_core.shapes import Float

__all__ = ["HMCMoves", "leapfrog"]

DIVERGED = 1000.0
"""Rise of the kinetic energy, nats."""


def leapfrog(
    bridge: Bridge,
    points: Points,
    p: Float[Tensor, "n d"],
    beta: Float[Tensor, " n"],
    step: Float[Tensor, "#n #d"],
    num_steps: int,
) -> tuple[Points, Float[Tensor, "n d"]]:
    """The points and momenta after `num_steps` steps; one evaluation each."""
    limit = p.square().sum(1) / 2 + DIVERGED
    p = p + step / 2 * bridge.score(points, beta)
    for i in range(num_steps):
        lost = ~(p.square().sum(1) / 2 < limit)  # momenta that are nan, too
        points = bridge.at(points.x + step * p, lost)
        p = p + (step if i < num_steps - 1 else step / 2) * bridge.score(points, beta)
    return points, p


@final
@dataclass(frozen=True, kw_only=True)
class HMCMoves:
    """`num_leapfrog` evaluations per particle and move.

    Args:
        num_leapfrog: K.
        jitter: j, in [0, 1).
        spread: s, at least 0.
        wanted: See `Moves`.

    Raises:
        ValueError: an argument out of range.
    """

    num_leapfrog: int = 10
    jitter: float = 0.2
    spread: float = 0.0
    wanted: float = 0.65

    def __post_init__(self) -> None:
        check_count(num_leapfrog=self.num_leapfrog)
        check_not_negative(spread=self.spread)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter={self.jitter} must lie in [0, 1)")
        if not 0 < self.wanted < 1:
            raise ValueError(f"wanted={self.wanted} must lie between 0 and 1")

    @property
    def gradient(self) -> bool:
        return True

    def __call__(
        self, bridge: Bridge, points: Points, beta: Tensor, step: Tensor, generator: Noise
    ) -> tuple[Points, Tensor]:
        p = randn_like(points.x, generator)
        v = 2 * rand_like(p[:, :1], generator) - 1
        step = step * (self.spread * v).exp() * (1 + self.jitter * v)
        proposed, end = leapfrog(bridge, points, p, beta, step, self.num_leapfrog)
        kinetic = (p.square() - end.square()).sum(1) / 2
        log_ratio = bridge.log_prob(proposed, beta) - bridge.log_prob(points, beta) + kinetic
        return metropolis(points, proposed, log_ratio, generator)
