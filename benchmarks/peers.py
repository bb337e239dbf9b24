"""Samplers of other packages, as far as they are installed: the schedulers of diffusers (among the tools for development) and
the samplers of azula (`pip install --no-deps azula==0.11.1 einops`: of its other needs none is for samplers).

They take our times, and so does their last step: diffusers' noise levels are set to those of the times, azula's schedule is
that of our diffusion. What they ask a score for is eps or the posterior mean, of a scalar diffusion:

    eps = -sigma s(u, t),      E[x | u] = (u + sigma^2 s(u, t)) / alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply

__all__ = ["Peer", "peers"]

Peer = Callable[[LinearSDE, Score, Tensor, Tensor], Tensor]
"""peer(sde, score, u, ts) -> the state at the last of the times."""
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2, **SIGMA_MIN}),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3, **SIGMA_MIN}),
    "UniPC 3, eps": ("UniPCMultistepScheduler", {"solver_order": 3, "predict_x0": False, **SIGMA_MIN}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2, **SIGMA_MIN}),
    "DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3, **SIGMA_MIN}),
    "DEIS 2": ("DEISMultistepScheduler", {"solver_order": 2}),
    "DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}),
}
"""DDIM of diffusers is ours, and DPM-Solver++ of order 1."""
AZULA = {
    f"azula {name} {order}": (f"{name}Sampler", order)
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB")
    for order in (1, 2, 3)
    if order > 1 or name == "REAB"  # the others of order 1 are DDIM
}


def peers() -> dict[str, Peer]:
    """Those of the packages that are there, by label."""
    found: dict[str, Peer] = {}
    if find_spec("diffusers"):
        found |= {label: partial(_by_diffusers, kind, options) for label, (kind, options) in DIFFUSERS.items()}
    if find_spec("azula"):
        found |= {label: partial(_by_azula, kind, order) for label, (kind, order) in AZULA.items()}
    return found


def _by_diffusers(kind: str, options: dict[str, Any], sde: LinearSDE, score: Score, u: Tensor, ts: Tensor) -> Tensor:
    import diffusers

    num, x = len(ts) - 1, u.squeeze(-1)
    scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, **options)
    scheduler.set_timesteps(num)
    scheduler.sigmas, scheduler.timesteps = sde.log_rho(ts).exp(), torch.arange(num)
    for k in range(num):
        eps = -apply(sde.R(ts[k]).mT, score(x.unsqueeze(-1), ts[k]))
        x = scheduler.step(eps.squeeze(-1), scheduler.timesteps[k], x).prev_sample
    return x.unsqueeze(-1)


def _by_azula(kind: str, order: int, sde: LinearSDE, score: Score, u: Tensor, ts: Tensor) -> Tensor:
    from azula import sample  # pyright: ignore[reportMissingImports]
    from azula.denoise import Denoiser, DiracPosterior  # pyright: ignore[reportMissingImports]

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        return sde.psi0(t)[..., 0, 0], sde.R(t)[..., 0, 0]

    class Posterior(Denoiser):
        def forward(self, x_t: Tensor, t: Tensor, **given: object) -> DiracPosterior:
            alpha, sigma = (each.to(x_t) for each in schedule(t))
            return DiracPosterior((x_t + sigma**2 * score(x_t.unsqueeze(-1), t).squeeze(-1)) / alpha)

    class OnOurTimes(getattr(sample, kind)):
        timesteps = ts

    denoiser = Posterior()
    denoiser.schedule = schedule  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        return OnOurTimes(denoiser, order=order, silent=True)(u.squeeze(-1)).to(u).unsqueeze(-1)
