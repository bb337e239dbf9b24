r"""A canvas's score by actors, against as many bare processes that score the same chunks side by side.

    python benchmarks/collage_actors.py [--actors 2] [--factors 64] [--rounds 5] [--steps 3]

A chain of pieces 1 x 28 x 84 with overlap 28, scored by the U-Net of mnist_vp_tiny, untrained. `bare`: every process has one
thread and scores its share of a step's chunks in a loop, without Ray, without waiting for the others. `actors`: the collage's
whole evaluation by `Spread`, from the gather to the scatter. The two take turns in one run; what counts is the median of the
ratios of their throughputs. On a machine that is busy with other work the ratio means little.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from indm_core.collage import Collage, Pieces, chain, collage
from indm_core.training import network_tensors
from pipelines.config.terminal.cli import split_arguments
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.chunks import chunks_of
from pipelines.evaluation.collages.spread import Spread
from pipelines.evaluation.plan import Subject
from pipelines.recipes import RECIPES

SHAPE, OVERLAP = (1, 28, 84), 28
T = torch.tensor(0.5, dtype=torch.float64)


def subject() -> Subject:
    """mnist_linear_tiny on pieces of three digits, with fresh weights."""
    run = RECIPES["mnist_linear_tiny"]()
    spec = DataSpec(name="pieces", shape=SHAPE, levels=256, low=-1.0, high=1.0, num_classes=0)
    return Subject(run, spec, network_tensors(run.model.build(spec)))


def bare(subject: Subject, chunks: list[torch.Tensor], line: Connection) -> None:
    """A process that scores its chunks as often as it is told to, and says how many seconds a step took."""
    torch.set_num_threads(1)
    model = subject.build()
    with torch.no_grad():
        while steps := line.recv():
            began = time.perf_counter()
            for _ in range(steps):
                for u in chunks:
                    model.score(u, T)
            line.send((time.perf_counter() - began) / steps)


def shares(asked: list[Pieces], num: int) -> list[list[torch.Tensor]]:
    """The chunks of a step for each of `num` processes, each to the one that has the least."""
    taken: list[list[torch.Tensor]] = [[] for _ in range(num)]
    for chunk in chunks_of(asked, num):
        min(taken, key=lambda share: sum(u.numel() for u in share)).append(chunk.pieces.u)
    return taken


def main() -> int:
    """Prints a line for each round, and the medians."""
    _, given = split_arguments(sys.argv[1:])
    actors, factors, rounds, steps = (
        int(given.get(name, default)) for name, default in (("actors", 2), ("factors", 64), ("rounds", 5), ("steps", 3))
    )
    torch.set_num_threads(1)
    what, graph, asked = subject(), chain(factors, SHAPE[-1], OVERLAP), []
    u = torch.randn(1, *SHAPE[:2], *graph.shape, 1, generator=torch.Generator().manual_seed(0))

    def note(batches: Sequence[Pieces]) -> list[torch.Tensor]:
        asked.extend(batches)
        return [pieces.u for pieces in batches]

    collage(lambda u, t, y=None: u, graph, evaluate=note)(u, T)
    context, lines = multiprocessing.get_context("spawn"), []
    for share in shares(asked, actors):
        here, there = context.Pipe()
        context.Process(target=bare, args=(what, share, there), daemon=True).start()
        lines.append(here)
    work = [sum(u.numel() for u in share) for share in shares(asked, actors)]
    with Spread(what, actors, "cpu") as spread, torch.no_grad():
        whole = collage(spread, graph, evaluate=spread.evaluate)
        ratios = [_round(whole, u, lines, work, steps, factors) for _ in range(rounds + 1)][
            1:
        ]  # the first one warms up
    for line in lines:
        line.send(0)
    print(f"median of {rounds} rounds: {statistics.median(ratios):.3f} of the throughput of {actors} bare processes")
    return 0


def _round(
    whole: Collage, u: torch.Tensor, lines: list[Connection], work: list[int], steps: int, factors: int
) -> float:
    for line in lines:
        line.send(steps)
    rate = sum(done / line.recv() for done, line in zip(work, lines, strict=True)) / sum(work) * factors
    began = time.perf_counter()
    for _ in range(steps):
        whole(u, T)
    by_actors = factors * steps / (time.perf_counter() - began)
    print(f"bare {rate:.1f} factors/s, actors {by_actors:.1f} factors/s, ratio {by_actors / rate:.3f}", flush=True)
    return by_actors / rate


if __name__ == "__main__":
    sys.exit(main())
