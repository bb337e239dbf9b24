"""The options of `sample_deis`: what goes together, what it costs and what order it has."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from torch import Tensor

from indm_core.ranges import check_not_negative
from indm_core.sde import LinearSDE
from indm_core.shapes import Float

__all__ = [
    "Basis",
    "Final",
    "Method",
    "Multistep",
    "Prediction",
    "Warmup",
    "check_grid",
    "check_method",
    "check_options",
    "evaluations",
    "guaranteed_order",
    "steps_for",
]

Method = Literal["t-AB", "rho-AB", "log-rho-AB", "t-RK", "rho-RK", "iPNDM"]
Warmup = Literal["low-order", "exact"]
Basis = Literal["R", "L", "score"]
Prediction = Literal["eps", "data", "velocity"]
Final = Literal["full", "low-order"]

POLYNOMIAL = ("t-AB", "rho-AB", "log-rho-AB")
"""The methods that integrate polynomials through the last values, and so allow an exact warm-up, a corrector, noise and a final
degree."""
SINGLE_STEP = ("t-RK", "rho-RK")
"""The methods that take all values of a step within it."""


@dataclass(frozen=True, kw_only=True)
class Multistep:
    """What a method of the family is, in the words of `sample_deis`."""

    order: int = 3
    method: Method = "t-AB"
    lam: float = 0.0
    warmup: Warmup = "low-order"
    corrector: bool = False
    reevaluate: bool = True
    basis: Basis = "R"
    prediction: Prediction = "eps"
    final: Final = "full"
    churn: float = 0.0
    churn_noise: float = 1.0
    churn_from: float = 0.0
    churn_to: float = 1.0

    def steps_for(self, nfe: int, denoise: bool) -> int:
        """The largest number of steps that takes at most `nfe` evaluations, with that of the mean at the end."""
        return steps_for(
            nfe,
            order=self.order,
            method=self.method,
            warmup=self.warmup,
            corrector=self.corrector,
            reevaluate=self.reevaluate,
            denoise=denoise,
        )

    def check_steps(self, num_steps: int) -> None:
        """Refuses a grid on which a degree that was asked for is never reached; 3, the default, is what a short grid allows."""
        begins_low = self.method not in SINGLE_STEP and self.warmup == "low-order"
        ends_low = self.final == "low-order" and not self.corrector
        # the degree rises to the order and may have to fall again
        needed = 2 * self.order + 1 if ends_low else self.order + 1
        if not begins_low or self.order not in (1, 2) or num_steps >= needed:
            return
        lower = (num_steps - 1) // 2 if ends_low else num_steps - 1
        if num_steps <= self.order:
            raise ValueError(
                f"order={self.order}: its polynomial goes through {self.order + 1} values, and a grid of {num_steps} steps has "
                f"{num_steps}; take order={lower} or at least {needed} steps"
            )
        raise ValueError(
            f"order={self.order}: with final='low-order' a grid of {num_steps} steps never reaches it; take "
            f"order={lower}, final='full' or at least {needed} steps"
        )


def check_method(sde: LinearSDE, method: str, prediction: str = "eps") -> None:
    """Refuses a method, or a prediction, that an SDE does not allow."""
    if method in ("rho-AB", "rho-RK") and not sde.scalar:
        raise ValueError(
            f"method={method!r}: rho is no scalar for {type(sde).__name__}; use 't-AB' or 'iPNDM', or 't-RK' for 'rho-RK'"
        )
    size = sde.prior_cov().shape[-1]
    if prediction == "velocity" and size > 1:
        raise ValueError(
            f"prediction='velocity': {type(sde).__name__} couples {size} coordinates, and its velocity is singular within "
            "steps of ordinary length; use 'eps' or 'data'"
        )


def check_grid(sde: LinearSDE, ts: Float[Tensor, " n"], options: Multistep) -> None:
    """Refuses a grid along which rho does not fall, where the options need that."""
    polynomial = options.method == "log-rho-AB" and (options.order > 0 or options.corrector)
    if (polynomial or options.churn > 0) and not bool((sde.log_rho(ts).diff() < 0).all()):
        what, instead = (
            (f"churn={options.churn}", "give churn=0") if options.churn else ("method='log-rho-AB'", "use 't-AB'")
        )
        raise ValueError(f"{what} needs a rho that grows with t, which {sde}'s does not; {instead}")


def check_options(options: Multistep) -> None:
    """Refuses options of `sample_deis` that do not go together, whatever the SDE."""
    order, method, lam, churn = options.order, options.method, options.lam, options.churn
    _check_words(options)
    if not isinstance(order, Integral) or isinstance(order, bool) or not 0 <= order <= 3:
        raise ValueError(f"order={order!r} must be 0, 1, 2 or 3")
    if not (options.corrector or options.reevaluate):
        raise ValueError("reevaluate=False is of a corrector; give corrector=True with it")
    if options.basis != "R" and (method != "t-AB" or lam > 0 or churn > 0 or options.prediction != "eps"):
        raise ValueError(
            f"basis={options.basis!r} needs method='t-AB' and lam=0, got method={method!r}, lam={lam}; and eps, got "
            f"{options.prediction}, and churn=0, got {churn}"
        )
    _check_methods(options)
    _check_noise(options)
    _check_churn(options)
    single = method in SINGLE_STEP or order == 0
    if churn > 0 and (options.corrector or lam > 0 or not single):
        raise ValueError(
            f"churn={churn} needs steps that know no earlier ones, order=0 or method among {_listed(SINGLE_STEP)}, with lam=0 "
            f"and corrector=False; got order={order}, {method!r}, lam={lam}, {options.corrector}"
        )


def _check_words(options: Multistep) -> None:
    kinds = {"method": Method, "warmup": Warmup, "basis": Basis, "prediction": Prediction, "final": Final}
    for name, kind in kinds.items():
        if getattr(options, name) not in get_args(kind):
            raise ValueError(f"{name}={getattr(options, name)!r} is none of {', '.join(get_args(kind))}")


def _check_methods(options: Multistep) -> None:
    """Refuses what a method has not: a corrector, say, of Runge-Kutta."""
    for name, plain in (("warmup", "low-order"), ("corrector", False), ("prediction", "eps"), ("final", "full")):
        able, given = (*POLYNOMIAL, *SINGLE_STEP) if name == "prediction" else POLYNOMIAL, getattr(options, name)
        if given != plain and options.method not in able:
            raise ValueError(f"{name}={given!r} needs method among {_listed(able)}, got {options.method!r}")


def _check_noise(options: Multistep) -> None:
    """Refuses a stochasticity out of range, or one that a method has not."""
    lam, method, warmup, prediction = options.lam, options.method, options.warmup, options.prediction
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} must lie in [0, 1]")
    if lam > 0 and (method not in POLYNOMIAL or warmup != "low-order" or prediction == "velocity"):
        raise ValueError(
            f"lam={lam} above 0 needs method among {_listed(POLYNOMIAL)}, warmup='low-order' and prediction 'eps' or 'data'; "
            f"got {method!r}, {warmup!r}, {prediction!r}"
        )


def _check_churn(options: Multistep) -> None:
    check_not_negative(churn=options.churn, churn_noise=options.churn_noise)
    if not 0 <= options.churn_from <= options.churn_to <= 1:
        raise ValueError(
            f"churn_from={options.churn_from} and churn_to={options.churn_to} are shares of t_max; they must rise, in [0, 1]"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


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
    if method in SINGLE_STEP:
        return num_steps * (order + 1) + denoise
    exact = min(order, num_steps) if warmup == "exact" else 0
    if not (corrector and reevaluate):
        return num_steps + 3 * exact + denoise
    return 2 * num_steps - 1 + 2 * exact + (exact == num_steps) + denoise  # the last step is not corrected


def guaranteed_order(
    *,
    order: int = 3,
    method: Method = "t-AB",
    lam: float = 0.0,
    warmup: Warmup = "low-order",
    corrector: bool = False,
    reevaluate: bool = True,
    final: Final = "full",
) -> int:
    """The order of convergence of `sample_deis`: of the solution or, with lam > 0, of the law's covariance (its mean has that
    of lam = 0); a problem may show a higher one where the first or last steps limit it.

    A step of degree d that is not corrected has the error O(h^{d+2}), the exact warm-up's O(h^4). With the corrector that costs
    nothing even the first step of a low-order warm-up has O(h^3).
    """
    if method in SINGLE_STEP:
        return order + 1
    if corrector and not reevaluate:
        full, begun = order + 2, 4 if warmup == "exact" else 3
    else:
        full, begun = max(order, int(corrector)) + 1, 4 if warmup == "exact" else 2
    return min(full, begun, 2 if final == "low-order" else 4, 2 if lam > 0 else 4)


def steps_for(nfe: int, **options: object) -> int:
    """The largest number of steps that takes at most `nfe` evaluations.

    Raises:
        ValueError: not even one step is to be had.
    """
    steps = bisect_right(range(1, nfe + 1), nfe, key=lambda n: evaluations(n, **options))  # pyright: ignore
    if not steps:
        raise ValueError(f"nfe={nfe}: one step takes {evaluations(1, **options)} evaluations; give more")  # pyright: ignore
    return steps
