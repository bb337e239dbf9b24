r"""The identities of a linear SDE: psi, Sigma and R solve their equations, and what is derived from them follows.

    d psi/dt = F psi,    d Sigma/dt = F Sigma + Sigma F^T + GG^T,    dR/dt = (F + 1/2 GG^T Sigma^-1) R,    R R^T = Sigma.

Derivatives in t are central differences, extrapolated from twelve steps (Ridders 1982): automatic differentiation need not go
through a class. An equation A' = B is claimed to 1e-8 of the terms of B and 1e-9 of |A|/t, which a coefficient of ten correct
digits satisfies.

References:
    Ridders 1982, "Accurate computation of F'(x) and F'(x) F''(x)".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.checks.claims import at_least, equal, finite, holds, like, seeded
from indm_core.checks.every_sde import EXACT, Case, has_covariance, has_shape, refuses
from indm_core.sample import log_rho_times
from indm_core.sde import LinearSDE, apply, inverse

__all__ = ["LINEAR", "LinearCase"]

LEVELS = 12
CLOSE = 1e-8
"""Relative error of an identity between closed forms, which may cancel."""

OfTime = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearCase(Case):
    """The same, with the times at which coefficients are compared."""

    sde: LinearSDE  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def times(self) -> Tensor:
        """200 times on [t_min, t_max], half of them in geometric and half in arithmetic progression."""
        low, high, share = self.sde.t_min, self.sde.t_max, torch.linspace(0, 1, 100, dtype=torch.float64)
        return torch.cat([low * (high / low) ** share, low + (high - low) * share]).clamp(low, high).sort().values

    @property
    def inner(self) -> Tensor:
        """Those of them where a derivative is taken: short of t_max, where there is room for differences."""
        t = self.times[::8]
        return t[t < 0.97 * self.sde.t_max]

    def of(self, coefficient: Callable[..., Tensor], *times: Tensor) -> Tensor:
        """A coefficient at times (n,), (n, *event, K, K)."""
        value = coefficient(*(self.per_row(t) for t in times))
        return value.expand(len(times[0]), *self.u.shape[1:], self.u.shape[-1])

    def derivative(self, function: OfTime) -> Tensor:
        """d/dt at `inner`."""
        t = self.inner
        return _derivative(function, t, 0.25 * torch.minimum(t, self.sde.t_max - t))

    def solves(self, function: OfTime, right: Tensor, scale: Tensor) -> None:
        """d function/dt = right, a sum of terms of size `scale`."""
        t, value = self.inner, function(self.inner)
        size = value.abs().reshape(len(t), -1).amax(1)
        noise = ((1e-9 * size + 1e-13) / t).reshape(-1, *[1] * (value.ndim - 1))
        equal(self.derivative(function), right, CLOSE * scale + noise, t=t)


def _derivative(function: OfTime, t: Tensor, reach: Tensor) -> Tensor:
    """d function/dt at t (n,) from t +- reach 2^-i, extrapolated to step 0 where neighbours in the table agree best."""
    steps = reach * 2.0 ** -torch.arange(LEVELS, dtype=torch.float64).unsqueeze(1)
    ahead, behind = (function((t + sign * steps).flatten()).unflatten(0, steps.shape) for sign in (1, -1))
    steps = steps.reshape(*steps.shape, *[1] * (ahead.ndim - 2))
    row, rounding = (ahead - behind) / (2 * steps), torch.finfo(ahead.dtype).eps * (1 + ahead.abs()) / steps
    best, error = row[0], torch.full_like(row[0], math.inf)
    for order in range(1, LEVELS):
        coarse, fine = row[:-1], row[1:]
        row = fine + (fine - coarse) / (4**order - 1)
        change, at = (torch.maximum((row - fine).abs(), (row - coarse).abs()) + rounding[order:]).min(0)
        best = torch.where(change < error, row.gather(0, at.unsqueeze(0))[0], best)
        error = torch.minimum(error, change)
    return best


def _eye(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype).expand(A.shape)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


def _relative(left: Tensor, right: Tensor) -> Tensor:
    """|A| |B|, entry by entry: what a product's rounding errors are multiples of."""
    return left.abs() @ right.abs()


