"""Numbers that must lie in a range.

Every comparison with nan is false, so that `if x <= 0: raise` lets nan through; infinity passes as a large number and becomes
nan where it meets another. Here a number is taken only where it is finite and in the range.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["check_count", "check_not_negative", "check_positive", "check_whole"]


def check_count(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is no integer of at least 1; True and False are none.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def check_whole(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is no integer of at least 0; True and False are none.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name}={value!r} must be an integer of at least 0")


def check_positive(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is not finite and above 0.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not (isinstance(value, Real) and 0 < value < math.inf):
            raise ValueError(f"{name}={value} must be positive and finite")


def check_not_negative(**values: int | float) -> None:
    """Refuses a number, named by its keyword, that is not finite or is below 0.

    Raises:
        ValueError: the first such number.
    """
    for name, value in values.items():
        if not (isinstance(value, Real) and 0 <= value < math.inf):
            raise ValueError(f"{name}={value} must not be negative, and must be finite")
