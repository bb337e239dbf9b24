r"""Random-walk Metropolis moves: x' = x + h xi, xi ~ N(0, I), accepted with probability min(1, pi(x')/pi(x)).

They need no gradient of the target.

References:
    Roberts, Gelman, Gilks 1997, "Weak convergence and optimal scaling of random walk Metropolis algorithms" (0.234).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.pis.annealing.geometric import Bridge, metropolis
from indm_core.pis.annealing.points import Points

__all__ = ["RandomWalkMoves"]


@final
@dataclass(frozen=True, kw_only=True)
class RandomWalkMoves:
    """One evaluation per particle and move.

    Args:
        wanted: See `Moves`.

    Raises:
        ValueError: an argument out of range.
    """

    wanted: float = 0.234

    def __post_init__(self) -> None:
        if not 0 < self.wanted < 1:
            raise ValueError(f"wanted={self.wanted} must lie between 0 and 1")

    @property
    def gradient(self) -> bool:
        return False

    def __call__(
        self, bridge: Bridge, points: Points, beta: Tensor, step: Tensor, generator: Noise
    ) -> tuple[Points, Tensor]:
        proposed = bridge.at(points.x + step * randn_like(points.x, generator))
        log_ratio = bridge.log_prob(proposed, beta) - bridge.log_prob(points, beta)
        return metropolis(points, proposed, log_ratio, generator)
