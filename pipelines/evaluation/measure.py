"""Measuring trained runs.

Every measurement (`measurements`) says what tasks it needs; a pool of actors carries them out, each once, and takes the
models' weights once from the object store. Several runs on the same data are measured on the same draws, and compared
by differences paired per image. Every figure has a standard error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import ray
import torch

from pipelines.cluster.pool import Pool, places
from pipelines.config.store import check_data, digest
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.measurement import Done, Measurement, Task
from pipelines.evaluation.measurements import MEASUREMENTS
from pipelines.evaluation.measurements.distances import Distances
from pipelines.evaluation.plan import Plan, subjects_of
from pipelines.evaluation.results import Evaluation, Figures
from pipelines.evaluation.settings import FULL, Settings
from pipelines.runs.pictures import save_levels

__all__ = ["evaluate"]


def evaluate(runs: Sequence[Path], settings: Settings, root: Path, name_of_file: str = FULL) -> Evaluation:
    """Measures runs on the same data together; Ray must be connected.

    Args:
        runs: Directories of trained runs.
        root: Output directory, where prepared data and classifiers are kept.
        name_of_file: What the document is called in each run's directory.

    Returns:
        The document that is written there.

    Raises:
        ValueError: no run, a run that is not trained, or runs on different data.
    """
    began = time.monotonic()
    names = tuple(run.name for run in runs)
    plan = Plan(names=names, subjects=tuple(subjects_of(runs)), settings=settings, root=root)
    for run in runs:
        check_data(run, plan.card)
    kinds = [kind.asked(plan) for kind in MEASUREMENTS]
    done = carry_out(plan, [task for kind in kinds for task in _in_turn(kind)])
    measurements = list(chain.from_iterable(kinds))
    found = [(measurement.model, measurement.reduce(done)) for measurement in measurements]
    figures = {}
    for i, (name, subject) in enumerate(zip(names, plan.subjects, strict=True)):
        figures[name] = Figures(
            parameters=sum(t.numel() for t in subject.tensors.values()),
            evaluations=subject.build().evaluations(),
            results=tuple(result for model, result in found if model == i),
        )
    first = plan.subjects[0]
    document = Evaluation(
        unit=first.spec.unit,
        data=first.spec.name,
        images=sum(len(rows) for _, rows in plan.test),
        settings=settings,
        weights={run.name: digest(run) for run in runs},
        runs=figures,
        results=tuple(result for model, result in found if model is None),
        seconds=time.monotonic() - began,
    )
    _draw(runs, plan, [m for m in measurements if isinstance(m, Distances)], done)
    for run in runs:
        document.write(run / name_of_file)
    return document


def carry_out(plan: Plan, tasks: Sequence[Task[Any]]) -> Done:
    """What the tasks give, equal ones done once."""
    each = list(dict.fromkeys(tasks))
    actors, device = places(plan.settings.actors)
    arguments = ([ray.put(subject) for subject in plan.subjects], plan.extractor.make, 1, device)
    with Pool(Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        given = pool.run({(i,): ("run", (task,)) for i, task in enumerate(each)}, "evaluating")
    return {task: given[i,] for i, task in enumerate(each)}


def _in_turn(measurements: Sequence[Measurement[Any]]) -> list[Task[Any]]:
    """The tasks of measurements of one kind, models in turn, so that all of them show early."""
    rounds = zip_longest(*(measurement.tasks() for measurement in measurements))
    return [task for tasks in rounds for task in tasks if task is not None]


def _draw(runs: Sequence[Path], plan: Plan, distances: Sequence[Distances], done: Done) -> None:
    """The first samples of each run as a picture."""
    spec = plan.subjects[0].spec
    num = 100 if len(spec.shape) == 3 else 2000
    for run, measurement in zip(runs, distances, strict=False):  # one of each run, or none
        shown = torch.cat([batch.shown for batch in measurement.made(done)])
        save_levels(shown[:num], spec, run / "samples.png")
