"""Multistep exponential integrators: a step from the last values, a corrector of each step, and the warm-up.

A step predicts u at s by the polynomial through the last r + 1 values. A corrector then repeats it with the polynomial through
the value at the predicted state as well:

    PECE   predict, evaluate, correct, evaluate again at the corrected state: two evaluations a step
    PEC    the value at the predicted state serves the next steps too: the corrector costs nothing. That value is wrong by the
           predictor's error, O(h^{r+2}), and enters a step with a weight O(h). So the order r + 2 of the corrector's
           polynomial, here of degree r + 1, is kept, one above the predictor's.

The last step has no corrector, for it would need an evaluation that nothing else uses.

With lam > 0 a step adds the exact noise of its linear part, and a corrector keeps the noise of the step that it repeats. For
Gaussian data the mean of the law then has the order of the deterministic method, and the covariance that order or 2, whichever
is less. A polynomial of degree 1 or more answers the noise of a step with a delay of half a step, as noise that comes evenly
over the step has on average; what differs is the square of the delays, O(h^2).

References:
    Zhao et al. 2023, "UniPC", section 3.1 (PEC for scalar SDEs, polynomials in log rho); Xue et al. 2023, "SA-Solver" (with
    noise, for scalar SDEs, polynomials in log rho).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.exponential.coefficients import Nodes, placed, root_of
from indm_core.exponential.forms import form_of
from indm_core.exponential.options import Multistep
from indm_core.noise import Noise
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, over_event
from indm_core.times import on_device

__all__ = ["multistep"]


def multistep(
    sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, options: Multistep, generator: Noise = None
) -> Tensor:
    """From ts[0] down to ts[-1]; the generator is of the noise, where options.lam > 0."""
    form, steps = form_of(options), placed(sde, tuple(ts.tolist()), options, u.dtype, u.device)
    ts = on_device(ts, u.device)
    past, ahead = [], None  # ahead: the value at the next time, where the corrector leaves one
    for i, step in enumerate(steps):
        now = form.combined(step.value, u, score(u, ts[i])) if ahead is None else ahead
        past, ahead = [now, *past[: options.order]], None
        if options.warmup == "exact" and i < options.order:
            u = _warmup_step(sde, score, u, ts[i], ts[i + 1], now, options)
            continue
        moved = step.moved(u, generator)
        u = moved + _weighted(step.weights, past)
        if options.corrector and i + 1 < len(steps):
            first = form.combined(steps[i + 1].value, u, score(u, ts[i + 1]))
            u = moved + _weighted(step.correction, [first, *past])
            ahead = None if options.reevaluate else first
    return u


def _weighted(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """sum_j weights[j] values[j] over the weights that there are."""
    first, *rest = (apply(w, e) for w, e in zip(weights, values, strict=False))
    return sum(rest, first)


def _warmup_step(
    sde: LinearSDE, score: Score, u: Tensor, t: Tensor, s: Tensor, first: Tensor, options: Multistep
) -> Tensor:
    """A step of order 3 from one value, at three more: a parabola in sqrt tau through t, the middle and s.

    The middle's value is taken twice, the second time at a state that comes from a parabola itself. The weights of every part
    add up to those of a constant value, which the step therefore takes exactly.
    """
    form, m = form_of(options), ((t.sqrt() + s.sqrt()) / 2).square()
    ends, starts = torch.stack([m, s]), torch.stack([t, t])
    transfer = form.transfer(sde, over_event(ends), over_event(starts))
    whole = form.whole(sde, over_event(ends), over_event(starts), transfer)
    nodes = Nodes.between(sde, starts, ends, form, root_of(options), torch.sqrt, whole)

    def move(j: int, times: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        weights = nodes.weights(j, [time.sqrt() for time in times])
        return apply(transfer[j], u) + sum(apply(w, e) for w, e in zip(weights, values, strict=True))

    at_m = form.value(sde, score, move(0, [t], [first]), m)
    at_s = form.value(sde, score, move(1, [t, m], [first, at_m]), s)
    at_m = form.value(sde, score, move(0, [t, m, s], [first, at_m, at_s]), m)
    return move(1, [t, m, s], [first, at_m, at_s])
