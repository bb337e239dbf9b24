"""A fitted grid: descents of the end error from the usual grids and from the cheapest path, and the best of their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.fitting.cheapest import cheapest_path, fine_solution, step_costs
from indm_core.fitting.least_squares import Refined, refine
from indm_core.fitting.remembered import Remembered
from indm_core.ranges import check_positive, check_whole
from indm_core.sample import Sampler, Score
from indm_core.sde import LinearSDE
from indm_core.times import edm_times, log_rho_times, power_times

__all__ = ["Fit", "fit_grid", "usual_grids"]

HOPELESS = 4.0
"""From a grid whose error is so many times the least one's, no descent is tried."""
REMEMBERED = 128
"""Values of the score in memory."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted grid.

    Args:
        times: Decreasing, float64, (N + 1,).
        error: Root mean square of x at the last time against the ODE's solution, over the starts that it was fitted on.
        before: The same of the best grid that the fit began with.
        evaluations: Of the score, on a start.
    """

    times: Tensor
    error: float
    before: float
    evaluations: int


@torch.no_grad()
def fit_grid(
    sde: LinearSDE,
    sampler: Sampler,
    score: Score,
    u: Tensor,
    grids: Sequence[Tensor],
    *,
    y: Tensor | None = None,
    tolerance: float = 1e-5,
    iterations: int = 15,
    fine_steps: int = 24,
) -> Fit:
    """The times of N steps at which a sampler comes nearest to the ODE's solution.

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u, without noise of its own.
        u: Starts at the first time, (n, *event, K): n times the coordinates should be far above N.
        grids: Grids of N steps to begin with, which have their ends in common (`usual_grids`).
        y: Labels of the starts (n, ...), handed to the score.
        tolerance: rtol and atol of the solution.
        iterations: Of each descent, at most.
        fine_steps: Of the solution along which the cheapest path is sought, at the least; two for each step of a longer grid.

    Returns:
        The grid, whose error on these starts is at most that of each of `grids`.

    Raises:
        ValueError: no grid to begin with, or a number out of range.
        ConvergenceError: the ODE does not reach its tolerance.
    """
    check_positive(tolerance=tolerance)
    check_whole(iterations=iterations, fine_steps=fine_steps)
    if not grids:
        raise ValueError("grids: there is none; give the grids to begin with, for instance usual_grids(sde, num_steps)")
    num_steps, rows = len(grids[0]) - 1, 0

    def counted(u: Tensor, t: Tensor, y: Tensor | None = y) -> Tensor:
        nonlocal rows
        rows += len(u)
        return score(u, t, y)

    ends = {"low": float(grids[0][-1]), "high": float(grids[0][0])}
    fine = power_times(sde, max(fine_steps, 2 * num_steps), 2.0, **ends)
    solution = fine_solution(sde, counted, u, fine, rtol=tolerance, atol=tolerance, y=y)
    exact, remembered = sde.project(solution.states[-1]), Remembered(counted, REMEMBERED)

    def errors(ts: Tensor) -> Tensor:
        remembered.begin()
        found = sde.project(sampler(sde, remembered, u, ts, None))
        return (found - exact).double().flatten().cpu().nan_to_num(1e9, 1e9, -1e9)

    path = fine[cheapest_path(step_costs(sde, counted, solution), num_steps)]
    begun = [Refined(ts, float(errors(ts).square().mean().sqrt())) for ts in (*grids, path)]
    before, least = min(begin.error for begin in begun[:-1]), min(begin.error for begin in begun)
    near = [begin.times for begin in begun if begin.error <= HOPELESS * least]
    found = min((refine(errors, ts, iterations=iterations) for ts in near), key=lambda refined: refined.error)
    return Fit(times=found.times, error=found.error, before=before, evaluations=round(rows / len(u)))


def usual_grids(sde: LinearSDE, num_steps: int, *, low: float | None = None, high: float | None = None) -> list[Tensor]:
    """Uniform grids, power grids of 1.5, 2 and 3 and, where rho grows with t, those equally spaced in log rho and EDM's."""
    grids = [power_times(sde, num_steps, power, low=low, high=high) for power in (1.0, 1.5, 2.0, 3.0)]
    for times in (log_rho_times, edm_times):
        try:
            grids.append(times(sde, num_steps, low=low, high=high))
        except ValueError:  # rho does not grow
            return grids
    return grids
