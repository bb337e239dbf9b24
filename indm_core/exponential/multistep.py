"""Multistep exponential integrators: a step from the last values of eps, their warm-up and their corrector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.exponential.coefficients import Eps, Nodes, lagrange, plan
from indm_core.exponential.options import Basis, Multistep
from indm_core.sde import LinearSDE, apply, over_event

__all__ = ["multistep"]


def multistep(sde: LinearSDE, eps: Eps, u: Tensor, ts: Tensor, options: Multistep) -> Tensor:
    """From ts[0] down to ts[-1]."""
    order, corrector = options.order, options.corrector
    steps, past = [step.to(u) for step in plan(sde, tuple(ts.tolist()), options)], []
    for i, step in enumerate(steps):
        if not (corrector and past and i):
            past = [eps(u, ts[i]), *past[:order]]
        if options.warmup == "exact" and i < order:
            u = _warmup_step(sde, eps, u, ts[i], ts[i + 1], past[0], options.basis)
            if corrector and i + 1 < len(steps):
                past = [eps(u, ts[i + 1]), *past[:order]]
            continue
        moved = apply(step.transfer, u)
        predicted = moved + sum(apply(w, e) for w, e in zip(step.weights, past, strict=False))
        if corrector and i + 1 < len(steps):
            first = eps(predicted, ts[i + 1])
            u = moved + sum(apply(w, e) for w, e in zip(step.correction, [first, *past], strict=False))
            past = [eps(u, ts[i + 1]), *past[:order]]
        else:
            u = predicted
    return u


def _warmup_step(sde: LinearSDE, eps: Eps, u: Tensor, t: Tensor, s: Tensor, first: Tensor, basis: Basis) -> Tensor:
    """A step of order 3 from one value of eps, at three more: eps is a parabola in sqrt tau through t, the middle and s.

    The middle's eps is evaluated twice, the second time at a state that comes from a parabola itself. The weights of every part
    add up to those of a constant eps, which the step therefore takes exactly.
    """
    m = ((t.sqrt() + s.sqrt()) / 2).square()
    ends, starts = torch.stack([m, s]), torch.stack([t, t])
    psi = sde.psi(over_event(ends), over_event(starts))
    whole = sde.R(over_event(ends)) - psi @ sde.R(over_event(starts))
    nodes, moved = Nodes.between(sde, starts, ends, basis), [apply(psi[j], u) for j in range(2)]

    def move(j: int, times: Sequence[Tensor], es: Sequence[Tensor]) -> Tensor:
        polynomials = lagrange([time.sqrt() for time in times], nodes.tau[j].sqrt())
        weights = nodes.weights(j, polynomials, whole[j] if basis == "R" else None)
        return moved[j] + sum(apply(w, e) for w, e in zip(weights, es, strict=True))

    e_m = eps(move(0, [t], [first]), m)
    e_s = eps(move(1, [t, m], [first, e_m]), s)
    e_m = eps(move(0, [t, m, s], [first, e_m, e_s]), m)
    return move(1, [t, m, s], [first, e_m, e_s])
