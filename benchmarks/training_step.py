"""A training step in NLL mode: the fast paths against their plain twins, and where the time goes.

    python benchmarks/training_step.py [--models digits wide] [--pairs 5]

Models: the digits recipe after its pre-training (batch 128), and of 32x32x3 images (batch 16) a DDPM++ of nf 32, ch_mult
(1, 2, 2), with a ResFlow of 4-4 blocks of width 128. The plain twin computes the series of the log-det by autograd, keeps the
order NCHW of the weights in the flow, and takes AdamW's step tensor by tensor. Both train from the same state on the same
draws, step after step in turn; printed are the medians of the processor's seconds (one thread), the median of the pairs'
ratios twin / fast with the least and the largest, of the whole step, of the flow (forward and backward) and of the optimisers
with the average; and how far the losses and the norms of the gradients are apart, relative, at the same weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from indm_core.flow import residual_block
from indm_core.flow.residual_block import ResidualBlock
from indm_core.model import GenerativeModel
from indm_core.training import AdamW, StepReport, Trainer
from pipelines.config.flows import ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.data.spec import DataSpec
from pipelines.recipes.digits import digits_vp_nll

__all__ = ["MODELS", "Side", "Times", "measure"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained.

    Args:
        model, optimisers: Of the run.
        shape, batch: Of the data.
    """

    model: INDMConfig
    optimisers: dict[str, AdamW]
    shape: tuple[int, ...]
    batch: int

    def trainer(self) -> Trainer[Any]:
        """With the weights of seed 0."""
        torch.manual_seed(0)
        spec = DataSpec(name="noise", shape=self.shape, levels=256, low=-1.0, high=1.0, num_classes=0)
        model: GenerativeModel = self.model.build(spec)
        return Trainer(model, self.optimisers)


def digits() -> Case:
    """The joint phase of digits_vp_nll."""
    run = digits_vp_nll()
    model = run.model
    if not isinstance(model, INDMConfig):
        raise TypeError(f"digits_vp_nll trains {type(model).__name__}, no INDM")
    joint = replace(model, objective=replace(model.objective, pretrain_steps=0))
    return Case(model=joint, optimisers=run.train.optimisers, shape=(1, 8, 8), batch=run.train.batch_size)


def wide() -> Case:
    """32x32x3."""
    model = INDMConfig(
        flow=ResFlowConfig(blocks=(4, 4), width=128, constraint="spectral"),
        backbone=UNetConfig(nf=32, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(16,)),
    )
    return Case(model=model, optimisers={"score": AdamW(), "flow": AdamW()}, shape=(3, 32, 32), batch=16)


MODELS: dict[str, Callable[[], Case]] = {"digits": digits, "wide": wide}


class Side:
    """A trainer on its fast paths or on their plain twins, and the seconds that its parts take."""

    def __init__(self, case: Case, *, fast: bool) -> None:
        self.trainer, self.fast = case.trainer(), fast
        self.x = 2 * torch.rand(case.batch, *case.shape, generator=torch.Generator().manual_seed(0)) - 1
        self.order = residual_block.channels_last if fast else _as_it_is
        for block in self.trainer.model.modules():
            if isinstance(block, ResidualBlock):
                block.explicit = fast
        for optimiser in self.trainer.optimisers.values():
            optimiser.param_groups[0]["fused"] = fast

    def step(self, seed: int) -> StepReport:
        """A whole step."""
        torch.manual_seed(seed)  # dropout
        return self.trainer.step([(self.x, None)], torch.Generator().manual_seed(seed))

    def flow(self, seed: int) -> None:
        """Forward and backward of the flow's log-likelihood; leaves gradients."""
        z, log_det = self.trainer.model.flow(self.x, torch.Generator().manual_seed(seed))
        (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()

    def apply(self, seed: int) -> None:
        """Clip, AdamW and the average, with the gradients that are there."""
        self.trainer._apply(bool(self.trainer._clip()))

    def timed(self, part: Callable[[int], Any], seed: int) -> tuple[Any, float]:
        """What a part gives, and the processor's seconds."""
        residual_block.channels_last = self.order
        began = time.process_time()
        given = part(seed)
        return given, time.process_time() - began


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


@dataclass
class Times:
    """Seconds of the plain twin and of the fast path, in pairs."""

    plain: list[float]
    fast: list[float]

    def __str__(self) -> str:
        ratios = [a / b for a, b in zip(self.plain, self.fast, strict=True)]
        medians = (1e3 * statistics.median(of) for of in (self.plain, self.fast))
        found = "plain {:8.1f} ms   fast {:8.1f} ms".format(*medians)
        return f"{found}   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measure(case: Case, num_pairs: int) -> tuple[dict[str, Times], dict[str, float]]:
    """Times of the parts, and how far the two sides are apart."""
    plain, fast = (Side(case, fast=on) for on in (False, True))
    for seed in range(4):  # away from the flow's identity
        plain.timed(plain.step, seed)
    tensors, numbers = plain.trainer.state()
    fast.trainer.load({key: value.clone() for key, value in tensors.items()}, numbers)
    fast.timed(fast.step, 4)
    plain.timed(plain.step, 4)
    times = {name: Times([], []) for name in ("step", "flow", "optimisers")}
    apart: dict[str, float] = {}
    for seed in range(5, 5 + num_pairs):
        tensors, numbers = plain.trainer.state()
        fast.trainer.load({key: value.clone() for key, value in tensors.items()}, numbers)  # the same weights
        reports = []
        for side, seconds in ((plain, "plain"), (fast, "fast")):
            report, spent = side.timed(side.step, seed)
            reports.append(report)
            getattr(times["step"], seconds).append(spent)
            getattr(times["flow"], seconds).append(side.timed(side.flow, seed)[1])
        found = [
            {"loss": float(report.terms["nelbo"])}
            | {f"|gradient of {name}|": norm for name, norm in report.gradient_norms.items()}
            for report in reports
        ]
        for name, value in found[0].items():
            apart[name] = max(apart.get(name, 0.0), abs(found[1][name] / value - 1))
        for side, seconds in ((plain, "plain"), (fast, "fast")):
            getattr(times["optimisers"], seconds).append(side.timed(side.apply, seed)[1])
    return times, apart


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        times, apart = measure(MODELS[name](), options.pairs)
        for part, of in times.items():
            print(f"{name:8s} {part:10s} {of}", flush=True)
        print(f"{name:8s} apart      " + ", ".join(f"{of} {value:.1e}" for of, value in apart.items()), flush=True)


if __name__ == "__main__":
    main()
