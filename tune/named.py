"""Spaces as a command line names them: dimensions with a name, fields of a recipe, and files.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.config.modules import split_word, use
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options
from pipelines.storage.messages import nearest, one_line
from pipelines.storage.paths import local_path
from tune.spaces import Choice, Choices, Dimension, Range, Space, linear_of

__all__ = ["BUILT_IN", "PRETRAIN", "given_fields", "in_file", "is_file", "read_space", "split_fields"]

PRETRAIN, MODE, TRUNCATION, T_M = (
    "model.objective.pretrain_steps",
    "model.objective.mode",
    "model.objective.soft_truncation",
    "model.t_m",
)
SHARES, EXPONENTS, PLACES = (0.0, 0.25, 0.5, 0.75), (1.0, 1.2, 2.0), tuple(i / 10 for i in range(1, 11))


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
        elif is_file(word):
            found += in_file(word)
        else:
            near = nearest(word, list(BUILT_IN))
            raise ValueError(
                f"unknown space {word!r}: {near}; or give path.py:function, path.yaml, --space FIELD=VALUES"
            )
    found += given_fields(fields)
    if not found:
        raise ValueError(
            f"there is nothing to search: name {', '.join(BUILT_IN)}, a file, or fields by --space FIELD=VALUES"
        )
    return Space(dimensions=tuple(found))


def is_file(word: str) -> bool:
    """Whether a word names a file with a space."""
    return ".py" in word or word.endswith((".yaml", ".yml"))


def in_file(word: str) -> list[Dimension]:
    """The dimensions of a file; raises as `read_space` does."""
    return [_dimension(name, values, word) for name, values in _file(word).items()]


def given_fields(fields: Sequence[str]) -> list[Dimension]:
    """The dimensions of FIELD=VALUES each; raises as `read_space` does."""
    found = []
    for entry in fields:
        name, equals, values = entry.partition("=")
        if not equals or not name:
            raise ValueError(
                f"--space {entry}: give FIELD=VALUES, for instance train.optimisers.score.lr=log:1e-4..1e-2"
            )
        found.append(_dimension(name.replace("-", "_"), values, f"--space {entry}"))
    return found


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


BUILT_IN: dict[str, Callable[[RunConfig], Dimension]] = {
    "pretraining": _pretraining,
    "weighting": _weighting,
    "t_m": _t_m,
}
"""Dimensions that have a name."""
