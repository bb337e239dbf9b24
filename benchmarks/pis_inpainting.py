r"""One coordinate of a point given the other: the path integral sampler of a diffusion's start against led scores.

    python benchmarks/pis_inpainting.py [--steps 2000] [--observations 5]

A linear diffusion of the plane is trained, for so many steps of 256, on nine Gaussians (standard deviation 0.14, 1.25 apart)
that weigh 1, ..., 9 in 45. The first coordinate is observed with noise of standard deviation 0.3, so that the law of the point
given it is a mixture of the nine in closed form, most of it in three to six of them. Every way takes the same model:

    prior             samples that know of nothing
    reconstruction    DDIM with the score led by E[x | u] (`indm_core.collage.reconstruction`)
    replacement       the sampler with Langevin steps, the observed coordinate noised (`indm_core.collage.replacement`)
    PIS-NN, PIS-Grad  samples of z given y, x(z) by 20 steps of DDIM (`indm_core.pis.latents`): trained for TRAINING steps of
                      BATCH paths for each observation, resampled by their weights
    PIS, amortised    one control for all observations (`indm_core.pis.amortised`), trained once for as many steps as those of
                      all observations; its training is shared among them
    SMC               annealed, of the same density of z

    S          Sinkhorn divergence to exact samples, with its standard error over observations; "exact" is of other such samples
    shares     largest error of a Gaussian's share
    ESS        effective share of the paths
    evals, s   of the score for an observation, training included, and processor seconds

All of SAMPLES samples of each observation.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from benchmarks.pis_reweighted import MEANS, STDS, rng, trained
from indm_core.collage import Pixels, reconstruction, replacement
from indm_core.draw import draw, times_of
from indm_core.model import INDM
from indm_core.noise import Noise
from indm_core.pis import (
    Counted,
    GradControl,
    NetworkControl,
    PathIntegralSampler,
    ess,
    mode_shares,
    resampled,
    sinkhorn,
)
from indm_core.pis.amortised import AmortisedSampler, Given
from indm_core.pis.baselines import SMC, HMCMoves
from indm_core.pis.latents import LatentFamily, decoded, latent_posterior
from indm_core.pis.targets import GaussianMixture
from indm_core.sample import Score
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import LinearSDE
from indm_core.times import power_times
from indm_core.training import AdamW, Trainer
from pipelines.config.flows import IdentityConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import MLPConfig

KNOWN = torch.tensor([True, False])
SIGMA, SAMPLES, DDIM_STEPS = 0.3, 1000, 20
TRAINING, BATCH, PIS_STEPS = 150, 100, 20
WEIGHTS = torch.arange(1.0, 10.0, dtype=torch.float64)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Filled:
    """Samples (n, 2), what they took in evaluations of the score, the ESS of what they were resampled from, and the seconds of
    training done apart."""

    x: Tensor
    evaluations: float
    ess: float = math.nan
    apart: float = 0.0


def given(y: float) -> GaussianMixture:
    """The law of a point whose first coordinate was observed as y."""
    var = STDS[0, 0] ** 2
    gain = var / (var + SIGMA**2)
    means = MEANS.clone()
    means[:, 0] += gain * (y - MEANS[:, 0])
    log_w = WEIGHTS.log() - 0.5 * (y - MEANS[:, 0]).square() / (var + SIGMA**2)
    stds = torch.stack([((1 - gain) * var).sqrt(), var.sqrt()]).expand(9, 2)
    return GaussianMixture(means, stds=stds, weights=log_w.softmax(0))


def led(
    model: INDM, y: float, seed: int, *, lead: Callable[[Score, LinearSDE, Pixels, Tensor], Score], sampling: Sampling
) -> Filled:
    """By a sampler of the led score."""
    whole, evaluated = torch.tensor([y, 0.0]), 0

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        nonlocal evaluated
        evaluated += len(u)
        return model.score(u, t)

    def sampler(sde: LinearSDE, _: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        return sampler_of(sampling)(sde, lead(score, sde, Pixels(KNOWN), whole), u, ts, generator)

    times = times_of(model, sampling)
    x = draw(model, sampler, times, whole.new_zeros(()), SAMPLES, generator=rng(seed), denoise=False)
    return Filled(x=x, evaluations=evaluated)


def unled(score: Score, *_: object) -> Score:
    return score


def by_pis(model: INDM, y: float, seed: int, *, control: Callable[[], nn.Module]) -> Filled:
    """By paths to the posterior of z, trained on it. T g^2 = 1 is the variance of z's prior."""
    ts = power_times(model.sde, DDIM_STEPS, 2.0)
    target = Counted(latent_posterior(model, torch.tensor([y]), KNOWN, sigma=SIGMA, ts=ts).float())
    torch.manual_seed(seed)
    sampler = PathIntegralSampler(
        control(), 2, target=target, t_max=1.0, g=1.0, num_steps=PIS_STEPS, gradient="autograd"
    )
    settings = AdamW(lr=5e-3, clip=10.0, weight_decay=0.0, decay="cosine")
    trainer = Trainer(sampler, {"control": settings}, steps=TRAINING, ema_decay=0.0)
    for step in range(TRAINING):
        trainer.step([(BATCH, None)], rng(step))  # pyright: ignore[reportArgumentType]
    z, log_w = sampler.sample(target, 2 * SAMPLES, generator=rng(seed))
    x = decoded(model, z[resampled(log_w, SAMPLES, rng(seed))], ts)
    return Filled(x=x, evaluations=DDIM_STEPS * target.evaluations, ess=ess(log_w))