def _coefficients(sde: LinearSDE) -> dict[str, OfTime]:
    return {"F": sde.F, "GG": sde.GG, "psi(t, 0)": sde.psi0, "cov": sde.cov, "R": sde.R}


def _has_shapes(case: LinearCase) -> None:
    single = torch.tensor([case.sde.t_min, 0.2 * case.sde.t_max, case.sde.t_max], dtype=torch.float64)
    for name, coefficient in _coefficients(case.sde).items():
        for t in (case.middle, case.per_row(single)):
            has_shape(case, name, coefficient(t), t)
            has_shape(case, name, coefficient(t.float()), t.float())
        rows = torch.stack([coefficient(t).expand(*case.u.shape[1:], case.u.shape[-1]) for t in single])
        equal(case.of(coefficient, single), rows, EXACT * rows.abs(), of=f"{name} of times together", t=single)


def _is_finite(case: LinearCase) -> None:
    t = torch.cat([torch.zeros(1, dtype=torch.float64), case.times])
    for name, coefficient in _coefficients(case.sde).items():
        finite(case.of(coefficient, t), of=name, t=t)


def _psi_at_equal_times(case: LinearCase) -> None:
    psi = case.of(case.sde.psi, case.times, case.times)
    equal(psi, _eye(psi), EXACT, t=case.times)


def _psi_composes(case: LinearCase) -> None:
    t, s = case.times[20:], case.times[:-20]
    later, earlier, whole = case.of(case.sde.psi, t, s), case.of(case.sde.psi0, s), case.of(case.sde.psi0, t)
    equal(whole, later @ earlier, CLOSE * _relative(later, earlier), t=t)
    back = case.of(case.sde.psi, s, t)
    equal(back @ later, _eye(later), CLOSE * _relative(back, later), of="psi(s, t) psi(t, s)", t=t)


def _psi_solves(case: LinearCase) -> None:
    F = case.of(case.sde.F, case.inner)
    for s in (0.0, 0.2 * case.sde.t_max):

        def psi(t: Tensor, s: float = s) -> Tensor:
            return case.of(case.sde.psi, t, torch.full_like(t, s))

        case.solves(psi, F @ psi(case.inner), _relative(F, psi(case.inner)))


def _log_det_psi_solves(case: LinearCase) -> None:
    def log_det(t: Tensor) -> Tensor:
        return case.sde.log_det_psi0(case.per_row(t)).expand(len(t), *case.u.shape[1:-1])

    zero = torch.zeros(1, dtype=torch.float64)
    equal(log_det(zero), torch.zeros_like(log_det(zero)), EXACT, t=zero)
    F = case.of(case.sde.F, case.inner)
    case.solves(log_det, _trace(F), _trace(F.abs()))


def _cov_is_positive(case: LinearCase) -> None:
    t = torch.cat([torch.zeros(1, dtype=torch.float64), case.times])
    cov = case.of(case.sde.cov, t)
    equal(cov.mT, cov, EXACT * cov.abs().amax((-2, -1), keepdim=True), of="Sigma^T", t=t)
    at_least(torch.linalg.eigvalsh(cov[0]), -EXACT * float(cov[0].abs().max()), of="an eigenvalue at t=0")
    scale = cov[1:].diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    correlation = cov[1:] / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    at_least(torch.linalg.eigvalsh(correlation), 1e-14, of="an eigenvalue of the correlation", t=case.times)


def _cov_solves(case: LinearCase) -> None:
    t = case.inner
    F, cov, GG = (case.of(c, t) for c in (case.sde.F, case.sde.cov, case.sde.GG))
    product = _relative(F, cov)
    right = F @ cov + cov @ F.mT + GG
    case.solves(lambda t: case.of(case.sde.cov, t), right, product + product.mT + GG.abs())


