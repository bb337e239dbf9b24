"""The sampling error of runs in its parts (Theorem 4 of the INDM paper), as a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.diagnostics import MeanAndError
from indm_core.diagnostics.sampling_error import (
    SampleSets,
    SamplingErrors,
    draw_sets,
    prior_divergence,
    sample_frechet_distance,
    sampling_errors,
    smoothness,
    total_variation_bound,
)
from indm_core.model import LinearModel
from indm_core.noise import seeded
from indm_core.times import power_times
from pipelines.reporting.options import ErrorOptions
from pipelines.reporting.page.parts import Row, Table
from pipelines.reporting.stages import Stages

__all__ = ["error_tables"]


def error_tables(
    models: Sequence[tuple[str, LinearModel]], x: Tensor, options: ErrorOptions, stages: Stages, seed: int = 0
) -> list[Table]:
    """Distances across each contrast, and the theorem's terms where they can be had.

    Args:
        models: Names and models whose diffusion is linear, on the same data.
        x: Data (n, *shape) that the models have not seen, dequantised.
        stages: Told of each model as work at it begins.
    """
    distances: list[Row] = []
    terms: list[Row] = []
    for name, model in models:
        stages.say(f"Theorem 4, {name}")
        found = sampling_errors(_sets(model, x, options, seed), sample_frechet_distance)
        distances.append((name, *(_with_error(part) for part in _parts(found))))
        terms.append((name, *_terms(model, x, options, seed)))
    head = ("model", "prior", "discretisation", "score", "stop at t_min", "in all")
    note = (
        f"Squared Wasserstein distance of Gaussians with the sets' moments, data units squared; {len(x)} rows, "
        f"Euler-Maruyama, N = {options.steps} against {options.fine_steps}"
    )
    bounds = ("model", "sqrt(2 KL(p_T || pi)), at most", "K", "L", "alpha", "E[|z|^4]^(1/4)", "discretisation term")
    return [
        Table(title="Sampling error in its parts", head=head, rows=distances, note=note),
        Table(title="Terms of Theorem 4 (bounds of a total variation in [0, 2])", head=bounds, rows=terms),
    ]


def _sets(model: LinearModel, x: Tensor, options: ErrorOptions, seed: int) -> SampleSets:
    ends = {"low": model.sde.t_min, "high": model.t_start}
    ts, fine = (power_times(model.sde, n, 2.0, **ends) for n in (options.steps, options.fine_steps))
    sets = draw_sets(model, x, ts, fine, generator=seeded(range(seed, seed + len(x))))
    return sets.map(lambda v: v.flatten(1))


def _parts(found: SamplingErrors) -> tuple[MeanAndError, ...]:
    return (found.prior, found.discretisation, found.score, found.truncation, found.total)


def _terms(model: LinearModel, x: Tensor, options: ErrorOptions, seed: int) -> Row:
    """The prior's bound, and the constants of the discretisation term where the theorem has one (VP)."""
    few = x[:200].double()
    model = model.double()
    divergence = prior_divergence(model, few, generator=torch.Generator().manual_seed(seed))
    prior = f"{total_variation_bound(float(divergence.upper.mean)):.2g}"
    ts = power_times(model.sde, options.steps, 2.0, high=model.t_start)
    try:
        rough = smoothness(model, few[:32], ts[:-1], generator=torch.Generator().manual_seed(seed))
    except ValueError:  # the theorem's clock is VP's
        return (prior, *["VP only"] * 5)
    figures = (rough.K, rough.L, rough.alpha, rough.moment, rough.bound(model.sde, ts))
    return (prior, *(f"{figure:.3g}" for figure in figures))


def _with_error(estimate: MeanAndError) -> str:
    return f"{float(estimate.mean):.4g} ± {float(estimate.error):.2g}"
