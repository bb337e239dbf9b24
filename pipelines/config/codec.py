"""Frozen dataclasses as JSON.

A nested dataclass is written with the name of its class under "type"; reading looks that name up among the subclasses of the
annotated class, so that a file can name nothing but configurations that this package defines, and a new SDE, flow or model
needs no entry anywhere.
"""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal

__all__ = ["from_json", "subclasses", "to_json"]


ALIASES = {
    "Backbone": "BackboneConfig",
    "Dense": "MLPConfig",
    "GlowFlow": "GlowConfig",
    "NoFlow": "IdentityConfig",
    "ResidualFlow": "ResFlowConfig",
}
"""Names that classes had in files that are still read: {then: now}."""


def to_json(value: Any) -> Any:
    """Plain JSON values of a configuration; a dataclass carries its class under "type"."""
    if is_dataclass(value):
        members = {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
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
    raise ValueError(f"{where}: {value!r} is no {getattr(annotation, '__name__', annotation)}")


def subclasses(base: type) -> dict[str, type]:
    """The concrete dataclasses below (and including) a class, by name."""
    found = {} if getattr(base, "__abstractmethods__", None) else {base.__name__: base}
    for child in base.__subclasses__():
        if is_dataclass(child):
            found |= subclasses(child)
    return found


def _dataclass_from_json(base: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object of type {base.__name__}, got {value!r}")
    choices = subclasses(base)
    name = value.get("type", base.__name__)
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{where}: type {name!r} is none of {', '.join(sorted(choices))}")
    chosen = choices[name]
    hints = typing.get_type_hints(chosen)
    known = {f.name for f in fields(chosen)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(value.keys() - known - {"type"})
    if unknown:
        raise ValueError(f"{where}: {name} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    members = {k: from_json(hints[k], v, f"{where}.{k}") for k, v in value.items() if k != "type"}
    try:
        return chosen(**members)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
