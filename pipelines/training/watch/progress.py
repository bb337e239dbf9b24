"""Progress on the terminal: one line per record of a run's metrics.jsonl."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pipelines.runs.job import METRICS, Training
from pipelines.runs.record import Record, RecordReader
from pipelines.storage import checkpoint
from pipelines.storage.along import Measured

__all__ = ["Ticker", "line", "measured_line", "saved", "show"]

POLL_SECONDS = 0.5


def line(training: Training, record: Record) -> str:
    """A record as a line: step, loss terms, held-out NELBO, speed, data wait, time left."""
    where = f"{training.directory.name}  {record.phase:<11} {record.step:>6}/{training.train.steps}"
    if not record.trained:
        return f"{where}  {record.measured}"
    minutes, seconds = divmod(int(record.eta_s), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    skipped = f"  skipped {record.skipped}" if record.skipped else ""
    speed = f"{record.images_per_s:.0f} {record.rows}/s  wait {record.data_wait:.0%}  left {left}{skipped}"
    return "  ".join(filter(None, [where, _loss(record), record.measured, speed]))


def measured_line(training: Training, record: Measured) -> str:
    """What was measured of a checkpoint as a line: every figure with its standard error."""
    where = f"{training.directory.name}  {'measured':<11} {record.step:>6}/{training.train.steps}"
    figures = []
    for name, taken in record.figures.items():
        of = f"(n = {record.samples:,})" if name == "fd" else record.unit
        figures.append(f"{name} {taken.value:.3f} +- {taken.se:.3f} {of}")
    return "  ".join([where, *(figures or ["no figure could be had"]), f"{record.seconds:.0f} s"])


def _loss(record: Record) -> str:
    """The first term in its unit, and the others in brackets."""
    if not record.terms:
        return "no finite step"
    (name, value), *others = record.terms.items()
    shown = f"{name} {value:.3f} {record.unit}"
    return f"{shown} ({' '.join(f'{k} {v:+.3f}' for k, v in others)})" if others else shown


def saved(trainings: Sequence[Training]) -> str:
    """What an ended command says of its trainings: where each goes on."""
    told = []
    for training in trainings:
        kept = checkpoint.checkpoints(training.directory)
        step = int(kept[-1].name.removeprefix("step-")) if kept else 0
        state = "is complete at" if step == training.train.steps else "is saved at" if step else "has not begun, at"
        told.append(f"{training.directory.name} {state} step {step:,}")
    return f"{', '.join(told)}; the same command goes on from there"


def show(training: Training, record: Record) -> None:
    """Prints a record's line."""
    print(line(training, record), flush=True)


class Ticker:
    """Prints the records that workers append to the metrics.jsonl of their runs, while it is open.

    What is there already when it is made is not printed.
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.readers = [(training, RecordReader(training.directory / METRICS)) for training in trainings]
        self.seen: dict[Path, int] = {}
        for training, reader in self.readers:
            reader.read()
            self.seen[training.directory] = reader.last_step if reader.line else -1
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Ticker:
        for directory, step in self.seen.items():
            if step > 0:
                print(f"{directory.name}: goes on after step {step} or the checkpoint before it")
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopping.set()
        self.thread.join()
        self._print_new()

    def _watch(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            self._print_new()

    def _print_new(self) -> None:
        for training, reader in self.readers:
            directory = training.directory
            records = reader.read()
            if reader.last_step < self.seen[directory]:  # restarted from an earlier checkpoint
                print(f"{directory.name}: restarted from a checkpoint at or after step {reader.last_step}", flush=True)
                self.seen[directory] = reader.last_step
            for record in records:
                if record.step > self.seen[directory]:
                    show(training, record)
                    self.seen[directory] = record.step
