"""A sweep from its check to its figure."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines.cluster.address import address_to_join
from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import check_resources, connect
from pipelines.config.terminal.cli import options as options_of
from pipelines.runs.groups import close_group, open_group, register
from pipelines.runs.job import Job, finished
from pipelines.runs.shipping import Feed, Shipper
from pipelines.runs.store import tracking_uri
from pipelines.runs.tracking import close_runs, deliver, open_run
from pipelines.storage.messages import FailedError, one_line
from pipelines.storage.outputs import only_one
from pipelines.storage.signals import Stop
from pipelines.training.on_ray.group import build_trainer, fit
from pipelines.training.on_ray.stream import READ_CPUS
from tune.figures import draw
from tune.options import Options
from tune.plan import Plan, check, points
from tune.results import Outcome, Sweep, best_of, table
from tune.search import check_optuna, cpus, known_points, room, search
from tune.sharing import shared
from tune.spaces import Point

__all__ = ["conduct"]


def conduct(plan: Plan, stop: Stop) -> int:
    """Carries out a sweep, or goes on with it, and prints what it found.

    Returns:
        The exit status: 1 where trials were lost, whom the same command tries again.

    Raises:
        ValueError: what `plan.check` refuses, a cluster that cannot be joined or is too small, or storage that its machines do
            not see; all before any trial.
        FailedError: no trial was measured.
    """
    began, options = time.monotonic(), plan.options
    if options.search == "optuna":
        check_optuna()
    several = points(plan)
    unit = check(plan, several or plan.space.corners())
    plan.directory.mkdir(parents=True, exist_ok=True)
    with only_one(plan.directory):
        several = several or known_points(plan)
        sweep = Sweep(name=plan.name, asked=plan.asked(), metric=options.metric, unit=unit)
        waiting = [i for i in range(len(several)) if Outcome.read(plan.directory, i) is None]
        print(_begins(plan, several, len(several) - len(waiting)), flush=True)
        if waiting or options.search == "optuna":
            concurrent = _connect(options)
            check_nodes(plan.root)
            parameters = {option.path: option.shown for option in options_of(options)}
            plan = replace(plan, parent=open_group(plan.directory, plan.root, plan.command, parameters))
            sweep.write(plan.directory)
            try:
                plan, stages = _pretrained(plan, several, waiting, stop)
                sweep = replace(sweep, shared=stages)
                lost = search(plan, several, concurrent)
            except BaseException as error:
                reason = stop.word if stop.requested or isinstance(error, KeyboardInterrupt) else one_line(error)
                status = "KILLED" if stop.requested else "FAILED"
                runs = [plan.root / plan.run_name(i) for i in waiting]
                close_runs([plan.directory, *filter(Path.is_dir, runs)], plan.root, status, reason)
                raise
        else:
            lost = {}
        several = several if options.search != "optuna" else known_points(plan)
        return _conclude(plan, sweep, several, lost, time.monotonic() - began)


def _connect(options: Options) -> int:
    """Joins or begins the Ray session; returns how many trials it carries out at the same time.

    Raises:
        ValueError: a cluster that cannot be joined, or is too small.
    """
    own = not address_to_join()
    cores = max(1, int((os.cpu_count() or 1) / (options.workers * options.cpus_per_worker)))
    number = options.concurrent or (cores if own else 1)
    print(f"sweeping in {connect(math.ceil(number * cpus(options)), 1.0)}", flush=True)
    check_resources(options.workers, options.cpus_per_worker, READ_CPUS, options.device == "cuda")
    fit = room(options)
    return options.concurrent or (min(cores, fit) if own else fit)


def _begins(plan: Plan, several: list[Point], done: int) -> str:
    number = f"{len(several)} trials" if several else "trials as they are suggested"
    before = f", {done} done before" if done else ""
    return f"{plan.name}: {number} of {plan.run.train.steps} steps{before}; outputs in {plan.directory}"


def _pretrained(plan: Plan, several: list[Point], waiting: list[int], stop: Stop) -> tuple[Plan, dict[str, int]]:
    """The plan in which trials begin from what they share, which is trained by then; and its runs with their steps."""
    stages, starts = shared({index: plan.job(index, point) for index, point in enumerate(several)}, plan.name)
    left = [stage for stage in stages if not finished(stage.training)]
    if left and starts.keys() & set(waiting):
        steps = ", ".join(str(stage.run.train.steps) for stage in stages)
        print(f"{plan.name}: pre-training once for {len(starts)} trials, to steps {steps}", flush=True)
        began = time.monotonic()
        _train(plan, left, stop)
        print(f"{plan.name}: pre-trained in {time.monotonic() - began:.0f} s", flush=True)
    return replace(plan, starts=starts), {stage.directory.name: stage.run.train.steps for stage in stages}


def _train(plan: Plan, jobs: list[Job], stop: Stop) -> None:
    root, uri = plan.root, tracking_uri(plan.root)
    launch = plan.options.launch(jobs[0].directory.name)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(only_one(job.directory))
            open_run(job, root, parent=plan.parent)
        feeds = [Feed(job.directory, uri, partial(open_run, job, root)) for job in jobs]
        with stop.at_boundary(), Shipper(feeds, uri):
            outcome = fit(build_trainer(jobs, launch, root), stop)
    if outcome.refusal:
        raise ValueError(outcome.refusal.reason)


def _conclude(plan: Plan, sweep: Sweep, several: list[Point], lost: dict[str, str], seconds: float) -> int:
    """Writes the document and the figure, prints the table, and puts the best model into the registry."""
    found = [Outcome.read(plan.directory, index) for index in range(len(several))]
    done = [outcome for outcome in found if outcome]
    best = best_of(done, sweep.metric)
    waiting = tuple(dict(point) for point, outcome in zip(several, found, strict=True) if outcome is None)
    before = Sweep.read(plan.directory)
    if before and not sweep.shared:
        sweep = replace(sweep, shared=before.shared)
    sweep = replace(sweep, trials=tuple(done), waiting=waiting, best=best.run if best else "", seconds=seconds)
    picture = plan.directory / "sweep.png"
    sweep.write(plan.directory)
    draw(sweep, plan.space, plan.root, picture)
    print(f"\n{table(sweep)}", flush=True)
    deliver([plan.root / outcome.run for outcome in done], plan.root)
    if best:
        model = register(plan.root / best.run, plan.root, plan.options.register or plan.name, "best")
        sweep = replace(sweep, model=model)
        sweep.write(plan.directory)
        print(
            f"best by {sweep.metric}: {best.run} ({plan.space.label(best.point)}){f', {model} in MLflow' if model else ''}"
        )
    figures = {name: figure.value for name, figure in best.figures.items()} if best else {}
    files: list[Path] = [plan.directory / "sweep.json", picture]
    state = "FINISHED" if best and not lost and not waiting else "FAILED"
    close_group(plan.directory, plan.root, state, {f"best/{n.replace(':', '-')}": v for n, v in figures.items()}, files)
    print(f"{plan.directory}: sweep.json, sweep.png; {seconds:.0f} s", flush=True)
    for run, reason in lost.items():
        print(f"{run} was lost: {reason}; the same command goes on with it", flush=True)
    if not best:
        reasons = "; ".join(f"{outcome.run}: {outcome.reason}" for outcome in done if outcome.reason) or json.dumps(
            lost
        )
        raise FailedError(f"{plan.name}: no trial was measured ({reasons})")
    return 1 if lost or math.isnan(best.objective(sweep.metric)) else 0
