r"""Grids of times that are fitted to a score: the N steps that bring one sampler nearest to the ODE's own solution.

A deterministic sampler takes a state u at ts[0] down to ts[-1], and its result u_N(ts) is a function of the times between. With
u* the solution of the probability-flow ODE from the same u, and P = `project`, which leaves a velocity out,

    E(ts)^2 = mean over starts and coordinates of [P u_N(ts) - P u*]^2

is made small over the decreasing grids of N steps with the given ends, on starts from the model's own law.

    `cheapest`        where to begin: along one fine solution u_0, ..., u_M at times tau_0 > ... > tau_M, the error c(i, j) of a
                      single step of degree 0 to tau_j from u_i is the cost of an edge, and dynamic programming finds the path
                      of exactly N edges whose costs add up to the least (GITS).
    `least_squares`   the descent: E^2 is a sum of squares, and Levenberg and Marquardt's method follows it down from a grid,
                      with the sampler really run. What a step inherits from the ones before, in its state and in its
                      polynomial, is in E and not in c.
    `grid`            both: the descent from the usual grids and from the cheapest path, and the best of what they end in.

The costs of single steps know nothing of the polynomial of a multistep method, nor of how an error grows on the way to the
end: on the mixtures of benchmarks/samplers.py the cheapest path alone is not better than a power grid, and the descent
divides the error of either by 1.1 to 10 (docs/RESULTS.md).

References:
    Chen, Zhou, Wang, Shen, Lyu 2024, "On the trajectory regularity of ODE-based diffusion sampling", section 4 (GITS);
    Marquardt 1963; Nocedal, Wright 2006, "Numerical optimization", section 10.3.
"""

from __future__ import annotations

from indm_core.fitting.cheapest import cheapest_path, fine_solution, step_costs
from indm_core.fitting.grid import Fit, fit_grid, usual_grids
from indm_core.fitting.least_squares import Refined, refine

__all__ = [
    "Fit",
    "Refined",
    "cheapest_path",
    "fine_solution",
    "fit_grid",
    "refine",
    "step_costs",
    "usual_grids",
]
