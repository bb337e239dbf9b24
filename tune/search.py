"""The search: Ray Tune takes points one after the other, runs a trial for each, and a scheduler may end one early.

Points are of a list, or Optuna suggests them by what the others gave. What a sweep has come to lies in its directory and in its
runs' (`results`), and nothing is read from what Ray Tune keeps: a command that goes on tells Ray of the trials that are done.
Population-based training is not offered: with trials that launch trainers of their own, Ray's does not exploit.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipelines.runs.tracking import close_runs
from pipelines.storage.files import write_text
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json
from pipelines.training.on_ray.stream import READ_CPUS
from tune.options import Options
from tune.plan import Plan
from tune.points import FEWEST_TRIALS, Searched
from tune.results import Outcome
from tune.spaces import Point
from tune.trial import HELD_OUT, OBJECTIVE, STEP, carry_out, last_held_out

__all__ = ["Advised", "Told", "Walk", "check_optuna", "cpus", "known_points", "room", "scheduler", "search"]

TRIAL_CPUS = 0.1
SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # what is minimised comes last
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the command's
    "RAY_AIR_NEW_OUTPUT": "0",  # `Told` says how it goes
}
SUGGESTED = "points.json"


def search(plan: Plan, several: Sequence[Point], concurrent: int) -> dict[str, str]:
    """Carries out all trials that have no outcome yet; Ray must be connected.

    Args:
        several: The points; of Optuna those that it has suggested before.
        concurrent: Trials at the same time.

    Returns:
        What trials ended by that is not kept: the same command tries them again.
    """
    options = plan.options
    replays = options.scheduler != "none"  # what a scheduler decides depends on the trials before
    done = {index for index in range(len(several)) if Outcome.read(plan.directory, index)}
    due = {index: point for index, point in enumerate(several) if replays or index not in done}
    more = Advised(plan, several) if options.search == "optuna" else None
    number = len(due) + (max(0, (options.num_trials or FEWEST_TRIALS) - len(several)) if more else 0)
    if number == 0 or (more is None and len(done) == len(several)):
        return {}
    os.environ |= SETTINGS
    told = Told(plan)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(carry_out, plan=plan), {"CPU": TRIAL_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=Walk(due, more),
            scheduler=scheduler(options, plan.run.train.steps),
            num_samples=number,
            max_concurrent_trials=concurrent,
        ),
        run_config=tune.RunConfig(
            name=f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(plan.root / "ray"),
            callbacks=[told],
            verbose=0,
        ),
    )
    tuner.fit()
    return told.lost


def scheduler(options: Options, steps: int) -> TrialScheduler:
    """Who ends trials early: at a quarter and at half of the steps the worse half, or from a quarter on what is worse than the
    median."""
    sooner = {"time_attr": STEP, "metric": HELD_OUT, "mode": "min", "grace_period": max(1, steps // 4)}
    if options.scheduler == "asha":
        return AsyncHyperBandScheduler(max_t=steps, reduction_factor=2, **sooner)
    if options.scheduler == "median":
        return MedianStoppingRule(min_samples_required=3, **sooner)
    return FIFOScheduler()


def cpus(options: Options) -> float:
    """Logical CPUs of a trial: of its workers, or afterwards of the actors that measure it."""
    return TRIAL_CPUS + max(options.workers * options.cpus_per_worker, float(options.evaluation.actors or 1))


def room(options: Options) -> int:
    """How many trials the session has CPUs and GPUs for at the same time.

    Raises:
        ValueError: fewer than were asked for, or none.
    """
    there = ray.cluster_resources()
    fit = int((there.get("CPU", 0.0) - READ_CPUS) / cpus(options))
    if options.device == "cuda" or (options.device == "auto" and there.get("GPU", 0) >= options.workers):
        fit = min(fit, int(there.get("GPU", 0.0) / options.workers))
    if fit < max(1, options.concurrent):
        raise ValueError(
            f"concurrent={options.concurrent}: a trial needs {cpus(options):g} CPUs (and {READ_CPUS:g} are for reading), the "
            f"cluster has {there.get('CPU', 0.0):g} CPUs and {there.get('GPU', 0.0):g} GPUs: take "
            f"{f'--concurrent {fit}' if fit else 'fewer --workers, or smaller --cpus-per-worker'}"
        )
    return fit


def known_points(plan: Searched) -> list[Point]:
    """The points that Optuna has suggested so far."""
    file = plan.directory / SUGGESTED
    if not file.is_file():
        return []
    try:
        found = read_json(file)
        return [{d.name: str(point[d.name]) for d in plan.space.dimensions} for point in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: no points of a sweep ({one_line(error, 200)}); restore it, or remove it") from None


class Advised:
    """Points that Optuna suggests; each is kept on disk before it is tried.

    Raises:
        ValueError: Optuna is not installed.
    """

    def __init__(self, plan: Searched, before: Sequence[Point]) -> None:
        check_optuna()
        from ray.tune.search.optuna import OptunaSearch

        self.plan, self.points = plan, list(before)
        domains = {d.name: d.domain() for d in plan.space.dimensions}
        self.optuna = OptunaSearch(domains, metric=OBJECTIVE, mode="min", seed=plan.options.search_seed + len(before))
        for index, point in enumerate(before):
            if outcome := Outcome.read(plan.directory, index):
                self.learn(point, outcome.objective(plan.options.metric))

    def suggest(self, trial: str) -> tuple[int, Point]:
        """The next point, and its number."""
        found = self.optuna.suggest(trial) or {}
        point = {d.name: d.text(found[d.name]) for d in self.plan.space.dimensions}
        self.points.append(point)
        write_text(self.plan.directory / SUGGESTED, json.dumps(self.points, indent=1) + "\n")
        return len(self.points) - 1, point

    def told(self, trial: str, value: float) -> None:
        """Takes what a point gave that it has suggested under the name of a trial; nan: nothing."""
        found = {OBJECTIVE: value} if math.isfinite(value) else None
        self.optuna.on_trial_complete(trial, found, error=found is None)

    def learn(self, point: Point, value: float) -> None:
        """Takes what a point gave; nan: the trial was stopped, or has failed."""
        values = {d.name: d.value(point[d.name]) for d in self.plan.space.dimensions}
        lost = not math.isfinite(value)
        self.optuna.add_evaluated_point(values, math.inf if lost else value, error=lost)


def check_optuna() -> None:
    """Refuses a search that needs a package which is not there.

    Raises:
        ValueError: Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError(
            "search=optuna: Optuna is not installed; `pip install --editable '.[tune]'` installs it, --search random needs none"
        ) from None


