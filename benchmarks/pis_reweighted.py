"""Samples of models with exact likelihoods, weighted so that they are those of another density.

    python benchmarks/pis_reweighted.py [--steps 2000] [--samples 1000]

A linear diffusion, FFJORD and DiffFlow are trained on samples of nine equal Gaussians in the plane, for so many steps of 256.
The target has the same Gaussians with weights in proportion to 1, ..., 9, and Z = 1. Samples of each model's probability-flow
ODE are weighted by the target over the model's own density (`indm_core.pis.reweighted`):

    log Z            estimate and its standard error; the truth is 0
    bound            mean of log w
    ESS              effective share
    shares, before and after
                     largest error of a Gaussian's share of the samples, without weights and with them
    s                processor seconds: training, and samples with their density
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.pis import ess
from indm_core.pis.reweighted import model_proposal
from indm_core.pis.targets import GaussianMixture
from indm_core.training import AdamW, Trainer
from pipelines.config.flows import IdentityConfig
from pipelines.config.models import DiffFlowConfig, FFJORDConfig, INDMConfig, ModelConfig
from pipelines.config.networks import MLPConfig
from pipelines.data.spec import DataSpec

LINE = 1.25 * torch.arange(-1, 2, dtype=torch.float64)
MEANS, STDS = torch.cartesian_prod(LINE, LINE), torch.full((9, 1), 0.14, dtype=torch.float64)
HALF = MLPConfig(width=64, depth=2, time="scaled")
MODELS: dict[str, ModelConfig] = {
    "linear": INDMConfig(flow=IdentityConfig(), backbone=MLPConfig(width=80, depth=3)),
    "FFJORD": FFJORDConfig(drift=MLPConfig(width=64, depth=2, time="slow"), num_steps=6),
    "DiffFlow": DiffFlowConfig(drift=HALF, score=HALF, g=0.4, t_max=1.0, num_steps=(12,)),
}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(config: ModelConfig, draw: Callable[[int, torch.Generator], Tensor], steps: int) -> GenerativeModel:
    """A model of what `draw` draws, averaged and frozen."""
    torch.manual_seed(0)
    spec = DataSpec(name="nine_modes", shape=(2,), levels=0, low=-1.0, high=1.0, num_classes=0)
    model = config.build(spec)
    settings = AdamW(lr=2e-3, clip=10.0, decay="cosine")
    trainer = Trainer(model, dict.fromkeys(model.networks(), settings), steps=steps, ema_decay=0.99)
    for step in range(steps):
        trainer.step([(draw(256, rng(step)), None)], rng(step))
    return trainer.averaged.eval().requires_grad_(False)


def largest_error(x: Tensor, w: Tensor, target: GaussianMixture) -> float:
    """Of the shares of weighted samples (weights sum to 1) that are nearest to each centre."""
    nearest = torch.cdist(x.double(), target.means).argmin(1)
    shares = torch.zeros_like(target.weights).index_add(0, nearest, w.double())
    return float((shares - target.weights).abs().max())


def main() -> int:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    equal = GaussianMixture(MEANS, stds=STDS)
    target = GaussianMixture(MEANS, stds=STDS, weights=torch.arange(1.0, 10.0, dtype=torch.float64))
    print(f"{'model':<10}{'log Z':>8}{'':>10}{'bound':>9}{'ESS':>7}{'before':>9}{'after':>7}{'s':>8}")
    for name, config in MODELS.items():
        began = time.process_time()
        model = trained(config, lambda num, generator: equal.sample(num, generator).float(), asked.steps)
        middle = time.process_time()
        drawn = model_proposal(model)(target, asked.samples, generator=rng(0))
        end = time.process_time()
        even = torch.full_like(drawn.log_w, 1 / asked.samples)
        before, after = (largest_error(drawn.x, w, target) for w in (even, drawn.log_w.softmax(0)))
        print(
            f"{name:<10}{drawn.log_z.value:>8.3f} +- {drawn.log_z.se:.3f}{drawn.bound.value:>10.3f}{ess(drawn.log_w):>7.3f}"
            f"{before:>9.3f}{after:>7.3f}{middle - began:>8.0f} + {end - middle:.0f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
