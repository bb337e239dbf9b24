"""The lower half of digits given the upper one: the path integral sampler of the diffusion's start against led scores.

    python benchmarks/pis_inpainting.py [--pictures 2] [--steps 1200]

A linear diffusion of scikit-learn's digits, as vectors of 64 numbers in [-1, 1], is trained on 1,500 of them for so many steps.
Of test digits the upper half is observed with noise of standard deviation 0.1. Every way takes the same model:

    prior             samples that know of nothing
    reconstruction    DDIM with the score led by E[x | u] (`indm_core.collage.reconstruction`), of 10 and of 50 steps
    replacement       the sampler with Langevin steps, the observed half noised (`indm_core.collage.replacement`)
    PIS-Grad          samples of z given y, x(z) by 10 steps of DDIM (`indm_core.pis.latents`): trained on each picture for
                      TRAINING steps of BATCH paths, resampled by their weights
    SMC               annealed, of the same density

    hidden, observed  mean square error of samples, in units of x, on the half that is hidden, and of the half that is observed
                      from y; the noise alone gives 0.01
    mean              the same on the hidden half, of the samples' mean
    evals, s          of the score for a picture, training included, and processor seconds

All of SAMPLES samples of each picture.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from indm_core.collage import Pixels, reconstruction, replacement
from indm_core.draw import draw, times_of
from indm_core.flow import Identity
from indm_core.likelihood import dequantise
from indm_core.model import INDM, Objective
from indm_core.noise import Noise
from indm_core.pis import Counted, GradControl, PathIntegralSampler, ess, resampled
from indm_core.pis.baselines import SMC, HMCMoves
from indm_core.pis.latents import decoded, latent_posterior
from indm_core.sample import Score
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import SDE, VP
from indm_core.times import power_times
from indm_core.training import AdamW, Trainer
from pipelines.config.networks import MLPConfig

KNOWN = torch.arange(64) < 32
SIGMA, SAMPLES, DDIM_STEPS = 0.1, 64, 10
TRAINING, BATCH, PIS_STEPS = 80, 32, 10
TRAIN = 1500
"""Digits that the model is trained on."""


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits() -> Tensor:
    """(1797, 64), dequantised."""
    k = torch.from_numpy(load_digits().data)
    return dequantise(k, 17, -1.0, 1.0, rng(0))


def trained(x: Tensor, steps: int) -> INDM:
    """The diffusion, averaged and frozen."""
    torch.manual_seed(0)
    sde = VP()
    objective = Objective(mode="fid", data_var=float(x.var()))
    model = INDM(Identity(), MLPConfig(width=96, depth=2).build((64,), sde), sde, shape=(64,), objective=objective)
    settings = AdamW(lr=2e-3, clip=100.0, decay="cosine")
    trainer = Trainer(model, {"score": settings}, steps=steps, ema_decay=0.999)
    for step in range(steps):
        trainer.step([(x[torch.randint(len(x), (128,), generator=rng(step))], None)], rng(step))
    return trainer.averaged.eval().requires_grad_(False)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Filled:
    """Samples (n, 64), what they took in evaluations of the score, and a remark."""

    x: Tensor
    evaluations: float
    remark: str = ""


def led(
    model: INDM, y: Tensor, seed: int, *, lead: Callable[[Score, SDE, Pixels, Tensor], Score], sampling: Sampling
) -> Filled:
    """By a sampler of the led score."""
    whole, evaluated = torch.zeros(64), 0
    whole[KNOWN] = y

    def score(u: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        nonlocal evaluated
        evaluated += len(u)
        return model.score(u, t)

    def sampler(sde: SDE, _: Score, u: Tensor, ts: Tensor, generator: Noise) -> Tensor:
        return sampler_of(sampling)(sde, lead(score, sde, Pixels(KNOWN), whole), u, ts, generator)

    x = draw(
        model, sampler, times_of(model, sampling), whole.new_zeros(()), SAMPLES, generator=rng(seed), denoise=False
    )
    return Filled(x=x, evaluations=evaluated)


def unled(score: Score, *_: object) -> Score:
    return score


def by_pis(model: INDM, y: Tensor, seed: int) -> Filled:
    """By paths to the posterior of z, trained on it. T g^2 = 1 is the variance of z's prior."""
    ts = power_times(model.sde, DDIM_STEPS, 2.0)
    target = Counted(latent_posterior(model, y, KNOWN, sigma=SIGMA, ts=ts).float())
    torch.manual_seed(seed)
    sampler = PathIntegralSampler(
        GradControl(64, clip=100.0), 64, target=target, t_max=1.0, g=1.0, num_steps=PIS_STEPS, gradient="autograd"
    )
    settings = AdamW(lr=5e-3, clip=10.0, weight_decay=0.0, decay="cosine")
    trainer = Trainer(sampler, {"control": settings}, steps=TRAINING, ema_decay=0.0)
    for step in range(TRAINING):
        trainer.step([(BATCH, None)], rng(step))  # pyright: ignore[reportArgumentType]
    z, log_w = sampler.sample(target, 4 * SAMPLES, generator=rng(seed))
    x = decoded(model, z[resampled(log_w, SAMPLES, rng(seed))], ts)
    return Filled(x=x, evaluations=DDIM_STEPS * target.evaluations, remark=f"ESS {ess(log_w):.3f} of {len(log_w)}")


