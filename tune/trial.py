"""A trial: a driver that launches the project's own group of workers, has the model measured, and tells Ray Tune.

Ray Tune gives a trial a tenth of a CPU; its workers and actors are not a part of that. What a scheduler ends trials by is the
NELBO on held-out rows that training measures anyway. A trial that goes on tells first what it had come to, so that a scheduler
of a new command knows what the one before had been told.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from indm_core.errors import ConvergenceError
from pipelines.config.weights import Weights
from pipelines.evaluation.measure import evaluate
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import NelboResult, NllResult
from pipelines.evaluation.results.archive import measured_so
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.estimates import Estimate
from pipelines.evaluation.results.table import log
from pipelines.evaluation.sampling.compare import compare
from pipelines.evaluation.sampling.compare import log as log_rows
from pipelines.evaluation.sampling.comparison import RowResult
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.evaluation.sampling.rows import parse_rows
from pipelines.runs.job import Job, finished, read_metrics
from pipelines.runs.record import VALIDATION
from pipelines.runs.shipping import Feed, Shipper
from pipelines.runs.store import tracking_uri
from pipelines.runs.tracking import close_runs, open_run
from pipelines.storage.messages import one_line
from pipelines.storage.outputs import only_one
from pipelines.training.on_ray.group import build_trainer, fit
from tune.plan import Plan, built
from tune.results import Figure, Outcome

__all__ = ["HELD_OUT", "OBJECTIVE", "STEP", "carry_out", "last_held_out"]

HELD_OUT, OBJECTIVE, STEP = "held_out", "objective", "step"
"""What a trial reports: at a step the NELBO on held-out rows, and at its end what is minimised."""


def carry_out(config: dict[str, Any], plan: Plan) -> None:
    """Trains and measures the trial of a point, or goes on with it; its outcome is kept in the sweep's directory.

    Args:
        config: Of Ray Tune: `index` and `point`.
        plan: The sweep.
    """
    index, point, began = config["index"], config["point"], time.monotonic()
    job = plan.job(index, point)
    last = job.run.train.steps
    for record in read_metrics(job.directory):
        if plan.options.scheduler != "none" and record.held_out and record.step < last:
            tune.report({STEP: record.step, HELD_OUT: record.held_out.nelbo})
    outcome = Outcome.read(plan.directory, index)
    if outcome is None:
        outcome = Outcome(index=index, point=dict(point), run=job.directory.name, state="measured", step=last)
        reason = train(job, plan)
        if not reason:
            try:
                outcome = replace(outcome, figures=measured(job, plan))
            except ConvergenceError as error:
                reason = f"it cannot be measured: {one_line(error)}"
        if reason:  # it would be so again; what else is raised, the same command tries again
            close_runs([job.directory], plan.root, "FAILED", reason)
            outcome = replace(outcome, state="failed", step=_last_step(job.directory), reason=reason)
        outcome = replace(outcome, held_out=last_held_out(job.directory), seconds=time.monotonic() - began)
        outcome.write(plan.directory)
    if outcome.state == "measured":
        held_out = outcome.held_out.value if outcome.held_out else math.nan
        tune.report({STEP: last, HELD_OUT: held_out, OBJECTIVE: outcome.objective(plan.options.metric)})


def train(job: Job, plan: Plan) -> str:
    """Trains to the last step by a group of workers, whose held-out NELBOs Ray Tune is told of.

    Returns:
        Why the training has diverged, or was refused by the workers; '' where it was not.

    Raises:
        ValueError: workers are lost too often, or another process trains the run.
    """
    if finished(job.training):
        return ""
    root, uri, launch = plan.root, tracking_uri(plan.root), plan.options.launch(job.directory.name)
    with only_one(job.directory):
        open_run(job, root, parent=plan.parent)
        name = f"{job.directory.name}-{tune.get_context().get_trial_id()}"
        trainer = build_trainer([job], launch, root, callbacks=[Rung(job.run.train.steps)], name=name)
        with Shipper([Feed(job.directory, uri, partial(open_run, job, root))], uri):
            outcome = fit(trainer)
    return outcome.refusal.reason if outcome.refusal else ""


class Rung(UserCallback):
    """Tells Ray Tune of the reports that have a held-out NELBO, but for the last step's: the measurement comes after it.

    Args:
        last: The last step.
    """

    def __init__(self, last: int) -> None:
        self.last, self.tells = last, TuneReportCallback()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        step, held_out = metrics[0][STEP], metrics[0].get(VALIDATION[0])
        if held_out is not None and step < self.last:
            self.tells.after_report(run_context, [{STEP: step, HELD_OUT: held_out}], None)


def measured(job: Job, plan: Plan) -> dict[str, Figure]:
    """Has a trained model measured by the project's evaluation, in a process whose actors have CPUs of their own: those of a
    trial's would have to fit into its tenth of one."""
    model = built(job)
    share = model.t_start / model.sde.t_max
    rows = {row.text: in_share(row.text, share) for row in parse_rows(plan.options.samplers)}
    wanted = Wanted(run=job.directory, rows=rows, plan=plan)
    measure = ray.remote(num_cpus=0, scheduling_strategy="DEFAULT", max_retries=0)(_measure)
    return ray.get(measure.remote(wanted))


