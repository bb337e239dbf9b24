"""Minutes of training to a stated likelihood and Frechet distance.

    python benchmarks/time_to_target.py digits_vp_nll [--nll 2.05 --fd 8] [--every 100] [--tree DIR] [--out DIR] [--steps 9]

RECIPE is trained by pipelines/train.py, here or in a checkout of another commit (--tree), with a checkpoint every EVERY
steps; options that are not of this script are given to it. Then this checkout measures the averaged weights of each
checkpoint on the same draws (pipelines/evaluate.py: 128 test images, 1,000 samples), so that figures of two commits can be
compared. Printed are of each checkpoint the minutes of its steps (batches included; no start, validation or measurement),
NLL and FD, and the minutes of the first one from which on a target is met, linear in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import NllResult
from pipelines.evaluation.results.document import Evaluation
from pipelines.runs.job import read_metrics

ROOT = Path(__file__).resolve().parents[1]
MEASURED = {"images": 128, "nll-replicates": 1, "rtol": 1e-4, "atol": 1e-4, "nelbo-replicates": 1, "samples": 1000}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint.

    Args:
        step, minutes: Of training.
        nll: Bits per dimension, or nats, as the run counts.
        fd: Frechet distance.
    """

    step: int
    minutes: float
    nll: float
    fd: float


def train(tree: Path, recipe: str, out: Path, every: int, options: list[str]) -> Path:
    """The trained run, with all its checkpoints."""
    kept = ["--checkpoint-every", str(every), "--keep", "10000", "--evaluate", "false"]
    command = [sys.executable, str(tree / "pipelines/train.py"), recipe, "--out", str(out), *kept, *options]
    subprocess.run(command, cwd=tree, check=True)
    return out / recipe


def minutes_of(run: Path) -> dict[int, float]:
    """Minutes of training up to each step that was reported."""
    seconds, last, minutes = 0.0, 0, {}
    for record in read_metrics(run):
        if record.step_s:
            seconds += (record.step - last) * record.step_s / (1 - min(record.data_wait, 0.99))
            last = record.step
            minutes[last] = seconds / 60
    return minutes


def measure(run: Path, steps: list[int]) -> list[tuple[float, float]]:
    """NLL and FD of the checkpoints."""
    references = [f"{run}@{step}" for step in steps]
    options = [word for name, value in MEASURED.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(ROOT / "pipelines/evaluate.py"), *references, *options], cwd=ROOT, check=True)
    runs = Evaluation.read(run / f"@{steps[0]}" / "evaluation.json").runs
    figures = [runs[f"{run.name}@{step}"] for step in steps]
    found = ((each.of(NllResult), each.of(DistancesResult)) for each in figures)
    return [(nll.after.mean, distances.distances.frechet.value) for nll, distances in found if nll and distances]


def reached(points: list[Point], target: float, figure: str) -> float | None:
    """Minutes from which on the figure stays at or below the target; None if it never does."""
    above = [i for i, point in enumerate(points) if getattr(point, figure) > target]
    if not above:
        return points[0].minutes
    if above[-1] + 1 == len(points):
        return None
    (a, b), value = list(pairwise(points))[above[-1]], getattr
    share = (value(a, figure) - target) / (value(a, figure) - value(b, figure))
    return a.minutes + share * (b.minutes - a.minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--nll", type=float, default=2.05)
    parser.add_argument("--fd", type=float, default=8.0)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_target"))
    asked, options = parser.parse_known_args()
    run = train(asked.tree.resolve(), asked.recipe, asked.out.resolve(), asked.every, options)
    steps = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    minutes = minutes_of(run)
    figures = measure(run, steps)
    points = [Point(step=s, minutes=minutes[s], nll=a, fd=b) for s, (a, b) in zip(steps, figures, strict=True)]
    for point in points:
        print(f"step {point.step:6d}  {point.minutes:6.2f} min  NLL {point.nll:.4f}  FD {point.fd:.2f}")
    for figure, target in (("nll", asked.nll), ("fd", asked.fd)):
        found = reached(points, target, figure)
        print(f"{figure} <= {target:g}: " + ("not reached" if found is None else f"{found:.2f} min"))


if __name__ == "__main__":
    main()
