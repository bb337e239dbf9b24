"""Thin entry points that carry `indm_core` from a laptop to a Ray cluster.

What a program of one's own needs of it, without Ray and MLflow:

    load(path)              the trained model of a run, or of an exported directory
    from_pretrained(path)   the same of a directory, or of a repository on the Hugging Face hub
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from indm_core import __version__

if TYPE_CHECKING:
    from pipelines.config import from_pretrained, load

__all__ = ["__version__", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    if name in ("from_pretrained", "load"):
        return getattr(import_module("pipelines.config"), name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
