"""What a sweep searches: a space is a product of dimensions, and a point of it is a training.

A dimension is one choice of several, each of which sets fields of the recipe, or a range of numbers of one field. A point names
a value of every dimension as text; that text is read as the command line reads it, so that a field which does not exist and a
value that it does not take are told by the same sentences. Three dimensions have names:

    pretraining   pre-training for 0, 25, 50 and 75 % of the steps
    weighting     the score's loss weighted by the likelihood, by the variance, and by Soft Truncation with k = 1, 1.2 and 2
    t_m           where DiNof's prior sits, 0.1 to 1.0, beside the linear diffusion of the same network and as many steps

Any field of a recipe is one: `train.optimisers.flow.lr=log:1e-4..1e-2`, `model.t_m=0.1,0.3`, `beta_max=uniform:5..20`,
`batch_size=int:32..64`. A file gives a mapping of such names: a function of a .py file that takes no argument, or safe YAML.

References: Kim et al. 2022 (INDM), Table 3 (pre-training) and section 7.2; Kim et al. 2022 (Soft Truncation); Zand et al. 2024
(DiNof), Table 1 (T_m).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Literal, final

import numpy as np

from pipelines.config.flows import IdentityConfig
from pipelines.config.models import DiffusionConfig, INDMConfig
from pipelines.config.modules import split_word, use
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options, override
from pipelines.storage.messages import nearest, one_line
from pipelines.storage.paths import local_path

__all__ = [
    "BUILT_IN",
    "PRETRAIN",
    "Choice",
    "Choices",
    "Dimension",
    "Point",
    "Range",
    "Space",
    "linear_of",
    "read_space",
    "split_fields",
]

Point = Mapping[str, str]
"""A value of every dimension, as text."""
PRETRAIN, MODE, TRUNCATION, T_M = (
    "model.objective.pretrain_steps",
    "model.objective.mode",
    "model.objective.soft_truncation",
    "model.t_m",
)
SHARES, EXPONENTS, PLACES = (0.0, 0.25, 0.5, 0.75), (1.0, 1.2, 2.0), tuple(i / 10 for i in range(1, 11))
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
            return [self._text(self.low)]
        raise ValueError(
            f"search=grid: {self.name} is a range; list its values, or give --search random --num-trials N"
        )

    def ends(self) -> Sequence[str]:
        return list(dict.fromkeys((self._text(self.low), self._text(self.high))))

    def at(self, u: float) -> str:
        if self.kind == "int":
            return self._text(math.floor(self.low + u * (self.high - self.low + 1)))
        if self.kind == "log":
            return self._text(self.low * (self.high / self.low) ** u)
        return self._text(self.low + u * (self.high - self.low))

    def domain(self) -> Any:
        from ray import tune

        if self.kind == "int":
            return tune.randint(int(self.low), int(self.high) + 1)
        return (tune.loguniform if self.kind == "log" else tune.uniform)(self.low, self.high)

    def value(self, text: str) -> Any:
        return int(text) if self.kind == "int" else float(text)

    def _text(self, value: float) -> str:
        return str(int(value)) if self.kind == "int" else repr(float(f"{value:.6g}"))


@final
@dataclass(frozen=True, kw_only=True)
class Space:
    """A product of dimensions."""

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ValueError(
                f"there is nothing to search: name {', '.join(BUILT_IN)}, a file, or fields by --space FIELD=VALUES"
            )
        names = [dimension.name for dimension in self.dimensions]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"{twice} is searched twice; name it once")

    def run(self, run: RunConfig, point: Point) -> RunConfig:
        """The recipe at a point.

        Raises:
            ValueError: a field that does not exist or is searched twice, a value that it does not take, or a recipe that is
                refused.
        """
        choices = [dimension.choice(point[dimension.name]) for dimension in self.dimensions]
        given: dict[str, str] = {}
        for choice in choices:
            if twice := next((name for name, _ in choice.given if name in given), ""):
                raise ValueError(f"{twice} is searched twice; name it once")
            given |= dict(choice.given)
        found = override(run, given)
        return linear_of(found) if any(choice.linear for choice in choices) else found

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


def read_space(words: Sequence[str], fields: Sequence[str], run: RunConfig) -> Space:
    """The space that a command line names.

    Args:
        words: Names of dimensions, joined by commas or apart, and files.
        fields: FIELD=VALUES each.
        run: The recipe that is searched.

    Raises:
        ValueError: an unknown name, a file that cannot be read, values that are none, or a dimension that the recipe has not.
    """
    found: list[Dimension] = []
    for word in filter(None, ",".join(words).split(",")):
        if word in BUILT_IN:
            found.append(BUILT_IN[word](run))
        elif ".py" in word or word.endswith((".yaml", ".yml")):
            found += [_dimension(name, values, word) for name, values in _file(word).items()]
        else:
            near = nearest(word, list(BUILT_IN))
            raise ValueError(
                f"unknown space {word!r}: {near}; or give path.py:function, path.yaml, --space FIELD=VALUES"
            )
    for entry in fields:
        name, equals, values = entry.partition("=")
        if not equals or not name:
            raise ValueError(
                f"--space {entry}: give FIELD=VALUES, for instance train.optimisers.score.lr=log:1e-4..1e-2"
            )
        found.append(_dimension(name.replace("-", "_"), values, f"--space {entry}"))
    return Space(dimensions=tuple(found))


def split_fields(text: str) -> list[str]:
    """FIELD=VALUES each, of several that were joined by commas: a part without = is a value of the one before."""
    found: list[str] = []
    for part in filter(None, text.split(",")):
        if "=" in part or not found:
            found.append(part)
        else:
            found[-1] += f",{part}"
    return found


def _dimension(name: str, values: Any, where: str) -> Dimension:
    """A field's values, as text (0.1,0.3 or log:1e-4..1e-2) or as a list."""
    if isinstance(values, list | tuple):
        texts = [_text(value) for value in values]
    else:
        text = _text(values)
        kind, colon, ends = text.partition(":")
        if colon and kind in ("uniform", "log", "int"):
            return _range(name, kind, ends, where)
        if colon and ".." in ends:
            raise ValueError(f"{where}: {kind!r} is none of uniform, log, int")
        texts = [part for part in text.split(",") if part]
    return Choices(
        name=name, choices=tuple(Choice(label=text, given=((name, text),), at=_number(text)) for text in texts)
    )


