"""log p(x) of a variational autoencoder by samplers of its posterior (Table 5.3 of the thesis, at a small scale).

    python benchmarks/pis_vae.py MNIST [--pictures 4] [--dim 16] [--steps 1200]

MNIST is the directory of the IDX files. A VAE of their pictures, pooled to 14 x 14 and made binary at 0.5, is trained for so
many steps of 128. The target is then p(z) p(x | z) of a test picture. Of each method and picture there are REPEATS estimates of
log p(x), of PARTICLES samples each; what is trained (on each picture anew, for TRAINING steps of BATCH) is trained once:

    B, S, A    mean and standard deviation of estimate - truth over all of them, A^2 = B^2 + S^2
    bound      mean of log w less the truth: the error of the estimate without weights (5.19)
    ESS        mean effective share
    evals      of the target, each picture, training included; s: processor seconds, each picture

The truth is the logarithm of the mean of 10 long runs of annealed SMC with adaptive temperatures, whose standard error
between the runs is shown, beside the estimate of 20,000 draws of the encoder, which shares nothing with it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from indm_core.model import VAE, dense_vae
from indm_core.noise import Noise, branch
from indm_core.pis import Counted, Draws, Method, PathIntegralSampler, Target, ess, log_z, log_z_bound
from indm_core.pis.baselines import SMC, AdaptiveTemperatures, HMCMoves, LinearTemperatures, VariationalFlow
from indm_core.pis.control import GradControl, NetworkControl
from indm_core.pis.reweighted import gaussian_proposal
from indm_core.pis.targets import Posterior
from indm_core.training import AdamW, Trainer
from pipelines.data.readers.idx import read_idx
from pipelines.data.source import Options

PARTICLES, REPEATS = 500, 5
TRAINING, BATCH, STEPS = 150, 64, 10
"""Optimiser steps on a picture, paths of each, and steps of a path."""
LONG = SMC(temperatures=AdaptiveTemperatures(share=0.98), moves=HMCMoves(num_leapfrog=5), num_moves=2, num_runs=10)
LONG_PARTICLES = 2560


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(directory: str, split: str) -> Tensor:
    """Pooled to half the side and made binary, (n, 1, 14, 14)."""
    source = read_idx(directory, Options())
    if source is None or split not in source.splits:
        raise ValueError(f"{directory}: no IDX files of MNIST's {split} split; give the directory that holds them")
    grey = torch.cat([torch.tensor(chunk.x) for chunk in source.splits[split].chunks()]).float()
    return (nn.functional.avg_pool2d(grey, 2) > 127.5).float()


def trained(x: Tensor, dim: int, steps: int) -> VAE:
    """A VAE of the pictures, averaged over its last steps and frozen."""
    torch.manual_seed(0)
    settings = AdamW(lr=1e-3, clip=100.0, weight_decay=0.0, decay="cosine")
    trainer = Trainer(
        dense_vae(x.shape[1:], dim=dim), {"encoder": settings, "decoder": settings}, steps=steps, ema_decay=0.99
    )
    generator = rng(0)
    for step in range(steps):
        report = trainer.step([(x[torch.randint(len(x), (128,), generator=generator)], None)], rng(step))
        if (step + 1) % max(1, steps // 4) == 0:
            print("  step", step + 1, {name: round(float(term), 2) for name, term in report.terms.items()}, flush=True)
    return trainer.averaged.requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A path integral sampler, trained on the target of each call. T g^2 = 1 is the variance of the latent's prior.

    Args:
        control: d -> the control.
    """

    control: Callable[[int], nn.Module]

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        counted, stream = Counted(target), branch(generator)
        assert isinstance(stream, torch.Generator)
        torch.manual_seed(stream.initial_seed())
        sampler = PathIntegralSampler(
            self.control(target.dim), target.dim, target=counted, t_max=1.0, g=1.0, num_steps=STEPS, gradient="autograd"
        )
        settings = AdamW(lr=1e-2, clip=10.0, weight_decay=0.0, decay="cosine")
        trainer = Trainer(sampler, {"control": settings}, steps=TRAINING, ema_decay=0.0)
        for _ in range(TRAINING):
            trainer.step([(BATCH, None)], stream)  # pyright: ignore[reportArgumentType]
        x, log_w = sampler.sample(counted, num, generator=generator)
        return Draws(x=x, log_w=log_w, log_z=log_z(log_w), bound=log_z_bound(log_w), evaluations=counted.evaluations)


