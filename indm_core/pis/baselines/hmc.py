"""Hamiltonian Monte Carlo: chains of the moves of `hamiltonian`, whose steps are adapted in a warm-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from indm_core.noise import Noise
from indm_core.pis.annealing import Bridge, HMCMoves, Points
from indm_core.pis.annealing.dual_averaging import DualAveraging
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive

__all__ = ["HMC"]


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

    moves: HMCMoves = field(default_factory=HMCMoves)
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
        points = bridge.begin_inside(self.num_chains, generator)
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
