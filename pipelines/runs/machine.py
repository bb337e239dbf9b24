"""The machine of a worker (CPU, memory, GPU), sampled into the MLflow run of what it trains."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.runs.kept import run_id

__all__ = ["Machine"]

POLL_SECONDS = 0.5


class Machine:
    """A context in which threads of this process sample its machine; a training never waits for them.

    Args:
        uri: Of the store.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.current = uri, Path()
        self.directories: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True, name="machine")

    def follow(self, directory: Path) -> None:
        """From here on the samples belong to the run in this directory."""
        if directory != self.current:
            self.current = directory
            self.directories.put(directory)

    def __enter__(self) -> Machine:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.directories.put(None)
        self.thread.join(0.0 if error else 5.0)

    def _run(self) -> None:
        monitor: Any = None
        while (directory := self.directories.get()) is not None:
            with suppress(Exception):  # samples are no reason to end anything
                if monitor:
                    monitor.finish()
                from mlflow.system_metrics.system_metrics_monitor import (
                    SystemMetricsMonitor,
                )  # needs psutil, as Ray does

                monitor = SystemMetricsMonitor(self._opened(directory), resume_logging=True, tracking_uri=self.uri)
                monitor.start()
        if monitor:
            with suppress(Exception):
                monitor.finish()

    def _opened(self, directory: Path) -> str:
        """The MLflow run of a training: the command opens it soon after the training has begun."""
        while not (known := run_id(directory)) and self.directories.empty():
            time.sleep(POLL_SECONDS)
        return known