class Walk(Searcher):
    """Points as Ray Tune takes them: those of a list, then those that are suggested.

    Args:
        due: By number, the points of the list.
        more: Who suggests others; None: nobody.
    """

    def __init__(self, due: Mapping[int, Point], more: Advised | None) -> None:
        super().__init__()
        self.due, self.more = list(due.items()), more
        self.suggested, self.retried = set[str](), dict[str, Point]()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.due:
            index, point = self.due.pop(0)
            if self.more and Outcome.read(self.more.plan.directory, index) is None:
                self.retried[trial_id] = point
        elif self.more:
            index, point = self.more.suggest(trial_id)
            self.suggested.add(trial_id)
        else:
            return Searcher.FINISHED
        return {"index": index, "point": dict(point)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self.more is None:
            return
        value = float((result or {}).get(OBJECTIVE, math.nan))
        if trial_id in self.suggested:
            self.more.optuna.on_trial_complete(trial_id, result if math.isfinite(value) else None, error)
        elif trial_id in self.retried:
            self.more.learn(self.retried.pop(trial_id), value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what a sweep has come to is read from its own files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""


class Told(tune.Callback):
    """Says how trials come on, and keeps that one was stopped, which the trial itself does not live to do.

    Args:
        plan: The sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.began, self.lost = plan, time.monotonic(), dict[str, str]()
        self.starts: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.starts[trial.trial_id] = time.monotonic()
        if self._outcome(trial) is None:
            self._say(trial, "begins, or goes on")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self._outcome(trial) is None and OBJECTIVE not in result and STEP in result:
            self._say(trial, f"step {result[STEP]}/{self.plan.run.train.steps}, held out {result[HELD_OUT]:.3f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        outcome = self._outcome(trial)
        if outcome is None:
            outcome = self._stopped(trial)
        metric = self.plan.options.metric
        if outcome.state == "measured":
            self._say(trial, f"measured, {metric} {outcome.objective(metric):.4f}")
        else:
            self._say(trial, f"{outcome.state} at step {outcome.step}: {outcome.reason}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self.plan.run_name(trial.config["index"])
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "its process was lost"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        self.lost[run] = one_line(lines[-1] if lines else "its process was lost", 300)
        self._say(trial, f"lost: {self.lost[run]}")

    def _outcome(self, trial: Any) -> Outcome | None:
        return Outcome.read(self.plan.directory, trial.config["index"])

    def _stopped(self, trial: Any) -> Outcome:
        """Keeps, and tells MLflow, that a trial was stopped by the scheduler."""
        plan, index, last = self.plan, trial.config["index"], trial.last_result or {}
        run, step = plan.root / plan.run_name(index), int(last.get(STEP, 0))
        reason = f"by {plan.options.scheduler}"
        outcome = Outcome(
            index=index,
            point=trial.config["point"],
            run=run.name,
            state="stopped",
            step=step,
            seconds=time.monotonic() - self.starts.get(trial.trial_id, self.began),
            reason=reason,
            held_out=last_held_out(run),
        )
        outcome.write(plan.directory)
        close_runs([run], plan.root, "KILLED", f"stopped {reason} at step {step}")
        return outcome

    def _say(self, trial: Any, text: str) -> None:
        index, point = trial.config["index"], trial.config["point"]
        seconds = time.monotonic() - self.began
        print(f"{seconds:5.0f} s  {self.plan.run_name(index)} ({self.plan.space.label(point)}): {text}", flush=True)
