"""Samples of a model as a configuration asks for them; the one place where a sampler is chosen by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.draw import Sampler, draw
from indm_core.exponential import check_method, sample_deis
from indm_core.model import GenerativeModel
from indm_core.noise import Noise, seeded
from indm_core.sample import Score, sample_em, sample_ode, sample_pc
from indm_core.sde import SDE, LinearSDE
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times
from pipelines.config.sampling import Sampling
from pipelines.data.spec import DataSpec

__all__ = ["Drawn", "Shown", "check", "draw_by", "sampler_of", "shown", "times_of"]


class Drawn(NamedTuple):
    """Samples x (n, *shape) and the evaluations of the score that each took on average."""

    x: Tensor
    evaluations: float


class Shown(NamedTuple):
    """Samples as data are: levels where the data have levels, all finite; and how many of them had diverged."""

    values: Tensor
    diverged: int


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
    chosen = sampler_of(sampling)

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        def counted(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            nonlocal evaluated
            evaluated += len(u)
            return score(u, t, y)

        return chosen(sde, counted, u, ts, generator)

    x = draw(
        model,
        sampler,
        times_of(model, sampling),
        torch.zeros((), device=device),
        len(seeds),
        generator=seeded(seeds),
        denoise=sampling.denoise,
        temperature=sampling.temperature,
        start_temperature=sampling.start_temperature,
        start=start,
    )
    return Drawn(x, evaluated / len(seeds) + sampling.denoise)


def sampler_of(sampling: Sampling) -> Sampler:
    """The sampler that a configuration names, with its options."""
    samplers: dict[str, Callable[..., Tensor]] = {
        "ode": partial(sample_ode, rtol=sampling.rtol, atol=sampling.atol),
        "em": partial(sample_em, lam=1.0 if sampling.lam < 0 else sampling.lam),
        "pc": partial(sample_pc, snr=sampling.snr, corrector_steps=sampling.corrector_steps),
        "deis": partial(
            sample_deis,
            order=sampling.order,
            method=sampling.method,
            lam=max(0.0, sampling.lam),
            warmup=sampling.warmup,
            corrector=sampling.corrector,
            basis=sampling.basis,
        ),
    }

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        return samplers[sampling.sampler](sde, score, u, ts, generator=generator)

    return sampler


def times_of(model: GenerativeModel, sampling: Sampling) -> Tensor:
    """The decreasing times that a configuration asks for, from where the model starts."""
    sde, steps, low, high = model.sde, sampling.num_steps, sampling.stop or model.sde.t_min, model.t_start
    if sampling.sampler == "ode":
        return uniform_times(sde, 1, low=low, high=high)
    grids: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform_times(sde, steps, low=low, high=high),
        "power": lambda: power_times(sde, steps, sampling.exponent, low=low, high=high),
        "log-rho": lambda: log_rho_times(_linear(sde, "grid=log-rho"), steps, low=low, high=high),
        "edm": lambda: edm_times(_linear(sde, "grid=edm"), steps, sampling.exponent, low=low, high=high),
        "trained": lambda: model.times(steps, low),
    }
    return grids[sampling.spacing]()


def check(model: GenerativeModel, sampling: Sampling) -> None:
    """Refuses a sampler that the model does not allow, before any work.

    Raises:
        ValueError: what needs a linear diffusion on a learned one, a method or grid that its SDE has not, too few evaluations.
    """
    if sampling.sampler == "deis":
        check_method(_linear(model.sde, "sampler=deis"), sampling.method)
    times_of(model, sampling)


def shown(x: Tensor, spec: DataSpec) -> Shown:
    """Samples of a model as data are.

    A sample has diverged that is not finite, or lies further outside the data's range than ten times its width. What is not
    finite is put at the range's ends.
    """
    x = x.cpu()
    far = 10 * (spec.high - spec.low) if spec.levels else math.inf
    lost = ~x.flatten(1).isfinite() | (x.flatten(1) - spec.low).abs().gt(far)
    x = x.nan_to_num(nan=spec.low, posinf=spec.high, neginf=spec.low)
    return Shown(spec.from_model(x), int(lost.any(1).sum()))


def _linear(sde: SDE, what: str) -> LinearSDE:
    """The SDE, if it is linear."""
    linear = sde.linear
    if linear is None:
        raise ValueError(f"{what} needs a linear diffusion, and the drift of this model is learned; take em, pc or ode")
    return linear