def in_share(row: str, share: float) -> str:
    """A row of samplers with that share of its steps, `pc:1000` -> `pc:300`."""
    return re.sub(r":(\d+)(?=[:,]|$)", lambda steps: f":{max(1, round(int(steps[1]) * share))}", row, count=1)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is measured of a run.

    Args:
        rows: By the row that was asked for, the one of this model.
    """

    run: Path
    rows: Mapping[str, str]
    plan: Plan


def _measure(wanted: Wanted) -> dict[str, Figure]:
    plan, weights, options = wanted.plan, Weights(run=wanted.run), wanted.plan.options
    settings = replace(options.evaluation, actors=options.evaluation.actors or 1)
    settings = replace(settings, samples=0) if wanted.rows else settings
    document = measured_so([weights], settings) or evaluate([weights], settings, plan.root, device=options.device)
    log(document, [weights], plan.root)
    found = _figures(document)
    if not wanted.rows:
        return found
    asked = CompareOptions(
        rows=" ".join(dict.fromkeys(wanted.rows.values())),
        num_samples=options.evaluation.samples or 1000,
        inception_weights=settings.inception_weights,
        actors=settings.actors,
        device=options.device,
    )
    table = compare([weights], asked, plan.root)
    log_rows([weights], plan.root)
    results = {result.row: result for result in table.runs[weights.name]}
    return found | _of_rows({row: results[own] for row, own in wanted.rows.items()})


def _figures(document: Evaluation) -> dict[str, Figure]:
    """The figures of the only run of an evaluation."""
    (figures,) = document.runs.values()
    found: dict[str, Figure] = {}
    for name, kind in (("nll", NllResult), ("nelbo", NelboResult)):
        result = figures.of(kind)
        if result is not None:
            found[name] = _figure(result.after)
    if (distances := figures.of(DistancesResult)) is not None:
        frechet = distances.distances.frechet
        found["fd"] = Figure(value=frechet.value, se=frechet.se)
    return found


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.mean, se=estimate.error)


def _of_rows(results: Mapping[str, RowResult]) -> dict[str, Figure]:
    """The distances by samplers, of which the first is the metric fd, and the seconds that the samples took."""
    found: dict[str, Figure] = {}
    for row, result in results.items():
        frechet = result.result.distances.frechet
        figure = Figure(value=frechet.value, se=frechet.se)
        found |= {} if found else {"fd": figure}
        found |= {f"fd {row}": figure, f"seconds {row}": Figure(value=result.seconds)}
    return found


def last_held_out(run: Path) -> Figure | None:
    """The last NELBO of a run on held-out rows."""
    last = next((record.held_out for record in reversed(read_metrics(run)) if record.held_out), None)
    return Figure(value=last.nelbo, se=last.se) if last else None


def _last_step(run: Path) -> int:
    return max((record.step for record in read_metrics(run)), default=0)
