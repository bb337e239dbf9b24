"""Figures that change as a command goes on, on their way to the MLflow runs that they are of.

Whoever has a figure adds it to a `Series`, which takes no time; a thread (`shipping.Shipper`) logs what has gathered
every two seconds. A store that is away costs nothing: the points wait in memory, the last `MOST` of them, until it
answers or the command ends. They are then lost: the command's figures themselves are logged apart from these.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from pipelines.config.weights import Weights
from pipelines.runs.kept import run_id
from pipelines.runs.shipping import METRICS_PER_CALL, Shipper
from pipelines.runs.tracking import store_of

__all__ = ["Series", "streaming"]

MOST = 10_000
END_SECONDS = 2.0
REMARK = "the measurement goes on, and its figures are logged at its end"


@final
class Series:
    """The points of one run's figures.

    Args:
        weights: Of the run; what is of a checkpoint has its step in the names.
        uri: Of the store.
    """

    def __init__(self, weights: Weights, uri: str) -> None:
        self.own, self.uri = run_id(weights.run), uri
        at = "" if weights.step is None else f"step-{weights.step}/"
        self.prefix = f"test/{'raw/' if weights.raw else ''}running/{at}"
        self.waiting, self.lock = deque[Metric](maxlen=MOST), threading.Lock()
        self.begin()

    def add(self, figures: Mapping[str, float], step: int) -> None:
        """Points at a step; those that are not finite are left out."""
        now = int(time.time() * 1000)
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        with self.lock:
            self.waiting.extend(Metric(self.prefix + name, value, now, step) for name, value in known.items())

    def begin(self) -> None:
        """Forgets the store."""
        self.client: MlflowClient | None = None

    def gained(self) -> bool:
        """Whether there are points that the store lacks."""
        return bool(self.waiting)

    def ship(self, *, whole: bool) -> None:
        """Logs what has gathered."""
        self.client = self.client or MlflowClient(self.uri)
        while points := list(self.waiting)[:METRICS_PER_CALL]:
            self.client.log_batch(self.own, metrics=points)
            with self.lock:
                for point in points:  # of those that were dropped meanwhile none is left
                    if self.waiting and self.waiting[0] is point:
                        self.waiting.popleft()


@contextmanager
def streaming(runs: Sequence[Weights], root: Path) -> Iterator[list[Series | None]]:
    """The series of runs, logged by threads while the block goes on; None of a run that MLflow does not have."""
    series = [Series(run, store_of(run.run, root)) if run_id(run.run) else None for run in runs]
    stores: dict[str, list[Series]] = {}
    for each in filter(None, series):
        stores.setdefault(each.uri, []).append(each)
    with ExitStack() as stack:
        for uri, of in stores.items():
            stack.enter_context(Shipper(of, uri, REMARK, END_SECONDS))
        yield series
