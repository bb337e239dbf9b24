"""The inverse of residual flows against the plain fixed point: seconds and evaluations of a block.

    python benchmarks/inverse.py [--rounds 9] [--flows ...] [--run RUN]

Flows of images (digits, 8x8) and of vectors (their 64 values), in float32: barely trained (20 steps), trained on the digits
(400 steps of maximum likelihood; `--run`: the flow of a run trained on them), and hard, each block driven to its Lipschitz
bound by stretching narrow data. The fixed point
is x <- z - g(x) of the whole batch until the largest change, relative to max(1, |x|), is at most the tolerance: the published
algorithm with the criterion of `ResFlow.inverse`. Both take turns in one process, on one thread; printed are the median
seconds of the processor, the median ratio fixed point / ours of the pairs, evaluations of a block per sample (a call for the
whole batch counts once for every sample), and the largest difference of the two inverses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.figure import AT_LEAST, Absent, Bound
from benchmarks.figure import Row as Line
from indm_core.flow import ResFlow
from indm_core.flow.residual_block import ResidualBlock
from indm_core.model import INDM
from pipelines import load

__all__ = ["FLOWS", "Row", "by_fixed_point", "fixed_point", "measure"]

BATCH = 64
FEW = 8.0
"""Evaluations of a block, above which the fixed point's are to be halved."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What an inverse takes: the fixed point's, then ours.

    Args:
        seconds: Median of the processor's seconds.
        ratio: Median of the pairs' ratios of seconds, fixed point / ours, with the least and the largest.
        evaluations: Of a block, per block and sample.
        difference: Largest difference of the two inverses.
    """

    seconds: tuple[float, float]
    ratio: tuple[float, float, float]
    evaluations: tuple[float, float]
    difference: float


def fixed_point(g: Callable[[Tensor], Tensor], z: Tensor, tolerance: float) -> Tensor:
    """x of x + g(x) = z, the whole batch until its largest change is small."""
    x = z
    for _ in range(5000):
        y = z - g(x)
        if ((y - x).abs() / y.abs().clamp(min=1)).amax() <= tolerance:
            return y
        x = y
    raise RuntimeError(f"the fixed point does not reach {tolerance:g}")


def digits(event: tuple[int, ...]) -> Tensor:
    """The digits in [-1, 1], dequantised, (n, *event)."""
    levels = torch.tensor(load_digits(return_X_y=True)[0]).float().reshape(-1, *event)
    return (levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))) * (2 / 17) - 1


def fitted(event: tuple[int, ...], num_steps: int) -> tuple[ResFlow, Tensor]:
    """A flow after some steps of maximum likelihood under N(0, I), and latents of data."""
    torch.manual_seed(0)
    flow, x = ResFlow(event, blocks=(8,), width=32).train(), digits(event)
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-3)
    for _ in range(num_steps):
        z, log_det = flow(x[torch.randint(len(x), (64,))])
        optimiser.zero_grad()
        (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
        optimiser.step()
    return _with_latents(flow, x[:BATCH])


def hard(event: tuple[int, ...]) -> tuple[ResFlow, Tensor]:
    """Two blocks that stretch narrow data as much as their bound allows."""
    torch.manual_seed(0)
    flow = ResFlow(event, blocks=(2,), width=32).train()
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        _, log_det = flow(0.02 * torch.randn(16, *event))
        optimiser.zero_grad()
        (-log_det).mean().backward()
        optimiser.step()
    return _with_latents(flow, 0.02 * torch.randn(BATCH, *event))


def _with_latents(flow: ResFlow, x: Tensor) -> tuple[ResFlow, Tensor]:
    with torch.no_grad():
        return flow.eval(), flow(x)[0]


def of_run(run: str) -> tuple[ResFlow, Tensor]:
    """The residual flow of a trained INDM of digits, and what it makes of them."""
    model, latents = load(run).eval(), []
    if not isinstance(model, INDM):
        raise ValueError(f"{run} is of a {type(model).__name__}; give the run of an INDM")
    (flow,) = (part for part in model.flow.modules() if isinstance(part, ResFlow))
    hook = flow.register_forward_hook(lambda flow, given, out: latents.append(out[0]))
    with torch.no_grad():
        model.encode(digits((1, 8, 8))[:BATCH])
    hook.remove()
    return flow, latents[0]


FLOWS: dict[str, Callable[[], tuple[ResFlow, Tensor]]] = {
    f"{name}, {kind}": partial(make, event)
    for name, make in {
        "barely trained": partial(fitted, num_steps=20),
        "digits": partial(fitted, num_steps=400),
        "hard": hard,
    }.items()
    for kind, event in {"images": (1, 8, 8), "vectors": (64,)}.items()
}


def measure(flow: ResFlow, z: Tensor, tolerance: float, rounds: int) -> Row:
    """Both inverses of one batch of latents."""
    inverses = (partial(by_fixed_point, flow, z, tolerance), partial(flow.inverse, z, tolerance=tolerance))
    evaluations, (first, second) = zip(*(_counted(flow, z, inverse) for inverse in inverses), strict=True)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for taken, inverse in zip(seconds, inverses, strict=True):
            start = time.process_time()
            for _ in range(3):
                inverse()
            taken.append((time.process_time() - start) / 3)
    ratios = [plain / fast for plain, fast in zip(*seconds, strict=True)]
    return Row(
        seconds=(statistics.median(seconds[0]), statistics.median(seconds[1])),
        ratio=(statistics.median(ratios), min(ratios), max(ratios)),
        evaluations=evaluations,
        difference=float((first - second).abs().max()),
    )


@torch.no_grad()
def by_fixed_point(flow: ResFlow, z: Tensor, tolerance: float) -> Tensor:
    """The inverse of a flow of one scale, block by block."""
    for block in _blocks(flow):
        z = fixed_point(block.bound(z.dtype), z, tolerance)
    return z


def _counted(flow: ResFlow, z: Tensor, inverse: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Rows that an inverse puts through the blocks, per block and sample, and the inverse."""
    num_rows = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal num_rows
        num_rows += len(out)

    hooks = [block.layers[0].register_forward_hook(count) for block in _blocks(flow)]
    found = inverse()
    for hook in hooks:
        hook.remove()
    return num_rows / len(z) / len(hooks), found


