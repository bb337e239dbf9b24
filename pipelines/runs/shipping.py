"""What a training leaves in its directory, on its way to MLflow: the records of metrics.jsonl, what was measured of its
checkpoints, and the sample pictures.

A training writes files and nothing else. A thread of the command that started it (`Shipper`) reads what they gain and logs it
in batches, so that a store which is slow, hung, locked or gone costs the training nothing. The queue between the two is
metrics.jsonl, and how far it was logged is asked of the store: the step of the last figure that it has. An outage of any
length, a killed command or a run that was begun anew therefore lose nothing and repeat nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, final

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from pipelines.runs.catalogue import log_end
from pipelines.runs.job import METRICS
from pipelines.runs.kept import began, finished_at, run_id
from pipelines.runs.record import Record, RecordReader
from pipelines.runs.store import named, reach
from pipelines.storage.along import Measured, read_measured

__all__ = ["METRICS_PER_CALL", "Feed", "Shipper", "Source"]

POLL_SECONDS = 2.0
LONGEST_PAUSE = 60.0
"""Between two attempts to reach a store that does not answer; each pause is twice the one before."""
END_SECONDS = 10.0
METRICS_PER_CALL = 1000
TRAINING = "training goes on, metrics.jsonl has every figure, and what is missing is logged when it answers"
PICTURES = "samples"
EVERY_RECORD = ("_per_s", "validation/nelbo")
"""How the names of two figures end of which each record has one, also as earlier versions logged them (images_per_s)."""
ALONG = "along/"
"""How the names of figures of checkpoints begin."""


class Source(Protocol):
    """Something of one run that a store is to have."""

    def begin(self) -> None:
        """Forgets how far the store is."""

    def gained(self) -> bool:
        """Whether there may be something that the store lacks."""
        ...

    def ship(self, *, whole: bool) -> None:
        """Logs what the store lacks; raises whatever MLflow does."""


@final
class Feed:
    """The records and pictures of one run, each logged once, and its end.

    Args:
        directory: Of the run, whose mlflow.json names the MLflow run.
        uri: Of the store.
        opens: opens(milliseconds since 1970) opens the MLflow run of a training that began then. Nothing is logged of a
            training before it begins, for which it is waited. None: the run is open.
    """

    def __init__(self, directory: Path, uri: str, opens: Callable[[int], object] | None = None) -> None:
        self.directory, self.uri, self.opens = directory, uri, opens
        self.before = began(directory)
        self.begin()

    def begin(self) -> None:
        """Forgets how far the store is: it is asked again."""
        self.reader, self.client, self.run_id = RecordReader(self.directory / METRICS), None, ""
        self.step, self.measured, self.pictures, self.ended = -1, -1, set[str](), False

    def gained(self) -> bool:
        """Whether the directory may hold what the store lacks."""
        if self.opens:
            return began(self.directory) != self.before
        try:
            longer = self.reader.file.stat().st_size != self.reader.offset
        except OSError:
            longer = False
        new = bool(self._new_measured()) or bool(self._new_pictures())
        return longer or new or (not self.ended and finished_at(self.directory) > 0)

    def ship(self, *, whole: bool) -> None:
        """Logs what the store lacks.

        Args:
            whole: Whether the last picture is whole: it is while nobody trains. Otherwise one counts as whole when there is a
                record of a later step.

        Raises:
            Exception: whatever MLflow raises where the store refuses; `begin` before the next attempt.
        """
        if self.opens:
            self.opens(began(self.directory))
            self.opens = None
        if self.client is None:
            self.client = self._open()
        records = [record for record in self.reader.read() if record.step > self.step]
        for batch in _batches(records):
            self.client.log_batch(self.run_id, metrics=[metric for record in batch for metric in _metrics(record)])
            self.step = batch[-1].step
        for record in self._new_measured():
            self.client.log_batch(self.run_id, metrics=_metrics(record))
            self.measured = record.step
        for file in self._new_pictures():
            if whole or file.name < f"step-{self.reader.last_step:08d}":
                self.client.log_artifact(self.run_id, str(file), PICTURES)
                self.pictures.add(file.name)
        log_end(self.directory, self.uri)
        self.ended = finished_at(self.directory) > 0

    def _open(self) -> MlflowClient:
        """A client, and what the run has by now."""
        client, self.run_id = MlflowClient(self.uri), run_id(self.directory)
        last = client.get_run(self.run_id).to_proto().data.metrics
        along = [metric.step for metric in last if metric.key.startswith(ALONG)]
        others = (metric for metric in last if not metric.key.startswith(ALONG))
        self.step = max((metric.step for metric in others if metric.key.endswith(EVERY_RECORD)), default=-1)
        self.measured = max(along, default=-1)
        self.pictures = {Path(file.path).name for file in client.list_artifacts(self.run_id, PICTURES)}
        return client

    def _new_measured(self) -> list[Measured]:
        return [record for record in read_measured(self.directory) if record.step > self.measured and record.numbers()]

    def _new_pictures(self) -> list[Path]:
        found = (self.directory / PICTURES).glob("step-*.png")
        return sorted(file for file in found if file.name not in self.pictures)


def _metrics(record: Record | Measured) -> list[Metric]:
    """Every number of a record."""
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, record.step) for name, value in record.metrics().items()]


def _batches(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Records in groups that a call takes."""
    each = max((len(record.figures()) for record in records), default=1)
    size = max(1, METRICS_PER_CALL // each)
    return [records[first : first + size] for first in range(0, len(records), size)]


class Shipper:
    """A context in which a thread logs what trainings leave in their directories.

    That the store does not answer is said once, and once that it does again. At the end of the block the thread has
    `END_SECONDS` to finish; what is left then, the next command on the run logs.

    Args:
        feeds: Of the runs, in the order in which they are trained.
        uri: Of the store.
        remark: What is said to a store that does not answer.
        end_seconds: For which the thread is waited for at the end, at most `END_SECONDS`.
    """

    def __init__(
        self, feeds: Sequence[Source], uri: str, remark: str = TRAINING, end_seconds: float = math.inf
    ) -> None:
        self.feeds, self.uri, self.remark, self.end_seconds = feeds, uri, remark, end_seconds
        self.pause, self.said, self.stopping = POLL_SECONDS, False, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="mlflow")

    def __enter__(self) -> Shipper:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopping.set()
        self.thread.join(0.0 if error else min(self.end_seconds, END_SECONDS))

    def _run(self) -> None:
        while not self.stopping.wait(self.pause):
            self._attempt(whole=False)
        self._attempt(whole=True)

    def _attempt(self, *, whole: bool) -> None:
        gaining = [feed for feed in self.feeds if feed.gained()]
        if not gaining:
            return
        try:
            reach(self.uri, patience=1.0)
            for feed in gaining:
                feed.ship(whole=whole)
        except Exception as error:  # whatever a store's driver raises: the thread goes on
            for feed in gaining:
                feed.begin()
            self.pause = min(LONGEST_PAUSE, 2 * self.pause)
            if not self.said:
                reason = " ".join(str(error).split())[:200]
                print(f"MLflow at {named(self.uri)} does not answer ({reason}); {self.remark}", flush=True)
                self.said = True
        else:
            if self.pause > POLL_SECONDS and not self.stopping.is_set():
                print(f"MLflow at {named(self.uri)} answers again: what was missing is logged", flush=True)
            self.pause = POLL_SECONDS
