r"""The benchmark table of samplers of densities: every method on every target by at most the same evaluations of the target.

    python benchmarks/densities.py funnel mog40 [--methods PIS-KL,SMC,PT] [--budget 15e6] [--out runs/densities]

TARGET is a recipe of pipelines/pis.py. Path integral samplers are trained as by that command, in OUT/TARGET-METHOD, for as many
iterations as the budget pays, less what 2,000 samples take, and for no more than the recipe has. PIS + resampling draws by the
control of PIS-KL, beyond the budget. Annealed SMC spends the budget on particles, AFT and VI-NF on optimiser steps, parallel
tempering and HMC on sweeps. NUTS runs one chain, point by point, and would take days: it draws 2,000 samples. All start from
N(0, T g^2 I).

    log Z     estimate - truth, where that is known, else the estimate; with its standard error. MCMC has none.
    ELBO      mean of log w less log Z (or the mean of log w); of resampled populations the mean of the log of their estimates
    EUBO      mean of log w over optimal paths less log Z, of 2,000 exact samples
    ESS       share of the weighted samples that count (effective_count)
    S, MMD    Sinkhorn divergence (regularisation 5 % of the variance) and MMD^2 of 2,000 samples to exact ones
    modes     that hold half of their weight at least
    evals     points at which the target was asked, training included; s: seconds of one thread

Rows are kept in OUT/TARGET.jsonl, and what is there is not done again. Of targets in the plane OUT/TARGET.png shows samples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.density_methods import METHODS, NOWHERE, NUM, TABLE, Problem, rng
from indm_core.pis import Target, effective_count, mmd, mode_shares, modes_covered, resampled, sinkhorn
from indm_core.pis.baselines import SMC, AdaptiveTemperatures
from pipelines.recipes.densities import find_density
from pipelines.runs.pictures import figure_of


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a target; nan is what it does not have. Differences to log Z where that is known."""

    method: str
    log_z: tuple[float, float] = NOWHERE
    elbo: tuple[float, float] = NOWHERE
    eubo: tuple[float, float] = NOWHERE
    ess: float = math.nan
    sinkhorn: float = math.nan
    mmd: tuple[float, float] = NOWHERE
    modes: str = "-"
    evaluations: int
    seconds: float

    def line(self) -> str:
        """As a row of a Markdown table."""
        cells = [
            self.method,
            *(_with_error(value) for value in (self.log_z, self.elbo, self.eubo)),
            _number(self.ess, ".3f"),
            _number(self.sinkhorn, ".3g"),
            "-" if math.isnan(self.mmd[0]) else f"{1e3 * self.mmd[0]:.2f} +- {1e3 * self.mmd[1]:.2f}",
            self.modes,
            f"{self.evaluations / 1e6:.3g} M",
            f"{self.seconds:.0f}",
        ]
        return f"| {' | '.join(cells)} |"


HEAD = "| method | log Z | ELBO | EUBO | ESS | S | 1000 MMD^2 | modes | evals | s |\n|---|---|---|---|---|---|---|---|---|---|"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _with_error(value: tuple[float, float]) -> str:
    return "-" if math.isnan(value[0]) else f"{value[0]:+.3f} +- {value[1]:.3f}"


def measured(problem: Problem, name: str) -> tuple[Row, Tensor]:
    """The row of a method, and samples in which all count alike."""
    began = time.perf_counter()
    drawn = METHODS[name](problem)
    seconds, draws, target = time.perf_counter() - began, drawn.draws, problem.target
    truth = 0.0 if math.isnan(target.log_z) else float(target.log_z)
    x = draws.x[resampled(draws.log_w.double(), NUM, rng(3))]
    row = Row(
        method=name,
        log_z=(draws.log_z.value - truth, draws.log_z.se),
        elbo=(draws.bound.value - truth, draws.bound.se),
        eubo=(drawn.eubo.value - truth, drawn.eubo.se),
        ess=effective_count(draws.log_z, len(draws.x)) / len(draws.x),
        evaluations=draws.evaluations,
        seconds=seconds if math.isnan(drawn.training) else drawn.training,
    )
    return compared(row, target, x), x


