"""The table of faults.py and fault_clusters.py: what was asked for, a row for each kind, and their command line."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.injection import Case, Cost, Moment, moments

__all__ = ["PART", "Asked", "Row", "run"]

PART = 25
"""Steps of a run for each fault."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for.

    Args:
        times: Faults of a kind.
        seed: Of the moments.
        out: Where the commands' outputs go.
    """

    times: int
    seed: int
    out: Path

    def case(self, kind: str, *words: str) -> Case:
        """A training that is long enough, in a directory of its own."""
        return Case(out=self.out / kind, steps=PART * (self.times + 1), words=words)

    def moments(self, case: Case) -> list[Moment]:
        """When faults come in it."""
        return moments(self.times, case.steps, self.seed)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a kind.

    Args:
        costs: Of the faults that were recovered from.
        interval: Steps between two checkpoints; 0 where there are none.
        equal: What the result is compared with, and whether it is the same.
    """

    kind: str
    injected: int
    costs: Sequence[Cost]
    interval: int
    equal: str

    def line(self) -> str:
        """As a row of the table."""
        seconds = sorted(cost.seconds for cost in self.costs)
        took = f"{seconds[len(seconds) // 2]:>7.1f} {seconds[-1]:>7.1f}" if seconds else f"{'-':>7} {'-':>7}"
        lost = (
            f"{max((cost.lost for cost in self.costs), default=0):>4}/{self.interval:<4}"
            if self.interval
            else f"{'-':^9}"
        )
        return f"{self.kind:>9} {self.injected:>8} {len(self.costs):>9} {lost:>9} {took}  {self.equal}"


TITLE = f"{'kind':>9} {'injected':>8} {'recovered':>9} {'lost':>9} {'median':>7} {'most s':>7}  result"


def run(kinds: dict[str, Callable[[Asked], Row]]) -> int:
    """The command line of a script with these kinds; prints the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("kind", choices=[*kinds, "all"])
    parser.add_argument("--times", type=int, default=3, help="faults of a kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    given = parser.parse_args()
    rows, failed = [], 0
    for kind in kinds if given.kind == "all" else [given.kind]:
        print(f"{kind}: {given.times} faults", flush=True)
        try:
            rows.append(kinds[kind](Asked(times=given.times, seed=given.seed, out=given.out.resolve())).line())
        except (RuntimeError, TimeoutError, OSError, subprocess.SubprocessError) as error:
            rows.append(f"{kind:>9} {error}")
            failed = 1
        print(f"{TITLE}\n" + "\n".join(rows), flush=True)
    return failed
