"""Numbers that must lie in a range.

Every comparison with nan is false, so that `if x <= 0: raise` lets nan through; infinity passes as a large number and becomes
nan where it meets another. Here a number is taken only where it is finite and in the range.
"""

from __future__ import annotations

import math

__all__ = ["check_not_negative", "check_positive"]


def check_positive(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is not finite and above 0.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive and finite")


def check_not_negative(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is not finite or is below 0.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must not be negative, and must be finite")