def compared(row: Row, target: Target, x: Tensor) -> Row:
    """The row with what exact samples and modes tell of samples."""
    even = torch.zeros(len(x))
    fair = None
    if target.exact:
        exact, many = target.sample(NUM, rng(4)), target.sample(20_000, rng(5))
        distance = mmd(x, even, exact)
        row = replace(row, sinkhorn=sinkhorn(x, even, exact).value, mmd=(distance.value, distance.se))
        fair = mode_shares(many, torch.zeros(len(many)), target.modes) if len(target.modes) else None
    if not len(target.modes):
        return row
    covered = modes_covered(mode_shares(x, even, target.modes), fair)
    return replace(row, modes=f"{covered}/{len(target.modes)}")


def reference(problem: Problem) -> Row:
    """Exact samples against others, or log Z by a long run of SMC where it is not known."""
    if problem.target.exact:
        row = Row(method="exact", evaluations=0, seconds=0.0)
        return compared(row, problem.target, problem.target.sample(NUM, rng(6)))
    method = SMC(temperatures=AdaptiveTemperatures(share=0.95), num_moves=3, sigma=problem.sigma)
    began = time.perf_counter()
    draws = method(problem.target, NUM, generator=rng(7))
    less = 0.0 if math.isnan(problem.target.log_z) else problem.target.log_z
    value = (draws.log_z.value - less, draws.log_z.se)
    return Row(method="long SMC", log_z=value, evaluations=draws.evaluations, seconds=time.perf_counter() - began)


def table(problem: Problem, names: list[str]) -> None:
    """Makes the rows that are missing, and prints all."""
    name = problem.run.recipe
    file = problem.out / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {row["method"]: Row(**row) for row in rows}
    for method in ["reference", *names]:
        if method in done or (method == "reference" and {"exact", "long SMC"} & set(done)):
            continue
        if method == "reference":
            row = reference(problem)
        else:
            row, x = measured(problem, method)
            save_file({"x": x.float().contiguous()}, problem.out / f"{name}-{method.replace(' ', '')}.safetensors")
        done[row.method] = row
        with file.open("a") as to:
            to.write(json.dumps(asdict(row)) + "\n")
        print(f"{name}: {row.line()}", flush=True)
    print(f"\n{name}, d = {problem.target.dim}, log Z {problem.target.log_z:.4f}\n\n{HEAD}")
    print("\n".join(row.line() for row in done.values()) + "\n", flush=True)
    if problem.target.dim == 2:
        draw(problem, [method for method in METHODS if method in done])


def draw(problem: Problem, names: list[str]) -> None:
    """Samples of all methods, and exact ones."""
    panels = {"exact": problem.target.sample(NUM, rng(8))} if problem.target.exact else {}
    for name in names:
        file = problem.out / f"{problem.run.recipe}-{name.replace(' ', '')}.safetensors"
        panels[name] = load_file(file)["x"]
    side = 1.2 * max(float(x.abs().quantile(0.99)) for x in panels.values())
    across = min(len(panels), 5)
    down = -(-len(panels) // across)
    figure = figure_of(2.6 * across, 2.8 * down)
    for i, (name, x) in enumerate(panels.items()):
        axes = figure.add_subplot(
            down, across, i + 1, title=name, xlim=(-side, side), ylim=(-side, side), aspect="equal"
        )
        axes.scatter(x[:, 0], x[:, 1], s=2, linewidths=0)
        axes.tick_params(labelsize="x-small")
    figure.savefig(problem.out / f"{problem.run.recipe}.png", dpi=110, bbox_inches="tight")


def main() -> int:
    """Prints the table of each target."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--methods", default=",".join(TABLE))
    parser.add_argument("--budget", type=float, default=15e6)
    parser.add_argument("--out", type=Path, default=Path("runs/densities"))
    asked = parser.parse_args()
    names = asked.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"--methods {', '.join(sorted(unknown))}: there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.targets:
        run = find_density(name)()
        target = run.target.settled().build().float()
        table(Problem(run=run, target=target, budget=int(asked.budget), out=asked.out), names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
