"""How samples are drawn, as a configuration; the one place where a sampler is chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from indm_core.draw import draw
from indm_core.exponential import Basis, Method, Warmup, check_method, check_options, sample_deis, steps_for
from indm_core.model import GenerativeModel
from indm_core.noise import Noise, seeded
from indm_core.sample import (
    Score,
    edm_times,
    log_rho_times,
    power_times,
    sample_em,
    sample_ode,
    sample_pc,
    uniform_times,
)
from indm_core.sde import SDE, LinearSDE

__all__ = ["Drawn", "Sampling", "check", "samples"]


READ = {
    "ode": ("rtol", "atol"),
    "em": ("steps", "grid", "lam"),
    "pc": ("steps", "grid", "snr", "corrector_steps"),
    "deis": ("steps", "grid", "nfe", "order", "method", "warmup", "corrector", "basis", "lam"),
}
"""Options that not every sampler reads."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and its options.

    Args:
        sampler: ode (adaptive RK45), em (Euler-Maruyama), pc (predictor-corrector) or deis (exponential: DDIM, DEIS,
            gDDIM).
        steps: Steps of em, pc and deis.
        nfe: Evaluations of the score that deis may take in all, instead of `steps`; 0 leaves it to them.
        grid: Spacing of the times: uniform, power (quadratic), log-rho, edm, or trained (the model's own: uniform for a linear
            diffusion); auto is power for deis, else trained.
        order: Degree of deis's polynomial, 0 (DDIM) to 3.
        method: Of deis: t-AB, rho-AB, rho-RK or iPNDM.
        warmup: Of deis: low-order or exact.
        corrector: Whether deis corrects its t-AB steps.
        basis: In which deis takes eps for a polynomial: R, or the Cholesky factor L.
        lam: Stochasticity of em (1: the reverse SDE, 0: the ODE) and of deis at order 0 (gDDIM); -1 takes the sampler's own.
        rtol, atol: Tolerances of ode.
        snr: Signal-to-noise ratio of pc's corrector.
        corrector_steps: Langevin steps of pc per time.
        denoise: Whether Tweedie's mean replaces the last state.
        temperature: Factor of the final latent.
        start_temperature: Factor of the noise that sampling starts from.
        stop: Time at which sampling ends; 0 takes the diffusion's smallest.
    """

    sampler: Literal["ode", "em", "pc", "deis"] = "ode"
    steps: int = 1000
    nfe: int = 0
    grid: Literal["auto", "uniform", "power", "log-rho", "edm", "trained"] = "auto"
    order: int = 3
    method: Method = "t-AB"
    warmup: Warmup = "low-order"
    corrector: bool = False
    basis: Basis = "R"
    lam: float = -1.0
    rtol: float = 1e-4
    atol: float = 1e-4
    snr: float = 0.16
    corrector_steps: int = 1
    denoise: bool = True
    temperature: float = 1.0
    start_temperature: float = 1.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.corrector_steps < 0 or not 0 <= self.stop < 1:
            raise ValueError(
                f"corrector_steps={self.corrector_steps} and stop={self.stop} must not be negative, stop below 1"
            )
        if self.nfe < 0:
            raise ValueError(f"nfe={self.nfe} must not be negative")
        if self.lam < 0 and self.lam != -1:
            raise ValueError(f"lam={self.lam} must not be negative; -1 takes the sampler's own")
        if self.sampler == "deis":
            check_options(**self.of_deis())
        ignored = set().union(*READ.values()) - set(READ[self.sampler])
        for f in fields(self):
            if f.name in ignored and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"{f.name}={getattr(self, f.name)}: sampler={self.sampler} does not read it; leave it away"
                )
        for name in ("rtol", "atol", "snr", "temperature", "start_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    def counted(self) -> dict[str, Any]:
        """The options of deis that decide how many evaluations a step takes."""
        return {"order": self.order, "method": self.method, "warmup": self.warmup, "corrector": self.corrector}

    def of_deis(self) -> dict[str, Any]:
        """The options of `sample_deis`."""
        return self.counted() | {"lam": max(0.0, self.lam), "basis": self.basis}


class Drawn(NamedTuple):
    """Samples x (n, *shape) and the evaluations of the score that each took on average."""

    x: Tensor
    evaluations: float


def samples(
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
