"""What a measurement is: tasks, which a pool of actors carries out, and the result that is made of what they gave.

A task is a value: it says itself what an actor does, and equal tasks of several measurements are done once (the samples
that two distances look at, the NLL that also enters a gap). A result is a frozen dataclass: the document of an
evaluation holds it under the name of its class, and it says itself what is printed and logged of it. A new measurement
is a file in `measurements/` and its name in `MEASUREMENTS` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from indm_core.model import GenerativeModel
from pipelines.data.spec import DataSpec
from pipelines.evaluation.plan import Plan, Span

__all__ = ["Bench", "Done", "Measurement", "Result", "Running", "Task", "find"]

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R", bound="Result")


class Bench(Protocol):
    """What a task finds in its actor."""

    device: str

    def model(self, index: int) -> tuple[GenerativeModel, DataSpec]:
        """A model of the plan, on the device."""
        ...

    def rows(self, span: Span) -> Tensor:
        """Rows that the task needs, in the stored type."""
        ...

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, classes) of levels or vectors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task(ABC, Generic[T_co]):
    """A piece of work for one actor.

    Its fields are hashable values, and say with the models and the rows of the plan all that its outcome depends on. Rows come
    through the object store, where each lies once; what a task gives is kept on disk as tensors.

    Args:
        model: Whose work it is; None: of the data.
    """

    model: int | None

    @abstractmethod
    def run(self, bench: Bench) -> T_co:
        """Does the work, in an actor."""

    @property
    def kind(self) -> str:
        """What it is called where kinds of tasks share the actors' time; those of a kind take about equally long."""
        return type(self).__name__.lower()

    def needs(self) -> tuple[Span, ...]:
        """The rows that it asks the bench for."""
        return ()

    def __str__(self) -> str:
        return f"{type(self).__name__} of {', '.join(map(str, self.needs()))}"

    def pack(self, outcome: Any) -> dict[str, Tensor]:
        """Its outcome as it is kept; that of a task which gives something else than a tensor has to be said."""
        return {"": outcome}

    def unpack(self, tensors: Mapping[str, Tensor]) -> T_co:
        """The inverse of `pack`."""
        return tensors[""]  # pyright: ignore[reportReturnType]

    def of(self, done: Done) -> T_co:
        """Its outcome."""
        return done[self]


Done = Mapping[Task[Any], Any]
"""Tasks and what they gave."""


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """What a measurement found; a subclass is a frozen dataclass of plain values, estimates and configurations."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What the table says of it below the row of its model."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Its numbers under the names that they have in the log of experiments."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A figure of what has come so far.

    Args:
        name: In the log of experiments.
        label: In a line of text.
        value, se: The figure and its standard error.
        count: Of how many it is.
        of: What they are.
    """

    name: str
    label: str
    value: float
    se: float
    count: int
    of: str


class Measurement(ABC, Generic[R]):
    """Something that is measured, of one model or of several.

    Args:
        model: Whose result it is; None: of the data, or of several models.
    """

    model: int | None = None

    @classmethod
    @abstractmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        """Those of this kind that a plan asks for."""

    @abstractmethod
    def tasks(self) -> Sequence[Task[Any]]:
        """What actors have to do for it; long ones first."""

    def wanted(self, done: Done) -> Sequence[Task[Any]]:
        """Those of its tasks that `reduce` needs, as far as what is done tells; fewer as more is done, never others."""
        return self.tasks()

    def running(self, done: Done) -> Sequence[Running]:
        """Its figures from what some of its tasks gave, where they cost little; none before there is one."""
        return ()

    @abstractmethod
    def reduce(self, done: Done) -> R:
        """The result, from what its tasks gave; those that are not `wanted` do not count, whether or not they are done."""


def find(results: Iterable[Result], kind: type[R]) -> R | None:
    """The result of a class; None where it was not measured."""
    return next((result for result in results if type(result) is kind), None)
