"""The one error of this package that is no `ValueError`: an iteration that did not arrive."""

from __future__ import annotations

__all__ = ["ConvergenceError"]


class ConvergenceError(RuntimeError):
    """An iteration stopped before its tolerance; the message names the tolerance and what is left."""
