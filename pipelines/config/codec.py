"""Frozen dataclasses as JSON.

A nested dataclass is written with the name of its class under "type"; reading looks that name up among the subclasses of the
annotated class, so that a file can name nothing but configurations that this process knows, and a new SDE, flow or model
needs no entry anywhere. Names of earlier versions are in `ALIASES`, and read for ever.
"""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

from pipelines.storage.messages import nearest, one_line

__all__ = ["ALIASES", "UnknownClassError", "form", "former", "from_json", "moved", "subclasses", "to_json"]


ALIASES = {
    "Backbone": "BackboneConfig",
    "Dense": "MLPConfig",
    "GlowFlow": "GlowConfig",
    "NoFlow": "IdentityConfig",
    "ResidualFlow": "ResFlowConfig",
    "DiffusionConfig.mode": "DiffusionConfig.objective.mode",
    "DiffusionConfig.pretrain_steps": "DiffusionConfig.objective.pretrain_steps",
    "DiffusionConfig.soft_truncation": "DiffusionConfig.objective.soft_truncation",
    "DiffusionConfig.data_var": "DiffusionConfig.objective.data_var",
}
"""What classes and fields were called in files that are still read: {then: now}.

A class is named alone and a field with its class; a field that has moved into the dataclass of another field of its class is
named `Class.other.field` now. `now` is followed as far as it leads: a class or a field that is renamed again gets one more
entry, and no entry is ever changed. A field is looked up under the names, of now and then, of its class and of its bases.
"""

FORMER_DEFAULTS = {"ResFlowConfig.first_activation": True, "Train.validate_every": 0, "Train.order": "windows"}
"""What a field is in files from before its class had it, where that is not its default of today."""

DEFAULT = object()
"""Stands in `LATER` for the default of a field that holds a dataclass."""
LATER = {
    "ModelConfig.conditional": False,
    "Objective.label_dropout": 0.1,
    "Objective.smallest_window": (),
    "Objective.window_step": 1,
    "Train.keep_by": "nelbo",
    "Train.measure_every": 0,
    "DistancesResult.strength": 1.0,
    "Settings.nll_solver": "rk45",
    "Settings.nll_nfe": 0,
    "Settings.nll_tolerance": 3e-2,
    "Settings.layout": DEFAULT,
    "Settings.canvases": 200,
    "Settings.canvas_sampling": DEFAULT,
    "Sampling.langevin_steps": 4,
    "Sampling.langevin_step": 0.5,
    "Sampling.final_step": 0.1,
    "Sampling.predictor": "deis",
    "Sampling.metropolis": False,
    "Sampling.repeats": 5,
}
"""Fields that are written only where they are not this, their default: what has none of them is written, and hashed, as it was
before there were such fields."""


class UnknownClassError(ValueError):
    """A document names a class that this process does not know."""


def to_json(value: Any) -> Any:
    """Plain JSON values of a configuration; a dataclass carries its class under "type"."""
    if is_dataclass(value):
        left_out = _later_defaults(type(value))
        said = {f.name: getattr(value, f.name) for f in fields(value)}
        members = {k: to_json(member) for k, member in said.items() if k not in left_out or member != left_out[k]}
        return {"type": type(value).__name__, **members}
    if isinstance(value, dict):
        return {key: to_json(member) for key, member in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(member) for member in value]
    return value