def _R_is_a_root(case: LinearCase) -> None:
    """|L^-1 R R^T L^-T - I|, L the Cholesky factor: relative in every direction."""
    R, L = case.of(case.sde.R, case.times), torch.linalg.cholesky(case.of(case.sde.cov, case.times))
    root = torch.linalg.solve_triangular(L, R, upper=False)
    equal(root @ root.mT, _eye(R), CLOSE, of="L^-1 R R^T L^-T", t=case.times)
    zero = torch.zeros(1, dtype=torch.float64)
    R, cov = case.of(case.sde.R, zero), case.of(case.sde.cov, zero)
    equal(R @ R.mT, cov, CLOSE * float(cov.abs().max()), t=zero)


def _R_solves(case: LinearCase) -> None:
    t = case.inner
    F, GG, R = (case.of(c, t) for c in (case.sde.F, case.sde.GG, case.sde.R))
    halved = 0.5 * GG @ inverse(R).mT  # Sigma^-1 R = R^-T
    case.solves(lambda t: case.of(case.sde.R, t), F @ R + halved, _relative(F, R) + halved.abs())


def _has_a_prior(case: LinearCase) -> None:
    cov, k = case.sde.prior_cov(), case.u.shape[-1]
    holds(cov.dtype == torch.float64, f"it is {cov.dtype}, should be float64")
    holds(cov.shape[-2:] == (k, k), f"it has shape {tuple(cov.shape)}, blocks should be ({k}, {k})")
    equal(cov.mT, cov, EXACT * float(cov.abs().max()), of="its transpose")
    at_least(torch.linalg.eigvalsh(cov) / cov.abs().max(), 1e-14, of="an eigenvalue over the largest entry")


def _importance_solves(case: LinearCase) -> None:
    t, sde = case.inner, case.sde
    log_importance = sde.log_importance
    trace = _trace(case.of(sde.GG, t) @ inverse(case.of(sde.cov, t))).flatten(1).mean(1)
    equal(sde.trace_M(t), trace, CLOSE * trace.abs(), of="tr M = tr(GG^T Sigma^-1)", t=t)
    case.solves(log_importance, trace, trace)
    _increases(log_importance(case.times), case.times)


def _importance_inverts(case: LinearCase) -> None:
    t, value = case.times, case.sde.log_importance(case.times)
    rounding = 1e-14 * (1 + value.abs()) / case.sde.trace_M(t)
    equal(case.sde.time_at(value), t, 1e-10 * t + rounding, t=t)


def _rho_increases(case: LinearCase) -> None:
    """A weakly damped Langevin diffusion swings: its psi passes 0, where rho is infinite."""
    t, log_rho = case.times, case.sde.log_rho(case.times)
    if bool(log_rho.isfinite().all()):
        _increases(log_rho, t)
    else:
        refused, first = refuses(lambda: log_rho_times(case.sde, 20)), float(t[~log_rho.isfinite()][0])
        holds(refused, f"not finite at t={first:.4g}, and log_rho_times gives a grid")


def _increases(value: Tensor, t: Tensor) -> None:
    """From a time to the next, which may be the same."""
    at_least(value.diff() + 1e-14 * value.abs()[1:], 0.0, of="its increase", t=t)


def _scalars_follow_t(case: LinearCase) -> None:
    sde = case.sde
    for name, function in (
        ("log_importance", sde.log_importance),
        ("trace_M", sde.trace_M),
        ("log_sigma", sde.log_sigma),
        ("log_rho", sde.log_rho),
    ):
        for dtype in (torch.float64, torch.float32):
            t = torch.tensor([0.1, 0.2, 0.25], dtype=dtype) * sde.t_max
            like(function(t), t, of=name)


def _network_maps(case: LinearCase) -> None:
    sde, u, v = case.sde, case.u, case.other
    seen, norm = sde.to_network(u), u.flatten(1).norm(dim=1)
    holds(len(seen) == len(u) and seen.ndim in (2, 4), f"shape {tuple(seen.shape)}, should be (b, d) or (b, c, h, w)")
    equal(sde.from_network(seen), u, EXACT * 10, of="from_network(to_network(u)) = u")
    equal(seen.flatten(1).norm(dim=1), norm, EXACT * 10 * norm, of="|to_network(u)| = |u|")
    equal(sde.to_network(u + 3 * v), seen + 3 * sde.to_network(v), EXACT * 100, of="it is linear")
    equal(sde.to_network(u[1:2]), seen[1:2], EXACT * 10, of="a row alone")