def _blocks(flow: ResFlow) -> list[ResidualBlock]:
    """Of a flow of one scale, the last first."""
    return list(flow.scales[0])[::-1]  # pyright: ignore[reportArgumentType]


def figure(quick: bool) -> Iterator[Line | Absent]:
    """The inverse of residual flows beside the plain fixed point, at 1e-5 and 1e-6: seconds, and evaluations of a block."""
    for name, make in list(FLOWS.items())[: 1 if quick else None]:
        flow, z = make()
        for tolerance in (1e-5, 1e-6):
            row, label = measure(flow, z, tolerance, 5 if quick else 9), f"{name}, {tolerance:g}"
            plain, fast = (1e3 * seconds for seconds in row.seconds)
            yield _line(label, "ms", fast, plain, row.ratio, Bound(AT_LEAST, 1.0))
            theirs, mine = row.evaluations
            bound = Bound(AT_LEAST, 2.0) if theirs > FEW else None
            fewer = theirs / mine
            yield _line(f"{label}, evaluations", "a block", mine, theirs, (fewer, fewer, fewer), bound)


def _line(
    what: str, unit: str, ours: float, theirs: float, ratio: tuple[float, float, float], target: Bound | None
) -> Line:
    middle, low, high = ratio
    numbers = {"ours": ours, "theirs": theirs, "ratio": middle, "low": low, "high": high}
    return Line(what=what, reference="the fixed point", unit=unit, target=target, **numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--flows", nargs="*", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--run", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| flow | tolerance | fixed point (ms) | ours (ms) | ratio | evaluations: fixed point | ours | difference |")
    print("|---|---|---|---|---|---|---|---|")
    flows = {name: FLOWS[name] for name in given.flows} | ({given.run: partial(of_run, given.run)} if given.run else {})
    for name, make in flows.items():
        flow, z = make()
        for tolerance in (1e-5, 1e-6):
            row = measure(flow, z, tolerance, given.rounds)
            ratio, least, most = row.ratio
            print(
                f"| {name} | {tolerance:g} | {1e3 * row.seconds[0]:.2f} | {1e3 * row.seconds[1]:.2f} "
                f"| {ratio:.2f} ({least:.2f} to {most:.2f}) | {row.evaluations[0]:.1f} | {row.evaluations[1]:.1f} "
                f"| {row.difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