def from_json(annotation: Any, value: Any, where: str = "config") -> Any:
    """The inverse of `to_json` for a value of the annotated type.

    Raises:
        ValueError: an unknown class or field, or a value of another type; the message names the place.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_dataclass(annotation):
        return _dataclass_from_json(annotation, value, where)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else from_json(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(arguments[0], member, f"{where}[{i}]") for i, member in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: from_json(arguments[1], member, f"{where}.{key}") for key, member in value.items()}
    if origin is Literal and value in arguments:
        return value
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    raise ValueError(f"{where}: {one_line(repr(value), 80)} is no {getattr(annotation, '__name__', annotation)}")


def subclasses(base: type) -> dict[str, type]:
    """The concrete dataclasses below (and including) a class, by name."""
    found = {} if getattr(base, "__abstractmethods__", None) else {base.__name__: base}
    for child in base.__subclasses__():
        if is_dataclass(child):
            found |= subclasses(child)
    return found


def form(base: type, name: str) -> type | None:
    """The concrete class below (or equal to) a base that a name of now or then stands for; None where there is none."""
    choices = subclasses(base)
    while name not in choices and name in ALIASES:
        name = ALIASES[name]
    return choices.get(name)


def moved(owner: type, name: str) -> str | None:
    """The dotted path at which a class has a field that was called by another name; None where it never had it."""
    known, path = {f.name for f in fields(owner)}, name  # pyright: ignore[reportArgumentType]
    while path.partition(".")[0] not in known:
        entries = (ALIASES.get(f"{called}.{path}") for called in _names(owner))
        now = next(filter(None, entries), None)
        if now is None:
            return None
        path = now.partition(".")[2]
    return path


def former(value: Any, path: str = "") -> dict[str, Any]:
    """The fields, by dotted path, in which a configuration is as those were that did not have them yet: what such a run was
    begun with, whether its file leaves them out or, once a command of today has gone on with it, says them."""
    found: dict[str, Any] = {}
    if is_dataclass(value):
        before = _former_defaults(type(value))
        for f in fields(value):
            member = getattr(value, f.name)
            if f.name in before and member == before[f.name]:
                found[path + f.name] = member
            found |= former(member, f"{path}{f.name}.")
    return found


def _names(owner: type) -> list[str]:
    """The names, of now and then, of a class and of its bases."""
    now = [base.__name__ for base in owner.__mro__ if is_dataclass(base)]
    return now + [then for then in ALIASES if "." not in then and _today(then) in now]


def _today(name: str) -> str:
    while name in ALIASES:
        name = ALIASES[name]
    return name


def _dataclass_from_json(base: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object of type {base.__name__}, got {one_line(repr(value), 80)}")
    name = value.get("type", base.__name__)
    chosen = form(base, name) if isinstance(name, str) else None
    if chosen is None:
        shown = one_line(name, 80)
        raise UnknownClassError(f"{where}: unknown class {shown!r}: {nearest(shown, sorted(subclasses(base)))}")
    hints, given = typing.get_type_hints(chosen), _former_defaults(chosen) | _under_names_of_today(chosen, value, where)
    members = {name: from_json(hints[name], member, f"{where}.{name}") for name, member in given.items()}
    try:
        return chosen(**members)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _under_names_of_today(owner: type, value: dict[str, Any], where: str) -> dict[str, Any]:
    """The members of an object of a class, those of earlier names at their place of today."""
    known = {f.name: f for f in fields(owner)}  # pyright: ignore[reportArgumentType]
    given = {name: member for name, member in value.items() if name != "type"}
    members = {name: member for name, member in given.items() if name in known}
    inside: dict[str, dict[str, Any]] = {}
    for name in sorted(given.keys() - known.keys()):
        path = moved(owner, name)
        if path is None:
            shown = one_line(name, 80)
            raise ValueError(f"{where}: {owner.__name__} has no field {shown!r}; it has {', '.join(sorted(known))}")
        first, _, rest = path.partition(".")
        if first in given:
            raise ValueError(f"{where}: {name!r} is called {path!r} now, and both are given; remove {name!r}")
        if rest:
            inside.setdefault(first, {})[rest] = given[name]
        else:
            members[first] = given[name]
    return members | {first: _with_moved(known[first], moved_in, where) for first, moved_in in inside.items()}


def _former_defaults(owner: type) -> dict[str, Any]:
    """The fields of a class that were something else before the class had them."""
    entries = {f.name: f"{owner.__name__}.{f.name}" for f in fields(owner)}  # pyright: ignore[reportArgumentType]
    return {name: FORMER_DEFAULTS[entry] for name, entry in entries.items() if entry in FORMER_DEFAULTS}


def _later_defaults(owner: type) -> dict[str, Any]:
    """The fields of a class, and of its bases, that are written only where they are not their default."""
    entries = {f"{base.__name__}.{f.name}": f for base in owner.__mro__ if is_dataclass(base) for f in fields(base)}
    return {f.name: _default(f, LATER[entry]) for entry, f in entries.items() if entry in LATER}


def _default(of: Field[Any], said: Any = DEFAULT) -> Any:
    """The default of a field, or another one that is said."""
    if said is not DEFAULT:
        return said
    return of.default if of.default_factory is MISSING else of.default_factory()


def _with_moved(of: Field[Any], given: dict[str, Any], where: str) -> dict[str, Any]:
    """The default of a field, which holds a dataclass, with the members that have moved into it from the class around it."""
    default = _default(of)
    return to_json(default) | _under_names_of_today(type(default), given, f"{where}.{of.name}")
