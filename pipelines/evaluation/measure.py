"""Measuring trained runs.

Every measurement (`measurements`) says what tasks it needs; a pool of actors carries them out, each once, and takes the
models' weights once from the object store. Kinds of tasks share the actors' time fairly, and running figures show as they come
(`progress`). In which order tasks are done changes no figure. Several runs on the same data are measured on the same draws, and
compared by differences paired per image. Every figure has a standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from pipelines.cluster.pool import Pool, places
from pipelines.config.store import check_data, digest
from pipelines.config.weights import Weights
from pipelines.evaluation.evaluator import Evaluator, Work
from pipelines.evaluation.kept import Kept
from pipelines.evaluation.measurement import Done, Result, Task
from pipelines.evaluation.measurements import MEASUREMENTS
from pipelines.evaluation.measurements.collages import CollageResult, Collages
from pipelines.evaluation.measurements.distances import Distances, DistancesResult
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.progress import Progress
from pipelines.evaluation.results.archive import best, key, present, put
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.shares import Share
from pipelines.evaluation.settings import Settings
from pipelines.runs.pictures import save_levels
from pipelines.runs.series import streaming
from pipelines.storage.outputs import check_writable

__all__ = ["Keep", "Look", "carry_out", "evaluate"]


def evaluate(
    runs: Sequence[Weights],
    settings: Settings,
    root: Path,
    show: Callable[[Evaluation], None] = lambda document: None,
    device: str = "auto",
) -> Evaluation:
    """Measures runs on the same data together; Ray must be connected.

    What tasks have given is kept on disk as it comes, so that after a kill the same call goes on from there (`Kept`).

    Args:
        runs: Trained runs, or checkpoints.
        root: Output directory, where prepared data and classifiers are kept.
        show: Called with the document, which is written by then, before pictures are drawn.
        device: Of the actors, see `places`.

    Returns:
        The document that is kept there (`archive`).

    Raises:
        ValueError: no run, a run that is not trained or cannot be written to, or runs on different data.
    """
    began = time.monotonic()
    for run in runs:
        check_writable(run.place)
    plan = Plan.of(runs, settings, root)
    for run in runs:
        check_data(run, plan.card)
    measurements = [measurement for kind in MEASUREMENTS for measurement in kind.asked(plan)]
    actors, device = places(settings.actors, device)
    kept = Kept(plan, tuple(runs), device)
    done, work, seconds = kept.read(list(dict.fromkeys(task for each in measurements for task in each.tasks())))
    began -= seconds

    def keep(task: Task[Any], outcome: Any, seconds: float) -> None:
        done[task], work[task] = outcome, seconds
        kept.add(task, outcome, seconds, time.monotonic() - began)

    with streaming(runs, root) as series:
        progress = Progress(plan.names, measurements, done, series)
        missing = progress.missing()
        if done:
            print(f"going on: {len(done)} of {len(done) + len(missing)} tasks were done before", flush=True)
        carry_out(plan, missing, keep, progress.look, actors, device)
    found = [(measurement.model, measurement.reduce(done)) for measurement in measurements]
    document = _document(runs, plan, found, work, time.monotonic() - began)
    for run in runs:
        put(run, document)
    kept.remove()
    show(document)
    _draw(document, runs, plan, [m for m in measurements if isinstance(m, Distances)], done)
    _draw_canvases(document, runs, plan, [m for m in measurements if isinstance(m, Collages)], done)
    return document


Keep = Callable[[Task[Any], Any, float], None]
"""Takes a task, what it gave, and the seconds that its actor took."""
Look = Callable[[Task[Any], float], Collection[Task[Any]]]
"""Told after each task that is kept, and about how many seconds are left; gives tasks that need not be done any more."""


def carry_out(plan: Plan, tasks: Sequence[Task[Any]], keep: Keep, look: Look, actors: int, device: str) -> None:
    """Has tasks done by actors, and gives each with its outcome to `keep` as it is done.

    Kinds of tasks share the actors' time fairly. While `keep` takes an outcome, no other task is begun, so that at most one
    outcome of each actor waits.
    """
    if not tasks:
        return
    arguments = ([ray.put(subject) for subject in plan.subjects], plan.extractor.make, 1, device)
    with Pool(Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        work = Work({task: task for task in tasks}, plan, actors)
        for task, timed in work.stream(pool):
            keep(work.tasks[task], timed.outcome, timed.seconds)
            work.drop(look(work.tasks[task], work.queue.seconds_left()))


def _document(
    runs: Sequence[Weights],
    plan: Plan,
    found: Sequence[tuple[int | None, Result]],
    work: Mapping[Task[Any], float],
    seconds: float,
) -> Evaluation:
    """The results of all measurements, each with the index of its run or None, in one."""
    figures = {}
    for i, (name, subject) in enumerate(zip(plan.names, plan.subjects, strict=True)):
        figures[name] = Figures(
            parameters=sum(t.numel() for t in subject.tensors.values()),
            evaluations=subject.build().evaluations(),
            results=tuple(result for model, result in found if model == i),
        )
    first = plan.subjects[0]
    return Evaluation(
        unit=first.spec.unit,
        data=first.spec.name,
        images=len(plan.test),
        settings=plan.settings,
        weights={run.name: digest(run) for run in runs},
        runs=figures,
        results=tuple(result for model, result in found if model is None),
        seconds=seconds,
        shares=_shares(plan, work),
    )


def _shares(plan: Plan, work: Mapping[Task[Any], float]) -> tuple[Share, ...]:
    """The actors' time by model and kind."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for task, seconds in work.items():
        name = "" if task.model is None else plan.names[task.model]
        kinds.setdefault((name, task.kind), []).append(seconds)
    return tuple(
        Share(model=name, kind=kind, tasks=len(each), seconds=sum(each)) for (name, kind), each in sorted(kinds.items())
    )


def _draw(
    document: Evaluation, runs: Sequence[Weights], plan: Plan, distances: Sequence[Distances], done: Done
) -> None:
    """The first samples of each run as a picture, unless a more precise measurement has one."""
    spec = plan.subjects[0].spec
    num = 100 if len(spec.shape) > 1 else 2000
    for run, measurement in zip(runs, distances, strict=False):  # one of each run, or none
        shown_by = best(run.name, present(run), DistancesResult)
        if shown_by and key(shown_by.document) != key(document):
            continue
        shown = torch.cat([batch.shown for batch in measurement.made(done)])
        save_levels(shown[:num], spec, run / "samples.png")


def _draw_canvases(
    document: Evaluation, runs: Sequence[Weights], plan: Plan, collages: Sequence[Collages], done: Done
) -> None:
    """The first canvases of each run likewise."""
    spec = plan.subjects[0].spec
    if len(spec.shape) == 1:
        return
    for run, measurement in zip(runs, collages, strict=False):  # one of each run, or none
        shown_by = best(run.name, present(run), CollageResult)
        if shown_by and key(shown_by.document) != key(document):
            continue
        first = measurement.first(done)
        columns = 1 if first.shape[-1] > 2 * first.shape[-2] else 4
        save_levels(first, spec, run / "canvases.png", columns)
