"""The actor that carries out the tasks of measurements, and the tasks as a pool takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from pipelines.cluster.pool import Call, Key, Pool
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features.networks import FeatureNetwork
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.plan import Plan, Span, Subject

__all__ = ["Evaluator", "Work"]

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


class Work(Mapping[Key, Call]):
    """Tasks as a pool takes them.

    Rows are put into the object store when the first task that needs them is taken, once for all tasks, and leave it with the
    last one.

    Args:
        tasks: By key.
        plan: Whose rows they need.
    """

    def __init__(self, tasks: Mapping[Any, Task[Any]], plan: Plan) -> None:
        self.tasks, self.plan = tasks, plan
        self.lent: dict[Span, ray.ObjectRef] = {}
        self.left = Counter(span for task in tasks.values() for span in task.needs())

    def __getitem__(self, key: Key) -> Call:
        task = self.tasks[key]
        for span in task.needs():
            if span not in self.lent:
                self.lent[span] = ray.put(self.plan.rows(span).numpy())
        name = str(task) if task.model is None else f"{self.plan.names[task.model]}, {task}"
        return Call("run", (task, *(self.lent[span] for span in task.needs())), name)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def run(self, pool: Pool, what: str, keep: Callable[[Any, Any], Any]) -> dict[Key, Any]:
        """Has a pool do the tasks.

        Args:
            what: The work's name in lines of progress.
            keep: Called with the key and the outcome of each task as it is done.

        Returns:
            What `keep` gave, by key.
        """

        def take(key: Key, outcome: Any) -> Any:
            self._release(self.tasks[key])
            return keep(key, outcome)

        return pool.run(self, what, take)

    def _release(self, task: Task[Any]) -> None:
        """Lets go of rows that no other task needs."""
        for span in task.needs():
            self.left[span] -= 1
            if not self.left[span]:
                self.lent.pop(span, None)
