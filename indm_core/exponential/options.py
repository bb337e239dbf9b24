"""The options of `sample_deis`: what goes together, what it costs and what order it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from indm_core.sde import LinearSDE

__all__ = [
    "Basis",
    "Final",
    "Method",
    "Multistep",
    "Prediction",
    "Warmup",
    "check_method",
    "check_options",
    "evaluations",
    "guaranteed_order",
    "steps_for",
]

Method = Literal["t-AB", "rho-AB", "log-rho-AB", "rho-RK", "iPNDM"]
Warmup = Literal["low-order", "exact"]
Basis = Literal["R", "L", "score"]
Prediction = Literal["eps", "data"]
Final = Literal["full", "low-order"]

POLYNOMIAL = ("t-AB", "rho-AB", "log-rho-AB")
"""The methods that integrate polynomials, and so allow an exact warm-up, a corrector, data and a final degree."""


@dataclass(frozen=True, kw_only=True)
class Multistep:
    """What a multistep method is, in the words of `sample_deis`."""

    order: int = 3
    method: Method = "t-AB"
    warmup: Warmup = "low-order"
    corrector: bool = False
    reevaluate: bool = True
    basis: Basis = "R"
    prediction: Prediction = "eps"
    final: Final = "full"


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
    reevaluate: bool = True,
    basis: str = "R",
    prediction: str = "eps",
    final: str = "full",
) -> None:
    """Refuses options of `sample_deis` that do not go together, whatever the SDE."""
    words = (
        ("method", method, Method),
        ("warmup", warmup, Warmup),
        ("basis", basis, Basis),
        ("prediction", prediction, Prediction),
        ("final", final, Final),
    )
    for name, value, kind in words:
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
    if not (corrector or reevaluate):
        raise ValueError("reevaluate=False is of a corrector; give corrector=True with it")
    if basis != "R" and (method != "t-AB" or lam > 0 or prediction == "data"):
        raise ValueError(
            f"basis={basis!r} needs method='t-AB' and lam=0, got method={method!r}, lam={lam}; and eps, got {prediction}"
        )
    _check_polynomial(method, lam, warmup=warmup, corrector=corrector, prediction=prediction, final=final)


def _check_polynomial(method: str, lam: float, **options: str | bool) -> None:
    """Refuses what only polynomials have where the method has none."""
    for name, plain in (("warmup", "low-order"), ("corrector", False), ("prediction", "eps"), ("final", "full")):
        if options[name] != plain and method not in POLYNOMIAL:
            named = ", ".join(map(repr, POLYNOMIAL))
            raise ValueError(f"{name}={options[name]!r} needs method among {named}, got {method!r}")
        if options[name] != plain and lam > 0 and name in ("prediction", "final"):
            raise ValueError(f"{name}={options[name]!r} needs lam=0, got lam={lam}")


def evaluations(
    num_steps: int,
    *,
    order: int = 3,
    method: Method = "t-AB",
    warmup: Warmup = "low-order",
    corrector: bool = False,
    reevaluate: bool = True,
    denoise: bool = False,
) -> int:
    """Evaluations of the score that `sample_deis` takes on a grid of `num_steps` steps."""
    if method == "rho-RK":
        return num_steps * (order + 1) + denoise
    exact = min(order, num_steps) if warmup == "exact" else 0
    if not (corrector and reevaluate):
        return num_steps + 3 * exact + denoise
    return 2 * num_steps - 1 + 2 * exact + (exact == num_steps) + denoise  # the last step is not corrected


def guaranteed_order(
    *,
    order: int = 3,
    method: Method = "t-AB",
    warmup: Warmup = "low-order",
    corrector: bool = False,
    reevaluate: bool = True,
    final: Final = "full",
) -> int:
    """The order of convergence of `sample_deis` with lam = 0; a problem may show a higher one where the first or last steps
    limit it.

    A step of degree d that is not corrected has the error O(h^{d+2}), the exact warm-up's O(h^4). With the corrector that costs
    nothing even the first step of a low-order warm-up has O(h^3).
    """
    if method == "rho-RK":
        return order + 1
    if corrector and not reevaluate:
        full, begun = order + 2, 4 if warmup == "exact" else 3
    else:
        full, begun = max(order, int(corrector)) + 1, 4 if warmup == "exact" else 2
    return min(full, begun, 2 if final == "low-order" else 4)


def steps_for(nfe: int, **options: object) -> int:
    """The largest number of steps that takes at most `nfe` evaluations.

    Raises:
        ValueError: not even one step is to be had.
    """
    steps = max((n for n in range(1, nfe + 1) if evaluations(n, **options) <= nfe), default=0)  # pyright: ignore
    if not steps:
        raise ValueError(f"nfe={nfe}: one step takes {evaluations(1, **options)} evaluations; give more")  # pyright: ignore
    return steps
