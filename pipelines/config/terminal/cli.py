"""A command line generated from dataclasses.

Every field is an option named by its dotted path, `--train.steps 2000`, and by every shorter ending of that path that no other
field has, `--steps 2000`. What lies below a field with the metadata `WHOLE` has its whole path alone, and takes no ending from
others.

A field whose class has several concrete forms takes a form's name, `--model.sde SubVP`, with or without the ending Config,
`--model.flow ResFlow`, and then shows that form's fields. Names of earlier versions are understood (`codec.ALIASES`). In a name
- and _ are one. Tuples are comma-separated. Help comes from the `Args:` of the dataclasses' docstrings (`help`).
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from pipelines.config.codec import form, moved, subclasses
from pipelines.storage.messages import nearest

__all__ = [
    "WHOLE",
    "Option",
    "dashed",
    "form_names",
    "options",
    "override",
    "short_name",
    "split_arguments",
    "with_values",
]

T = TypeVar("T")

WHOLE = {"whole": True}
"""Metadata of a field that holds a second configuration of a class: its options are named by their whole path."""
TRUTHS = ("true", "false", "yes", "no", "on", "off", "0", "1")
"""Words that somebody writes behind an option that is true or false; all but the first two are refused as its value."""
GOES_ON = "nothing has to be said: the same command goes on where it stopped"
EXPECTED = {
    "resume": GOES_ON,
    "continue": GOES_ON,
    "epochs": "a training is counted in steps; give --steps",
    "gpu": "give --device cuda or --device cpu",
}
"""Options that other programs have, and what is done here."""


@dataclass(frozen=True)
class Option:
    """A field: its dotted path, annotation, current value and one line of help; whether it is named by its whole path alone."""

    path: str
    annotation: Any
    value: Any
    help: str
    whole: bool = False

    @property
    def plain(self) -> Any:
        """The value; of a configuration the name of its class, because its fields are options of their own."""
        return type(self.value).__name__ if is_dataclass(self.value) else self.value

    @property
    def shown(self) -> str:
        """The value as it is given on a command line."""
        if is_dataclass(self.value):
            name = type(self.value).__name__
            return name.removesuffix("Config") if name.removesuffix("Config") in form_names(self.annotation) else name
        if isinstance(self.value, tuple):
            return ",".join(map(str, self.value)) or "()"
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value) or '""'

    @property
    def choices(self) -> list[str]:
        """What it may be, where that is one of a few words."""
        if typing.get_origin(self.annotation) is Literal:
            return list(map(str, typing.get_args(self.annotation)))
        return form_names(self.annotation)


def split_arguments(
    argv: Sequence[str], flags: Collection[str] = (), lists: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Positional words and `--name value` / `--name=value` pairs; a name without a value means true.

    Args:
        argv: What was typed.
        flags: Names that are true or false: a word behind one is its value only if it looks like one.
        lists: Names that may be given several times; the values are joined by commas.

    Raises:
        ValueError: an option given twice.
    """
    words, given = [], {}
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            words.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        if not equals:
            bare = name.replace("-", "_") in flags and (not tokens or tokens[0].lower() not in TRUTHS)
            value = "true" if bare or not tokens or tokens[0].startswith("--") else tokens.pop(0)
        name = name.replace("-", "_")
        if name in given and name in lists:
            value = f"{given[name]},{value}"
        elif name in given:
            raise ValueError(f"--{dashed(name)} is given twice: {given[name]!r} and {value!r}")
        given[name] = value
    return words, given


def options(config: Any, prefix: str = "", whole: bool = False) -> list[Option]:
    """Every option of a configuration, depth first.

    Args:
        prefix: What stands before the paths.
        whole: Whether they are named by their whole paths alone.
    """
    hints, helps, found = typing.get_type_hints(type(config)), _field_help(type(config)), []
    for f in fields(config):
        value, path = getattr(config, f.name), f"{prefix}{f.name}"
        if isinstance(value, dict):
            for key, member in value.items():
                found += options(member, f"{path}.{key}.", whole)
        elif is_dataclass(value):
            if len(subclasses(hints[f.name])) > 1:
                found.append(Option(path, hints[f.name], value, helps.get(f.name, ""), whole))
            found += options(value, f"{path}.", whole or "whole" in f.metadata)
        else:
            found.append(Option(path, hints[f.name], value, helps.get(f.name, ""), whole))
    return found


def override(config: T, given: dict[str, str], others: Sequence[str] = ()) -> T:
    """The configuration with options replaced; forms of nested classes are chosen before their fields.

    Args:
        config: Where to start from.
        given: Texts by name.
        others: Options that are taken elsewhere, for the suggestions.

    Raises:
        ValueError: an unknown option (the nearest are named), an ambiguous ending, or a value of another type.
    """
    left = dict(given)
    while True:
        known = {option.path: option for option in options(config)}
        resolved = {name: _resolve(name, known, strict=False) for name in left}
        form = next((n for n, path in resolved.items() if path and is_dataclass(known[path].value)), None)
        if form is None:
            break
        path = resolved[form] or form
        config = with_values(config, {path: _parse(known[path], left.pop(form), form)})
    values: dict[str, Any] = {}
    for name, text in left.items():
        path = resolved[name] or _resolve(name, known, strict=True, others=others) or name
        if path in values:
            raise ValueError(f"--{path} is given twice, once as --{name}")
        values[path] = _parse(known[path], text, name)
    return with_values(config, values)  # together: what two options must satisfy does not depend on their order


