"""Configurations: what a run is (`run`, `models`), as JSON (`codec`), in a directory (`store`), on a command line (`cli`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.config.store import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is asked for: commands that need no model do not wait for torch."""
    if name == "load":
        from pipelines.config.store import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
