"""A training step: the fast paths against their plain twins, and where the time goes.

    python benchmarks/training_step.py [--models digits wide] [--modes nll fid] [--pairs 5] [--profile]

Models: the digits recipe after its pre-training (batch 128), and of 32x32x3 images (batch 16) a DDPM++ of nf 32, ch_mult
(1, 2, 2), with a ResFlow of 4-4 blocks of width 128. The plain twin is the published algorithm as one writes it down: the
series of the log-det by autograd, the norm of each layer by powers of its convolution, weights in the order NCHW, AdamW's step
tensor by tensor, and in FID mode one evaluation of the score for the flow's loss and another one for its own. Both train from
the same state on the same draws, step after step in turn; printed are the medians of the processor's seconds (one thread), the
median of the pairs' ratios twin / fast with the least and the largest, of the whole step, of the flow (forward and backward)
and of the optimisers with the average; and how far the losses and the norms of the gradients are apart, relative, at the same
weights.

--profile prints instead the operators of one fast step, and the floor: its floating-point operations over the largest rate that
one thread reaches here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figure import AT_LEAST, AT_MOST, Absent, Bound, Pairs, Row
from benchmarks.peak import convolution, gemm
from indm_core.flow import lipschitz, residual_block
from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.flow.residual_block import ResidualBlock
from indm_core.model import GenerativeModel
from indm_core.model.diffusion import Diffusion
from indm_core.model.objective import Mode
from indm_core.model.score import likelihood_error
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

    def of_mode(self, mode: Mode) -> Case:
        """The same model, trained by another loss."""
        return replace(self, model=replace(self.model, objective=replace(self.model.objective, mode=mode)))

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


WARM_UP = 10
"""Steps after which the flow is away from the identity, and the norms have been found."""
MODELS: dict[str, Callable[[], Case]] = {"digits": digits, "wide": wide}
BOUNDS = {("wide", "nll", "step"): Bound(AT_LEAST, 1.8)}
SAME = 1e-5
"""Relative, what losses and gradients of the two sides may be apart."""


class Side:
    """A trainer on its fast paths or on their plain twins, and the seconds that its parts take."""

    def __init__(self, case: Case, *, fast: bool) -> None:
        self.trainer, self.fast = case.trainer(), fast
        self.x = 2 * torch.rand(case.batch, *case.shape, generator=torch.Generator().manual_seed(0)) - 1
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
        with ExitStack() if self.fast else plain_twins():
            began = time.process_time()
            given = part(seed)
            return given, time.process_time() - began


@contextmanager
def plain_twins() -> Iterator[None]:
    """Puts the plain form in the place of each fast path that is a function."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(residual_block, "channels_last", lambda weight: weight))
        stack.enter_context(patch.object(lipschitz, "_searched", searched_one_by_one))
        stack.enter_context(patch.object(Diffusion, "_denoising", denoising_twice))
        yield


def searched_one_by_one(layers: Sequence[LipschitzLayer]) -> list[Tensor]:
    """The norms of layers by powers of their convolutions and one QR decomposition of all of them, in training mode."""
    forms = []
    for layer in layers:
        there, back = (
            (layer.times, layer.transposed_times) if layer.from_input else (layer.transposed_times, layer.times)
        )
        weight, side = layer.weight, [1] * (layer.num_axes if not layer.padding else 0)
        V = (
            torch.cat([layer.vectors, layer.fresh]).unflatten(1, (-1, *side))
            if side
            else torch.cat([layer.vectors, layer.fresh])
        )
        powers = [V]
        for _ in range(lipschitz.POWERS[True]):
            V = lipschitz._units(back(there(V, weight), weight))
            powers.append(V)
        Q = torch.linalg.qr(torch.cat(powers).flatten(1).mT).Q.mT.reshape(-1, *V.shape[1:])
        mapped = there(Q, weight).flatten(1).double()
        weights = torch.linalg.eigh(mapped @ mapped.mT).eigenvectors.flip(1).mT[: len(layer.vectors)].to(Q.dtype)
        found = torch.tensordot(weights, Q, 1)
        layer.vectors.copy_(found.reshape(layer.vectors.shape))
        with torch.enable_grad():
            W = weight.detach().requires_grad_()
            forms.append(torch.autograd.grad(there(found[:1], W).norm(), W)[0])
    return forms


