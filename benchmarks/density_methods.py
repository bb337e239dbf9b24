"""What each method of the benchmark table does with a number of evaluations of the target (see `densities`)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from indm_core.pis import (
    Counted,
    Draws,
    Estimate,
    Method,
    PathIntegralSampler,
    ResampledPaths,
    Target,
    eubo,
    optimal_paths,
)
from indm_core.pis.baselines import (
    HMC,
    NUTS,
    SMC,
    AdaptiveTemperatures,
    AnnealedFlowTransport,
    Fitted,
    HMCMoves,
    ParallelTempering,
    VariationalFlow,
)
from pipelines.config.pis import PISRun, load_control
from pipelines.config.store import WEIGHTS
from pipelines.storage.signals import Stop
from pipelines.training.density import job_for, work_on_density
from pipelines.training.launch import Workers
from pipelines.training.local import train_here
from pipelines.training.watch.summary import seconds_taken

NUM = 2000
"""Samples that all methods are judged by."""
EXPONENTS = (1, 2, 4, 8, 16, 32)
NOWHERE = Estimate(math.nan, math.nan)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A target with what methods may spend on it.

    Args:
        run: Its recipe.
        target: In float32.
        budget: Evaluations.
        out: Directory of the runs.
    """

    run: PISRun
    target: Target
    budget: int
    out: Path

    @property
    def sigma(self) -> float:
        return self.run.volatility * math.sqrt(self.run.t_max)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a method gave, its EUBO, and the seconds of its training where that was done apart."""

    draws: Draws
    eubo: Estimate = NOWHERE
    training: float = math.nan


def trained(problem: Problem, name: str, **change: str) -> tuple[PathIntegralSampler, int, float]:
    """A path integral sampler, the evaluations of its training, and its seconds."""
    run = replace(problem.run, **change)  # pyright: ignore[reportArgumentType]
    each = run.evaluations_per_path() * run.train.batch_size
    left = problem.budget - (run.num_steps + 1) * NUM
    run = replace(run, train=replace(run.train, steps=min(run.train.steps, int(left / each))))
    launch = Workers(name=f"{run.recipe}-{name}", local=True, threads=1)
    job = job_for(run, launch, problem.out)
    train_here([job], launch, Stop("the same command goes on"), work_on_density)
    sampler = load_control(run.build(problem.target), job.directory / WEIGHTS)
    return sampler, round(run.train.steps * each), seconds_taken(job.training)


def pis_row(problem: Problem, name: str, **change: str) -> Drawn:
    sampler, evaluations, seconds = trained(problem, name, **change)
    counted = Counted(problem.target)
    x, log_w = sampler.sample(counted, NUM, generator=rng(1))
    draws = Draws.independent(x, log_w, evaluations + counted.evaluations)
    exact = problem.target.exact
    above = eubo(optimal_paths(sampler, problem.target, NUM, generator=rng(2))[1]) if exact else NOWHERE
    return Drawn(draws=draws, eubo=above, training=seconds)


def resampling_row(problem: Problem) -> Drawn:
    """Paths of PIS-KL, with lambda = (t/T)^p whose p is that of the highest bound in a first drawing."""
    sampler, evaluations, seconds = trained(problem, "PIS-KL", loss="kl")
    tried = {p: ResampledPaths(sampler=sampler, schedule=partial(pow, exp=p)) for p in EXPONENTS}
    first = {p: method(problem.target, NUM, generator=rng(10 + p)) for p, method in tried.items()}
    best = max(first, key=lambda p: first[p].bound.value)  # none is above log Z in the mean
    print(f"{problem.run.recipe}: resampled by lambda = (t/T)^{best}", flush=True)
    draws = tried[best](problem.target, NUM, generator=rng(1))
    evaluations += draws.evaluations + sum(one.evaluations for one in first.values())
    return Drawn(draws=replace(draws, evaluations=evaluations), training=seconds)


def smc_row(problem: Problem) -> Drawn:
    """A first run of 2,000 particles tells what a particle costs; the second spends what is left."""
    method = SMC(temperatures=AdaptiveTemperatures(), moves=HMCMoves(), num_moves=10, sigma=problem.sigma)
    first = method(problem.target, NUM, generator=rng(0))
    num = max(NUM, round(NUM * (problem.budget - first.evaluations) / first.evaluations))
    draws = method(problem.target, num, generator=rng(1))
    return Drawn(draws=replace(draws, evaluations=draws.evaluations + first.evaluations))


def tempering(problem: Problem) -> tuple[ParallelTempering, int]:
    """The method that spends the budget, a third of it in the warm-up, and the samples that it is asked for."""
    levels, replicas, leapfrog = 10, 100, 5
    sweeps = problem.budget // (replicas * (1 + (levels - 1) * leapfrog))
    thin = max(1, 2 * sweeps // 3 * replicas // (10 * NUM))
    method = ParallelTempering(
        moves=HMCMoves(num_leapfrog=leapfrog),
        num_levels=levels,
        num_replicas=replicas,
        num_warm_up=sweeps // 3,
        thin=thin,
        sigma=problem.sigma,
    )
    return method, (sweeps - sweeps // 3) // thin * replicas


def pt_row(problem: Problem) -> Drawn:
    method, num = tempering(problem)
    return Drawn(draws=method(problem.target, num, generator=rng(1)))


def fitted_row(problem: Problem) -> Drawn:
    method, num = tempering(problem)
    components = max(10, len(problem.target.modes) * 5 // 4) if problem.target.dim <= 50 else 1
    fitted = Fitted(method=method, num_given=num, num_components=components)
    return Drawn(draws=fitted(problem.target, 10 * NUM, generator=rng(1)))


def aft_row(problem: Problem) -> Drawn:
    levels, particles = 10, 1000
    steps = (problem.budget - levels * 11 * (particles + NUM)) // (levels * particles)
    method = AnnealedFlowTransport(num_temperatures=levels, num_train=particles, num_steps=steps, sigma=problem.sigma)
    return Drawn(draws=method(problem.target, NUM, generator=rng(1)))


def vi_row(problem: Problem) -> Drawn:
    batch = 1000
    method = VariationalFlow(num_steps=(problem.budget - NUM) // batch, batch=batch, sigma=problem.sigma)
    return Drawn(draws=method(problem.target, NUM, generator=rng(1)))


def mcmc_row(method: Method, problem: Problem) -> Drawn:
    return Drawn(draws=method(problem.target, NUM, generator=rng(1)))


def hmc_row(problem: Problem) -> Drawn:
    sweeps = problem.budget // (100 * 10)
    kept = NUM // 100
    method = HMC(num_warm_up=sweeps // 3, thin=max(1, 2 * sweeps // 3 // kept), sigma=problem.sigma)
    return Drawn(draws=method(problem.target, NUM, generator=rng(1)))


METHODS: dict[str, Callable[[Problem], Drawn]] = {
    "PIS-KL": partial(pis_row, name="PIS-KL", loss="kl"),
    "PIS-LV": partial(pis_row, name="PIS-LV", loss="log-variance"),
    "PIS-NN": partial(pis_row, name="PIS-NN", control="nn"),
    "PIS + resampling": resampling_row,
    "HMC": hmc_row,
    "NUTS": lambda problem: mcmc_row(NUTS(max_depth=8, sigma=problem.sigma), problem),
    "SMC": smc_row,
    "PT": pt_row,
    "PT + mixture": fitted_row,
    "AFT": aft_row,
    "VI-NF": vi_row,
}
TABLE = [name for name in METHODS if name not in ("PIS-NN", "HMC")]
