r"""Where the error of a fast sampler comes from: what the figures of DEIS (chapter 6) and of gDDIM (chapter 7) measure.

A sampler takes the probability-flow ODE du/dt = F u - 1/2 GG^T s(u, t) from t = ts[0] down in N steps. u* is the ODE's exact
solution from the same start, found by RK45 once and kept at all times that are asked for (`ode_path`). With s = -B_t^-T eps,
where B is R, the Cholesky factor L of Sigma, or I (eps is -s then; `indm_core.exponential`):

    Delta_p          mean |x - x*| over the coordinates of x, at the end: the error of N steps        (Figures 6.3a, c; 6.4c)
    Delta_eps(tau)   |P_r(tau) - eps(u*_tau, tau)|, tau in the step to s from t, with P_r the polynomial of degree r through the
                     values of eps at t and at the r nodes before it                                   (Figure 6.4b)
    Delta_s(tau)     |B_tau^-T (P_r(tau) - eps(u*_tau, tau))|: the same as an error of the score. Degree 0 holds the score
                     constant over the step (B = I, Figure 6.3b), or eps (B = R or L, Figure 6.3d)
    relative change  |eps(u*_s, s) - eps(u*_t, t)| / |eps(u*_t, t)| from one time to the next          (Figure 6.4a)
    fitting error    |R_t^T (s - s_exact)| = |eps - eps_exact|                                         (Figure 6.2)

Norms are Euclidean, over all coordinates of a sample. The fitting error is in units of eps, for it is the square root of
d^T Sigma d with d = s - s_exact, the same in every basis B B^T = Sigma; |d| itself grows without bound as t goes to 0.

Trajectories (Figures 7.1 and 7.2): u*_t and eps(u*_t, t) along one solution. For data in one point x, u*_t = psi(t, 0) embed(x)
+ R_t eps with eps constant: in the basis R, for every linear SDE, and in L only where L = R (K = 1). Data in points x_1..x_M
have the score

    sum_m w_m Sigma_t^-1 (psi(t, 0) embed(x_m) - u),    w_m proportional to N(u; psi(t, 0) embed(x_m), Sigma_t),

whose eps is nearly constant where one weight is 1, and where all points are alike at the noise of t (`points_score`).

All are per sample; `diagnostics.mean_and_error` averages them.

References:
    Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (DEIS), section 3; Zhang, Tao, Chen 2023,
    "gDDIM", sections 3 and 4 (figures and equations as numbered in Zhang's thesis of 2023, chapters 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.diagnostics.indm import MeanAndError, mean_and_error
from indm_core.exponential import Basis, basis_at, lagrange
from indm_core.sample import Score, sample_ode
from indm_core.sde import SDE, LinearSDE, apply, inverse
from indm_core.shapes import Float
from indm_core.times import check_times

__all__ = [
    "DensityProfile",
    "Extrapolation",
    "ODEPath",
    "Solver",
    "at_positions",
    "by_density",
    "eps_along",
    "extrapolation_error",
    "fitting_error",
    "ode_path",
    "pixel_difference",
    "points_score",
    "refined_times",
    "relative_change",
]

Solver = Callable[[LinearSDE, Score, Tensor, Tensor], Tensor]
"""solver(sde, score, u, ts) -> u without noise: partial(sample_em, lam=0.0), which is Euler's method, or `sample_deis`."""


class ODEPath(NamedTuple):
    """One solution per sample, and the score on it: ts (n,) decreasing, u and score (n, b, *event, k)."""

    ts: Tensor
    u: Tensor
    score: Tensor


class Extrapolation(NamedTuple):
    """Delta_eps and Delta_s at every time of a path but the first, (n - 1, b) each."""

    eps: Tensor
    score: Tensor


class DensityProfile(NamedTuple):
    """Per bin, from the least to the most probable: the mean log-density (nats) and the values' mean with its error, (n,)."""

    log_prob: Tensor
    values: MeanAndError


def refined_times(ts: Float[Tensor, " n"], every: int) -> Float[Tensor, " m"]:
    """Each step of a grid in `every` equal parts; the grid itself is every `every`-th of these times, to the bit.

    Args:
        ts: Decreasing times, the nodes.
        every: Parts of a step, at least 1.

    Returns:
        (n - 1) every + 1 times.

    Raises:
        ValueError: every below 1.
    """
    if every < 1:
        raise ValueError(f"every={every} must be at least 1")
    share = torch.arange(every).to(ts) / every
    parts = ts[:-1, None] + share * (ts[1:] - ts[:-1]).unsqueeze(1)
    return torch.cat([parts.flatten(), ts[-1:]])


