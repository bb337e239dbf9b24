"""Samples of a model as a configuration asks for them; the one place where a sampler is chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.draw import draw
from indm_core.exponential import check_method, sample_deis, steps_for
from indm_core.model import GenerativeModel
from indm_core.noise import Noise, seeded
from indm_core.sample import Score, sample_em, sample_ode, sample_pc
from indm_core.sde import SDE, LinearSDE
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times
from pipelines.config.sampling import Sampling
from pipelines.config.store import load

__all__ = ["Drawn", "Sampler", "check", "draw_by"]


class Drawn(NamedTuple):
    """Samples x (n, *shape) and the evaluations of the score that each took on average."""

    x: Tensor
    evaluations: float


class Sampler:
    """An actor that holds a model."""

    def __init__(self, run: str, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.model, self.device = load(run).to(device), device

    def draw(self, seeds: list[int], sampling: Sampling, start: Tensor | None) -> Drawn:
        drawn = draw_by(self.model, seeds, sampling, self.device, start)
        return Drawn(drawn.x.cpu(), drawn.evaluations)


def draw_by(
    model: GenerativeModel,
    seeds: Sequence[int],
    sampling: Sampling,
    device: str = "cpu",
    start: Tensor | None = None,
) -> Drawn:
    """One sample per seed: a sample depends on its seed alone, not on its neighbours.

    Args:
        start: Data (n, *shape) whose diffused latents sampling starts from; None starts from the model's own law.
    """
    evaluated = 0
    check(model, sampling)
    steps, deis = sampling.steps, sampling.of_deis()
    if sampling.nfe:
        steps = steps_for(sampling.nfe, **sampling.counted(), denoise=sampling.denoise)
    sde, ends = model.sde, {"low": sampling.stop or model.sde.t_min, "high": model.t_start}
    grids: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform_times(sde, steps, **ends),
        "power": lambda: power_times(sde, steps, 2.0, **ends),
        "log-rho": lambda: log_rho_times(_linear(sde, "grid=log-rho"), steps, **ends),
        "edm": lambda: edm_times(_linear(sde, "grid=edm"), steps, **ends),
        "trained": lambda: model.times(steps, ends["low"]),
    }
    samplers: dict[str, Callable[..., Tensor]] = {
        "ode": partial(sample_ode, rtol=sampling.rtol, atol=sampling.atol),
        "em": partial(sample_em, lam=1.0 if sampling.lam < 0 else sampling.lam),
        "pc": partial(sample_pc, snr=sampling.snr, corrector_steps=sampling.corrector_steps),
        "deis": partial(sample_deis, **deis),
    }

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        def counted(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            nonlocal evaluated
            evaluated += len(u)
            return score(u, t, y)

        return samplers[sampling.sampler](sde, counted, u, ts, generator=generator)

    x = draw(
        model,
        sampler,
        uniform_times(sde, 1, **ends) if sampling.sampler == "ode" else grids[_grid(sampling)](),
        torch.zeros((), device=device),
        len(seeds),
        generator=seeded(seeds),
        denoise=sampling.denoise,
        temperature=sampling.temperature,
        start_temperature=sampling.start_temperature,
        start=start,
    )
    return Drawn(x, evaluated / len(seeds) + sampling.denoise)


def check(model: GenerativeModel, sampling: Sampling) -> None:
    """Refuses a sampler that the model does not allow, before any work.

    Raises:
        ValueError: what needs a linear diffusion on a learned one, a method or grid that its SDE has not, too few evaluations.
    """
    if sampling.sampler == "deis":
        check_method(_linear(model.sde, "sampler=deis"), sampling.method)
        if sampling.nfe:
            steps_for(sampling.nfe, **sampling.counted(), denoise=sampling.denoise)
    low, grid = sampling.stop or model.sde.t_min, _grid(sampling)
    if sampling.sampler != "ode" and grid in ("log-rho", "edm"):
        log_rho_times(_linear(model.sde, f"grid={grid}"), 16, low=low, high=model.t_start)
    if sampling.sampler != "ode" and grid == "trained":
        model.times(sampling.steps, low)


def _grid(sampling: Sampling) -> str:
    if sampling.grid != "auto":
        return sampling.grid
    return "power" if sampling.sampler == "deis" else "trained"


def _linear(sde: SDE, what: str) -> LinearSDE:
    """The SDE, if it is linear."""
    linear = sde.linear
    if linear is None:
        raise ValueError(f"{what} needs a linear diffusion, and the drift of this model is learned; take em, pc or ode")
    return linear