def denoising_twice(
    model: Diffusion, u_t: Tensor, t: Tensor, eps: Tensor, weight: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The losses of the score (`Diffusion._denoising`, K = 1) as published: in FID mode one evaluation for the flow, whose
    gradient the score does not see, and one for the score, whose gradient the flow does not see."""
    if model.objective.mode == "nll":
        likelihood = weight * likelihood_error(model.sde, model.score_model.eps(u_t, t, y) - eps, t)
        return likelihood, likelihood
    model.score_model.requires_grad_(False)
    with torch.random.fork_rng():  # both with one dropout
        likelihood = weight * likelihood_error(model.sde, model.score_model.eps(u_t, t, y) - eps, t)
    model.score_model.requires_grad_(True)
    d = model.score_model.eps(u_t.detach(), t, y) - eps
    return likelihood + weight * 0.5 * d.square().flatten(1).sum(1), likelihood


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
    for seed in range(WARM_UP):
        fast.timed(fast.step, seed)
    tensors, numbers = fast.trainer.state()
    plain.trainer.load({key: value.clone() for key, value in tensors.items()}, numbers)
    plain.timed(plain.step, WARM_UP)
    times = {name: Times([], []) for name in ("step", "flow", "optimisers")}
    apart: dict[str, float] = {}
    for seed in range(WARM_UP + 1, WARM_UP + 1 + num_pairs):
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


def figure(quick: bool) -> Iterator[Row | Absent]:
    """A training step, its flow and its optimisers on the fast paths beside their plain twins, in NLL mode and in FID mode."""
    for name, mode in product(("digits",) if quick else MODELS, ("nll",) if quick else get_args(Mode)):
        times, apart = measure(MODELS[name]().of_mode(mode), 2 if quick else 5)
        for part, of in times.items():
            pairs, bound = Pairs(tuple(of.fast), tuple(of.plain)), BOUNDS.get((name, mode, part))
            yield pairs.row(f"{name} {mode}, {part}", "the plain twin", bound)
        far = max(apart.values())
        yield Row(
            what=f"{name} {mode}, loss and gradients apart",
            reference="what they may be",
            unit="relative",
            ours=far,
            theirs=SAME,
            ratio=far / SAME,
            low=far / SAME,
            high=far / SAME,
            target=Bound(AT_MOST, 1.0),
        )


def profiled(case: Case) -> list[str]:
    """Lines on one fast step: its seconds, its floating-point operations by operator, the floor, and the slowest operators."""
    side = Side(case, fast=True)
    for seed in range(4):
        side.step(seed)
    seconds = statistics.median(side.timed(side.step, seed)[1] for seed in range(4, 9))
    with FlopCounterMode(display=False) as counter:
        side.step(9)
    counts = {str(operator): count / 1e9 for operator, count in counter.get_flop_counts()["Global"].items()}
    fastest, done = rates(), sum(counts.values())
    lines = [f"{1e3 * seconds:.0f} ms, {done:.1f} GFLOP: {100 * done / seconds / max(fastest.values()):.0f} %"]
    lines += [f"  {name} {rate:.0f} GFLOP/s" for name, rate in fastest.items()]
    lines += [f"  {operator} {count:.2f} GFLOP" for operator, count in counts.items()]
    with profile(activities=[ProfilerActivity.CPU]) as record:
        side.step(10)
    operators = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in operators)
    return lines + [
        f"  {of.key:50.50s} {of.count:6d} x {of.self_cpu_time_total / 1e3:8.1f} ms {100 * of.self_cpu_time_total / whole:4.1f}%"
        for of in operators[:25]
    ]


def rates() -> dict[str, float]:
    """GFLOP/s of one thread in a product of matrices, and in a convolution of 3 x 3 in two orders of its entries."""
    kernels = {
        "product": gemm(),
        "convolution": convolution(channels=64, side=16),
        "convolution, channels last": convolution(channels=64, side=16, channels_last=True),
    }
    return {name: 1e-9 * kernel.rate() for name, kernel in kernels.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=["nll"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(options.models, options.modes):
        case = MODELS[name]().of_mode(mode)
        if options.profile:
            print(f"{name} {mode}", *profiled(case), sep="\n", flush=True)
            continue
        times, apart = measure(case, options.pairs)
        for part, of in times.items():
            print(f"{name:8s} {mode:4s} {part:10s} {of}", flush=True)
        print(
            f"{name:8s} {mode:4s} apart      " + ", ".join(f"{of} {value:.1e}" for of, value in apart.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