def _range(name: str, kind: Any, ends: str, where: str) -> Range:
    low, dots, high = ends.partition("..")
    if not dots or math.isnan(_number(low)) or math.isnan(_number(high)):
        raise ValueError(f"{where}: a range is {kind}:LOW..HIGH, two numbers")
    return Range(name=name, kind=kind, low=float(low), high=float(high))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _file(word: str) -> Mapping[str, Any]:
    """What a file says is searched: {field: values}."""
    file, function = split_word(word)
    if file:
        module = use(file).module
        make = getattr(module, function, None) if function else None
        if not callable(make):
            own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise ValueError(f"{word}: no function {function!r}; {nearest(function, own)}; give {file}:FUNCTION")
        try:
            found = make()
        except Exception as error:
            raise ValueError(f"{word}: {type(error).__name__}: {error}; correct the function") from error
    else:
        found = _yaml(word)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{word} gives {type(found).__name__}, not a mapping of fields to values")
    return found


def _yaml(word: str) -> Any:
    import yaml

    file = local_path(word, "space")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{word}: cannot be read as YAML ({one_line(error, 200)})") from None


def _needs(run: RunConfig, name: str, *paths: str) -> None:
    known = {option.path for option in options(run)}
    if missing := [path for path in paths if path not in known]:
        raise ValueError(f"{name}: {run.recipe} has no field {missing[0]}; take a recipe that has, or another space")


def _pretraining(run: RunConfig) -> Dimension:
    _needs(run, "pretraining", PRETRAIN)
    steps = {share: round(share * run.train.steps) for share in SHARES}
    return Choices(
        name="pretraining",
        choices=tuple(
            Choice(label=f"{100 * share:g}%", given=((PRETRAIN, str(num)),), at=100 * share)
            for share, num in steps.items()
        ),
    )


def _weighting(run: RunConfig) -> Dimension:
    _needs(run, "weighting", MODE, TRUNCATION)
    ways = [("likelihood", "nll", 0.0), ("variance", "fid", 0.0), *((f"k={k:g}", "nll", k) for k in EXPONENTS)]
    return Choices(
        name="weighting",
        choices=tuple(Choice(label=label, given=((MODE, mode), (TRUNCATION, str(k)))) for label, mode, k in ways),
    )


def _t_m(run: RunConfig) -> Dimension:
    _needs(run, "t_m", T_M)
    linear_of(run)
    places = (Choice(label=f"{t:g}", given=((T_M, f"{t:g}"),), at=t) for t in PLACES)
    return Choices(name="t_m", choices=(Choice(label="linear", linear=True), *places))


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


BUILT_IN: dict[str, Callable[[RunConfig], Dimension]] = {
    "pretraining": _pretraining,
    "weighting": _weighting,
    "t_m": _t_m,
}
"""Dimensions that have a name."""
