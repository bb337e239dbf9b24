"""The actor that carries out the tasks of measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import ray
import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features import FeatureNetwork
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.plan import Subject

__all__ = ["Evaluator"]

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

    def run(self, task: Task[T]) -> T:
        return task.run(self)

    def model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        """A model, in evaluation mode."""
        if index not in self.models:
            subject: Subject = ray.get(self.subjects[index])
            self.models[index] = (subject.build().to(self.device), subject.spec)
        return self.models[index]

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, classes)."""
        self.features = self.features or self.make_features()
        with torch.no_grad():
            return self.features.evaluate(values)
