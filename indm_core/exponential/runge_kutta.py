r"""Single-step exponential integrators, of order r + 1 = 1 to 4, for every linear SDE and every form of the ODE.

In the variable y = S^-1 u of a form (`forms`) the ODE is dy = a(z) f dz, with a the derivative of a matrix that is known, f the
value and z a clock: rho for rho-RK, the square root of t for t-RK. With m the middle of a step in z, A_m, A_ms and A_s the
integrals of a over its first half, its second half and the whole, and k_1, k_2, .. the values found:

    r = 0    y_s = y + A_s k_1
    r = 1    k_2 at y + A_s k_1, then the straight line through k_1 and k_2
    r = 2    k_2 at y + A_m k_1;  k_3 at y + A_s (2 k_2 - k_1);  then the parabola through k_1, k_2 and k_3
    r = 3    k_2 at y + A_m k_1;  k_3 at y + A_m k_2;  k_4 at y + A_m k_1 + A_ms (2 k_3 - k_1);
             then the parabola through k_1, (k_2 + k_3)/2 and k_4

where a line or a parabola is integrated against a exactly. Where a is constant (rho-RK) these are Euler's, Heun's, Kutta's
third-order and the classical method. With a and f expanded about m, a = a_0 + a_1 x and f = f_0 + f_1 x + f_2 x^2/2, the errors
of the states of r = 3 are, J = df/dy at m,

    e_2 + e_3 = [-a_1 f_1/48 + a_0 f_2/48 - a_0 J a_0 f_1/16] h^3,      e_4 = [a_1 f_1/24 - a_0 f_2/24 + a_0 J a_0 f_1/8] h^3,

and e_2 and e_3 themselves are O(h^2) and cancel. In y_s they enter as h a_0 J [(e_2 + e_3)/3 + e_4/6] = 0: order 4 is kept by
matrices that depend on time and do not commute. For r = 2, e_2 = -a_0 f_1 h^2/8 and e_3 = a_0 f_1 h^2/2 enter with 2/3 and 1/6,
and cancel as well.

Every state is exact for a constant value, because the weights of its values add up to that of a constant.

References: Cox, Matthews 2002, "Exponential time differencing for stiff systems", Eqs. 20-22, 23-25, 26-29 (for F constant).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from indm_core.exponential.churn import noised, raised
from indm_core.exponential.coefficients import Step, each_step, rho_of, variable
from indm_core.exponential.forms import Form, form_of
from indm_core.exponential.options import Multistep
from indm_core.noise import Noise
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse, over_event
from indm_core.times import on_device

__all__ = ["runge_kutta"]


@dataclass(frozen=True)
class Stages:
    """A step: the states where the score is evaluated after the first, each from the values before it, and the last state."""

    times: Sequence[Tensor]
    inner: Sequence[Step]
    last: Step

    def to(self, dtype: torch.dtype, device: torch.device) -> Stages:
        """In the type and on the device of a state; the times in their own type."""
        times, inner = [t.to(device) for t in self.times], [step.to(dtype, device) for step in self.inner]
        return Stages(times, inner, self.last.to(dtype, device))


def runge_kutta(
    sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, options: Multistep, generator: Noise = None
) -> Tensor:
    """From ts[0] down to ts[-1], each step from a time that churn has raised; the generator is of its noise."""
    form, times = form_of(options), tuple(ts.tolist())
    began = tuple(raised(sde, torch.tensor(times, dtype=torch.float64), options).tolist())
    starts, ts = (on_device(torch.tensor(grid, dtype=torch.float64), u.device) for grid in (began, times))
    for i, stages in enumerate(_placed(sde, began, times[1:], options, u.dtype, u.device)):
        if began[i] > times[i]:
            u = noised(sde, u, starts[i], ts[i], options.churn_noise, generator)
        values = [form.value(sde, score, u, starts[i])]
        for t, step in zip(stages.times, stages.inner, strict=True):
            values.append(form.value(sde, score, _state(step, u, values), t))
        u = _state(stages.last, u, values)
    return u


def _state(step: Step, u: Tensor, values: Sequence[Tensor]) -> Tensor:
    return apply(step.transfer, u) + sum(apply(w, k) for w, k in zip(step.weights, values, strict=True))


@lru_cache(maxsize=8)
def _placed(
    sde: LinearSDE,
    starts: tuple[float, ...],
    ends: tuple[float, ...],
    options: Multistep,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Stages]:
    """`_plan` in the type and on the device of states, once per grid."""
    return [stages.to(dtype, device) for stages in _plan(sde, starts, ends, options)]


@lru_cache(maxsize=8)
def _plan(sde: LinearSDE, starts: tuple[float, ...], ends: tuple[float, ...], options: Multistep) -> list[Stages]:
    """The stages of every step, once per grid."""
    t, s = (torch.tensor(times, dtype=torch.float64) for times in (starts, ends))
    form, z, order, m = form_of(options), variable(sde, options), options.order, _middle(sde, t, s, options)
    to_m, A_m = _moved(sde, form, t, m)
    to_s, A_s = _moved(sde, form, t, s)
    if order == 0:
        return [Stages((), (), Step(to_s[i], [A_s[i]])) for i in range(len(t))]
    A_ms, none, points = A_s - to_s @ inverse(to_m) @ A_m, torch.zeros_like(A_s[0]), [z(t), z(s)]
    if order > 1:
        points.insert(1, z(m))
    plan = []
    for i, weights in enumerate(each_step(sde, t, s, options, A_s)):
        whole, half, w = A_s[i], Step(to_m[i], [A_m[i]]), weights([at[i] for at in points])
        if order == 1:
            times, inner = (s[i],), (Step(to_s[i], [whole]),)
        elif order == 2:
            times, inner = (m[i], s[i]), (half, Step(to_s[i], [-whole, 2 * whole]))
        else:
            fourth = Step(to_s[i], [whole - 2 * A_ms[i], none, 2 * A_ms[i]])
            times, inner = (m[i], m[i], s[i]), (half, Step(to_m[i], [none, A_m[i]]), fourth)
            w = [w[0], 0.5 * w[1], 0.5 * w[1], w[2]]
        plan.append(Stages(times, inner, Step(to_s[i], w)))
    return plan


def _moved(sde: LinearSDE, form: Form, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The transition to s from t (N,), and the weight of a constant value in closed form."""
    transfer = form.transfer(sde, over_event(s), over_event(t))
    whole = form.whole(sde, over_event(s), over_event(t), transfer)
    if whole is None:
        raise ValueError(
            f"{form}: Runge-Kutta steps and churn need the closed form for a constant value; take basis='R'"
        )
    return transfer, whole


def _middle(sde: LinearSDE, t: Tensor, s: Tensor, options: Multistep) -> Tensor:
    if options.method == "rho-RK":
        return sde.time_at(2 * (0.5 * (rho_of(sde, t) + rho_of(sde, s))).log())
    return (0.5 * (t.sqrt() + s.sqrt())).square()