@torch.no_grad()
def ode_path(
    sde: SDE,
    score: Score,
    u: Float[Tensor, "b *event k"],
    ts: Float[Tensor, " n"],
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> ODEPath:
    """The exact solution of the probability-flow ODE from u, and the score on it: solved once, segment by segment.

    Args:
        u: States at ts[0].
        ts: Decreasing times in [t_min, t_max], float64.
        rtol, atol: Tolerances of RK45, per sample and segment. The default is what float32 networks allow; exact scores in
            float64 allow 1e-12.

    Returns:
        States and scores at all of ts; n evaluations of the score besides those of RK45.

    Raises:
        ValueError: times out of order or out of range.
        ConvergenceError: the tolerance is not reached.
    """
    check_times(sde, ts)
    states, scores = [u], [score(u, ts[0])]
    for ends in pairwise(ts):
        states.append(sample_ode(sde, score, states[-1], torch.stack(ends), rtol=rtol, atol=atol))
        scores.append(score(states[-1], ends[1]))
    return ODEPath(ts, torch.stack(states), torch.stack(scores))


def eps_along(sde: LinearSDE, path: ODEPath, basis: Basis = "R") -> Float[Tensor, "n b *event k"]:
    """eps = -B_t^T s(u*_t, t) along a path; no evaluation of the score.

    Args:
        basis: B: R, the Cholesky factor L, or 'score' for I.

    Returns:
        Like path.u. On CLD the last axis holds the channels x and v.

    References: Zhang's thesis, Eq. 7.4 and Figures 7.1 and 7.2.
    """
    return -apply(basis_at(sde, _times_of(path), basis).mT, path.score)


def at_positions(values: Float[Tensor, "n b *event k"], positions: Sequence[int]) -> Float[Tensor, "n b m k"]:
    """A path's states, or its eps, at some positions of the flattened event: the curves of Figure 7.1.

    Args:
        positions: Indices into the event; for BDM these are frequencies.

    Returns:
        Both channels of each position where K = 2.

    References: Zhang's thesis, Figure 7.1.
    """
    return values.flatten(2, -2)[:, :, list(positions)]


def relative_change(sde: LinearSDE, path: ODEPath, basis: Basis = "R") -> Float[Tensor, "m b"]:
    """|eps(u*_s, s) - eps(u*_t, t)| / |eps(u*_t, t)| from each time t of a path to the next, s: proportional to t - s.

    Args:
        basis: As in `eps_along`.

    Returns:
        One row per step of the path, (n - 1, b).

    References: Zhang's thesis, Figure 6.4a.
    """
    eps = eps_along(sde, path, basis).flatten(2)
    return eps.diff(dim=0).norm(dim=2) / eps[:-1].norm(dim=2)


def extrapolation_error(
    sde: LinearSDE, path: ODEPath, every: int, *, degree: int = 0, basis: Basis = "R"
) -> Extrapolation:
    """Delta_eps and Delta_s along a path: what t-AB of degree r neglects in every step, were its states exact.

    Args:
        path: At `refined_times(nodes, every)`.
        every: The nodes are every `every`-th time of the path; the others lie within the steps.
        degree: r, not negative; the first r steps have lower degrees, as in the sampler.
        basis: In which eps is extrapolated.

    Returns:
        Errors at path.ts[1:], each in the step that ends at it or passes it; step i has the rows i every to (i + 1) every - 1.

    Raises:
        ValueError: degree below 0, or a path whose steps are not made of `every` parts.

    References: Zhang's thesis, Figures 6.3b, 6.3d (degree 0) and 6.4b; Eq. 6.13.
    """
    if degree < 0:
        raise ValueError(f"degree={degree} must not be negative")
    if every < 1 or (len(path.ts) - 1) % every:
        raise ValueError(
            f"every={every}: the {len(path.ts) - 1} parts of the path are no whole number of steps of these"
        )
    eps, rows = eps_along(sde, path, basis), []
    nodes, eps_nodes = path.ts[::every], eps[::every]
    for i in range(len(nodes) - 1):
        first = max(0, i - degree)
        inner = path.ts[i * every + 1 : (i + 1) * every + 1]
        weights = lagrange(list(nodes[first : i + 1]), inner).to(eps)
        rows.append(torch.einsum("jm,j...->m...", weights, eps_nodes[first : i + 1]))
    error = torch.cat(rows) - eps[1:]
    of_score = apply(inverse(basis_at(sde, _times_of(path)[1:], basis)).mT, error)
    return Extrapolation(error.flatten(2).norm(dim=2), of_score.flatten(2).norm(dim=2))


@torch.no_grad()
def pixel_difference(
    sde: LinearSDE,
    score: Score,
    u: Float[Tensor, "b *event k"],
    grids: Sequence[Tensor],
    solvers: Sequence[Solver],
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> Float[Tensor, "s n b"]:
    """Delta_p: the mean absolute difference, over the coordinates of x, between samplers and the exact solution from u.

    Args:
        u: States at the grids' first time.
        grids: Decreasing times, one grid for each N, all with the same two ends.
        solvers: What is compared; the exact solution serves them all.
        decode: From a state to data, `model.decode`; the SDE's `project` if None. Positions only where K > 1, pixels for BDM.
        rtol, atol: Tolerances of the exact solution, as in `ode_path`.

    Returns:
        One value per solver, grid and sample, in units of x.

    Raises:
        ValueError: no grid, or grids with different ends.
        ConvergenceError: the tolerance is not reached.

    References: Zhang's thesis, Figures 6.3a, 6.3c and 6.4c.
    """
    if not grids:
        raise ValueError("grids: give at least one")
    ends = grids[0][[0, -1]]
    for i, ts in enumerate(grids):
        if not torch.equal(ts[[0, -1]], ends):
            raise ValueError(f"grids[{i}] runs from {ts[0]:g} to {ts[-1]:g}, grids[0] from {ends[0]:g} to {ends[1]:g}")
    to_data = sde.project if decode is None else decode
    exact = to_data(sample_ode(sde, score, u, ends, rtol=rtol, atol=atol))

    def difference(solver: Solver, ts: Tensor) -> Tensor:
        return (to_data(solver(sde, score, u, ts)) - exact).flatten(1).abs().mean(1)

    return torch.stack([torch.stack([difference(solver, ts) for ts in grids]) for solver in solvers])


@torch.no_grad()
def fitting_error(
    sde: LinearSDE, score: Score, exact: Score, u: Float[Tensor, "b *event k"], t: Float[Tensor, "*t"]
) -> Float[Tensor, " b"]:
    """|R_t^T (s - s_exact)| at the states u: the error of the score in units of eps.

    Args:
        score: Learned.
        exact: grad log p_t.
        u: States: draws of p_t, or the points of a grid, where p_t may be small.
        t: 0-d, or a time per state, (b, 1, ..., 1): a grid in x and t is one batch.

    References: Zhang's thesis, Figure 6.2 (whose scaling of the error is not stated).
    """
    return sde.eps_from_score(score(u, t) - exact(u, t), t).flatten(1).norm(dim=1)


def by_density(values: Float[Tensor, " b"], log_prob: Float[Tensor, " b"], num_bins: int) -> DensityProfile:
    """The mean of the values, such as fitting errors, as a function of the density, in bins of equal numbers of states.

    Args:
        log_prob: log p_t of each state, nats.
        num_bins: At least 1, and at most half as many as there are states.

    Raises:
        ValueError: num_bins out of range.
    """
    if not 1 <= num_bins <= len(values) // 2:
        raise ValueError(f"num_bins={num_bins} must lie between 1 and {len(values) // 2}, half the number of states")
    order = log_prob.argsort()
    estimates = [mean_and_error(part) for part in values[order].tensor_split(num_bins)]
    levels = [part.mean() for part in log_prob[order].tensor_split(num_bins)]
    mean, error = (torch.stack(part) for part in zip(*estimates, strict=True))
    return DensityProfile(torch.stack(levels), MeanAndError(mean, error))


def points_score(sde: LinearSDE, x: Float[Tensor, " m *event"]) -> Score:
    """The exact score of data in m points of equal weight.

    Args:
        x: The points; m times the size of a batch of states must fit into memory.

    References: Zhang's thesis, Eq. 7.15 and Figure 7.2.
    """
    u_0 = sde.embed(x)

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        psi, precision = sde.psi0(t), inverse(sde.cov(t))
        away = torch.stack([apply(psi, point.expand_as(u)) - u for point in u_0])
        pulls = torch.stack([apply(precision, d) for d in away])
        share = (-0.5 * (away * pulls).flatten(2).sum(2)).softmax(0)
        return (share.reshape(*share.shape, *[1] * (u.ndim - 1)) * pulls).sum(0)

    return score


def _times_of(path: ODEPath) -> Tensor:
    """The times in the rank that coefficients need to meet (n, b, *event, k) in `apply`."""
    return path.ts.to(path.u.device).reshape(-1, *[1] * (path.u.ndim - 2))
