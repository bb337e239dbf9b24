"""Progress on the terminal: one line per record of a run's metrics.jsonl."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pipelines.runs.job import Job, read_metrics

__all__ = ["Ticker", "line", "show"]

POLL_SECONDS = 0.5
TERMS = ("denoising", "transitions", "prior", "log_det", "partner")


def line(job: Job, record: dict[str, Any]) -> str:
    """A record as a line: step, loss terms, speed, data wait, time left."""
    minutes, seconds = divmod(int(record["eta_s"]), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    if "nelbo" in record:
        terms = " ".join(f"{k} {record[k]:+.3f}" for k in TERMS if k in record)
        loss = f"nelbo {record['nelbo']:.3f} {record['unit']} ({terms})"
    else:
        loss = "no finite step"
    skipped = f"  skipped {record['skipped']}" if record["skipped"] else ""
    return (
        f"{job.directory.name}  {record['phase']:<11} {record['step']:>6}/{job.run.train.steps}  {loss}  "
        f"{record['images_per_s']:.0f} img/s  wait {record['data_wait']:.0%}  left {left}{skipped}"
    )


def show(job: Job, record: dict[str, Any]) -> None:
    print(line(job, record), flush=True)


class Ticker:
    """Prints the records that workers append to the runs' metrics.jsonl while it is open."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.seen = {job.directory: self._last(job) for job in jobs}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Ticker:
        for job in self.jobs:
            if self.seen[job.directory]:
                print(
                    f"{job.directory.name}: goes on after step {self.seen[job.directory]} or the checkpoint before it"
                )
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
        for job in self.jobs:
            records = read_metrics(job.directory)
            last = records[-1]["step"] if records else 0
            if last < self.seen[job.directory]:  # restarted from an earlier checkpoint
                print(f"{job.directory.name}: restarted from a checkpoint at or after step {last}", flush=True)
                self.seen[job.directory] = last
            for record in records:
                if record["step"] > self.seen[job.directory]:
                    show(job, record)
                    self.seen[job.directory] = record["step"]

    @staticmethod
    def _last(job: Job) -> int:
        records = read_metrics(job.directory)
        return records[-1]["step"] if records else 0
