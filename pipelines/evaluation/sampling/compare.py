"""Samplers compared: every row (`rows`) of every run draws the same seeds, and is measured by the Frechet and kernel
distance to the training data, the evaluations of the score that a sample takes, and the seconds of one actor.

Samples and their features are kept under RUN/compare/ as they are made (`pieces`): a killed table goes on where it
stopped, and a larger num_samples adds to what is there. The rows of an earlier table of as many samples stay with the new ones;
a table of fewer samples does not take the place of one of more (`comparison`).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from indm_core.model import GenerativeModel
from pipelines.cluster.fair import K
from pipelines.cluster.pool import Pool, places
from pipelines.config.store import check_data, identity
from pipelines.config.weights import Weights
from pipelines.evaluation.evaluator import Evaluator, Work
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurements.distances import (
    DistancesResult,
    Samples,
    compared,
    evaluations_of,
)
from pipelines.evaluation.measurements.real import RealFeatures
from pipelines.evaluation.plan import Plan, Subject
from pipelines.evaluation.results.estimates import ReferenceFeatures
from pipelines.evaluation.sampling.comparison import FILE, Comparison, RowResult
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.evaluation.sampling.pieces import PIECE, Pieces
from pipelines.evaluation.sampling.rows import Row, choose
from pipelines.evaluation.sampling.settled import sampling_for
from pipelines.evaluation.settings import Settings
from pipelines.runs.pictures import save_levels
from pipelines.runs.tracking import Made, deliver, post
from pipelines.storage.outputs import check_writable

__all__ = ["Measured", "compare", "log", "measured_rows"]


@dataclass(frozen=True)
class Entry:
    """A row of a run, and where its samples are kept."""

    model: int
    row: Row
    pieces: Pieces
    labelled: bool

    def task(self, seeds: range) -> Samples:
        row = self.row
        begun = {"start": row.start, "strength": row.strength}
        return Samples(model=self.model, seeds=seeds, sampling=row.sampling, labelled=self.labelled, **begun)

    def result(self, parts: Sequence[range], real: ReferenceFeatures, reference: Reference) -> RowResult:
        """Its figures, from all pieces."""
        made = [piece for seeds in parts if (piece := self.pieces.read(seeds)) is not None]
        features, logits = torch.cat([p.features for p in made]), torch.cat([p.logits for p in made])
        result = DistancesResult(
            distances=compared(features, logits, real, seed=0),
            reference=reference,
            sampling=self.row.sampling,
            start=self.row.start,
            strength=self.row.strength,
            evaluations=evaluations_of([len(p.features) for p in made], [p.evaluations for p in made]),
            diverged=sum(piece.diverged for piece in made),
            labels=self.labelled,
        )
        return RowResult(row=self.row.text, seconds=sum(piece.seconds for piece in made), result=result)


def compare(
    runs: Sequence[Weights],
    wanted: CompareOptions,
    root: Path,
    show: Callable[[Comparison], None] = lambda document: None,
) -> Comparison:
    """Measures every row of every run; Ray must be connected.

    Args:
        show: Called with all rows, which are written by then, before pictures are drawn.

    Returns:
        All rows; kept in each run's directory, whose compare.json and compare.png are of the table of the most samples.

    Raises:
        ValueError: a run that is not trained or cannot be written to, runs on different data, or a row that a model does not
            allow.
    """
    found = measured_rows(runs, lambda name, model: choose(wanted.rows, model, name).rows, wanted, root)
    rows = {
        run.name: tuple(result for entry, result in found.results.items() if entry.model == i)
        for i, run in enumerate(runs)
    }
    plan = found.plan
    document = Comparison(
        num_samples=wanted.num_samples, key=found.key, reference=plan.reference, weights="", runs=rows
    )
    whole = {run: document.with_earlier(run, identity(run)) for run in runs}
    for run in runs:
        whole[run].put(run)
    show(document)
    _draw(runs, list(found.results), found.first, plan)
    return document


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rows that were measured.

    Args:
        plan: Of what.
        key: Of the feature network and the kind of device.
        first: The seeds of the first piece.
        results: By row of a run.
    """

    plan: Plan
    key: str
    first: range
    results: dict[Entry, RowResult]


