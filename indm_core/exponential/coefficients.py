r"""The weights of multistep steps: integrals of polynomials against a form's integrand, in float64, once per grid.

A value f (eps, x or v, see `forms`) that is the polynomial through f_0..f_r at points z_0..z_r of a variable z(t) gives a step

    u_s = transfer u_t + sum_j W_j f_j [+ spread noise],        W_j = int_t^s integrand(s, tau) l_j(z(tau)) dtau,

with l_j Lagrange's polynomials. z is t, rho = R/psi(t, 0) or log rho; for SDEs with matrix coefficients log rho is that of one
coordinate or the mean of all (`LinearSDE.log_rho`): a change of the clock alone, so that polynomials in it are defined wherever
it grows with t. The sum of all W_j is the closed form for a constant value where there is one, so that this is taken exactly.

Gauss-Legendre nodes take the integrals in t^(1/p): p = 2 for eps, v and polynomials in t or rho, whose integrands are smooth in
sqrt t; p = 4 elsewhere, because log t and negative powers of t have their singularity at 0 so far outside of a step in t^(1/4)
that 40 nodes are exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from indm_core.exponential.forms import Form, form_of
from indm_core.exponential.options import Multistep
from indm_core.noise import Noise, randn_like
from indm_core.sde import LinearSDE, apply, over_event
from indm_core.sde.algebra import gauss_legendre_like

__all__ = ["Nodes", "Step", "each_step", "lagrange", "placed", "plan", "quadrature", "rho_of", "root_of", "variable"]

PLAN_ENTRIES = 1 << 20

_PNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class Step:
    """u_s = transfer u_t + sum_j weights[j] f_{i-j} + spread noise, the last where lam > 0; a corrector's weights begin with
    that of the predicted state's value. `value` are the form's coefficients at t (`Form.parts`)."""

    transfer: Tensor
    weights: Sequence[Tensor]
    correction: Sequence[Tensor] = ()
    spread: Tensor | None = None
    value: Sequence[Tensor] = ()

    def to(self, dtype: torch.dtype, device: torch.device) -> Step:
        """In the type and on the device of a state, so that `apply` has nothing to convert."""
        like = torch.empty((), dtype=dtype, device=device)
        weights, correction, value = (
            [w.to(like) for w in part] for part in (self.weights, self.correction, self.value)
        )
        spread = None if self.spread is None else self.spread.to(like)
        return Step(self.transfer.to(like), weights, correction, spread, value)

    def moved(self, u: Tensor, generator: Noise) -> Tensor:
        """The part of u_s that no value enters."""
        moved = apply(self.transfer, u)
        return moved if self.spread is None else moved + apply(self.spread, randn_like(u, generator))


@lru_cache(maxsize=8)
def placed(
    sde: LinearSDE, times: tuple[float, ...], options: Multistep, dtype: torch.dtype, device: torch.device
) -> list[Step]:
    """`plan` in the type and on the device of states, once per grid: what sampling takes beside the network is then `apply`
    alone."""
    return [step.to(dtype, device) for step in plan(sde, times, options)]


@lru_cache(maxsize=8)
def plan(sde: LinearSDE, times: tuple[float, ...], options: Multistep) -> list[Step]:
    """Transfers and weights of every step, computed together, once per grid.

    Raises:
        ValueError: polynomials in log rho on a grid along which it does not fall.
    """
    form, order = form_of(options), options.order
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    value = list(zip(*form.parts(sde, over_event(t)), strict=True))
    transfer = form.transfer(sde, over_event(s), over_event(t))
    whole = form.whole(sde, over_event(s), over_event(t), transfer)
    spread = form.spread(sde, over_event(s), over_event(t), transfer) if options.lam > 0 else [None] * len(t)
    if whole is not None and (options.method == "iPNDM" or (order == 0 and not options.corrector)):  # no integrals
        return [
            Step(transfer[i], [c * whole[i] for c in _PNDM[min(i, order)]], (), spread[i], value[i])
            for i in range(len(t))
        ]
    grid = variable(sde, options)(ts)
    if not (grid.diff() < 0).all():
        raise ValueError(f"method={options.method!r} needs a rho that grows with t, which {sde}'s does not; use 't-AB'")
    steps = []
    for i, weights in enumerate(each_step(sde, t, s, options, whole)):
        known = [grid[i - j] for j in range(min(i, order) + 1)]
        correction: Sequence[Tensor] = ()
        if options.corrector:
            correction = weights([grid[i + 1], *known[: max(1, order) if options.reevaluate else None]])
        degree = min(order, len(t) - 1 - i) if options.final == "low-order" else order
        steps.append(Step(transfer[i], weights(known[: degree + 1]), correction, spread[i], value[i]))
    return steps


def variable(sde: LinearSDE, options: Multistep) -> Callable[[Tensor], Tensor]:
    """z(t), in which the values are polynomials, in the shape of t."""
    if options.method in ("rho-AB", "rho-RK"):
        return lambda t: rho_of(sde, t)
    if options.method == "t-RK":
        return torch.sqrt
    if options.method == "log-rho-AB":
        return lambda t: sde.log_rho(t.flatten()).reshape(t.shape)
    return lambda t: t


def root_of(options: Multistep) -> int:
    """p of the variable t^(1/p) in which integrals are taken."""
    return 4 if options.prediction == "data" or options.method == "log-rho-AB" else 2


def each_step(
    sde: LinearSDE, t: Tensor, s: Tensor, options: Multistep, whole: Tensor | None
) -> Iterator[Callable[[Sequence[Tensor]], list[Tensor]]]:
    """For each step to s from t, the function that gives the weights of values at points of z (`Nodes.weights`)."""
    form, z = form_of(options), variable(sde, options)
    entries = sde.psi(over_event(s[:1]), over_event(t[:1])).numel()
    share = max(1, PLAN_ENTRIES // (form.num_nodes * entries))  # steps whose nodes are in memory together
    for i in range(0, len(t), share):
        rows = slice(i, i + share)
        nodes = Nodes.between(sde, t[rows], s[rows], form, root_of(options), z, None if whole is None else whole[rows])
        yield from (partial(nodes.weights, row) for row in range(len(nodes.z)))


def quadrature(t: Tensor, s: Tensor, num_nodes: int, root: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes in tau^(1/root) of the steps to s from t (N,), and their weights dtau, (N, n)."""
    x, w = gauss_legendre_like(t, num_nodes)
    a, b = (t ** (1 / root)).unsqueeze(1), (s ** (1 / root)).unsqueeze(1)
    r = a + (b - a) * x
    return r**root, root * r ** (root - 1) * (b - a) * w