def _perturbs(case: LinearCase) -> None:
    sde, u, eps = case.sde, case.u, case.other
    t = sde.t_max * torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    psi, R = case.of(sde.psi0, t), case.of(sde.R, t)
    expected = (psi @ u.unsqueeze(-1) + R @ eps.unsqueeze(-1)).squeeze(-1)
    equal(sde.perturb(u, case.per_row(t), eps), expected, 1e-10 * (1 + expected.abs()), t=t)
    score = -(inverse(R).mT @ eps.unsqueeze(-1)).squeeze(-1)
    t_row = case.per_row(t)
    equal(sde.score_from_eps(eps, t_row), score, CLOSE * (1 + score.abs()), of="score = -R^-T eps", t=t)
    again = sde.eps_from_score(sde.score_from_eps(eps, t_row), t_row)
    equal(again, eps, CLOSE * (1 + eps.abs()), of="eps_from_score(score_from_eps(eps))", t=t)


def _denoises(case: LinearCase) -> None:
    """Data at one point have the score -R^-T eps, whatever eps."""
    sde, u_0, eps = case.sde, case.u, case.other
    for t in (sde.t_min, math.sqrt(sde.t_min * sde.t_max)):
        at = torch.tensor(t, dtype=torch.float64)
        u_t = sde.perturb(u_0, at, eps)
        back = sde.denoise(u_t, at, sde.score_from_eps(eps, at))
        size = apply(inverse(sde.psi0(at)).abs(), u_t.abs() + apply(sde.R(at).abs(), eps.abs()))
        equal(back, u_0, CLOSE * size, of=f"at t={t:.4g}")


def _moves(case: LinearCase) -> None:
    sde, zero = case.sde, torch.zeros(1, dtype=torch.float64)
    t, s = case.times[20:], case.times[:-20]
    psi = case.of(sde.psi, t, s)
    cov = case.of(sde.cov, t) - psi @ case.of(sde.cov, s) @ psi.mT
    scale = case.of(sde.cov, t).flatten(1).abs().amax(1)
    least = torch.linalg.eigvalsh(cov).flatten(1).amin(1) / scale
    at_least(least, -CLOSE, of="an eigenvalue of Sigma_t - psi Sigma_s psi^T over |Sigma_t|", t=t)
    late = torch.tensor(0.8 * sde.t_max, dtype=torch.float64)
    for start in (zero.squeeze(), case.middle):
        expected = sde.cov(late)
        if start > 0:
            expected = expected - sde.psi(late, start) @ sde.cov(start) @ sde.psi(late, start).mT
        has_covariance(case, late, start, expected, of=f"covariance to t={float(late):.3g} from s={float(start):.3g}")
        ends = [sde.transition(u, late, start, seeded(1)) for u in (case.u, case.other)]
        apart = apply(sde.psi(late, start), case.u - case.other)
        limit = 1e-9 * (1 + apart.abs() + ends[0].abs())
        equal(ends[0] - ends[1], apart, limit, of="the difference of two paths = psi times that of their starts")


def _leaves_unseen(case: LinearCase) -> None:
    t = case.times[::10]
    if case.sde.unseen(case.per_row(t)) is None:
        return
    P, M = case.of(lambda t: _some(case.sde.unseen(t)), t), case.of(case.sde.M, t)
    equal(P @ P, P, CLOSE, of="P^2 = P", t=t)
    equal(P.mT, P, CLOSE, of="P^T = P", t=t)
    size = M.flatten(1).abs().amax(1).reshape(-1, *[1] * (M.ndim - 1))
    equal(M @ P, torch.zeros_like(M), CLOSE * size, of="M P = 0", t=t)


