"""The actor that carries out the tasks of measurements, and the tasks as a pool takes them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from pipelines.cluster.fair import FairQueue, K
from pipelines.cluster.pool import Call, Pool
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features.networks import FeatureNetwork
from pipelines.evaluation.loans import Loans
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.plan import Plan, Span, Subject

__all__ = ["Evaluator", "Timed", "Work"]

T = TypeVar("T")


class Evaluator:
    """The bench of an actor: it builds each model and the feature network once, when a task first asks for it.

    Args:
        subjects: References to the models.
        features: Makes the feature network.
        threads: Of torch.
        device: That the models compute on; draws are made there, and so differ between kinds of device.
    """

    def __init__(
        self, subjects: list[ray.ObjectRef], features: Callable[[], FeatureNetwork], threads: int, device: str
    ) -> None:
        torch.set_num_threads(threads)
        self.subjects, self.make_features, self.device = subjects, features, device
        self.models: dict[int, tuple[GenerativeModel, DataSpec]] = {}
        self.features: FeatureNetwork | None = None
        self.given: dict[Span, np.ndarray] = {}

    def run(self, task: Task[T], *rows: np.ndarray) -> T:
        """Does a task.

        Args:
            rows: Those that it needs, in the memory that all actors of a machine share.
        """
        self.given = dict(zip(task.needs(), rows, strict=True))
        return task.run(self)

    def timed(self, task: Task[Any], *rows: np.ndarray) -> Timed:
        """Does a task, and says how long it took."""
        began = time.monotonic()
        outcome = self.run(task, *rows)
        return Timed(outcome, time.monotonic() - began)

    def model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        """A model, in evaluation mode."""
        if index not in self.models:
            subject: Subject = ray.get(self.subjects[index])
            self.models[index] = (subject.build().to(self.device), subject.spec)
        return self.models[index]

    def rows(self, span: Span) -> Tensor:
        """A copy of rows that the task needs; shared memory cannot be written to."""
        return torch.from_numpy(self.given[span].copy())

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, classes)."""
        self.features = self.features or self.make_features()
        with torch.no_grad():
            return self.features.evaluate(values)


class Timed(NamedTuple):
    """What a task gave, and the seconds that its actor took."""

    outcome: Any
    seconds: float


class Work(Mapping[K, Call]):
    """Tasks as a pool takes them, those of different kinds and models by fair shares of the actors' time.

    Args:
        tasks: By key.
        plan: Whose rows they need.
        actors: How many work at once.
    """

    def __init__(self, tasks: Mapping[K, Task[Any]], plan: Plan, actors: int = 1) -> None:
        self.tasks, self.plan = tasks, plan
        self.loans = Loans(plan, Counter(span for task in tasks.values() for span in task.needs()))
        kinds: dict[tuple[int | None, str], list[K]] = {}
        for key, task in tasks.items():
            kinds.setdefault((task.model, task.kind), []).append(key)
        self.queue = FairQueue(kinds, actors)
        self.begun = set[K]()

    def __getitem__(self, key: K) -> Call:
        task = self.tasks[key]
        name = str(task) if task.model is None else f"{self.plan.names[task.model]}, {task}"
        if key in self.begun:  # its actor was lost
            self.loans.give_back(task.needs(), done=False)
        self.begun.add(key)
        return Call("timed", (task, *self.loans.lend(task.needs())), name)

    def __iter__(self) -> Iterator[K]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def stream(self, pool: Pool) -> Iterator[tuple[K, Timed]]:
        """What a pool gives as it is done; what is `drop`ped on the way is not waited for."""
        for key, timed in pool.stream(self, self.queue):
            self.queue.took(key, timed.seconds)
            self.loans.give_back(self.tasks[key].needs())
            yield key, timed

    def drop(self, keys: Collection[K]) -> None:
        """Tasks that are not wanted any more."""
        for key in self.queue.undone.intersection(keys) - self.begun:
            self.loans.forget(self.tasks[key].needs())
        self.queue.drop(keys)
