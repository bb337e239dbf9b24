"""A line on a whole training: how quick it was, for each worker, and where its time went.

Over the logging intervals i of the run, which count each step once, whatever was trained twice after a fault, with n_i steps
of b rows at v_i rows/s, T_i = n_i b/v_i seconds, s_i seconds per step and the share w_i of waiting:

    speed = b sum_i n_i / sum_i T_i,   efficiency = sum_i n_i s_i / sum_i T_i,   waiting = sum_i w_i T_i / sum_i T_i.

The rest is held-out rows, pictures and checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.runs.hardware import read_hardware
from pipelines.runs.job import Training, read_metrics
from pipelines.runs.record import Record

__all__ = ["seconds_taken", "summary"]


def summary(training: Training, restarts: int = 0) -> str:
    """The line of a run's end.

    Args:
        training: Whose metrics.jsonl is read.
        restarts: How often its workers have begun again under this command.
    """
    records, last, steps = read_metrics(training.directory), 0, 0
    whole = in_steps = waiting = 0.0
    for record in records:
        num, last = record.step - last, record.step
        if not record.images_per_s:
            continue
        seconds = num * training.train.batch_size / record.images_per_s
        steps, whole = steps + num, whole + seconds
        in_steps, waiting = in_steps + num * record.step_s, waiting + record.data_wait * seconds
    name = training.directory.name
    if not whole:
        return f"{name}: no step was timed"
    speed = steps * training.train.batch_size / whole
    said = [f"{name}: {steps:,} steps in {_time(whole)}, {speed:.0f} {_rows(records)}/s{_each(training, speed)}"]
    if in_steps:
        rest = max(0.0, 1 - (in_steps + waiting) / whole)
        said.append(
            f"{in_steps / whole:.0%} of the time in steps, {waiting / whole:.0%} waiting for data, {rest:.0%} for held-out "
            "rows, pictures and checkpoints"
        )
    if skipped := records[-1].skipped:
        said.append(f"{skipped} steps skipped")
    if restarts:
        said.append(f"workers began again {restarts} time{'s' * (restarts > 1)}")
    return "; ".join(said)


def seconds_taken(training: Training) -> float:
    """The time of a whole training, over all commands that went on with it."""
    last, whole = 0, 0.0
    for record in read_metrics(training.directory):
        if record.images_per_s:
            whole += (record.step - last) * training.train.batch_size / record.images_per_s
        last = record.step
    return whole


def _each(training: Training, speed: float) -> str:
    """The share of one of several workers."""
    there = read_hardware(training.directory)
    workers = {entry.processes for entry in there} or {1}
    if len(workers) > 1:
        return f", by {min(workers)} to {max(workers)} workers"
    (num,) = workers
    return f", {speed / num:.0f} by each of {num} workers" if num > 1 else ""


def _rows(records: Sequence[Record]) -> str:
    return next((record.rows for record in records if record.unit), "rows")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
