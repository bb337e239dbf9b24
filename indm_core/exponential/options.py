"""The options of `sample_deis`: what goes together, what it costs and what order it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from indm_core.sde import LinearSDE

__all__ = [
    "Basis",
    "Method",
    "Multistep",
    "Warmup",
    "check_method",
    "check_options",
    "evaluations",
    "guaranteed_order",
    "steps_for",
]

Method = Literal["t-AB", "rho-AB", "rho-RK", "iPNDM"]
Warmup = Literal["low-order", "exact"]
Basis = Literal["R", "L", "score"]


@dataclass(frozen=True, kw_only=True)
class Multistep:
    """What a multistep method is, in the words of `sample_deis`."""

    order: int
    method: Method
    warmup: Warmup
    corrector: bool
    basis: Basis


def check_method(sde: LinearSDE, method: str) -> None:
    """Refuses a method that an SDE does not allow."""
    if method in ("rho-AB", "rho-RK") and not sde.scalar:
        raise ValueError(f"method={method!r}: rho is no scalar for {type(sde).__name__}; use 't-AB' or 'iPNDM'")


def check_options(
    *,
    order: int = 3,
    method: str = "t-AB",
    lam: float = 0.0,
    warmup: str = "low-order",
    corrector: bool = False,
    basis: str = "R",
) -> None:
    """Refuses options of `sample_deis` that do not go together, whatever the SDE."""
    for name, value, kind in (("method", method, Method), ("warmup", warmup, Warmup), ("basis", basis, Basis)):
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r} is none of {', '.join(get_args(kind))}")
    if order not in (0, 1, 2, 3):
        raise ValueError(f"order={order} must be 0, 1, 2 or 3")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} must lie in [0, 1]")
    if lam > 0 and (order or method != "t-AB" or corrector):
        raise ValueError(
            f"lam={lam} above 0 needs order=0, method='t-AB', corrector=False; got {order}, {method!r}, {corrector}"
        )
    if warmup == "exact" and method not in ("t-AB", "rho-AB"):
        raise ValueError(f"warmup='exact' needs method='t-AB' or 'rho-AB', got {method!r}")
    if corrector and method != "t-AB":
        raise ValueError(f"corrector=True needs method='t-AB', got {method!r}")
    if basis != "R" and (method != "t-AB" or lam > 0):
        raise ValueError(f"basis={basis!r} needs method='t-AB' and lam=0, got method={method!r}, lam={lam}")


def evaluations(
    num_steps: int,
    *,
    order: int = 3,
    method: Method = "t-AB",
    warmup: Warmup = "low-order",
    corrector: bool = False,
    denoise: bool = False,
) -> int:
    """Evaluations of the score that `sample_deis` takes on a grid of `num_steps` steps."""
    if method == "rho-RK":
        return num_steps * (order + 1) + denoise
    exact = min(order, num_steps) if warmup == "exact" else 0
    if not corrector:
        return num_steps + 3 * exact + denoise
    return 2 * num_steps - 1 + 2 * exact + (exact == num_steps) + denoise  # the last step is not corrected


def guaranteed_order(
    *, order: int = 3, method: Method = "t-AB", warmup: Warmup = "low-order", corrector: bool = False
) -> int:
    """The order of convergence of `sample_deis` with lam = 0; a problem may show a higher one where the warm-up limits it."""
    full = max(order, int(corrector)) + 1
    return full if method == "rho-RK" or warmup == "exact" else min(full, 2)


def steps_for(nfe: int, **options: object) -> int:
    """The largest number of steps that takes at most `nfe` evaluations.

    Raises:
        ValueError: not even one step is to be had.
    """
    steps = max((n for n in range(1, nfe + 1) if evaluations(n, **options) <= nfe), default=0)  # pyright: ignore
    if not steps:
        raise ValueError(f"nfe={nfe}: one step takes {evaluations(1, **options)} evaluations; give more")  # pyright: ignore
    return steps
