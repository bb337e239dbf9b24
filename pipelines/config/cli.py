"""A command line generated from dataclasses.

Every field is an option named by its dotted path, `--train.steps 2000`, and by every shorter ending of that path that no other
field has, `--steps 2000`. A field whose class has several concrete forms takes a form's name, `--model.sde SubVP`, with or
without the ending Config, `--model.flow ResFlow`, and then shows that form's fields. Names of earlier versions are understood
(`codec.ALIASES`). Tuples are comma-separated. Help comes from the `Args:` of the dataclasses' docstrings.
"""

from __future__ import annotations

import math
import re
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from indm_core.errors import ConvergenceError
from pipelines.config.codec import form, moved, nearest, subclasses
from pipelines.config.modules import HELP, split_word, trust
from pipelines.storage.messages import one_line
from pipelines.storage.signals import Stop, until_signal

__all__ = [
    "Option",
    "describe",
    "options",
    "override",
    "run_command",
    "run_command_on_runs",
    "split_arguments",
    "with_values",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """A field: its dotted path, annotation, current value and one line of help."""

    path: str
    annotation: Any
    value: Any
    help: str

    @property
    def plain(self) -> Any:
        """The value; of a configuration the name of its class, because its fields are options of their own."""
        return type(self.value).__name__ if is_dataclass(self.value) else self.value


def split_arguments(argv: Sequence[str], flags: Collection[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Positional words and `--name value` / `--name=value` pairs; a name without a value means true.

    Args:
        argv: What was typed.
        flags: Names that are true or false: a word behind one is its value only if it says so.

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
            bare = name.replace("-", "_") in flags and (not tokens or tokens[0].lower() not in ("true", "false"))
            value = "true" if bare or not tokens or tokens[0].startswith("--") else tokens.pop(0)
        name = name.replace("-", "_")
        if name in given:
            raise ValueError(f"--{name} is given twice: {given[name]!r} and {value!r}")
        given[name] = value
    return words, given


def run_command(
    argv: Sequence[str] | None, text: str, action: Callable[[list[str], dict[str, str]], None], remark: str
) -> int:
    """The main of a script that takes words and options: returns the exit status, and tells an error in one line.

    Args:
        argv: What was typed; None takes the process's arguments.
        text: The help, printed where it is asked for or no word is given.
        action: Called with the words and the options.
        remark: Where a signal ends the action: what is saved and how to go on, as the end of a line (see `signals`).
    """
    return until_signal(lambda stop: _carry_out(argv, text, action, stop), remark)


def _carry_out(
    argv: Sequence[str] | None, text: str, action: Callable[[list[str], dict[str, str]], None], stop: Stop
) -> int:
    given: dict[str, str] = {}
    try:
        words, given = split_arguments(sys.argv[1:] if argv is None else argv)
        asked = given.pop("help", None) or "-h" in words
        if asked or not words:
            print(text)
            return 0 if asked else 2
        action(words, given)
    except (ValueError, ConvergenceError, OSError) as error:
        if stop.requested:  # it is what the signal has led to
            raise
        if given.get("traceback"):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run_command_on_runs(
    argv: Sequence[str] | None, text: str, action: Callable[[list[str], dict[str, str]], None], remark: str
) -> int:
    """The main of a script that reads runs: `run_command` with one more option, --recipe path.py:function, which names a file
    of the user's own that defines classes of the runs (see `modules`).

    Args:
        argv, text, action, remark: As of `run_command`.
    """

    def trusting(words: list[str], given: dict[str, str]) -> None:
        if "recipe" in given:
            word = given.pop("recipe")
            file, _ = split_word(word)
            if not file:
                raise ValueError(f"--recipe {word}: give path.py:function, of the file that defines the run's classes")
            trust(file)
        action(words, given)

    return run_command(argv, f"{text}\n\n{HELP}", trusting, remark)


def options(config: Any, prefix: str = "") -> list[Option]:
    """Every option of a configuration, depth first."""
    hints, helps, found = typing.get_type_hints(type(config)), _field_help(type(config)), []
    for f in fields(config):
        value, path = getattr(config, f.name), f"{prefix}{f.name}"
        if isinstance(value, dict):
            for key, member in value.items():
                found += options(member, f"{path}.{key}.")
        elif is_dataclass(value):
            if len(subclasses(hints[f.name])) > 1:
                found.append(Option(path, hints[f.name], value, helps.get(f.name, "")))
            found += options(value, f"{path}.")
        else:
            found.append(Option(path, hints[f.name], value, helps.get(f.name, "")))
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
        config = with_values(config, {path: _parse(known[path], left.pop(form))})
    values: dict[str, Any] = {}
    for name, text in left.items():
        path = resolved[name] or _resolve(name, known, strict=True, others=others) or name
        if path in values:
            raise ValueError(f"--{path} is given twice, once as --{name}")
        values[path] = _parse(known[path], text)
    return with_values(config, values)  # together: what two options must satisfy does not depend on their order


def describe(config: Any) -> str:
    """The options as help text, one a line: path, value, help."""
    found = options(config)
    width = max(len(option.path) for option in found) + 2
    lines = []
    for option in found:
        forms = (
            subclasses(option.annotation)
            if isinstance(option.annotation, type) and is_dataclass(option.annotation)
            else {}
        )
        shown = _short(type(option.value).__name__, forms) if forms else _show(option.value)
        choices = f" One of {', '.join(_shortened(forms))}." if forms else ""
        lines.append(f"  --{option.path:<{width}} {shown:<18} {option.help}{choices}")
    return "\n".join(lines)


def _shortened(forms: Collection[str]) -> list[str]:
    return sorted(_short(name, forms) for name in forms)


def _short(name: str, forms: Collection[str]) -> str:
    """A form's name without the ending Config, unless that is another form's."""
    short = name.removesuffix("Config")
    return name if short in forms else short


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return '""' if value == "" else str(value)


def _resolve(name: str, known: dict[str, Option], strict: bool, others: Sequence[str] = ()) -> str | None:
    """The path that a name or its ending stands for; None where nothing fits yet and strict is False."""
    if name in known:
        return name
    matches = [path for path in known if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    owner, _, last = name.rpartition(".")
    now = moved(type(known[owner].value), last) if owner in known and is_dataclass(known[owner].value) else None
    if f"{owner}.{now}" in known:
        return f"{owner}.{now}"
    if not strict:
        return None
    if matches:
        raise ValueError(f"--{name} is ambiguous: " + ", ".join(f"--{path}" for path in matches))
    endings = sorted({*known, *others} | {path.rsplit(".", 1)[-1] for path in known})
    raise ValueError(f"unknown option --{name}: " + nearest(name, endings))


def _parse(option: Option, text: str) -> Any:
    annotation = option.annotation
    try:
        if is_dataclass(annotation):
            chosen = form(annotation, text) or form(annotation, f"{text}Config")  # pyright: ignore[reportArgumentType]
            if chosen is None:
                raise ValueError(nearest(text, _shortened(subclasses(annotation))))  # pyright: ignore[reportArgumentType]
            return option.value if type(option.value) is chosen else chosen()
        return _parse_plain(annotation, text)
    except ValueError as error:
        raise ValueError(f"--{option.path}: {text!r} does not fit ({error})") from None


def _parse_plain(annotation: Any, text: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        return tuple(_parse_plain(arguments[0], part) for part in text.split(",") if part not in ("", "()"))
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
