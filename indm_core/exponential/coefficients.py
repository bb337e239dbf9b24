r"""The weights of multistep exponential integrators: integrals of polynomials, computed once per grid in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from indm_core.exponential.options import Basis, Multistep
from indm_core.sde import LinearSDE, inverse, over_event
from indm_core.sde.algebra import gauss_legendre

__all__ = ["Eps", "Nodes", "Step", "basis_at", "lagrange", "plan", "rho_of"]

NODES, PLAN_ENTRIES = {"R": 40, "L": 160, "score": 160}, 1 << 20
"""In R a closed form gives the sum of the weights; elsewhere a pole of BDM's just beyond t_max takes more nodes."""

_PNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

Eps = Callable[[Tensor, Tensor], Tensor]


def basis_at(sde: LinearSDE, t: Tensor, basis: Basis) -> Tensor:
    """B_t of eps = -B_t^T score, (*te, K, K): R, the Cholesky factor L of Sigma, or I, in which eps is -score."""
    if basis == "R":
        return sde.R(t)
    if basis == "score":
        return torch.eye(sde.prior_cov().shape[-1]).to(t)
    cov = sde.cov(t)
    return cov.sqrt() if cov.shape[-1] == 1 else torch.linalg.cholesky(cov)


@dataclass(frozen=True)
class Step:
    """u_s = transfer u_t + sum_j weights[j] eps_{i-j}; a corrector's weights begin with that of the predicted eps."""

    transfer: Tensor
    weights: Sequence[Tensor]
    correction: Sequence[Tensor] = ()

    def to(self, u: Tensor) -> Step:
        """On the device of u."""
        weights, correction = ([w.to(u.device) for w in part] for part in (self.weights, self.correction))
        return Step(self.transfer.to(u.device), weights, correction)


@lru_cache(maxsize=8)
def plan(sde: LinearSDE, times: tuple[float, ...], options: Multistep) -> list[Step]:
    """Transfers and weights of every step, computed together in float64, once per grid."""
    order, method, corrector, basis = options.order, options.method, options.corrector, options.basis
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    psi = sde.psi(over_event(s), over_event(t))
    whole = sde.R(over_event(s)) - psi @ sde.R(over_event(t))
    if method == "iPNDM" or (
        order == 0 and basis == "R" and not corrector
    ):  # combinations of whole steps: no integrals
        return [Step(psi[i], [c * whole[i] for c in _PNDM[min(i, order)]]) for i in range(len(t))]
    grid = ts if method == "t-AB" else rho_of(sde, ts)
    share = max(1, PLAN_ENTRIES // (NODES[basis] * psi[0].numel()))  # steps whose nodes are in memory together
    steps = []
    for i in range(len(t)):
        if i % share == 0:
            nodes = Nodes.between(sde, t[i : i + share], s[i : i + share], basis)
            inner = nodes.tau if method == "t-AB" else rho_of(sde, nodes.tau)
        points = [grid[i - j] for j in range(min(i, order) + 1)]
        weights = nodes.weights(i % share, lagrange(points, inner[i % share]), whole[i] if basis == "R" else None)
        correction: Sequence[Tensor] = ()
        if corrector:
            known = [grid[i + 1], *points[: max(1, order)]]
            correction = nodes.weights(i % share, lagrange(known, inner[i % share]), whole[i] if basis == "R" else None)
        steps.append(Step(psi[i], weights, correction))
    return steps


@dataclass(frozen=True)
class Nodes:
    """Gauss-Legendre nodes tau (N, n) of every step in sqrt tau, and the integrand times their weights, (N, n, *e, K, K)."""

    tau: Tensor
    integrand: Tensor

    @staticmethod
    def between(sde: LinearSDE, t: Tensor, s: Tensor, basis: Basis) -> Nodes:
        x, w = (torch.as_tensor(v).to(t) for v in gauss_legendre(NODES[basis]))
        a, b = t.sqrt().unsqueeze(1), s.sqrt().unsqueeze(1)
        r = a + (b - a) * x
        flat, end = over_event(r.square().flatten()), over_event(s.repeat_interleave(len(x)))
        inner = 0.5 * sde.psi(end, flat) @ sde.GG(flat) @ inverse(basis_at(sde, flat, basis)).mT
        weight = (2 * r * (b - a) * w).flatten().reshape(-1, *[1] * (inner.ndim - 1))
        return Nodes(r.square(), (weight * inner).reshape(len(t), len(x), *inner.shape[1:]))

    def weights(self, i: int, lagrange: Tensor, whole: Tensor | None) -> list[Tensor]:
        """The integral of each polynomial (j, n) over step i; together they are `whole`, where that is known."""
        found = list(torch.einsum("jn,n...->j...", lagrange, self.integrand[i]))
        if whole is not None:
            found[0] = whole - sum(found[1:], torch.zeros_like(whole))
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
