r"""Exponential integrators: one family of fast samplers for every linear SDE.

With score = -B_t^-T eps, B_t invertible, the probability-flow ODE has the exact solution

    u_s = psi(s, t) u_t + int_t^s 1/2 psi(s, tau) GG^T_tau B_tau^-T eps(u_tau, tau) dtau,

in which only eps is approximated. B is one of

    R      the integral of a constant eps is R_s - psi(s, t) R_t, because d/dtau [psi(s, tau) R_tau] is the integrand: a step
           is exact for data in one point (gDDIM), for every linear SDE
    L      the Cholesky factor of Sigma: R where K = 1, and for CLD what shows the need of R
    score  B = I: eps is -score, and a step is exact for a score that is constant, which that of data is not as t goes to 0,

               u_s = psi(s, t) u_t - [int_t^s 1/2 psi(s, tau) GG^T_tau dtau] score(u_t, t)       (r = 0; thesis, Eq. 6.8).

    t-AB r      eps is the polynomial of degree r in t through its last r + 1 values (DEIS; r = 0: DDIM, gDDIM)
    rho-AB r    the same in rho = R/psi(t, 0), the variable in which the ODE of y = u/psi(t, 0) is dy/drho = eps
    rho-RK r    a Runge-Kutta method of order r + 1 in rho: Euler, Heun, Kutta's third-order and the classical method
    iPNDM r     DDIM steps of fixed Adams-Bashforth combinations of the last r + 1 values

rho is a scalar for VP, sub-VP and VE only. A corrector repeats a t-AB step with the polynomial through the predicted value as
well (Adams-Moulton).

Order of convergence (`guaranteed_order`), in every basis, on grids that are a smooth function of i/N; a test reads each back:
r + 1 for rho-RK, and for t-AB and rho-AB with the exact warm-up. The low-order warm-up begins with a step of degree 0, whose
error is O(h^2): for r > 1 order 2 is then all that is guaranteed (t-AB 3: slopes of 1.6 to 4.0 measured, by problem and N).
iPNDM, whose coefficients are those of equal steps in rho, has order min(r + 1, 2) on general grids. A corrector makes r = 0 as
good as r = 1 and leaves the order of the others.

Stochastic gDDIM, lam in [0, 1], r = 0: with F_hat = F + (1 + lam^2)/2 GG^T Sigma^-1 and its transition Psi_hat,

    u_s ~ N(psi(s, t) (u_t - R_t eps) + Psi_hat(s, t) R_t eps, P),    P = Sigma_s - Psi_hat Sigma_t Psi_hat^T.

In the basis R this is simple: Psi_hat(s, t) = R_s W R_t^-1 with dW/ds = lam^2/2 M_s W, W(t, t) = I;
P = R_s (I - W W^T) R_s^T. For K = 1, W = exp(lam^2/2 int_t^s M) = (Sigma_s psi(t, 0)^2 / (Sigma_t psi(s, 0)^2))^{lam^2/2}.

References:
    Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (DEIS), Eqs. 14-17; Zhang, Tao, Chen 2023,
    "gDDIM", Eqs. 18-22 and Proposition 6; Liu et al. 2022 (iPNDM's coefficients); Zhang 2023 (thesis), chapters 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.ode import State, rk45
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse, over_event, sqrt_psd
from indm_core.sde.algebra import gauss_legendre
from indm_core.times import check_times

__all__ = [
    "Basis",
    "Method",
    "Warmup",
    "basis_at",
    "check_method",
    "check_options",
    "evaluations",
    "guaranteed_order",
    "lagrange",
    "noise_factor",
    "sample_deis",
    "steps_for",
]

Method = Literal["t-AB", "rho-AB", "rho-RK", "iPNDM"]
Warmup = Literal["low-order", "exact"]
Basis = Literal["R", "L", "score"]
NODES, PLAN_ENTRIES = {"R": 40, "L": 160, "score": 160}, 1 << 20
"""In R a closed form gives the sum of the weights; elsewhere a pole of BDM's just beyond t_max takes more nodes."""

_PNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_STAGES = (
    ((), (1.0,)),
    (((1.0,),), (1 / 2, 1 / 2)),
    (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)
"""Runge-Kutta: what each stage after the first adds up of those before it, and the weights; a stage's time is the sum."""


@torch.no_grad()
def sample_deis(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    generator: Noise = None,
    order: int = 3,
    method: Method = "t-AB",
    lam: float = 0.0,
    warmup: Warmup = "low-order",
    denoise: bool = False,
    corrector: bool = False,
    basis: Basis = "R",
) -> Tensor:
    """From ts[0] down to ts[-1] by an exponential integrator.

    Args:
        sde: Any linear SDE; rho-AB and rho-RK need a scalar one.
        u: State at ts[0], (b, *event, K).
        ts: Decreasing times in [t_min, t_max], float64.
        generator: Of the noise, where lam > 0.
        order: Degree r of the polynomial, 0 to 3; `guaranteed_order` says how the error falls with the steps.
        lam: Stochasticity in [0, 1]; above 0 needs order 0.
        warmup: The first r steps: of lower order, as published, which guarantees order 2 for r > 1, or by parabolas within
            the step that keep order r + 1, at 3 more evaluations each.
        denoise: Whether E[u_0 | u] replaces the last state, at one more evaluation.
        corrector: Whether each t-AB step is corrected, at one more evaluation.
        basis: B in score = -B^-T eps: R; L, the Cholesky factor; or 'score', which is I. L and 'score' are t-AB's alone.

    Returns:
        The state at ts[-1] (or the mean at time 0); `evaluations` counts the evaluations of the score.

    Raises:
        ValueError: an option out of range, or one that the SDE does not allow.
    """
    check_times(sde, ts)
    check_options(order=order, method=method, lam=lam, warmup=warmup, corrector=corrector, basis=basis)
    check_method(sde, method)
    sde.check_state(u)
    ts = ts.to(device=u.device, dtype=torch.float64)

    def eps(u: Tensor, t: Tensor) -> Tensor:
        return -apply(basis_at(sde, t, basis).mT, score(u, t))

    if lam > 0:
        u = _stochastic(sde, eps, u, ts, lam, generator)
    elif method == "rho-RK":
        u = _runge_kutta(sde, eps, u, ts, order)
    else:
        u = _multistep(sde, eps, u, ts, order, method, warmup, corrector, basis)
    return sde.denoise(u, ts[-1], score(u, ts[-1])) if denoise else u


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


def basis_at(sde: LinearSDE, t: Tensor, basis: Basis) -> Tensor:
    """B_t of eps = -B_t^T score, (*te, K, K): R, the Cholesky factor L of Sigma, or I, in which eps is -score."""
    if basis == "R":
        return sde.R(t)
    if basis == "score":
        return torch.eye(sde.prior_cov().shape[-1]).to(t)
    cov = sde.cov(t)
    return cov.sqrt() if cov.shape[-1] == 1 else torch.linalg.cholesky(cov)


Eps = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Step:
    """u_s = transfer u_t + sum_j weights[j] eps_{i-j}; a corrector's weights begin with that of the predicted eps."""

    transfer: Tensor
    weights: Sequence[Tensor]
    correction: Sequence[Tensor] = ()

    def to(self, u: Tensor) -> _Step:
        """On the device of u."""
        weights, correction = ([w.to(u.device) for w in part] for part in (self.weights, self.correction))
        return _Step(self.transfer.to(u.device), weights, correction)


def _multistep(
    sde: LinearSDE,
    eps: Eps,
    u: Tensor,
    ts: Tensor,
    order: int,
    method: str,
    warmup: str,
    corrector: bool,
    basis: Basis,
) -> Tensor:
    plan = _plan(sde, tuple(ts.tolist()), order, method, corrector, basis)
    steps, past = [step.to(u) for step in plan], []
    for i, step in enumerate(steps):
        if not (corrector and past and i):
            past = [eps(u, ts[i]), *past[:order]]
        if warmup == "exact" and i < order:
            u = _warmup_step(sde, eps, u, ts[i], ts[i + 1], past[0], basis)
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


@lru_cache(maxsize=8)
def _plan(
    sde: LinearSDE, times: tuple[float, ...], order: int, method: str, corrector: bool, basis: Basis
) -> list[_Step]:
    """Transfers and weights of every step, computed together in float64, once per grid."""
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    psi = sde.psi(over_event(s), over_event(t))
    whole = sde.R(over_event(s)) - psi @ sde.R(over_event(t))
    if method == "iPNDM" or (
        order == 0 and basis == "R" and not corrector
    ):  # combinations of whole steps: no integrals
        return [_Step(psi[i], [c * whole[i] for c in _PNDM[min(i, order)]]) for i in range(len(t))]
    grid = ts if method == "t-AB" else _rho(sde, ts)
    share = max(1, PLAN_ENTRIES // (NODES[basis] * psi[0].numel()))  # steps whose nodes are in memory together
    steps = []
    for i in range(len(t)):
        if i % share == 0:
            nodes = _Nodes.between(sde, t[i : i + share], s[i : i + share], basis)
            inner = nodes.tau if method == "t-AB" else _rho(sde, nodes.tau)
        points = [grid[i - j] for j in range(min(i, order) + 1)]
        weights = nodes.weights(i % share, lagrange(points, inner[i % share]), whole[i] if basis == "R" else None)
        correction: Sequence[Tensor] = ()
        if corrector:
            known = [grid[i + 1], *points[: max(1, order)]]
            correction = nodes.weights(i % share, lagrange(known, inner[i % share]), whole[i] if basis == "R" else None)
        steps.append(_Step(psi[i], weights, correction))
    return steps


@dataclass(frozen=True)
class _Nodes:
    """Gauss-Legendre nodes tau (N, n) of every step in sqrt tau, and the integrand times their weights, (N, n, *e, K, K)."""

    tau: Tensor
    integrand: Tensor

    @staticmethod
    def between(sde: LinearSDE, t: Tensor, s: Tensor, basis: Basis) -> _Nodes:
        x, w = (torch.as_tensor(v).to(t) for v in gauss_legendre(NODES[basis]))
        a, b = t.sqrt().unsqueeze(1), s.sqrt().unsqueeze(1)
        r = a + (b - a) * x
        flat, end = over_event(r.square().flatten()), over_event(s.repeat_interleave(len(x)))
        inner = 0.5 * sde.psi(end, flat) @ sde.GG(flat) @ inverse(basis_at(sde, flat, basis)).mT
        weight = (2 * r * (b - a) * w).flatten().reshape(-1, *[1] * (inner.ndim - 1))
        return _Nodes(r.square(), (weight * inner).reshape(len(t), len(x), *inner.shape[1:]))

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


def _warmup_step(sde: LinearSDE, eps: Eps, u: Tensor, t: Tensor, s: Tensor, first: Tensor, basis: Basis) -> Tensor:
    """A step of order 3 from one value of eps, at three more: eps is a parabola in sqrt tau through t, the middle and s.

    The middle's eps is evaluated twice, the second time at a state that comes from a parabola itself. The weights of every part
    add up to those of a constant eps, which the step therefore takes exactly.
    """
    m = ((t.sqrt() + s.sqrt()) / 2).square()
    ends, starts = torch.stack([m, s]), torch.stack([t, t])
    psi = sde.psi(over_event(ends), over_event(starts))
    whole = sde.R(over_event(ends)) - psi @ sde.R(over_event(starts))
    nodes, moved = _Nodes.between(sde, starts, ends, basis), [apply(psi[j], u) for j in range(2)]

    def move(j: int, times: Sequence[Tensor], es: Sequence[Tensor]) -> Tensor:
        polynomials = lagrange([time.sqrt() for time in times], nodes.tau[j].sqrt())
        weights = nodes.weights(j, polynomials, whole[j] if basis == "R" else None)
        return moved[j] + sum(apply(w, e) for w, e in zip(weights, es, strict=True))

    e_m = eps(move(0, [t], [first]), m)
    e_s = eps(move(1, [t, m], [first, e_m]), s)
    e_m = eps(move(0, [t, m, s], [first, e_m, e_s]), m)
    return move(1, [t, m, s], [first, e_m, e_s])


def _rho(sde: LinearSDE, t: Tensor) -> Tensor:
    """R/psi(t, 0) of a scalar SDE, in the shape of t."""
    return (sde.R(t) / sde.psi0(t))[..., 0, 0]


def _runge_kutta(sde: LinearSDE, eps: Eps, u: Tensor, ts: Tensor, order: int) -> Tensor:
    """dy/drho = eps, y = u/psi(t, 0)."""
    stages, weights = _STAGES[order]
    rho = _rho(sde, ts)
    for i in range(len(ts) - 1):
        y, h = apply(inverse(sde.psi0(ts[i])), u), rho[i + 1] - rho[i]
        slopes = [eps(u, ts[i])]
        for row in stages:
            share = sum(row)
            t = ts[i + 1] if share == 1 else sde.time_at(2 * torch.log(rho[i] + share * h).reshape(1))[0]
            inner = y + sum((a * h).to(u.dtype) * k for a, k in zip(row, slopes, strict=True))
            slopes.append(eps(apply(sde.psi0(t), inner), t))
        y = y + sum((w * h).to(u.dtype) * k for w, k in zip(weights, slopes, strict=True))
        u = apply(sde.psi0(ts[i + 1]), y)
    return u


def _stochastic(sde: LinearSDE, eps: Eps, u: Tensor, ts: Tensor, lam: float, generator: Noise) -> Tensor:
    psi, mean, spread = (part.to(u.device) for part in _stochastic_plan(sde, tuple(ts.tolist()), lam))
    for i, t in enumerate(ts[:-1]):
        u = apply(psi[i], u) + apply(mean[i], eps(u, t)) + apply(spread[i], randn_like(u, generator))
    return u


@lru_cache(maxsize=8)
def _stochastic_plan(sde: LinearSDE, times: tuple[float, ...], lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """psi, R_s W - psi R_t and R_s (I - W W^T)^{1/2} of every step, once per grid."""
    ts = torch.tensor(times, dtype=torch.float64)
    t, s = ts[:-1], ts[1:]
    psi, R_t, R_s = sde.psi(over_event(s), over_event(t)), sde.R(over_event(t)), sde.R(over_event(s))
    W = noise_factor(sde, t, s, lam)
    inner = torch.eye(R_s.shape[-1]).to(R_s) - W @ W.mT
    return psi, R_s @ W - psi @ R_t, R_s @ sqrt_psd(inner.clamp(min=0) if inner.shape[-1] == 1 else inner)


def noise_factor(sde: LinearSDE, t: Tensor, s: Tensor, lam: float) -> Tensor:
    """W of stochastic gDDIM for steps to s from t (N,): Psi_hat(s, t) = R_s W R_t^-1 and P = R_s (I - W W^T) R_s^T.

    In closed form for K = 1 and for lam = 0 and 1 (where Psi_hat = Sigma_s psi(t, s)^T Sigma_t^-1); else by RK45 in log time.

    Returns:
        (N, *e, K, K), float64; no singular value is above 1.
    """
    at_t, at_s, k = over_event(t), over_event(s), sde.prior_cov().shape[-1]
    if k == 1:
        early, late = (sde.cov(tau) / sde.psi0(tau).square() for tau in (at_s, at_t))
        return (early / late) ** (lam**2 / 2)
    eye = torch.eye(k).to(t).expand(len(t), 1, 1, k, k)
    if lam == 0:
        return eye
    if lam == 1:
        return (inverse(sde.R(at_t)) @ sde.psi(at_t, at_s) @ sde.R(at_s)).mT
    span = (s / t).log()

    def field(x: Tensor, W: State, rows: Tensor) -> State:
        tau = t[rows] * torch.exp(x * span[rows])
        rate = (0.5 * lam**2 * span[rows] * tau).reshape(-1, 1, 1, 1, 1)
        return (rate * sde.M(over_event(tau)) @ W[0],)

    (W,), _ = rk45(field, (eye.clone(),), 0.0, 1.0, rtol=1e-10, atol=1e-12)
    left, values, right = torch.linalg.svd(W)
    return left @ torch.diag_embed(values.clamp(max=1)) @ right
