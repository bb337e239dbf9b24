"""The configuration of a run as a document: {"run": its JSON} and, of extensions that take part, {"modules": what to import}.

A configuration travels between processes as it lies in config.json: a worker builds its classes by the same rules as a reader
of the file (see `modules`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipelines.config.codec import UnknownClassError, from_json, to_json
from pipelines.config.modules import VARIABLE, Defined, defining, how_to_import, say_changed, used

__all__ = ["documented", "rebuilt"]

R = TypeVar("R")


def documented(run: Any, modules: Sequence[Defined]) -> dict[str, Any]:
    """A configuration and the files of the user's that take part in it."""
    return ({"modules": [entry.to_json() for entry in modules]} if modules else {}) | {"run": to_json(run)}


def rebuilt(
    kind: type[R], document: dict[str, Any], where: str, defined: Callable[[R], Sequence[Defined]] = defining
) -> R:
    """The inverse of `documented`.

    Args:
        kind: The configuration's class.
        document: What `documented` gave, or an earlier version of it.
        where: What the document is, for messages.
        defined: The files of the user's that take part in a configuration, as they are now.

    Raises:
        ValueError: a configuration that this process does not know; where a file of the user's defines it, how to name that.
    """
    kept = document.get("modules") or []
    modules = [Defined.from_json(entry) for entry in (kept if isinstance(kept, list) else [kept])]
    if modules:
        used()
    try:
        run = from_json(kind, document.get("run"), f"{where}run")
    except UnknownClassError as error:
        own = f"a class of your own is found through --import FILE.py or {VARIABLE}"
        raise ValueError(f"{error}; {how_to_import(modules) if modules else own}") from None
    if modules and where:
        say_changed(modules, defined(run), where)
    return run
