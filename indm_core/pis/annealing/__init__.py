"""From a wide Gaussian to a target: the bridge of densities, points with what the target says, and moves along it."""

from __future__ import annotations

from indm_core.pis.annealing.geometric import Bridge, Moves
from indm_core.pis.annealing.hamiltonian import HMCMoves
from indm_core.pis.annealing.points import Points, evaluated
from indm_core.pis.annealing.random_walk import RandomWalkMoves

__all__ = ["Bridge", "HMCMoves", "Moves", "Points", "RandomWalkMoves", "evaluated"]