def by_smc(model: INDM, y: Tensor, seed: int) -> Filled:
    ts = power_times(model.sde, DDIM_STEPS, 2.0)
    target = latent_posterior(model, y, KNOWN, sigma=SIGMA, ts=ts).float()
    drawn = SMC(moves=HMCMoves(num_leapfrog=5), num_runs=2)(target, SAMPLES, generator=rng(seed))
    x = decoded(model, drawn.x[resampled(drawn.log_w, SAMPLES, rng(seed))], ts)
    return Filled(x=x, evaluations=DDIM_STEPS * drawn.evaluations, remark=f"log Z {drawn.log_z.value:.1f}")


def ddim(steps: int) -> Sampling:
    return Sampling(sampler="deis", order=0, steps=steps, denoise=False)


WAYS: dict[str, Callable[[INDM, Tensor, int], Filled]] = {
    "prior": partial(led, lead=unled, sampling=ddim(10)),
    "reconstruction, 10": partial(led, lead=reconstruction, sampling=ddim(10)),
    "reconstruction, 50": partial(led, lead=reconstruction, sampling=ddim(50)),
    "replacement": partial(led, lead=replacement, sampling=Sampling(sampler="collage", steps=25, denoise=False)),
    "SMC": by_smc,
    "PIS-Grad": by_pis,
}


def main() -> int:
    """Prints a row for each way, averaged over the pictures."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1200)
    asked = parser.parse_args()
    if asked.pictures < 2:
        parser.error(f"--pictures {asked.pictures}: the error is that between pictures; give at least 2")
    torch.set_num_threads(1)
    began, x = time.process_time(), digits()
    model = trained(x[:TRAIN], asked.steps)
    with torch.no_grad():
        nelbo = model.nelbo(x[TRAIN:], num_draws=4, generator=rng(0))
    print(f"trained in {time.process_time() - began:.0f} s; test NELBO {float(nelbo.mean()):.1f} nats", flush=True)
    test = x[TRAIN:][torch.randperm(len(x) - TRAIN, generator=rng(1))[: asked.pictures]]
    head = f"{'way':<20}{'hidden':>8}{'mean':>8}{'observed':>10}{'evals':>10}{'s':>7}"
    print(head)
    for name, way in WAYS.items():
        rows, remarks = list[Tensor](), list[str]()
        for i, truth in enumerate(test):
            y = truth[KNOWN] + SIGMA * torch.randn(int(KNOWN.sum()), generator=rng(100 + i))
            began = time.process_time()
            filled = way(model, y, i)
            seconds = time.process_time() - began
            error = (filled.x - truth)[:, ~KNOWN]
            observed = float((filled.x[:, KNOWN] - y).square().mean())
            figures = [float(error.square().mean()), float(error.mean(0).square().mean()), observed]
            rows.append(torch.tensor([*figures, filled.evaluations, seconds], dtype=torch.float64))
            remarks.append(filled.remark)
        table = torch.stack(rows)
        hidden, mean, observed, evaluations, seconds = table.mean(0).tolist()
        se = float(table[:, 0].std()) / math.sqrt(len(table))
        print(
            f"{name:<20}{hidden:>8.3f}{mean:>8.3f}{observed:>10.4f}{evaluations:>10.0f}{seconds:>7.1f}  (+- {se:.3f}) "
            f"{'; '.join(filter(None, remarks))}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
