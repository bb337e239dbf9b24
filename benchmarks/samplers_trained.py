"""Error of fast samplers against the ODE's own solution on a trained network, at equal evaluations of the score.

    python benchmarks/samplers_trained.py runs/digits_linear_nll
    python benchmarks/samplers_trained.py runs/digits_vp_nll --fit 5,8,10      # also fits grids, which takes minutes

The state is the diffusion's: of an INDM the latent. The error is the root mean square over starts and coordinates at t_min,
against RK45 at 1e-5 from the same draws of the prior. A row is a method, a cell its smallest error over the grids, with the
grid; `auto` takes what its rule says, and `fitted` the same method on a grid that is fitted to other starts. The peers
(`peers`) take the same grids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.peers import peers
from benchmarks.samplers import COUNTS, GRIDS, OURS
from indm_core.automatic import settled
from indm_core.draw import fit_times, times_of
from indm_core.exponential import sample_deis
from indm_core.model import GenerativeModel
from indm_core.sample import sample_ode
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import LinearSDE
from indm_core.times import uniform_times
from pipelines.config import load

CHOSEN = (
    "DDIM",
    "eps, t, 2",
    "eps, t, 3 (the default)",
    "iPNDM 3",
    "eps, log rho, 2",
    "data, rho, 2, PEC",
    "data, t, 1",
    "data, t, 1, PEC",
    "data, t, 1, PEC, low-order end",
    "data, t, 2, PEC, low-order end",
    "data, t, 3, PEC",
    "velocity, t, 1, PEC",
    "velocity, t, 2, PEC",
)
"""Rows of `samplers.OURS`; all of it with --all."""


class Problem:
    """A model's ODE from some draws of its prior, and its solution."""

    def __init__(self, model: GenerativeModel, num: int) -> None:
        linear = model.sde.linear
        if linear is None:
            raise ValueError(f"{type(model).__name__}: its drift is learned; give a run with a linear diffusion")
        self.model, self.sde = model, linear
        like = model.state_like(num, next(model.parameters()).new_zeros(()))
        self.u = model.sample_start(like, torch.Generator().manual_seed(1))
        ends = uniform_times(linear, 1, high=model.t_start)
        self.exact = linear.project(sample_ode(linear, self.score, self.u, ends, rtol=1e-5, atol=1e-5))

    @torch.no_grad()
    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.model.score(u, t, y)

    def error(self, u: Tensor) -> float:
        return float((self.sde.project(u) - self.exact).square().mean().sqrt().nan_to_num(1e9))

    def times(self, make: Callable[[LinearSDE, int], Tensor], count: int) -> Tensor:
        return make(self.sde, count)

    def ours(self, options: dict, ts: Tensor) -> Tensor:
        return sample_deis(self.sde, self.score, self.u, ts, **options)

    def named(self, sampling: Sampling) -> Tensor:
        ts = times_of(self.model, sampling)
        return sampler_of(sampling)(self.sde, self.score, self.u, ts, None)


def best_of_grids(problem: Problem, sampler: Callable[[Tensor], Tensor], count: int) -> tuple[float, str]:
    """The smallest error over the grids, and its grid."""
    return min((problem.error(sampler(make(problem.sde, count))), grid) for grid, make in GRIDS.items())


def by_rule(problem: Problem, count: int) -> tuple[float, str]:
    taken = settled(problem.sde, Sampling(sampler="auto", nfe=count, denoise=False))
    return problem.error(problem.named(taken)), f"{taken.spacing} {taken.exponent:g}, degree {taken.order}"


def by_fit(problem: Problem, fitted: set[int], count: int) -> tuple[float, str]:
    if count not in fitted:
        return float("nan"), "not fitted"
    auto = Sampling(sampler="auto", denoise=False)
    found = fit_times(problem.model, count, sampling=auto, num=len(problem.u), iterations=8)
    return problem.error(problem.named(found.sampling)), f"fitted, {found.fit.evaluations:,} evaluations"


def table(problem: Problem, fitted: set[int], every: bool) -> None:
    chosen = [label for label, options in OURS.items() if every or label in CHOSEN]
    rows: dict[str, Callable[[int], tuple[float, str]]] = {
        label: partial(best_of_grids, problem, partial(problem.ours, OURS[label])) for label in chosen
    }
    rows |= {"auto": partial(by_rule, problem), "auto, fitted": partial(by_fit, problem, fitted)}
    others = {
        label: partial(best_of_grids, problem, partial(peer, problem.sde, problem.score, problem.u))
        for label, peer in peers().items()
    }
    print(f"| method | {' | '.join(map(str, COUNTS))} |\n|---|{'---|' * len(COUNTS)}")
    least: dict[bool, list[float]] = {}
    for label, row in (rows | others).items():
        cells = [row(count) for count in COUNTS]
        print(f"| {label} | {' | '.join(f'{error:.2g} {grid}' for error, grid in cells)} |", flush=True)
        before = least.get(label in others, [float("inf")] * len(COUNTS))
        least[label in others] = [
            min(a, error) if error == error else a for a, (error, _) in zip(before, cells, strict=True)
        ]
    ratios = (f"{ours / peer:.2f}" for ours, peer in zip(least[False], least[True], strict=True))
    print(f"| the best of ours / the best of the peers | {' | '.join(ratios)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--num", type=int, default=32, help="starts")
    parser.add_argument("--fit", default="", help="numbers of evaluations for which grids are fitted: 5,8,10")
    parser.add_argument("--all", action="store_true", help="every row of samplers.py")
    given = parser.parse_args()
    fitted = {int(count) for count in given.fit.split(",") if count}
    table(Problem(load(given.run), given.num), fitted, given.all)
