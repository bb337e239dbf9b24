"""DiNof against T_m, as Table 1 of its paper: distance, number of steps and time.

    python benchmarks/dinof_t_m.py digits_dinof [--t-m 0.1,0.2,...] [--num-samples 1000] [--out runs] [--train.steps 600 ...]

For every T_m the recipe is trained in this process (options behind the benchmark's own go to the recipe), and as many samples
drawn by Euler-Maruyama with 1000 T_m steps from T_m down. FD and KD (the squared maximum mean discrepancy of the polynomial
kernel) are to the training data, with standard errors; seconds are those of one actor for all samples. Runs and samples are
kept in OUT/RECIPE-T_M: a killed table goes on where it stopped. Written: OUT/RECIPE-t_m.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.cluster.session import connect
from pipelines.config.models import DiNofConfig
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.config.weights import Weights
from pipelines.evaluation.results.document import to_document
from pipelines.evaluation.results.estimates import with_error
from pipelines.evaluation.sampling.compare import compare
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.recipes import chosen, find
from pipelines.storage.outputs import output_root
from pipelines.storage.signals import Stop
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.local import train_local


def at(run: RunConfig, t_m: float) -> RunConfig:
    """The recipe with another T_m."""
    if not isinstance(run.model, DiNofConfig):
        raise ValueError(f"{run.recipe} has no T_m; give a DiNof recipe, toy2d_dinof or digits_dinof")
    return replace(run, model=replace(run.model, t_m=t_m))


def main() -> None:
    words, given = split_arguments(sys.argv[1:])
    recipe = find(chosen(words, given, "digits_dinof"))
    places = [float(part) for part in given.pop("t_m", "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0").split(",")]
    num_samples, actors = int(given.pop("num_samples", "1000")), int(given.pop("actors", "0"))
    root = output_root(given.pop("out", ""))
    run, rows = override(recipe(), given), []
    names = [f"{run.recipe}-{t_m:g}" for t_m in places]
    for t_m, name in zip(places, names, strict=True):
        train_local(jobs_for(at(run, t_m), Launch(name=name, local=True, evaluate=False), root), Launch(), Stop(""))
    connect(1, 1.0)
    for t_m, name in zip(places, names, strict=True):
        wanted = CompareOptions(rows=f"em:{round(1000 * t_m)}", num_samples=num_samples, actors=actors)
        document = compare([Weights.named(str(root / name))], wanted, root)
        (row,) = document.runs[name]
        rows.append({"t_m": t_m} | to_document(row))
        frechet, kernel = row.result.distances.frechet, row.result.distances.kernel
        print(
            f"T_m {t_m:.1f}  {round(1000 * t_m):>4} steps  {row.seconds:6.1f} s  "
            f"FD({document.reference.features}) {with_error(frechet.value, frechet.se)}  "
            f"KD {with_error(kernel.value, kernel.se, '.4g', '.2g')}  (n = {num_samples})",
            flush=True,
        )
    (root / f"{run.recipe}-t_m.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
