r"""An evaluation whose kinds of work share one pool, against the same kinds one after the other, and two actors against one.

    python benchmarks/evaluation.py RUN [--out DIR] [--rounds 1] [--collage loop ...] [any option of evaluate.py]

On a pool of 1 actor and on one of 2, every task of the evaluation of RUN is done twice: kind after kind (NLL, NELBO,
samples, features, canvases, pieces; each kind waits for the end of the one before), and all kinds at once by fair shares. A
pool has done one task of each kind before, so that models and networks are built. Printed are the seconds, their ratios,
when each kind was done, the shares of the actors' time, and whether all outcomes are equal, bit by bit. On a machine that is
busy with other work only the ratios of one round mean something, and they little.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import torch

from pipelines.cluster.pool import Pool
from pipelines.cluster.session import connect
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.config.weights import Weights
from pipelines.evaluation.evaluator import Evaluator, Work
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.measurements import MEASUREMENTS
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.settings import Settings
from pipelines.storage.outputs import output_root

ACTORS = (1, 2)
OWN = ("out", "rounds")


@dataclass(frozen=True)
class Pass:
    """All tasks done once.

    Args:
        seconds: It took.
        ended: When the last task of each kind was done.
        spent: The actors' seconds by kind.
        outcomes: Of the tasks.
    """

    seconds: float
    ended: dict[str, float]
    spent: dict[str, float]
    outcomes: dict[Task[Any], Any]


def kinds_of(tasks: Sequence[Task[Any]]) -> dict[str, list[Task[Any]]]:
    """The tasks by kind."""
    kinds: dict[str, list[Task[Any]]] = {}
    for task in tasks:
        kinds.setdefault(task.kind, []).append(task)
    return kinds


def done(pool: Pool, plan: Plan, groups: Sequence[Sequence[Task[Any]]], actors: int) -> Pass:
    """Groups of tasks, each when the one before is done."""
    began, ended, spent, outcomes = time.perf_counter(), {}, {}, {}
    for tasks in groups:
        for task, timed in Work({task: task for task in tasks}, plan, actors).stream(pool):
            ended[task.kind] = time.perf_counter() - began
            spent[task.kind] = spent.get(task.kind, 0.0) + timed.seconds
            outcomes[task] = timed.outcome
    return Pass(time.perf_counter() - began, ended, spent, outcomes)


def equal(a: Mapping[Task[Any], Any], b: Mapping[Task[Any], Any]) -> bool:
    """Whether two passes gave the same, but for how long it took."""

    def values(task: Task[Any], outcome: Any) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in task.pack(outcome).items() if name != "cost"}

    return a.keys() == b.keys() and all(
        torch.equal(mine, values(task, b[task])[name]) for task in a for name, mine in values(task, a[task]).items()
    )


def measured(plan: Plan, tasks: Sequence[Task[Any]], actors: int, rounds: int) -> tuple[Pass, Pass]:
    """(kind after kind, all at once), of each the round of the median seconds; they take turns."""
    kinds = kinds_of(tasks)
    arguments = ([ray.put(subject) for subject in plan.subjects], plan.extractor.make, 1, "cpu")
    began = time.perf_counter()
    with Pool(Evaluator, arguments, actors) as pool:
        done(pool, plan, [[of[0] for of in kinds.values()]] * actors, actors)
        print(
            f"{actors} actors: ready after {time.perf_counter() - began:.1f} s, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        passes = [
            (done(pool, plan, list(kinds.values()), actors), done(pool, plan, [tasks], actors)) for _ in range(rounds)
        ]
    apart, together = zip(*passes, strict=True)
    middle = [sorted(each, key=lambda one: one.seconds)[len(each) // 2] for each in (apart, together)]
    ratio = statistics.median(a.seconds / b.seconds for a, b in passes)
    for name, one in zip(("one after the other", "at once"), middle, strict=True):
        ends = ", ".join(f"{kind} {when:.1f}" for kind, when in one.ended.items())
        print(f"  {name:<20} {one.seconds:8.1f} s; a kind is done after {ends}", flush=True)
    print(
        f"  one after the other / at once: {ratio:.2f}; the same outcomes: {equal(middle[0].outcomes, middle[1].outcomes)}"
    )
    return middle[0], middle[1]


def main() -> int:
    """Prints the table."""
    if "--help" in sys.argv or len(sys.argv) < 2:
        print(__doc__)
        return 0
    words, given = split_arguments(sys.argv[1:])
    rounds, root = int(given.get("rounds", "1")), output_root(given.get("out", ""))
    settings = override(Settings(), {name: value for name, value in given.items() if name not in OWN}, list(OWN))
    runs = [Weights.named(word, root) for word in words]
    connect(max(ACTORS), 1.0)
    plan = Plan.of(runs, settings, root)
    plan.statistics.found = None  # the features of the reference are measured too
    tasks = list(dict.fromkeys(task for kind in MEASUREMENTS for each in kind.asked(plan) for task in each.tasks()))
    print(f"{len(tasks)} tasks: {', '.join(f'{len(of)} {kind}' for kind, of in kinds_of(tasks).items())}", flush=True)
    found = {actors: measured(plan, tasks, actors, rounds)[1] for actors in ACTORS}
    one, two = (found[actors] for actors in ACTORS)
    same = equal(one.outcomes, two.outcomes)
    print(f"1 actor / 2 actors, all at once: {one.seconds / two.seconds:.2f}; the same outcomes: {same}")
    whole = sum(two.spent.values())
    print("shares of 2 actors: " + ", ".join(f"{kind} {s:.1f} s ({s / whole:.0%})" for kind, s in two.spent.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
