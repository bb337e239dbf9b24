r"""Dormand-Prince 5(4) with a step size per sample.

dy/dt = f(t, y) is solved for every row of a batch with its own time, its own step and its own error norm, so that a sample's
solution and its cost do not depend on its neighbours. A state is a tuple of tensors (b, ...); the error of a row is

    max over the tensors of  rms over their entries of  |err| / (atol + rtol max(|y|, |y_new|))

and a step is accepted where it is at most 1. Rows that have arrived leave the batch.

References:
    Dormand and Prince 1980; Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.ranges import check_positive

__all__ = ["State", "in_sqrt_time", "rk45"]

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State, Tensor], State]

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # 5th minus 4th order
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


def rk45(
    f: Field, state: State, t_0: float, t_1: float, *, rtol: float, atol: float, max_steps: int = 2000
) -> tuple[State, Tensor]:
    """Solves dy/dt = f(t, y) to t_1 from t_0, forwards or backwards.

    Args:
        f: f(t, y, rows) -> dy/dt for the rows (their indices in the batch) that are still under way; t (m,) float64.
        state: Initial values, tensors of shape (b, ...).
        rtol, atol: Tolerances of the error norm above.
        max_steps: Steps, accepted or not, after which a row is given up.

    Returns:
        The state at t_1 and the number of evaluations of f that each row took, (b,).

    Raises:
        ValueError: a tolerance that is not positive, or a number that is not finite.
        ConvergenceError: a step size below the resolution of t, a value that is not finite, or too many steps.
    """
    check_positive(rtol=rtol, atol=atol)
    if not (math.isfinite(t_0) and math.isfinite(t_1)):
        raise ValueError(f"t_0={t_0} and t_1={t_1} must be finite")
    b, device = state[0].shape[0], state[0].device
    sign = 1.0 if t_1 > t_0 else -1.0
    rows = torch.arange(b, device=device)
    y = tuple(part.clone() for part in state)
    t = torch.full((b,), float(t_0), dtype=torch.float64, device=device)
    k_1 = tuple(slope.clone() for slope in f(t, y, rows))  # written to below, while f may have returned y itself
    h = _first_step(f, t, y, k_1, rows, abs(t_1 - t_0), sign, rtol, atol)
    nfe = torch.full((b,), 2, device=device)
    for _ in range(max_steps):
        y_m, k_m, t_m = _take(y, rows), _take(k_1, rows), t[rows]
        remaining = (t_1 - t_m).abs()
        h_m = torch.minimum(h[rows], remaining)
        y_new, k_new, error = _step(f, t_m, sign * h_m, y_m, k_m, rows, rtol, atol)
        nfe[rows] += 6
        finite = error.isfinite()
        accept = finite & (error <= 1)
        factor = _SAFETY * error.clamp(min=1e-10) ** -0.2
        factor = torch.where(finite, factor, _SHRINK).clamp(_SHRINK, _GROW)
        h[rows] = h_m * torch.where(accept, factor, factor.clamp(max=1.0))
        done = rows[accept]
        t[done] = torch.where(h_m == remaining, t_1, t_m + sign * h_m)[accept]
        for part, new in zip((*y, *k_1), (*y_new, *k_new), strict=True):
            part[done] = new[accept]
        rows = rows[~(accept & (h_m == remaining))]
        if not len(rows):
            return y, nfe
        stuck = h[rows] < 1e-13 * (t[rows].abs() + abs(t_1 - t_0))
        if stuck.any():
            raise _gave_up("the step size vanished", rows[stuck], t, rtol, atol)
    raise _gave_up(f"{max_steps} steps were not enough", rows, t, rtol, atol)


def in_sqrt_time(f: Field) -> Field:
    """f as a field in r = sqrt t: dy/dr = 2 r f(r^2, y).

    Near t = 0 the states of a diffusion are smooth in sqrt t and not in t (the noise's standard deviation is about
    sqrt(beta t)). On trained networks the solver then takes about half the evaluations (117 against 60 at a tolerance of
    1e-4 on 8x8 digits); with exact scores it makes little difference.
    """

    def field(r: Tensor, state: State, rows: Tensor) -> State:
        return tuple(_like(2 * r, part) * part for part in f(r.square(), state, rows))

    return field


def _gave_up(why: str, rows: Tensor, t: Tensor, rtol: float, atol: float) -> ConvergenceError:
    i = int(rows[0])
    return ConvergenceError(
        f"RK45 at rtol={rtol:g}, atol={atol:g}: {why} for {len(rows)} of {len(t)} samples "
        f"(first: sample {i} at t={float(t[i]):.3g}); use larger tolerances, or check that the model's output is finite"
    )


def _take(state: State, rows: Tensor) -> State:
    return tuple(part[rows] for part in state)


def _like(h: Tensor, part: Tensor) -> Tensor:
    """h (m,) in the rank and dtype of a state tensor (m, ...)."""
    return h.reshape(-1, *[1] * (part.ndim - 1)).to(part.dtype)


def _advance(y: State, h: Tensor, ks: list[State], weights: tuple[float, ...]) -> State:
    """y + h sum_j weights_j k_j."""
    moved = []
    for i, part in enumerate(y):
        slope = sum(w * k[i] for w, k in zip(weights, ks, strict=True) if w)
        moved.append(part + _like(h, part) * slope)
    return tuple(moved)


def _step(
    f: Field, t: Tensor, h: Tensor, y: State, k_1: State, rows: Tensor, rtol: float, atol: float
) -> tuple[State, State, Tensor]:
    """One step of signed size h: the fifth-order value, its slope (the next step's first), and the error norm (m,)."""
    ks, y_new = [k_1], y
    for c, a in zip(_C[1:], _A[1:], strict=True):
        y_new = _advance(y, h, ks, a)
        ks.append(f(t + c * h, y_new, rows))
    error = _advance(tuple(torch.zeros_like(part) for part in y), h, ks, _E)
    return y_new, ks[-1], _norm(error, y, y_new, rtol, atol)


def _norm(error: State, y: State, y_new: State, rtol: float, atol: float) -> Tensor:
    """The error norm of each row, (m,) float64."""
    norms = []
    for e, a, b in zip(error, y, y_new, strict=True):
        ratio = (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(len(e), math.prod(e.shape[1:]))
        norms.append(ratio.double().square().mean(1).sqrt())
    return torch.stack(norms).amax(0)


def _first_step(
    f: Field, t: Tensor, y: State, k_1: State, rows: Tensor, span: float, sign: float, rtol: float, atol: float
) -> Tensor:
    """Hairer's first step: where the explicit Euler step changes y and its slope by about a hundredth of the tolerance."""
    d_0, d_1 = _norm(y, y, y, rtol, atol), _norm(k_1, y, y, rtol, atol)
    h_0 = torch.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6 * span, 0.01 * d_0 / d_1.clamp(min=1e-30)).clamp(max=span)
    k_2 = f(t + sign * h_0, _advance(y, sign * h_0, [k_1], (1.0,)), rows)
    d_2 = _norm(tuple(b - a for a, b in zip(k_1, k_2, strict=True)), y, y, rtol, atol) / h_0
    steepest = torch.maximum(d_1, d_2)
    h_1 = torch.where(steepest <= 1e-15, (1e-3 * h_0).clamp(min=1e-6 * span), (0.01 / steepest) ** 0.2)
    return torch.minimum(100 * h_0, h_1).clamp(max=span).nan_to_num(1e-6 * span)
