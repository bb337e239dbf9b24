"""A run in its directory: what is trained there, and what it has left so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from indm_core.training import step_seed
from pipelines.config.run import RunConfig
from pipelines.data.spec import DataSpec
from pipelines.runs import checkpoint

__all__ = ["Job", "finished", "read_metrics"]


PARTNER = 2**31
"""In place of a rank: what tells the second data set's order from the first's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run in its directory.

    Args:
        run: The configuration.
        spec: Of the data.
        directory: Of the run.
        data: Of the prepared data set.
        partner: Of the second one of a bridge.
        start_from: A checkpoint of another run whose networks of the same name start this one; None starts afresh.
    """

    run: RunConfig
    spec: DataSpec
    directory: Path
    data: Path
    partner: Path | None = None
    start_from: Path | None = None

    def of_partner(self) -> Job:
        """The same run on the second data set, in an order of its own."""
        train = replace(self.run.train, seed=step_seed(self.run.train.seed, 0, PARTNER))
        return replace(self, run=replace(self.run, train=train), data=self.partner, partner=None)


def finished(job: Job) -> bool:
    """Whether a run has taken its last step and its averaged weights are those of that step, not of a shorter run."""
    weights, newest = job.directory / "model.safetensors", checkpoint.latest(job.directory)
    if newest is None or int(newest.name.removeprefix("step-")) < job.run.train.steps or not weights.is_file():
        return False
    return weights.stat().st_mtime_ns >= (newest / checkpoint.STATE).stat().st_mtime_ns


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The records of a run; a line that a kill cut short is left out."""
    file = directory / "metrics.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