def _drives(case: LinearCase) -> None:
    """A likelihood probes there and nowhere else."""
    GG = case.of(case.sde.GG, case.times)
    acts = (GG.diagonal(dim1=-2, dim2=-1) > 0).to(case.u)
    equal(acts, case.sde.driven(case.u).expand(acts.shape), EXACT, of="where GG^T is not zero", t=case.times)


def _has_a_signal(case: LinearCase) -> None:
    t = case.times[::10]
    size = case.of(lambda t: case.sde.signal(t)[0][..., None, None], t)[..., :1, :1]
    direction = case.of(lambda t: case.sde.signal(t)[1], t)[..., :1]
    equal(direction.square().sum(-2), torch.ones_like(direction[..., 0, :]), EXACT, of="|q_1|^2", t=t)
    p, R = case.of(case.sde.psi0, t)[..., :1], case.of(case.sde.R, t)
    equal(
        R @ direction * size, p, CLOSE * _relative(R, direction) * size, of="R q, against the first column of psi", t=t
    )


def _some(value: Tensor | None) -> Tensor:
    holds(value is not None, "None at one time and a projector at another")
    return value  # pyright: ignore[reportReturnType]


def _is_pixelwise(case: LinearCase) -> None:
    """Where an embedding mixes positions, noise that is independent in u is not in x along a path."""
    if not case.sde.pixelwise:
        return
    nudged = case.x.clone()
    nudged.flatten(1)[:, 0] += 1
    moved = (case.sde.embed(nudged) - case.sde.embed(case.x)).abs().flatten(1, -2).sum(-1)
    equal(moved[:, 1:], torch.zeros_like(moved[:, 1:]), EXACT, of="what a pixel moves at other positions of embed(x)")


def _is_a_value(case: LinearCase) -> None:
    twin = dataclasses.replace(case.sde)
    same = twin == case.sde and hash(twin) == hash(case.sde)
    holds(same, "a copy of the same fields is not equal, or its hash is another")
    try:
        case.sde.t_max = case.sde.t_max  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        return
    raise AssertionError("its fields can be assigned; write @dataclass(frozen=True, kw_only=True)")


LINEAR = {
    "it is a value: a frozen dataclass, equal and of one hash where its fields are": _is_a_value,
    "coefficients have the shape broadcast(t, *e) + (K, K) and t's dtype": _has_shapes,
    "F, GG, psi(t, 0), cov and R are finite on [0, t_max]": _is_finite,
    "psi(s, s) = I": _psi_at_equal_times,
    "psi(t, s) psi(s, 0) = psi(t, 0)": _psi_composes,
    "d psi(t, s)/dt = F psi(t, s)": _psi_solves,
    "log_det_psi0 is 0 at 0 and its derivative is tr F": _log_det_psi_solves,
    "Sigma is symmetric, positive definite on [t_min, t_max], semi-definite at 0": _cov_is_positive,
    "d Sigma/dt = F Sigma + Sigma F^T + GG^T": _cov_solves,
    "R R^T = Sigma": _R_is_a_root,
    "dR/dt = (F + 1/2 GG^T Sigma^-1) R": _R_solves,
    "prior_cov is symmetric, positive definite and float64": _has_a_prior,
    "scalar functions have the shape and the dtype of t": _scalars_follow_t,
    "log_importance increases and its derivative is tr M": _importance_solves,
    "time_at inverts log_importance": _importance_inverts,
    "log_rho increases; where it is not finite, log_rho_times refuses": _rho_increases,
    "to_network is orthogonal and from_network is its inverse": _network_maps,
    "perturb(u_0, t, eps) = psi(t, 0) u_0 + R eps, score = -R^-T eps and back": _perturbs,
    "denoise finds data that are one point": _denoises,
    "transition is N(psi u, Sigma_t - psi Sigma_s psi^T)": _moves,
    "unseen is the projector with M unseen = 0": _leaves_unseen,
    "driven is where GG^T is not zero, at all times": _drives,
    "signal: R q = the first column of psi(t, 0), |q_1| = 1": _has_a_signal,
    "pixelwise: embed keeps positions apart": _is_pixelwise,
}
