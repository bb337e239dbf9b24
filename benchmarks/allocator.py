"""What the memory allocator costs a step on a CPU: glibc as it is, beside glibc told to keep what is freed.

    python -m benchmarks allocator

A step frees and takes again the same large buffers. As it is, glibc gives memory at the top of its heap back to the system, and
buffers above a threshold always: each that is taken again comes page by page, every page by a fault of the processor and filled
with zeros. `pipelines/cluster/memory.py` has the settings that the project's workers are started with. They are read when a
process starts, so that two processes, one of each kind, take a step in turn; printed are the processor's milliseconds, user and
system, and the page faults of a step.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TextIO, cast

from benchmarks.figure import AT_LEAST, Absent, Bound, Pairs, Row
from pipelines.cluster.memory import KEEPS_MEMORY

ROOT = Path(__file__).resolve().parents[1]
CASES = ("digits_vp_nll", "images 32x32x3")
WARM_UP = 3


class Spent(NamedTuple):
    """Of a step: the processor's seconds and page faults."""

    seconds: float
    faults: int


class Stepper:
    """A process that takes a step when it is told to."""

    def __init__(self, case: str, settings: dict[str, str]) -> None:
        words = [sys.executable, "-m", "benchmarks.allocator", case]
        environment = {name: value for name, value in os.environ.items() if name not in KEEPS_MEMORY} | settings
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)
        self.told, self.tells = cast(TextIO, self.process.stdin), cast(TextIO, self.process.stdout)

    def step(self) -> Spent:
        self.told.write("step\n")
        self.told.flush()
        seconds, faults = self.tells.readline().split()
        return Spent(float(seconds), int(faults))

    def end(self) -> None:
        self.told.close()
        self.process.wait()


def figure(quick: bool) -> Iterator[Row | Absent]:
    """A training step by glibc as it is beside one by glibc told to keep what is freed: time, and page faults."""
    if sys.platform != "linux":
        yield Absent(what="a step", reason="the settings are those of glibc, on Linux")
        return
    for case in CASES:
        with ExitStack() as ends:
            sides = [Stepper(case, settings) for settings in (KEEPS_MEMORY, {})]
            for side in sides:
                ends.callback(side.end)
            spent = [[side.step() for side in sides] for _ in range(WARM_UP + (3 if quick else 15))][WARM_UP:]
        kept, plain = zip(*spent, strict=True)
        pairs = Pairs(tuple(each.seconds for each in kept), tuple(each.seconds for each in plain))
        yield pairs.row(f"{case}, a step", "glibc as it is", Bound(AT_LEAST, 1.0))
        faults = Pairs(*(tuple(max(1, each.faults) / 1e3 for each in side) for side in (kept, plain)))
        yield Row(**{**vars(faults.row(f"{case}, page faults", "glibc as it is")), "unit": "faults"})


def _step_of(case: str) -> Callable[[], object]:
    if case == CASES[1]:
        from benchmarks.growth import step

        return step(batch=16, side=32)
    from benchmarks.bare_loop import CASES as SHAPES
    from benchmarks.bare_loop import steps_of

    return steps_of(case, SHAPES[case])[0]


def main() -> None:
    """A step for every line that comes."""
    import torch

    torch.set_num_threads(1)
    act = _step_of(sys.argv[1])
    for _ in sys.stdin:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        act()
        seconds, faults = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(seconds, faults, flush=True)


if __name__ == "__main__":
    main()
