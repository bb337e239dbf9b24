r"""What a check claims, and how it says that a claim does not hold.

An identity is a function of a case (the object that is checked, with draws to check it on) which makes claims. A claim that
fails raises an `AssertionError` of one line,

    VP: d psi(t, s)/dt = F psi: largest error 1.9e+01 at t=0.9, index (0, 0, 0): 9.05, should be -9.05

with the name of the object, the identity, and the entry whose error is the largest multiple of its limit. An index is that of
the tensor without its first axis where that axis is one of times.

Nothing outside is touched: whatever draws without a generator takes a forked state of torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["at_least", "equal", "finite", "holds", "like", "positive", "seeded", "unbiased", "verify"]

Checked = TypeVar("Checked")
NUM_ERRORS = 5.0
"""Standard errors that a mean may be off."""


def verify(subject: str, identities: Mapping[str, Callable[[Checked], object]], case: Checked) -> None:
    """Runs the identities in their order, each from the same state of torch's random generator and with gradients on.

    Args:
        subject: The name of what is checked.
        identities: Names, and functions that make claims about the case.
        case: What is checked, and on what.

    Raises:
        AssertionError: the first identity that does not hold, or in which the object raised an error.
    """
    for identity, check in identities.items():
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                check(case)
            except AssertionError as failure:
                raise AssertionError(f"{subject}: {identity}: {_first_line(failure)}") from None
            except Exception as error:
                said = f"it raises {type(error).__name__}: {_first_line(error)}"
                raise AssertionError(f"{subject}: {identity}: {said}") from error


def equal(
    found: Tensor, expected: Tensor, limit: Tensor | float = 0.0, *, of: str = "", t: Tensor | None = None
) -> None:
    """|found - expected| <= limit, entry by entry, in one shape and one dtype.

    Args:
        limit: Broadcast to the shape; an infinite entry claims nothing.
        of: What is compared, where the identity does not say it.
        t: Times (n,) of the first axis.
    """
    like(found, expected, of=of)
    prefix = f"{of}: " if of else ""
    found, expected = found.detach(), expected.detach()
    error = torch.where(found == expected, 0.0, (found - expected).abs())  # infinite alike is alike
    limit = torch.as_tensor(limit, dtype=error.dtype).expand(error.shape)
    if bool((error <= limit).all()):
        return
    excess = (error / limit.clamp(min=torch.finfo(error.dtype).tiny)).nan_to_num(math.inf, math.inf)
    index = _largest(excess)
    raise AssertionError(
        f"{prefix}largest error {float(error[index]):.1e}{_where(index, t)}: {float(found[index]):.9g}, should be "
        f"{float(expected[index]):.9g}"
    )


def like(found: Tensor, expected: Tensor, *, of: str = "") -> None:
    """One shape and one dtype."""
    prefix = f"{of}: " if of else ""
    if found.shape != expected.shape:
        raise AssertionError(f"{prefix}shape {tuple(found.shape)}, should be {tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        raise AssertionError(f"{prefix}{found.dtype}, should be {expected.dtype}")


def at_least(found: Tensor, bound: float, *, of: str, t: Tensor | None = None) -> None:
    """found >= bound, entry by entry."""
    _is_so(found, found >= bound, f"at least {bound:.3g}", of, t)


def positive(found: Tensor, *, of: str, t: Tensor | None = None) -> None:
    """found > 0, entry by entry."""
    _is_so(found, found > 0, "positive", of, t)


def _is_so(found: Tensor, so: Tensor, should_be: str, of: str, t: Tensor | None) -> None:
    if not bool(so.all()):
        index = _largest((-found.detach()).nan_to_num(math.inf, math.inf))
        raise AssertionError(f"{of}: smallest value {float(found[index]):.3g}{_where(index, t)}, should be {should_be}")


def finite(found: Tensor, *, of: str, t: Tensor | None = None) -> None:
    """Neither infinite nor NaN."""
    if not bool(found.isfinite().all()):
        index = _largest((~found.detach().isfinite()).double())
        raise AssertionError(f"{of}: {float(found[index])}{_where(index, t)}, should be finite")


def holds(condition: bool, otherwise: str) -> None:
    """A condition, and what is said where it does not hold."""
    if not condition:
        raise AssertionError(otherwise)


def unbiased(draws: Tensor, expected: Tensor, limit: Tensor | float, *, of: str) -> None:
    """The mean over the first axis is `expected` (...) to 5 standard errors and the limit; one draw has no standard error."""
    error = draws.std(0) / math.sqrt(len(draws)) if len(draws) > 1 else torch.zeros_like(expected)
    equal(draws.mean(0), expected, NUM_ERRORS * error.detach() + limit, of=of)


def seeded(seed: int) -> torch.Generator:
    """A generator of the check's own."""
    return torch.Generator().manual_seed(seed)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _largest(value: Tensor) -> tuple[int, ...]:
    """The index of the largest entry."""
    return tuple(int(i) for i in torch.unravel_index(value.argmax(), value.shape))


def _where(index: tuple[int, ...], t: Tensor | None) -> str:
    if t is None:
        return f" at index {index}" if index else ""
    return f" at t={float(t[index[0]]):.4g}" + (f", index {index[1:]}" if index[1:] else "")
