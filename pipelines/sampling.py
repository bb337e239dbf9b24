"""How samples are drawn, as a configuration; the one place where a sampler is chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.noise import Noise, seeded
from indm_core.sample import (
    Score,
    draw,
    edm_times,
    log_rho_times,
    power_times,
    sample_em,
    sample_ode,
    sample_pc,
    start_times,
    uniform_times,
)
from indm_core.sde import SDE

__all__ = ["Sampling", "samples"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler and its options.

    Args:
        sampler: ode (adaptive RK45), em (Euler-Maruyama) or pc (predictor-corrector).
        steps: Steps of em and pc.
        grid: Spacing of their times: uniform, power (quadratic), log-rho or edm.
        rtol, atol: Tolerances of ode.
        snr: Signal-to-noise ratio of pc's corrector.
        denoise: Whether Tweedie's mean replaces the last state.
    """

    sampler: Literal["ode", "em", "pc"] = "ode"
    steps: int = 1000
    grid: Literal["uniform", "power", "log-rho", "edm"] = "uniform"
    rtol: float = 1e-4
    atol: float = 1e-4
    snr: float = 0.16
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        for name in ("rtol", "atol", "snr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


def samples(model: GenerativeModel, seeds: Sequence[int], sampling: Sampling, device: str = "cpu") -> Tensor:
    """One sample per seed, x (n, *shape): a sample depends on its seed alone, not on its neighbours."""
    sde = model.sde
    grids: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform_times(sde, sampling.steps),
        "power": lambda: power_times(sde, sampling.steps, 2.0),
        "log-rho": lambda: log_rho_times(sde, sampling.steps),
        "edm": lambda: edm_times(sde, sampling.steps),
    }
    samplers: dict[str, Callable[..., Tensor]] = {
        "ode": partial(sample_ode, rtol=sampling.rtol, atol=sampling.atol),
        "em": sample_em,
        "pc": partial(sample_pc, snr=sampling.snr),
    }

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        return samplers[sampling.sampler](sde, score, u, ts, generator=generator)

    ts = start_times(model) if sampling.sampler == "ode" else grids[sampling.grid]()
    like = torch.zeros((), device=device)
    noise = seeded(seeds, device)
    return draw(model, sampler, ts, like, len(seeds), generator=noise, denoise=sampling.denoise)