@dataclass(frozen=True)
class Nodes:
    """z at the nodes of every step (N, n), the integrand times their weights (N, n, *e, K, K), and its integrals (N, *e, K, K)
    for a constant value, where they are known."""

    z: Tensor
    integrand: Tensor
    whole: Tensor | None

    @staticmethod
    def between(
        sde: LinearSDE,
        t: Tensor,
        s: Tensor,
        form: Form,
        root: int,
        z: Callable[[Tensor], Tensor],
        whole: Tensor | None,
    ) -> Nodes:
        """Gauss-Legendre nodes in t^(1/root) of the steps to s from t (N,)."""
        tau, weight = quadrature(t, s, form.num_nodes, root)
        s, t = (over_event(end.repeat_interleave(form.num_nodes)) for end in (s, t))
        inner = form.integrand(sde, s, over_event(tau.flatten()), t)
        weighted = weight.flatten().reshape(-1, *[1] * (inner.ndim - 1)) * inner
        return Nodes(z(tau), weighted.reshape(*tau.shape, *inner.shape[1:]), whole)

    def weights(self, i: int, points: Sequence[Tensor]) -> list[Tensor]:
        """The weights, in step i, of values at points of z; together they are `whole`, where that is known."""
        found = list(torch.einsum("jn,n...->j...", lagrange(points, self.z[i]), self.integrand[i]))
        if self.whole is not None:
            found[0] = self.whole[i] - sum(found[1:], torch.zeros_like(self.whole[i]))
        return found


def lagrange(points: Sequence[Tensor], x: Tensor) -> Tensor:
    """The Lagrange polynomials of the points at x: (j, n)."""
    rows = []
    for j, p in enumerate(points):
        factors = [(x - q) / (p - q) for k, q in enumerate(points) if k != j]
        rows.append(torch.stack(factors).prod(0) if factors else torch.ones_like(x))
    return torch.stack(rows)


def rho_of(sde: LinearSDE, t: Tensor) -> Tensor:
    """R/psi(t, 0) of a scalar SDE, in the shape of t."""
    return (sde.R(t) / sde.psi0(t))[..., 0, 0]
