"""What a sweep searches: a space is a product of dimensions, and a point of it is a training, or a sampler.

A dimension is one choice of several, each of which sets fields of the recipe, or a range of numbers of one field. A point names
a value of every dimension as text; that text is read as the command line reads it, so that a field which does not exist and a
value that it does not take are told by the same sentences. How a command line names them: `named`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Literal, final

import numpy as np

from pipelines.config.flows import IdentityConfig
from pipelines.config.models import DiffusionConfig, INDMConfig
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import override

__all__ = ["Choice", "Choices", "Dimension", "Point", "Range", "Space", "linear_of"]

Point = Mapping[str, str]
"""A value of every dimension, as text."""
MOST_CORNERS = 64


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value of a dimension.

    Args:
        label: What tables call it.
        given: Options of the recipe and what they are set to.
        at: Its place on a figure's axis; nan: it has none.
        linear: Whether the model is replaced by the linear diffusion with the same network.
    """

    label: str
    given: tuple[tuple[str, str], ...] = ()
    at: float = math.nan
    linear: bool = False


@dataclass(frozen=True, kw_only=True)
class Dimension(ABC):
    """What is searched along.

    Args:
        name: In points, tables and figures; of a range its field.
    """

    name: str

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether its values can be counted."""

    @abstractmethod
    def choice(self, text: str) -> Choice:
        """The value that a text of a point stands for."""

    @abstractmethod
    def all(self) -> Sequence[str]:
        """Its values; ValueError where they cannot be counted."""

    @abstractmethod
    def ends(self) -> Sequence[str]:
        """The values between which, or of which, all others are."""

    @abstractmethod
    def at(self, u: float) -> str:
        """The value at a quantile u in [0, 1)."""

    @abstractmethod
    def domain(self) -> Any:
        """As Ray's searchers know it."""

    @abstractmethod
    def value(self, text: str) -> Any:
        """What such a searcher calls the value of a text."""

    @abstractmethod
    def text(self, value: Any) -> str:
        """The text of such a value."""


@final
@dataclass(frozen=True, kw_only=True)
class Choices(Dimension):
    """Some values.

    Args:
        choices: In the order of tables.
    """

    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        labels = [choice.label for choice in self.choices]
        if not labels:
            raise ValueError(f"{self.name}: no value is given, and so the space has no point")
        if twice := next((label for label in labels if labels.count(label) > 1), ""):
            raise ValueError(f"{self.name}: {twice} is given twice")

    @property
    def finite(self) -> bool:
        return True

    def choice(self, text: str) -> Choice:
        return next(choice for choice in self.choices if choice.label == text)

    def all(self) -> Sequence[str]:
        return [choice.label for choice in self.choices]

    def ends(self) -> Sequence[str]:
        return self.all()

    def at(self, u: float) -> str:
        return self.choices[int(u * len(self.choices))].label

    def domain(self) -> Any:
        from ray import tune

        return tune.choice(list(self.all()))

    def value(self, text: str) -> Any:
        return text

    def text(self, value: Any) -> str:
        return value


