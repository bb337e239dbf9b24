"""Checkpoints that are measured beside their training: what is measured of them, checked before the first step, and measuring
those that are due in this process.

On a cluster an actor does it (`on_ray.beside`); `--local` does it here, between two steps. Which checkpoints are due is
read from their directory and from RUN/along.jsonl alone, so that whatever ends the command, the same command measures what
is missing, and nothing twice. A checkpoint that is due is kept until it has been measured (`checkpoint.prune`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from indm_core.draw import check_sampling
from pipelines.data.card import load_card
from pipelines.evaluation.needs import attainable
from pipelines.evaluation.sampling.rows import parse_row
from pipelines.evaluation.settings import BRIEF_SETTINGS, Settings
from pipelines.runs.job import Job, Training
from pipelines.storage import checkpoint
from pipelines.storage.along import Measured, add_measured
from pipelines.storage.messages import one_line
from pipelines.training.launch import Along
from pipelines.training.watch.progress import measured_line

__all__ = ["due", "keep_figures", "measure_due", "measurement_along", "pass_over", "prune"]

TOLERANCE = 1e-3
"""Of the ODE of the NLL, whose error is then far below that of so few images."""


def measurement_along(jobs: Sequence[Job], along: Along) -> Settings | None:
    """How the checkpoints of some trainings are measured; None where none is.

    Raises:
        ValueError: data on which, or a sampler by which, they cannot be measured, or distances that the best are kept by
            and that are not to be had.
    """
    first = jobs[0]
    train = first.run.train
    if not train.measure_every:
        if along != Along():
            raise ValueError(f"along: no checkpoint is measured; give --measure-every {train.checkpoint_every}")
        return None
    try:
        row = parse_row(along.sampler)
        if row.start != "prior":
            raise ValueError(f"along.sampler={along.sampler}: samples start from the model's law; leave start out")
        for job in jobs:
            check_sampling(job.run.model.build(job.spec), row.sampling)
        asked = replace(BRIEF_SETTINGS, images=along.images, samples=along.samples, sampling=row.sampling)
        asked = replace(asked, inception_weights=along.inception_weights, rtol=TOLERANCE, atol=TOLERANCE)
        partner = load_card(first.partner) if first.partner else None
        settings = attainable(first.data, load_card(first.data), asked, partner)
    except ValueError as error:
        raise ValueError(f"measure_every={train.measure_every}: {error}") from None
    if train.keep_by == "fd" and not settings.samples:
        raise ValueError(
            "keep_by=fd: no distance is measured; give --along.samples NUMBER where the data allow one, or another --keep-by"
        )
    return settings


def due(training: Training) -> list[Path]:
    """The checkpoints of a training that are there and have yet to be measured, oldest first."""
    return checkpoint.unmeasured(training.directory, training.train.measures)


def measure_due(training: Training, measure: Callable[[Path, int], Measured]) -> None:
    """Measures what is due, here and now, and lets go of the checkpoints that were kept for it. One that cannot be measured is
    said, and ends no training."""
    for place in due(training):
        step = checkpoint.step_of(place)
        try:
            keep_figures(training, measure(training.directory, step))
        except (ValueError, OSError, RuntimeError) as error:
            pass_over(training, place, one_line(error, 200))
    prune(training)


def pass_over(training: Training, place: Path, reason: str) -> None:
    """Keeps of a checkpoint that it has no figures, and says why: it is not kept for them any more, nor tried again."""
    step = checkpoint.step_of(place)
    print(f"{training.directory.name}: step {step} has no figures: {reason}", flush=True)
    with suppress(OSError):  # a full disk, say: the same command tries it again
        add_measured(training.directory, Measured(step=step, checkpoint=checkpoint.digest_of(place), figures={}))


def keep_figures(training: Training, record: Measured) -> None:
    """Keeps what was measured of a checkpoint, and says it."""
    add_measured(training.directory, record)
    print(measured_line(training, record), flush=True)


def prune(training: Training) -> None:
    """Removes the checkpoints that the training would have removed, had they been measured by then; no worker trains it now."""
    train = training.train
    checkpoint.prune(training.directory, train.keep, train.keep_by, train.measures)
