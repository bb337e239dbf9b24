"""`ConvergenceError`, the only error of this package that is not a `ValueError`: an iteration did not converge."""

from __future__ import annotations

__all__ = ["ConvergenceError"]


class ConvergenceError(RuntimeError):
    """An iteration stopped before its tolerance; the message names the tolerance and what is left."""