def methods(vae: VAE, x: Tensor) -> dict[str, Method]:
    """What estimates log p(x)."""
    mean, log_std = (value[0] for value in vae.encode(x))
    vi = AdamW(lr=5e-3, beta_2=0.999, weight_decay=0.0, clip=10.0, decay="cosine")
    ten = LinearTemperatures(num_levels=10)
    return {
        "VI-NF": VariationalFlow(num_steps=2 * TRAINING, batch=BATCH, optimiser=vi),
        "SMC, 10 levels": SMC(temperatures=ten, moves=HMCMoves(num_leapfrog=10), num_runs=REPEATS),
        "PIS-NN": Trained(control=NetworkControl),
        "PIS-Grad": Trained(control=GradControl),
        "encoder": gaussian_proposal(mean, log_std),
    }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method on one picture: errors of its estimates (REPEATS,) in nats, and what they took."""

    errors: Tensor
    bound: float
    ess: float
    evaluations: int
    seconds: float


def measured(method: Method, target: Target, truth: float, seed: int) -> Measured:
    began = time.process_time()
    drawn = method(target, REPEATS * PARTICLES, generator=rng(seed))
    seconds = time.process_time() - began
    log_w = drawn.log_w.double().reshape(REPEATS, PARTICLES)
    return Measured(
        errors=log_w.logsumexp(1) - math.log(PARTICLES) - truth,
        bound=drawn.bound.value - truth,
        ess=sum(ess(run) for run in log_w) / REPEATS,
        evaluations=drawn.evaluations,
        seconds=seconds,
    )


def line(name: str, found: list[Measured]) -> str:
    errors = torch.cat([one.errors for one in found])
    b, s = float(errors.mean()), float(errors.std(correction=0))
    bound, share, evaluations, seconds = (
        sum(values) / len(found)
        for values in zip(*((one.bound, one.ess, one.evaluations, one.seconds) for one in found), strict=True)
    )
    return f"{name:<16}{b:>8.3f}{s:>8.3f}{math.hypot(b, s):>8.3f}{bound:>9.3f}{share:>8.3f}{evaluations:>10.0f}{seconds:>8.1f}"


def main() -> int:
    """Prints the truths, then the table."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("mnist")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    vae = trained(pictures(asked.mnist, "train"), asked.dim, asked.steps)
    test = pictures(asked.mnist, "test")
    elbo, bound = (float(values.mean()) for values in (vae.elbo(test, rng(0)), vae.bound(test[:1000], 50, rng(0))))
    print(f"trained in {time.process_time() - began:.0f} s; test ELBO {elbo:.2f} nats, L_50 of 1,000 {bound:.2f}")
    found: dict[str, list[Measured]] = {}
    for i, at in enumerate(torch.randperm(len(test), generator=rng(1))[: asked.pictures]):
        x, began = test[at : at + 1], time.process_time()
        target = Posterior(vae.dim, vae.log_prior, lambda z, x=x: vae.log_likelihood(z, x)).float()
        truth = LONG(target, LONG_PARTICLES, generator=rng(i))
        beside = log_z(vae.log_weights(x, 20_000, rng(i))[:, 0])
        print(
            f"picture {int(at)}: truth {truth.log_z.value:.3f} +- {truth.log_z.se:.3f} ({truth.evaluations} evaluations, "
            f"{time.process_time() - began:.0f} s), encoder {beside.value:.3f} +- {beside.se:.3f}",
            flush=True,
        )
        for name, method in methods(vae, x).items():
            found.setdefault(name, []).append(measured(method, target, truth.log_z.value, i))
            print("  " + line(name, found[name][-1:]), flush=True)
    print(f"\n{'':<16}{'B':>8}{'S':>8}{'A':>8}{'bound':>9}{'ESS':>8}{'evals':>10}{'s':>8}")
    print("\n".join(line(name, each) for name, each in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
