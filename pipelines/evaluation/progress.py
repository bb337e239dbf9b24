"""What an evaluation says of itself as it goes on, and what of its work need not be done any more.

Every few seconds one line has the running figures of all measurements with their standard errors; the same goes into
the MLflow runs as series. Then the tasks are found that no measurement wants any more, because an estimate is precise
enough. When that is found out changes nothing but the time that it takes (`Measurement.wanted`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

from pipelines.evaluation.measurement import Done, Measurement, Running, Task
from pipelines.evaluation.results.estimates import with_error
from pipelines.runs.series import Series

__all__ = ["Progress"]

SECONDS = 5.0
LONGEST_SHARE = 0.05
"""Of the time may be spent on running figures: where they cost more, there are fewer."""


@final
class Progress:
    """An evaluation as it goes on.

    Args:
        names: Of its runs.
        measurements: What is measured.
        done: What tasks gave; it grows.
        series: Of each run, where MLflow has it.
    """

    def __init__(
        self,
        names: Sequence[str],
        measurements: Sequence[Measurement[Any]],
        done: Done,
        series: Sequence[Series | None],
    ) -> None:
        self.names, self.measurements, self.done, self.series = names, measurements, done, series
        self.logged: dict[tuple[int, str], int] = {}  # the last step of each series
        self.began, self.next_look, self.left = time.monotonic(), 0.0, set[Task[Any]]()

    def missing(self) -> list[Task[Any]]:
        """The tasks that are wanted and not done."""
        wanted = dict.fromkeys(task for each in self.measurements for task in each.wanted(self.done))
        found = [task for task in wanted if task not in self.done]
        self.left = set(found)
        return found

    def look(self, task: Task[Any], seconds_left: float) -> Collection[Task[Any]]:
        """Says how far it is, now and then.

        Args:
            task: Which was done.
            seconds_left: About how long what is left takes.

        Returns:
            Tasks that are not wanted any more.
        """
        self.left.discard(task)
        now = time.monotonic()
        if now < self.next_look and self.left:
            return ()
        before = set(self.left)
        self.missing()
        self._say(seconds_left)
        self.next_look = time.monotonic() + max(SECONDS, (time.monotonic() - now) / LONGEST_SHARE)
        return before - self.left

    def _say(self, seconds_left: float) -> None:
        num, spent = len(self.done), time.monotonic() - self.began
        left = f", about {seconds_left:.0f} s left" if self.left else ""
        told = [f"{num}/{num + len(self.left)} tasks, {spent:.0f} s{left}"]
        figures: dict[int, list[Running]] = {}
        for measurement in self.measurements:
            if measurement.model is not None and (found := measurement.running(self.done)):
                figures.setdefault(measurement.model, []).extend(found)
        self._log(figures)
        for model, found in figures.items():
            told.append(f"{self.names[model]}: {', '.join(map(_shown, found))}")
        print(f"evaluating: {'; '.join(told)}", flush=True)

    def _log(self, figures: Mapping[int, Sequence[Running]]) -> None:
        for model, found in figures.items():
            series = self.series[model]
            if series is not None:
                for each in found:
                    if self.logged.get((model, each.name)) != each.count:
                        series.add({each.name: each.value, f"{each.name}_se": each.se}, each.count)
                    self.logged[model, each.name] = each.count


def _shown(running: Running) -> str:
    return f"{running.label} {with_error(running.value, running.se, '.4g', '.2g')} ({running.count:,} {running.of})"
