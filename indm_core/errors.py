"""The errors of this package that are not a `ValueError`: a computation did not come to an end."""

from __future__ import annotations

__all__ = ["ConvergenceError", "NonFiniteLossError"]


class ConvergenceError(RuntimeError):
    """An iteration stopped before its tolerance; the message names the tolerance and what is left."""


class NonFiniteLossError(RuntimeError):
    """Too many steps of a training in a row had a loss or gradient that is not finite."""
