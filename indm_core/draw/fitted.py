"""A grid of times that is fitted to a model: `fitting.fit_grid` from the model's own law, for its own score.

The state is the diffusion's: the latent of an INDM, the flow prior's draws of a DiNof, a velocity with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from indm_core.automatic import settled
from indm_core.draw.samples import Drawable, check_sampling, conditioned
from indm_core.fitting import Fit, fit_grid, usual_grids
from indm_core.noise import seeded
from indm_core.ranges import check_whole
from indm_core.sampling import Sampling, sampler_of

__all__ = ["FittedSampling", "fit_times"]

MOST_STEPS = 100
COORDINATES, FEWEST, MOST = 2048, 16, 256
"""Starts times coordinates that a grid is fitted on, and the bounds of the number of starts."""


@dataclass(frozen=True, kw_only=True)
class FittedSampling:
    """A sampling with a fitted grid, and the fit."""

    sampling: Sampling
    fit: Fit


@torch.no_grad()
def fit_times(
    model: Drawable,
    nfe: int = 0,
    *,
    sampling: Sampling = Sampling(sampler="auto"),
    num: int = 0,
    seed: int = 1 << 40,
    label: int | Tensor | None = None,
    guidance: float = 0.0,
    tolerance: float = 1e-5,
    iterations: int = 15,
) -> FittedSampling:
    """A sampler's grid of times that is fitted to a model with a linear diffusion; `model.sample(64, sampler=found.sampling)`.

    The fit takes some hundreds to some ten thousands of evaluations of each start (`Fit.evaluations`), once; the grid
    then serves every sample of the model.

    Args:
        nfe: Evaluations that a sample may take; 0 leaves them to `sampling`.
        sampling: deis without noise, or auto.
        num: Starts; 0 takes so many that there are 2,048 coordinates, 16 to 256.
        seed: Of the first start; far from those of samples, so that these are others.
        label, guidance: Of the score, as `draw` takes them.
        tolerance, iterations: Of the solution that the sampler is to come near, and of each descent (`fit_grid`).

    Raises:
        ValueError: another sampler, a diffusion that is not linear, too few or too many steps, or labels that the model does
            not know.
        ConvergenceError: the model's ODE is not to be solved at that tolerance.
    """
    check_whole(nfe=nfe, num=num, seed=seed)
    wanted = replace(sampling, grid="fitted", times=(), **({"nfe": nfe} if nfe else {}))
    check_sampling(model, wanted)
    wanted = settled(model.sde, wanted)
    sde = model.sde.linear
    assert sde is not None  # check_sampling refuses
    steps = wanted.num_steps
    if steps > MOST_STEPS:
        raise ValueError(f"nfe={wanted.nfe}, steps={steps}: a grid is fitted of at most {MOST_STEPS} steps; give fewer")
    like = next(model.parameters(), torch.zeros(()))
    if not num:
        num = min(MOST, max(FEWEST, math.ceil(COORDINATES / model.state_like(1, like).numel())))
    score, y = conditioned(model, num, like, label, guidance)
    u = model.sample_start(model.state_like(num, like), seeded(range(seed, seed + num)), wanted.start_temperature)
    grids = usual_grids(sde, steps, low=wanted.stop or sde.t_min, high=model.t_start)
    fit = fit_grid(sde, sampler_of(wanted), score, u, grids, y=y, tolerance=tolerance, iterations=iterations)
    return FittedSampling(sampling=replace(wanted, times=tuple(fit.times.tolist())), fit=fit)
