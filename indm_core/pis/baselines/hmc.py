r"""Hamiltonian Monte Carlo.

With momenta p ~ N(0, I) and the energy H(x, p) = -log pi(x) + |p|^2/2, a move takes K leapfrog steps

    p <- p + h/2 grad log pi(x),      x <- x + h p,      p <- p + h/2 grad log pi(x),

a map that keeps volume, is undone by itself after p <- -p, and changes H by O(h^2); its end is accepted with probability
min(1, exp(H_before - H_after)). A step h_j per coordinate is the same as a diagonal mass 1/h_j^2. The step is drawn anew
for each move, uniformly within a share of h, so that no trajectory returns to its start move after move. Where nan is met
after the kinetic energy has risen by 1000, the trajectory has diverged and the density counts as 0 there; nan met at an
ordinary energy is an error of the target.

References:
    Neal 2011, "MCMC using Hamiltonian dynamics"; Beskos et al. 2013, "Optimal tuning of the hybrid Monte Carlo
    algorithm" (0.651).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand_like, randn_like
from indm_core.pis.baselines.bridge import Bridge, metropolis
from indm_core.pis.baselines.dual_averaging import DualAveraging
from indm_core.pis.baselines.points import Points
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["HMC", "HMCMoves", "leapfrog"]

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
        jitter: The step is uniform in h (1 - jitter, 1 + jitter); in [0, 1).
        wanted: See `Moves`.

    Raises:
        ValueError: an argument out of range.
    """

    num_leapfrog: int = 10
    jitter: float = 0.2
    wanted: float = 0.65

    def __post_init__(self) -> None:
        check_count(num_leapfrog=self.num_leapfrog)
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
        step = step * (1 + self.jitter * (2 * rand_like(p[:, :1], generator) - 1))
        proposed, end = leapfrog(bridge, points, p, beta, step, self.num_leapfrog)
        kinetic = (p.square() - end.square()).sum(1) / 2
        log_ratio = bridge.log_prob(proposed, beta) - bridge.log_prob(points, beta) + kinetic
        return metropolis(points, proposed, log_ratio, generator)


@final
@dataclass(frozen=True, kw_only=True)
class HMC:
    """Independent chains from N(0, sigma^2 I), with one step for all, adapted by dual averaging in the warm-up.

    Samples come chain by chain within a sweep, sweep after sweep; they are correlated along a chain.

    Args:
        moves: The kernel.
        num_chains: Chains.
        num_warm_up: Moves of each chain before the first sample.
        thin: Moves from one sample of a chain to the next.
        sigma: Of the start.
        step: The first step, in units of sigma.
        mass: "diagonal" takes steps in proportion to the standard deviations of the coordinates over all chains in the second
            quarter of the warm-up.

    Raises:
        ValueError: an argument out of range.
    """

    moves: HMCMoves = HMCMoves()
    num_chains: int = 100
    num_warm_up: int = 500
    thin: int = 1
    sigma: float = 1.0
    step: float = 0.1
    mass: Literal["unit", "diagonal"] = "unit"

    def __post_init__(self) -> None:
        check_count(num_chains=self.num_chains, num_warm_up=self.num_warm_up, thin=self.thin)
        check_positive(sigma=self.sigma, step=self.step)
        if self.mass not in ("unit", "diagonal"):
            raise ValueError(f"mass={self.mass!r} is neither 'unit' nor 'diagonal'")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        counted = Counted(target)
        bridge = Bridge(target=counted, sigma=self.sigma)
        points = bridge.begin(self.num_chains, generator)
        beta = torch.ones_like(points.log_mu)
        points, step = self._warm(bridge, points, beta, generator)
        kept = list[Tensor]()
        for _ in range(-(-num // self.num_chains)):
            for _ in range(self.thin):
                points, _ = self.moves(bridge, points, beta, step, generator)
            kept.append(points.x)
        x = torch.cat(kept)[:num]
        return Draws(x=x, log_w=torch.zeros_like(x[:, 0]), evaluations=counted.evaluations)

    def _warm(self, bridge: Bridge, points: Points, beta: Tensor, generator: Noise) -> tuple[Points, Tensor]:
        """The points after the warm-up, and the step of each coordinate, (1, d)."""
        step = points.x.new_full((1, points.x.shape[1]), self.step * self.sigma)
        num = self.num_warm_up
        if self.mass == "diagonal" and num > 1:
            points, factor, spread = self._adapted(bridge, points, beta, step, num // 2, generator)
            mean = spread.log().mean().exp()
            step, num = factor * step * spread / mean, num - num // 2
        points, factor, _ = self._adapted(bridge, points, beta, step, num, generator)
        return points, factor * step

    def _adapted(
        self, bridge: Bridge, points: Points, beta: Tensor, step: Tensor, num: int, generator: Noise
    ) -> tuple[Points, Tensor, Tensor]:
        """The points after `num` moves, the factor of the step, and the standard deviations over the later half, (1, d)."""
        factor = DualAveraging(torch.ones_like(step[:, :1]), self.moves.wanted)
        moments = points.x.new_zeros(3, points.x.shape[1], dtype=torch.float64)
        for i in range(num):
            points, accepted = self.moves(bridge, points, beta, factor.step * step, generator)
            factor.update(accepted.mean())
            if 2 * i >= num - 1:
                x = points.x.double()
                moments = moments + torch.stack([torch.ones_like(x), x, x.square()]).sum(1)
        count, total, squares = moments
        var = (squares / count - (total / count).square()).clamp(min=0)
        # Few samples say little of a variance: five of a small one are added, as Stan does.
        spread = ((count * var + 5e-3) / (count + 5)).sqrt().to(step)
        return points, factor.settled, spread[None]
