r"""The path of N steps whose local errors add up to the least, by dynamic programming along one fine solution.

With u_i the ODE's solution at tau_i, one step of degree 0 to tau_j from tau_i (DDIM; `exponential`) leaves the error

    c(i, j) = rms over starts and coordinates of [psi_ji u_i + (R_j - psi_ji R_i) eps(u_i, tau_i) - u_j] / S_j,

psi_ji = psi(tau_j, tau_i) and S_j the root mean square of u_j, of each of the K coordinates of a block by itself: a share of
the state, whose size changes by thousands in VE and differs between position and velocity. All M (M + 1)/2 costs take M
evaluations of the score. The least sum of the costs of exactly k edges from 0 to j obeys

    B_1(j) = c(0, j),        B_k(j) = min over i < j of B_{k-1}(i) + c(i, j),

and the path to M is read backwards from B_N(M).

References: Chen et al. 2024 (GITS), section 4 and Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.exponential.forms import EpsForm
from indm_core.sample import Score, sample_ode
from indm_core.sde import LinearSDE, apply, over_event
from indm_core.shapes import Float
from indm_core.times import check_times

__all__ = ["FineSolution", "cheapest_path", "fine_solution", "step_costs"]


@dataclass(frozen=True)
class FineSolution:
    """The ODE's solution along a fine grid: times (M + 1,), and the state at each."""

    ts: Tensor
    states: list[Tensor]


def fine_solution(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    y: Tensor | None = None,
) -> FineSolution:
    """The solution from u at ts[0] at every time of a grid, by RK45 from each to the next."""
    check_times(sde, ts)
    states = [u]
    for ends in pairwise(ts):
        states.append(sample_ode(sde, score, states[-1], torch.stack(ends), rtol=rtol, atol=atol, y=y))
    return FineSolution(ts, states)


@torch.no_grad()
def step_costs(sde: LinearSDE, score: Score, solution: FineSolution) -> Float[Tensor, "m m"]:
    """c(i, j) for i < j, infinite elsewhere; one evaluation of the score at each time but the last."""
    ts, states = solution.ts, solution.states
    eps, costs = EpsForm("R"), torch.full((len(ts), len(ts)), math.inf, dtype=torch.float64)
    sizes = [u.double().square().mean(tuple(range(u.ndim - 1))).sqrt().clamp(min=1e-12) for u in states]
    for i, t in enumerate(ts[:-1]):
        value, later = eps.value(sde, score, states[i], t), ts[i + 1 :]
        transfer = eps.transfer(sde, over_event(later), over_event(t.expand_as(later)))
        whole = eps.whole(sde, over_event(later), over_event(t.expand_as(later)), transfer)
        assert whole is not None  # in the basis R there is a closed form
        for j in range(i + 1, len(ts)):
            error = apply(transfer[j - i - 1], states[i]) + apply(whole[j - i - 1], value) - states[j]
            costs[i, j] = float((error.double() / sizes[j]).square().mean().sqrt())
    return costs


def cheapest_path(costs: Float[Tensor, "m m"], num_steps: int) -> list[int]:
    """The nodes 0 = i_0 < i_1 < ... < i_N = M whose edges' costs add up to the least.

    Args:
        costs: c(i, j), infinite where there is no edge.
        num_steps: N, at most M.

    Raises:
        ValueError: more steps than there are edges in a row.
    """
    last = len(costs) - 1
    if not 1 <= num_steps <= last:
        raise ValueError(
            f"num_steps={num_steps} must lie in 1 to {last}, the number of fine steps; take a finer solution"
        )
    least, before = costs[0], []
    for _ in range(num_steps - 1):
        least, where = (least.unsqueeze(1) + costs).min(0)
        before.append(where)
    if not math.isfinite(float(least[last])):
        raise ValueError(f"costs: no path of num_steps={num_steps} edges has a finite cost")
    path = [last]
    for where in reversed(before):
        path.append(int(where[path[-1]]))
    return [0, *reversed(path)]
