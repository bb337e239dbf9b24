"""A sweep over samplers from its check to its figure.

Trials are drawn and measured as compare.py's rows are, by the same actors and from the same seeds, and their samples lie beside
those of compare.py: what is there is not drawn again, whichever command drew it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from indm_core.errors import ConvergenceError
from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import connect
from pipelines.config.terminal.cli import options as options_of
from pipelines.config.weights import Weights
from pipelines.evaluation.sampling.compare import measured_rows
from pipelines.evaluation.sampling.comparison import RowResult
from pipelines.evaluation.sampling.rows import Row
from pipelines.runs.groups import Member, close_group, log_members, open_group
from pipelines.runs.tracking import close_runs
from pipelines.storage.messages import FailedError, one_line
from pipelines.storage.outputs import only_one
from pipelines.storage.signals import Stop
from tune.figures import draw
from tune.points import FEWEST_TRIALS, points
from tune.results import Figure, Outcome, Sweep, best_of, table
from tune.sampling.plan import SamplerPlan, check
from tune.search import Advised, check_optuna, known_points
from tune.spaces import Point

__all__ = ["conduct"]

FAULTS = (ValueError, ArithmeticError, RuntimeError, FailedError, ConvergenceError)
"""Of a trial: they end no sweep."""


def conduct(plan: SamplerPlan, stop: Stop) -> int:
    """Carries out a sweep over samplers, or goes on with it, and prints what it found; returns the exit status.

    Raises:
        ValueError: what `plan.check` refuses, or a cluster that cannot be joined; before any trial.
        FailedError: no trial was measured.
    """
    began, options = time.monotonic(), plan.options
    if options.search == "optuna":
        check_optuna()
    several = points(plan, plan.trial)
    check(plan, several or plan.space.corners())
    plan.directory.mkdir(parents=True, exist_ok=True)
    with only_one(plan.directory):
        several = several or known_points(plan)
        waiting = {i: point for i, point in enumerate(several) if Outcome.read(plan.directory, i) is None}
        more = max(0, (options.num_trials or FEWEST_TRIALS) - len(several)) if options.search == "optuna" else 0
        done = f", {len(several) - len(waiting)} done before" if len(several) > len(waiting) else ""
        print(f"{plan.name}: {len(several) + more} trials{done}; outputs in {plan.directory}", flush=True)
        sweep = Sweep(name=plan.name, asked=plan.asked(), metric=options.metric, unit="")
        if waiting or more:
            print(f"sampling in {connect(1, 1.0)}", flush=True)
            check_nodes(plan.root)
            parameters = {option.path: option.shown for option in options_of(options)}
            open_group(plan.directory, plan.root, plan.command, parameters)
            sweep.write(plan.directory)
            try:
                _measure(plan, waiting)
                several = [*several, *_suggested(plan, several, more)]
            except BaseException as error:
                status, reason = ("KILLED", stop.word) if stop.requested else ("FAILED", one_line(error))
                close_runs([plan.directory], plan.root, status, reason)
                raise
        return _conclude(plan, sweep, several, time.monotonic() - began)


def _measure(plan: SamplerPlan, waiting: Mapping[int, Point]) -> None:
    """Measures trials, those of a run together, and keeps their outcomes."""
    for run in plan.runs:
        mine = {i: point for i, point in waiting.items() if plan.run_of(point) == run}
        if not mine:
            continue
        try:
            found = _drawn(plan, run, {index: plan.row(point) for index, point in mine.items()})
        except FAULTS:  # of one of them; the pieces that were drawn are kept, and none is drawn twice
            found = {}
        for index, point in mine.items():
            try:
                row = found[index] if found else _drawn(plan, run, {index: plan.row(point)})[index]
                outcome = _outcome(plan, index, point, row)
            except FAULTS as error:
                outcome = _failed(plan, index, point, one_line(error, 200))
            outcome.write(plan.directory)


def _drawn(plan: SamplerPlan, run: Weights, rows: Mapping[int, Row]) -> dict[int, RowResult]:
    """What rows of a run gave, by trial."""
    different = list({row.text: row for row in rows.values()}.values())
    found = measured_rows([run], lambda name, model: different, plan.options.drawing(), plan.root)
    by_text = {entry.row.text: result for entry, result in found.results.items()}
    return {index: by_text[row.text] for index, row in rows.items()}


def _failed(plan: SamplerPlan, index: int, point: Point, reason: str) -> Outcome:
    return Outcome(index=index, point=dict(point), run=plan.trial_name(index), state="failed", reason=reason)


def _outcome(plan: SamplerPlan, index: int, point: Point, row: RowResult) -> Outcome:
    found = row.result
    frechet, kernel = found.distances.frechet, found.distances.kernel
    if not math.isfinite(frechet.value):
        return _failed(plan, index, point, "its samples are not finite")
    figures = {
        "fd": Figure(value=frechet.value, se=frechet.se),
        "kernel": Figure(value=kernel.value, se=kernel.se),
        "evaluations": Figure(value=found.evaluations),
    }
    return Outcome(
        index=index,
        point=dict(point),
        run=plan.trial_name(index),
        state="measured",
        seconds=row.seconds,
        figures=figures,
    )


def _suggested(plan: SamplerPlan, before: Sequence[Point], more: int) -> list[Point]:
    """Measures points that Optuna suggests one after the other, and learns from each."""
    if not more:
        return []
    advised, found = Advised(plan, before), []
    for number in range(more):
        index, point = advised.suggest(str(number))
        _measure(plan, {index: point})
        outcome = Outcome.read(plan.directory, index)
        value = outcome.objective(plan.options.metric) if outcome else math.nan
        advised.told(str(number), value)
        print(f"{plan.trial_name(index)} ({plan.space.label(point)}): {plan.options.metric} {value:.4g}", flush=True)
        found.append(point)
    return found


def _conclude(plan: SamplerPlan, sweep: Sweep, several: Sequence[Point], seconds: float) -> int:
    """Writes the document and the figure, prints the table, and logs the trials below the sweep's run."""
    done = [outcome for i in range(len(several)) if (outcome := Outcome.read(plan.directory, i))]
    best = best_of(done, sweep.metric)
    sweep = replace(sweep, trials=tuple(done), best=best.run if best else "", seconds=seconds)
    picture = plan.directory / "sweep.png"
    sweep.write(plan.directory)
    draw(sweep, plan.space, plan.root, picture)
    print(f"\n{table(sweep)}", flush=True)
    log_members(plan.directory, plan.root, [_member(plan, outcome) for outcome in done])
    figures = {f"best/{name}": figure.value for name, figure in best.figures.items()} if best else {}
    files: list[Path] = [plan.directory / "sweep.json", picture]
    close_group(plan.directory, plan.root, "FINISHED" if best else "FAILED", figures, files)
    print(f"{plan.directory}: sweep.json, sweep.png; {seconds:.0f} s", flush=True)
    if best is None:
        raise FailedError(f"{plan.name}: no trial was measured; {done[0].reason if done else 'there is none'}")
    run, row = plan.run_of(best.point), plan.row(best.point)
    print(f"best by {sweep.metric}: {best.run}, {row.text} of {run.name}")
    print(f'to other samplers: python pipelines/compare.py {run} --rows "{row.text}"', flush=True)
    return 0


def _member(plan: SamplerPlan, outcome: Outcome) -> Member:
    """A trial as MLflow shows it: what was searched, and its whole row."""
    said = {"run": plan.run_of(outcome.point).name, "row": plan.row(outcome.point).text}
    numbers = {f"test/{name}": figure.value for name, figure in outcome.figures.items()}
    numbers |= {f"test/{name}_se": figure.se for name, figure in outcome.figures.items()}
    return Member(name=outcome.run, parameters=dict(outcome.point) | said, figures=numbers)