def measured_rows(
    runs: Sequence[Weights],
    rows: Callable[[str, GenerativeModel], Sequence[Row]],
    wanted: CompareOptions,
    root: Path,
) -> Measured:
    """Draws and measures rows of runs, of which the pieces that are there are not drawn again; Ray must be connected.

    Args:
        rows: rows(name of a run, its model): its rows.
        wanted: How many samples, and where; not its rows.

    Raises:
        ValueError: as `compare` does.
    """
    for run in runs:
        check_writable(run.place)
    settings = Settings(samples=wanted.num_samples, inception_weights=wanted.inception_weights, actors=wanted.actors)
    plan = Plan.of(runs, settings, root)
    for run in runs:
        check_data(run, plan.card)
    actors, device = places(wanted.actors, wanted.device)
    key = f"{plan.extractor.key} {device}"
    entries = _entries(runs, plan.subjects, rows, key)
    parts = [range(a, min(a + PIECE, wanted.num_samples)) for a in range(0, wanted.num_samples, PIECE)]
    tasks = _missing(entries, parts)
    arguments = ([ray.put(s) for s in plan.subjects], plan.extractor.make, 1, device)
    with Pool(Evaluator, arguments, actors, gpus=float(device == "cuda")) as pool:
        real = _reference(pool, plan, actors)
        for (entry, seeds), made in _in_lines("samples", Work(tasks, plan, actors), pool):
            entry.pieces.write(seeds, made)  # on disk, not in memory
    results = _results(entries, parts, real, plan.reference)
    return Measured(plan=plan, key=key, first=parts[0], results=results)


def _draw(runs: Sequence[Weights], entries: Sequence[Entry], first: range, plan: Plan) -> None:
    """The figure of each run, of its table of the most samples, and the first samples of each row."""
    for run in runs:
        Comparison.read(run / FILE).draw(run / "compare.png")
    for entry in entries:
        piece = entry.pieces.read(first)
        if piece is not None:
            shown = piece.shown[: 100 if len(plan.card.shape) > 1 else 2000]
            save_levels(shown, plan.subjects[entry.model].spec, entry.pieces.directory / "samples.png")


def _entries(
    runs: Sequence[Weights],
    subjects: Sequence[Subject],
    rows: Callable[[str, GenerativeModel], Sequence[Row]],
    key: str,
) -> list[Entry]:
    """The rows of every run, in the order of the table."""
    entries = []
    for i, (run, subject) in enumerate(zip(runs, subjects, strict=True)):
        made = subject.build()
        model, labelled = identity(run), subject.run.model.conditional
        for row in rows(run.name, made):
            taken = replace(row, sampling=sampling_for(run, made, row.sampling))
            entries.append(Entry(i, taken, Pieces.of(run, model, taken, key), labelled))
    return entries


def _missing(entries: Sequence[Entry], parts: Sequence[range]) -> dict[tuple[Entry, range], Samples]:
    """The tasks whose samples are not there yet, by entry and seeds."""
    wanted = [(entry, seeds) for seeds in parts for entry in entries if entry.pieces.read(seeds) is None]
    kept = len(entries) * len(parts) - len(wanted)
    if kept:
        print(f"{kept} of {len(entries) * len(parts)} pieces are there already", flush=True)
    return {(entry, seeds): entry.task(seeds) for entry, seeds in wanted}


def _reference(pool: Pool, plan: Plan, actors: int) -> ReferenceFeatures:
    """The features of the training rows."""
    real = RealFeatures(plan)
    work = Work({task: task for task in real.tasks()}, plan, actors)
    return real.of(dict(_in_lines("reference features", work, pool)))


def _in_lines(what: str, work: Work[K], pool: Pool) -> Iterator[tuple[K, Any]]:
    """What tasks give as it is done, with a line of progress every few seconds."""
    began = shown = time.monotonic()
    for num, (key, timed) in enumerate(work.stream(pool), 1):
        yield key, timed.outcome
        if time.monotonic() - shown > 5 or num == len(work):
            shown = time.monotonic()
            left = work.queue.seconds_left()
            print(f"{what}: {num}/{len(work)} tasks, {shown - began:.0f} s, about {left:.0f} s left", flush=True)


def _results(
    entries: Sequence[Entry], parts: Sequence[range], real: ReferenceFeatures, reference: Reference
) -> dict[Entry, RowResult]:
    """The figures of every entry, with a line of progress every few seconds."""
    results = {}
    began = shown = time.monotonic()
    for num, entry in enumerate(entries, 1):
        results[entry] = entry.result(parts, real, reference)
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            left = (shown - began) / num * (len(entries) - num)
            print(f"distances: {num}/{len(entries)} rows, about {left:.0f} s left", flush=True)
    return results


def log(runs: Sequence[Weights], root: Path) -> None:
    """Writes the rows, document and picture of each run's table of the most samples into its MLflow run."""
    for run in runs:
        figures = {
            f"compare/{re.sub(r'[^-.:/ A-Za-z0-9_]', '-', row.row)}/{name}": value
            for row in Comparison.read(run / FILE).runs[run.name]
            for name, value in row.result.metrics().items()
            if math.isfinite(value)
        }
        post(run, Made(figures=figures, files=(str(run / FILE), str(run / "compare.png"))))
    deliver([run.run for run in runs], root)
