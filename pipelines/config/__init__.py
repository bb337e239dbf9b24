"""Configurations: what a run is (`run`, `models`), as JSON (`codec`), in a directory (`store`), on a command line (`cli`); and
what others have trained (`hub`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.config.hub import from_pretrained
    from pipelines.config.store import load

__all__ = ["from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    """What loads, with PyTorch, where it is first asked for: the help of a command needs neither."""
    if name == "load":
        from pipelines.config.store import load

        return load
    if name == "from_pretrained":
        from pipelines.config.hub import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