def dashed(name: str) -> str:
    """An option's name as people write it."""
    return name.replace("_", "-")


def short_name(path: str, paths: Collection[str], whole: Collection[str] = ()) -> str:
    """The shortest ending of an option's path that means no other one of `paths`.

    Args:
        whole: Those of them that are named by their whole path alone.
    """
    if path in whole:
        return path
    parts = path.split(".")
    endings = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    others = [p for p in paths if p != path and p not in whole]
    free = (e for e in endings if not any(f".{p}".endswith(f".{e}") for p in others))
    return next(free, path)  # a whole path means its own option


def form_names(annotation: Any) -> list[str]:
    """The names of the forms that a field of a class may take, without the ending Config where that is no other form's; of what
    is no class with several forms, none."""
    forms = subclasses(annotation) if isinstance(annotation, type) and is_dataclass(annotation) else {}
    return sorted(name if (short := name.removesuffix("Config")) in forms else short for name in forms)


def _resolve(name: str, known: dict[str, Option], strict: bool, others: Sequence[str] = ()) -> str | None:
    """The path that a name or its ending stands for; None where nothing fits yet and strict is False."""
    if name in known:
        return name
    matches = [path for path, option in known.items() if path.endswith(f".{name}") and not option.whole]
    if len(matches) == 1:
        return matches[0]
    owner, _, last = name.rpartition(".")
    now = moved(type(known[owner].value), last) if owner in known and is_dataclass(known[owner].value) else None
    if f"{owner}.{now}" in known:
        return f"{owner}.{now}"
    if not strict:
        return None
    if matches:
        choices = " or ".join(f"--{dashed(short_name(path, known))}" for path in matches)  # as help has them
        raise ValueError(f"--{dashed(name)} is ambiguous: give {choices}")
    if last in EXPECTED:
        raise ValueError(f"unknown option --{dashed(name)}: {EXPECTED[last]}")
    endings = sorted(dashed(ending) for ending in {*known, *others} | {path.rsplit(".", 1)[-1] for path in known})
    raise ValueError(f"unknown option --{dashed(name)}: {nearest(dashed(name), endings, '--help shows them', '--')}")


def _parse(option: Option, text: str, name: str) -> Any:
    """The value of an option; a refusal names it as it was typed."""
    annotation = option.annotation
    try:
        if is_dataclass(annotation):
            chosen = form(annotation, text) or form(annotation, f"{text}Config")  # pyright: ignore[reportArgumentType]
            if chosen is None:
                raise ValueError(nearest(text, form_names(annotation)))  # pyright: ignore[reportArgumentType]
            return option.value if type(option.value) is chosen else chosen()
        return _parse_plain(annotation, text)
    except ValueError as error:
        raise ValueError(f"--{dashed(name)}: {text!r} does not fit ({error})") from None


def _parse_plain(annotation: Any, text: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        parts = [part for part in text.split(",") if part]
        if text and not parts:
            raise ValueError("there is no value between its commas; () is none")
        return tuple(_parse_plain(arguments[0], part) for part in parts if part != "()")
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return text.lower() == "true"
    if annotation in (int, float):
        return _number(annotation, text)
    return annotation(text)


def _number(annotation: type, text: str) -> int | float:
    """An int (1e6 is one) or a float; inf is a float, nan is nothing."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number) or (annotation is int and not number.is_integer()):
        raise ValueError("a whole number" if annotation is int else "a number")
    if annotation is float:
        return number
    return int(text) if text.lstrip("+-").isdecimal() else int(number)


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A configuration, or a dict of them, with the values at dotted paths."""
    own = {path: value for path, value in values.items() if "." not in path}
    below: dict[str, dict[str, Any]] = {}
    for path in values.keys() - own.keys():
        name, _, rest = path.partition(".")
        below.setdefault(name, {})[rest] = values[path]
    if isinstance(config, dict):
        return config | {name: with_values(config[name], members) for name, members in below.items()}
    members = {name: with_values(getattr(config, name), inner) for name, inner in below.items()}
    return replace(config, **own, **members) if values else config


def _field_help(owner: type) -> dict[str, str]:
    """Help per field from the `Args:` sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        _, _, section = (base.__doc__ or "").partition("Args:\n")
        for match in re.finditer(r"^ {8}([\w, ]+): (.+(?:\n {12,}.+)*)", section, flags=re.MULTILINE):
            text = " ".join(match.group(2).split())
            found |= {name.strip(): text for name in match.group(1).split(",")}
    return found
