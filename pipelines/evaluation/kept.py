"""What the tasks of an evaluation have given so far, on disk: whatever ends the command, the same command goes on from there.

Each run keeps its tasks' outcomes in a journal in its directory, the first one also those that belong to no run, until the
evaluation is written. A key follows from all that an outcome depends on: the task, the model's weights and configuration,
the data and the networks that see them, the kind of device, the seed, and the code. Tasks under another key stay unread, so
that a journal of other settings does no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

import indm_core
from pipelines.config.store import identity
from pipelines.config.weights import Weights
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.plan import Plan
from pipelines.storage.journal import Journal, Record

__all__ = ["Earlier", "Kept"]

JOURNAL = "evaluation.journal"
CODE = (Path(indm_core.__file__).parent, Path(__file__).parent)
"""Folders whose files decide outcomes."""


class Earlier(NamedTuple):
    """What was done before.

    Args:
        outcomes: Of tasks.
        work: Seconds of the actor of each.
        seconds: That the evaluation had taken.
    """

    outcomes: dict[Task[Any], Any]
    work: dict[Task[Any], float]
    seconds: float


@dataclass(frozen=True)
class Kept:
    """The outcomes of an evaluation's tasks.

    Args:
        plan: What is measured.
        runs: Its runs.
        device: Kind of device that the tasks run on.
    """

    plan: Plan
    runs: tuple[Weights, ...]
    device: str

    def read(self, tasks: Sequence[Task[Any]]) -> Earlier:
        """What is there of some tasks."""
        keys = {task: self._key(task) for task in tasks}
        records: dict[str, Record] = {}
        for journal in self._journals:
            records |= journal.read(set(keys.values()))
        there = {task: records[key] for task, key in keys.items() if key in records}
        return Earlier(
            outcomes={task: task.unpack(record.tensors) for task, record in there.items()},
            work={task: record.work for task, record in there.items()},
            seconds=max((record.seconds for record in there.values()), default=0.0),
        )

    def add(self, task: Task[Any], outcome: Any, work: float, seconds: float) -> None:
        """Keeps what a task gave.

        Args:
            work: Seconds of its actor.
            seconds: That the evaluation has taken until now.
        """
        self._journals[task.model or 0].append(self._key(task), task.pack(outcome), seconds, work)

    def remove(self) -> None:
        """Takes the journals away, when the evaluation is written."""
        for journal in self._journals:
            journal.remove()

    @cached_property
    def _journals(self) -> list[Journal]:
        return [Journal(run / JOURNAL) for run in self.runs]

    @cached_property
    def _models(self) -> list[str]:
        return [identity(run) for run in self.runs]

    @cached_property
    def _common(self) -> list[str]:
        """What the outcome of every task depends on."""
        sha = hashlib.sha256()
        for file in sorted(file for folder in CODE for file in folder.rglob("*.py")):
            sha.update(file.read_bytes())
        shards = [shard.sha256 for card in self.plan.cards for split in card.splits.values() for shard in split.shards]
        s = self.plan.settings
        order = f"of {s.images} in order {s.seed}" if s.stops_at_images else ""  # which row a task's span means
        of_all = [self.plan.extractor.key, self.device, torch.__version__, sha.hexdigest(), str(s.seed), order]
        return [*of_all, *shards]

    def _key(self, task: Task[Any]) -> str:
        said = {f.name: repr(getattr(task, f.name)) for f in fields(task) if f.name != "model"}
        model = "" if task.model is None else self._models[task.model]
        text = json.dumps([type(task).__name__, said, model, self._common])
        return hashlib.sha256(text.encode()).hexdigest()