@cache
def amortised(model: INDM, observations: int) -> tuple[PathIntegralSampler, LatentFamily, float, float]:
    """The sampler, its family, and evaluations of the score and seconds of training for each observation."""
    began, ts = time.process_time(), power_times(model.sde, DDIM_STEPS, 2.0)
    family = LatentFamily(model=model, known=KNOWN, sigma=SIGMA, ts=ts)
    torch.manual_seed(0)
    control = GradControl(2, clip=100.0, dim_y=1)
    sampler = PathIntegralSampler(control, 2, t_max=1.0, g=1.0, num_steps=PIS_STEPS, gradient="autograd")
    settings, steps = AdamW(lr=5e-3, clip=10.0, weight_decay=0.0, decay="cosine"), observations * TRAINING
    trainer = Trainer(AmortisedSampler(sampler, family), {"control": settings}, steps=steps, ema_decay=0.0)
    for step in range(steps):
        trainer.step([(BATCH, None)], rng(step))  # pyright: ignore[reportArgumentType]
    evaluations = DDIM_STEPS * TRAINING * BATCH * (PIS_STEPS + 2)  # with the drawing of y
    return sampler, family, evaluations, (time.process_time() - began) / observations


def by_amortised(model: INDM, y: float, seed: int, *, observations: int) -> Filled:
    """By the one control; its training is shared."""
    sampler, family, evaluations, seconds = amortised(model, observations)
    target = Counted(Given(family, torch.tensor([y])))
    z, log_w = sampler.sample(target, 2 * SAMPLES, generator=rng(seed))
    x = decoded(model, z[resampled(log_w, SAMPLES, rng(seed))], family.ts)
    return Filled(x=x, evaluations=evaluations + DDIM_STEPS * target.evaluations, ess=ess(log_w), apart=seconds)


def by_smc(model: INDM, y: float, seed: int) -> Filled:
    ts = power_times(model.sde, DDIM_STEPS, 2.0)
    target = latent_posterior(model, torch.tensor([y]), KNOWN, sigma=SIGMA, ts=ts).float()
    drawn = SMC(moves=HMCMoves(num_leapfrog=5), num_moves=3, num_runs=2)(target, SAMPLES, generator=rng(seed))
    x = decoded(model, drawn.x[resampled(drawn.log_w, SAMPLES, rng(seed))], ts)
    return Filled(x=x, evaluations=DDIM_STEPS * drawn.evaluations, ess=ess(drawn.log_w))


def exactly(model: INDM, y: float, seed: int) -> Filled:
    return Filled(x=given(y).sample(SAMPLES, rng(seed)), evaluations=0)


DDIM = Sampling(sampler="deis", order=0, steps=DDIM_STEPS, denoise=False)
LANGEVIN = Sampling(sampler="collage", steps=50, denoise=False)
WAYS: dict[str, Callable[[INDM, float, int], Filled]] = {
    "exact": exactly,
    "prior": partial(led, lead=unled, sampling=DDIM),
    "reconstruction": partial(led, lead=reconstruction, sampling=DDIM),
    "replacement": partial(led, lead=replacement, sampling=LANGEVIN),
    "SMC": by_smc,
    "PIS-NN": partial(by_pis, control=lambda: NetworkControl(2)),
    "PIS-Grad": partial(by_pis, control=lambda: GradControl(2, clip=100.0)),
}


def row(name: str, way: Callable[[INDM, float, int], Filled], model: INDM, observed: Tensor) -> str:
    """Of a way, averaged over the observations."""
    figures = list[Tensor]()
    for i, y in enumerate(observed.tolist()):
        began = time.process_time()
        filled = way(model, y, i)
        seconds = time.process_time() - began + filled.apart
        even, law = torch.zeros(SAMPLES), given(y)
        apart = sinkhorn(filled.x, even, law.sample(SAMPLES, rng(1000 + i))).value
        off = float((mode_shares(filled.x.double(), even, MEANS) - law.weights).abs().max())
        found = [apart, off, filled.ess, filled.evaluations, seconds]
        figures.append(torch.tensor(found, dtype=torch.float64))
    table = torch.stack(figures)
    apart, off, share, evaluations, seconds = table.mean(0).tolist()
    se = float(table[:, 0].std()) / math.sqrt(len(table))
    return f"{name:<16}{apart:>8.4f} +- {se:.4f}{off:>9.3f}{share:>8.3f}{evaluations:>12,.0f}{seconds:>8.1f}"


def main() -> int:
    """Prints a row for each way."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--observations", type=int, default=5)
    asked = parser.parse_args()
    if asked.observations < 2:
        parser.error(f"--observations {asked.observations}: the error is that between observations; give at least 2")
    torch.set_num_threads(1)
    law = GaussianMixture(MEANS, stds=STDS, weights=WEIGHTS)
    config = INDMConfig(flow=IdentityConfig(), backbone=MLPConfig(width=80, depth=3))
    began = time.process_time()
    model = trained(config, lambda num, generator: law.sample(num, generator).float(), asked.steps)
    assert isinstance(model, INDM)
    print(f"trained in {time.process_time() - began:.0f} s")
    noise = SIGMA * torch.randn(asked.observations, generator=rng(3), dtype=torch.float64)
    observed = law.sample(asked.observations, rng(2))[:, 0] + noise
    print(f"observed {', '.join(f'{y:.2f}' for y in observed.tolist())}")
    print(f"{'way':<16}{'S':>8}{'':>10}{'shares':>9}{'ESS':>8}{'evals':>12}{'s':>8}")
    for name, way in WAYS.items():
        print(row(name, way, model, observed), flush=True)
    amortised(model, asked.observations)  # trained before the first of its observations is timed
    last = partial(by_amortised, observations=asked.observations)
    print(row("PIS, amortised", last, model, observed), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
