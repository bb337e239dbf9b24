"""Goodput: which part of the images per second is left to a training that is disturbed all the time.

    python benchmarks/goodput.py --minutes 20 --seed 0 --out DIR

Faults come at the times of a Poisson process, on average every `--gap` seconds, and each is, by a draw, the SIGKILL of a
worker, the SIGKILL of the command, which is given again, or the SIGSTOP of a worker. With S steps of B images that count once
after T seconds, starts, restarts and steps taken again included, and v images per second of the same command without faults,
between its first and its last step (a quarter of the minutes, before),

    goodput = (S B / T) / v.

What else runs on the machine changes v and S alike, but not at the same time: on one that is shared it is a rough figure.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.injection import BATCH, Case, Running, cost_of, end, send
from pipelines.runs.job import read_metrics

KINDS = ("worker", "driver", "hang")
STALL_SECONDS, ENDLESS = "10", 1_000_000


@dataclass(frozen=True)
class Fault:
    """A fault of a schedule.

    Args:
        seconds: After the command was given first.
        kind: Of `KINDS`.
        draw: Uniform in [0, 1): which worker.
    """

    seconds: float
    kind: str
    draw: float


def schedule(seconds: float, gap: float, seed: int) -> list[Fault]:
    """Faults of so many seconds, on average every `gap` seconds."""
    drawn, faults, now = random.Random(seed), list[Fault](), 0.0
    while (now := now + drawn.expovariate(1.0 / gap)) < seconds:
        faults.append(Fault(now, drawn.choice(KINDS), drawn.random()))
    return faults


def inject(running: Running, fault: Fault) -> None:
    """Brings a fault about; one that finds no worker, because the group is just beginning, hits nothing."""
    if fault.kind == "driver":
        end(running, again=True)
    elif found := running.workers():
        number = signal.SIGKILL if fault.kind == "worker" else signal.SIGSTOP
        send(number, found[int(fault.draw * len(found))])


def undisturbed(case: Case, seconds: float) -> float:
    """Images per second of a training without faults, after its first step."""
    with Running(case) as running:
        running.wait_for(lambda: running.step > 0, "the first step")
        time.sleep(seconds)
        first, last = running.seen[1], running.seen[-1]
    return BATCH * (last.step - first.step) / (last.when - first.when)


def disturbed(case: Case, faults: list[Fault], seconds: float) -> float:
    """Images per second that count once, of a training with faults; says what each cost."""
    told = list[tuple[Fault, float, int]]()
    with Running(case) as running:
        began = time.monotonic()
        for fault in faults:
            time.sleep(max(0.0, began + fault.seconds - time.monotonic()))
            inject(running, fault)
            told.append((fault, time.monotonic(), max((record.step for record in read_metrics(case.run)), default=0)))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        took, step = time.monotonic() - began, max(record.step for record in read_metrics(case.run))
        for fault, when, before in told:
            cost = cost_of(when, before, running.seen)
            what = f"{cost.lost:>3} steps again, {cost.seconds:.0f} s" if cost else "not over at the end"
            print(f"  {fault.seconds:>6.0f} s  {fault.kind:<7} after step {before:>5}: {what}", flush=True)
    return BATCH * step / took


def main() -> int:
    """Prints both speeds and their ratio."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--gap", type=float, default=180.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    given = parser.parse_args()
    seconds, out = 60 * given.minutes, given.out.resolve()
    options = ("--max-failures", "1000", "--stall-seconds", STALL_SECONDS)
    speed = undisturbed(Case(out=out / "undisturbed", steps=ENDLESS, words=options), seconds / 4)
    print(f"undisturbed: {speed:.1f} images/s", flush=True)
    faults = schedule(seconds, given.gap, given.seed)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(fault.kind for fault in faults).items()))
    print(f"{given.minutes:g} minutes with {len(faults)} faults ({kinds}), seed {given.seed}", flush=True)
    useful = disturbed(Case(out=out / "disturbed", steps=ENDLESS, words=options), faults, seconds)
    print(f"with faults: {useful:.1f} images/s that count once; goodput {useful / speed:.1%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