@final
@dataclass(frozen=True, kw_only=True)
class Range(Dimension):
    """The numbers of a field between two, ends included.

    Args:
        kind: uniform, log (uniform in the logarithm) or int (whole numbers).
        low, high: The ends.
    """

    kind: Literal["uniform", "log", "int"]
    low: float
    high: float

    def __post_init__(self) -> None:
        said = f"{self.name}={self.kind}:{self.low:g}..{self.high:g}"
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"{said}: no number lies there; give the smaller end first, and finite ends")
        if self.kind == "log" and self.low <= 0:
            raise ValueError(f"{said}: a logarithm needs positive ends")
        if self.kind == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"{said}: the ends must be whole numbers")

    @property
    def finite(self) -> bool:
        return self.low == self.high

    def choice(self, text: str) -> Choice:
        return Choice(label=text, given=((self.name, text),), at=float(text))

    def all(self) -> Sequence[str]:
        if self.finite:
            return [self.text(self.low)]
        raise ValueError(
            f"search=grid: {self.name} is a range; list its values, or give --search random --num-trials N"
        )

    def ends(self) -> Sequence[str]:
        return list(dict.fromkeys((self.text(self.low), self.text(self.high))))

    def at(self, u: float) -> str:
        if self.kind == "int":
            return self.text(math.floor(self.low + u * (self.high - self.low + 1)))
        if self.kind == "log":
            return self.text(self.low * (self.high / self.low) ** u)
        return self.text(self.low + u * (self.high - self.low))

    def domain(self) -> Any:
        from ray import tune

        if self.kind == "int":
            return tune.randint(int(self.low), int(self.high) + 1)
        return (tune.loguniform if self.kind == "log" else tune.uniform)(self.low, self.high)

    def value(self, text: str) -> Any:
        return int(text) if self.kind == "int" else float(text)

    def text(self, value: Any) -> str:
        return str(int(value)) if self.kind == "int" else repr(float(f"{value:.6g}"))


@final
@dataclass(frozen=True, kw_only=True)
class Space:
    """A product of dimensions."""

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ValueError("dimensions: there is none, and so nothing to search; give one")
        names = [dimension.name for dimension in self.dimensions]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"{twice} is searched twice; name it once")

    def run(self, run: RunConfig, point: Point) -> RunConfig:
        """The recipe at a point.

        Raises:
            ValueError: a field that does not exist or is searched twice, a value that it does not take, or a recipe that is
                refused.
        """
        found = override(run, self.given(point))
        choices = (dimension.choice(point[dimension.name]) for dimension in self.dimensions)
        return linear_of(found) if any(choice.linear for choice in choices) else found

    def given(self, point: Point) -> dict[str, str]:
        """The options that a point sets; ValueError where one is searched twice."""
        given: dict[str, str] = {}
        for choice in (dimension.choice(point[dimension.name]) for dimension in self.dimensions):
            if twice := next((name for name, _ in choice.given if name in given), ""):
                raise ValueError(f"{twice} is searched twice; name it once")
            given |= dict(choice.given)
        return given

    def grid(self) -> list[Point]:
        """All points, the last dimension fastest; ValueError where they cannot be counted."""
        names = [dimension.name for dimension in self.dimensions]
        every = [dimension.all() for dimension in self.dimensions]
        return [dict(zip(names, texts, strict=True)) for texts in product(*every)]

    def corners(self) -> list[Point]:
        """Ends of all ranges with all choices; the first `MOST_CORNERS`."""
        names = [dimension.name for dimension in self.dimensions]
        every = [dimension.ends() for dimension in self.dimensions]
        return [dict(zip(names, texts, strict=True)) for texts in islice(product(*every), MOST_CORNERS)]

    def draw(self, number: int, seed: int) -> Point:
        """The point of a number, independent of those of other numbers."""
        u = np.random.default_rng([seed, number]).random(len(self.dimensions))
        return {dimension.name: dimension.at(float(q)) for dimension, q in zip(self.dimensions, u, strict=True)}

    def label(self, point: Point) -> str:
        """A point on a line."""
        return ", ".join(f"{name} {text}" for name, text in point.items())


def linear_of(run: RunConfig) -> RunConfig:
    """The linear diffusion with a model's network and training.

    Raises:
        ValueError: a model that has no score of a linear diffusion.
    """
    model = run.model
    if not isinstance(model, DiffusionConfig):
        raise ValueError(f"{run.recipe}: its model generalises no linear diffusion")
    objective = replace(model.objective, pretrain_steps=0)
    parts = {"sde": model.sde, "backbone": model.backbone, "objective": objective, "conditional": model.conditional}
    return replace(run, model=INDMConfig(flow=IdentityConfig(), **parts))
