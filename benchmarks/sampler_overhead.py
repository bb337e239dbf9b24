"""What a sampler costs beside the network: milliseconds an evaluation with a network that does nothing.

    python -m benchmarks sampler-overhead

States of 16 x 3 x 32 x 32 in float32, 20 evaluations, one thread. The network gives its own input back, to all alike, so that
what is timed is coefficients, arithmetic of the states, and bookkeeping. A sampling begins where a user's does: the project's
with its times, the schedulers of diffusers with `set_timesteps`, the samplers of azula with their call. Each of ours is beside
the peer that takes the same kind of step; the target is the least of theirs. CLD and BDM, which no peer has, are beside VP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.figure import AT_LEAST, Absent, Bound, Row, in_turn
from indm_core.exponential import sample_deis
from indm_core.sample import power_times
from indm_core.sde import BDM, CLD, VP, LinearSDE

EVALUATIONS, SHAPE = 20, (16, 3, 32, 32)
TARGET = Bound(AT_LEAST, 1.0)
Sampling = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of step, as the three take it.

    Args:
        options: Of `sample_deis`.
        scheduler, given: Of diffusers, and its options.
        sampler, order: Of azula; '' where it has none of that kind.
    """

    options: dict[str, Any]
    scheduler: str
    given: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    order: int = 0


KINDS = {
    "DDIM": Kind(options={"order": 0}, scheduler="DDIMScheduler", sampler="DDIMSampler"),
    "t-AB 3 (the default)": Kind(
        options={"order": 3},
        scheduler="DEISMultistepScheduler",
        given={"solver_order": 3},
        sampler="zABSampler",
        order=4,
    ),
    "data, log rho, 1": Kind(
        options={"order": 1, "method": "log-rho-AB", "prediction": "data"},
        scheduler="DPMSolverMultistepScheduler",
        given={"solver_order": 2},
        sampler="xEABSampler",
        order=2,
    ),
    "data, t, 1, PEC": Kind(
        options={"order": 1, "prediction": "data", "corrector": True, "reevaluate": False},
        scheduler="UniPCMultistepScheduler",
        given={"solver_order": 2},
    ),
}


def same(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """A score that does nothing."""
    return u


def ours(kind: Kind, sde: LinearSDE) -> None:
    """One sampling by `sample_deis`."""
    u = torch.randn(*SHAPE, sde.prior_cov().shape[-1])
    sample_deis(sde, same, u, power_times(sde, EVALUATIONS, 2.0), **kind.options)


def by_diffusers(kind: Kind) -> Sampling:
    """One sampling by a scheduler, which is made once."""
    import diffusers

    scheduler = getattr(diffusers, kind.scheduler)(num_train_timesteps=1000, **kind.given)

    @torch.no_grad()
    def sample() -> None:
        x = torch.randn(SHAPE)
        scheduler.set_timesteps(EVALUATIONS)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample

    return sample


def by_azula(kind: Kind) -> Sampling:
    """One sampling by a sampler, which is made once."""
    from azula import sample  # pyright: ignore[reportMissingImports]
    from azula.denoise import Denoiser, DiracPosterior  # pyright: ignore[reportMissingImports]
    from azula.noise import VPSchedule  # pyright: ignore[reportMissingImports]

    class Same(Denoiser):
        schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **given: object) -> DiracPosterior:
            return DiracPosterior(x_t)

    order = {"order": kind.order} if kind.order else {}
    sampler = getattr(sample, kind.sampler)(Same(), steps=EVALUATIONS, silent=True, **order)
    return lambda: sampler(torch.randn(SHAPE))


def figure(quick: bool) -> Iterator[Row | Absent]:
    """Milliseconds an evaluation of each sampler with a network that does nothing, beside diffusers and azula."""
    for package, by in (("diffusers", by_diffusers), ("azula", by_azula)):
        if not find_spec(package):
            yield Absent(what=f"beside {package}", reason=f"{package} is not installed")
            continue
        for label, kind in KINDS.items():
            theirs = kind.scheduler if package == "diffusers" else kind.sampler
            if theirs:
                pairs = in_turn(partial(ours, kind, VP()), by(kind), num_pairs=5 if quick else 15, warm_up=2)
                name = theirs.removesuffix("Scheduler").removesuffix("Sampler")
                yield pairs.row(f"{label}, an evaluation", f"{package}: {name}", TARGET, per=EVALUATIONS)
    label, kind = "data, t, 1, PEC", KINDS["data, t, 1, PEC"]
    for sde in (CLD(), BDM(height=SHAPE[2], width=SHAPE[3])):
        pairs = in_turn(partial(ours, kind, sde), partial(ours, kind, VP()), num_pairs=5 if quick else 15, warm_up=2)
        yield pairs.row(f"{type(sde).__name__}, {label}, an evaluation", "VP, the same", None, per=EVALUATIONS)
