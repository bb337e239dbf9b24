"""Integration error against closed forms: one point, one Gaussian, polynomials by hand, and the findings of DEIS and gDDIM."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from problems import FIVE, Gaussian, SmallBackbone, ids, randn, rng, scalar
from torch import Tensor

from indm_core.diagnostics.integration import (
    ODEPath,
    at_positions,
    by_density,
    eps_along,
    extrapolation_error,
    fitting_error,
    ode_path,
    pixel_difference,
    points_score,
    refined_times,
    relative_change,
)
from indm_core.exponential import basis_at, sample_deis
from indm_core.model import ScoreModel
from indm_core.sample import (
    Score,
    power_times,
    sample_em,
    sample_ode,
    uniform_times,
)
from indm_core.sde import BDM, CLD, VP, LinearSDE, apply, inverse

EVERY = pytest.mark.parametrize("sde", FIVE, ids=ids)
ISOTROPIC = pytest.mark.parametrize("sde", FIVE[:3], ids=ids)
MEAN, VAR = 0.4, 0.09
TIGHT = {"rtol": 1e-11, "atol": 1e-12}

euler = partial(sample_em, lam=0.0)
held_score = partial(sample_deis, order=0, basis="score")
held_eps = partial(sample_deis, order=0)

close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)


def times(*ts: float) -> Tensor:
    return torch.tensor(ts, dtype=torch.float64)


def point(sde: LinearSDE, num: int = 1) -> Tensor:
    """0.7 in every coordinate."""
    return torch.full((num, 1, 2, 3) if isinstance(sde, BDM) else (num, 2), 0.7, dtype=torch.float64)


@lru_cache
def towards_a_point(sde: LinearSDE) -> tuple[ODEPath, Tensor]:
    """The path from t = 0.9 to 0.01 that ends in one point, six steps; and its eps (b, *event, K) at the start."""
    ts = refined_times(times(0.9, 0.4, 0.1, 0.01), 2)
    u_0 = sde.embed(point(sde, 3))
    eps = randn(*u_0.shape, seed=1)
    return ode_path(sde, points_score(sde, point(sde)), sde.perturb(u_0, ts[0], eps), ts, **TIGHT), eps


def gaussian_path(sde: LinearSDE, ts: Tensor) -> tuple[ODEPath, Tensor]:
    """Paths of N(0.4, 0.09) in each of two dimensions, and |c| of u_t = psi 0.4 + c spread(t)."""
    score, u = (
        modes(sde, torch.full((1, 2), MEAN, dtype=torch.float64), VAR**0.5),
        randn(4, 2, 1) * sde.cov(ts[0]).sqrt(),
    )
    c = (u - sde.psi0(ts[0]) * MEAN) / spread(sde, ts[0])
    return ode_path(sde, score, u, ts, **TIGHT), c.flatten(1).norm(dim=1)


def spread(sde: LinearSDE, t: Tensor) -> Tensor:
    """The standard deviation of u_t, in the shape of t."""
    return (sde.psi0(t).square() * VAR + sde.cov(t)).sqrt()[..., 0, 0]


def sigma(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.R(t)[..., 0, 0]


def modes(sde: LinearSDE, means: Tensor, std: float) -> Score:
    """The score of equal isotropic modes at `means` (m, d), under a scalar SDE."""

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        psi = sde.psi0(t)[..., 0]
        away = torch.stack([psi * mean.unsqueeze(-1) - u for mean in means])
        pulls = away / (psi.square() * std**2 + sde.cov(t)[..., 0])
        share = (-0.5 * (away * pulls).flatten(2).sum(2)).softmax(0)
        return (share.reshape(*share.shape, 1, 1) * pulls).sum(0)

    return score


def ring(sde: LinearSDE, std: float) -> Score:
    """Eight modes on the unit circle."""
    angles = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return modes(sde, torch.stack([angles.cos(), angles.sin()], 1), std)


# Paths


def test_refined_times_hold_the_grid_to_the_bit():
    ts = power_times(VP(), 7, 2.0)
    fine = refined_times(ts, 5)
    assert torch.equal(fine[::5], ts)
    assert torch.equal(refined_times(ts, 1), ts)
    close(fine.diff().reshape(7, 5), (ts.diff() / 5).unsqueeze(1).expand(7, 5))
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        refined_times(ts, 0)


@ISOTROPIC
def test_a_path_is_the_ode_s_solution(sde):
    """N(m, v): u_t = psi m + (u_T - psi_T m) spread(t)/spread(T), at every time."""
    ts = power_times(sde, 9, 2.0)
    path, _ = gaussian_path(sde, ts)
    mean = sde.psi0(ts.reshape(-1, 1, 1))[..., 0] * MEAN
    width = spread(sde, ts).reshape(-1, 1, 1, 1)
    share = width / width[0]
    close(path.u, mean + share * (path.u[0] - mean[0]))
    close(path.score, (mean - path.u) / width.square())


@pytest.mark.parametrize("sde", [CLD(), BDM(height=2, width=3)], ids=ids)
def test_a_path_in_segments_is_one_solution(sde):
    score, ts = points_score(sde, torch.cat([point(sde), -point(sde)])), times(0.8, 0.3, 0.1)
    u = sde.sample_prior(sde.embed(point(sde, 3)), rng(0))
    path = ode_path(sde, score, u, ts, rtol=1e-9, atol=1e-9)
    for i in (1, 2):
        direct = sample_ode(sde, score, u, ts[[0, i]], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(path.u[i], direct, rtol=1e-6, atol=1e-6)


def test_the_score_is_evaluated_on_the_path_once():
    sde, calls = VP(), []

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        calls.append(len(u))
        return -u

    path = ode_path(sde, score, randn(2, 2, 1), refined_times(uniform_times(sde, 3), 2))
    taken = len(calls)
    eps_along(sde, path)
    relative_change(sde, path, "L")
    extrapolation_error(sde, path, 2, degree=1)
    assert len(calls) == taken


def test_a_float32_network_reaches_the_default_tolerance():
    sde = VP()
    model = ScoreModel(SmallBackbone(2).float(), sde)
    with torch.no_grad():
        path = ode_path(sde, model, randn(4, 2, 1).float(), uniform_times(sde, 4))
    assert path.u.dtype == path.score.dtype == eps_along(sde, path).dtype == torch.float32
    assert path.u.isfinite().all()


# One point (Figures 7.1 and 7.2)


@EVERY
def test_eps_is_constant_towards_a_point(sde):
    """u_t = psi(t, 0) embed(x) + R_t eps and eps in R constant (Propositions 4 and 7), to 1e-8."""
    path, eps = towards_a_point(sde)
    for i, t in enumerate(path.ts):
        close(path.u[i], sde.perturb(sde.embed(point(sde, 3)), t, eps))
    close(eps_along(sde, path), eps.expand(len(path.ts), *eps.shape))
    held = extrapolation_error(sde, path, 2)
    assert (held.eps <= 1e-8 * eps.flatten(1).norm(dim=1)).all()
    assert (held.score <= 1e-7 * path.score[1:].flatten(2).norm(dim=2)).all()
    assert (relative_change(sde, path) <= 1e-8).all()


@EVERY
def test_the_score_is_not_constant_towards_a_point(sde):
    path, _ = towards_a_point(sde)
    assert (relative_change(sde, path, "score").amax(0) > 0.5).all()
    assert (extrapolation_error(sde, path, 2, basis="score").eps.amax(0) > 1).all()


def test_the_cholesky_factor_turns_eps_on_cld():
    """eps in L is L^-1 R eps, the rotation between the two factors: both channels change, and so do Delta_eps and Delta_s."""
    sde = CLD()
    path, eps = towards_a_point(sde)
    turned = eps_along(sde, path, "L")
    for i, t in enumerate(path.ts):
        close(turned[i], apply(inverse(basis_at(sde, t, "L")) @ sde.R(t), eps))
    close(turned.norm(dim=-1), eps.norm(dim=-1).expand(len(path.ts), *eps.shape[:-1]))
    moved = (turned - turned[0]).abs().amax(0)
    assert (moved.amax(1) > 0.5).all()  # in x and in v
    held = extrapolation_error(sde, path, 2, basis="L")
    assert (held.eps.amax(0) > 0.5).all()
    for i, t in enumerate(path.ts[1:]):
        as_score = -apply(inverse(basis_at(sde, t, "L")).mT, turned[i // 2 * 2])  # held since the step began
        close(held.score[i], (as_score - path.score[i + 1]).flatten(1).norm(dim=1))


def test_positions_of_a_path():
    u = randn(5, 2, 3, 4, 4, 2)
    found = at_positions(u, [0, 21, 47])
    assert found.shape == (5, 2, 3, 2)
    assert torch.equal(found, torch.stack([u[:, :, 0, 0, 0], u[:, :, 1, 1, 1], u[:, :, 2, 3, 3]], 2))


@EVERY
def test_the_score_of_points_is_a_gradient(sde):
    """Against the gradient of log sum_m N(u; psi embed(x_m), Sigma)."""
    x = torch.stack([point(sde)[0], -0.5 * point(sde)[0], 0.1 * point(sde)[0] + randn(*point(sde)[0].shape)])
    t, u_0 = scalar(0.15), sde.embed(x)
    u = sde.perturb(u_0, t, randn(*u_0.shape, seed=3)).requires_grad_()
    away = u.unsqueeze(0) - apply(sde.psi0(t), u_0).unsqueeze(1)
    (-0.5 * (away * apply(inverse(sde.cov(t)), away)).flatten(2).sum(2)).logsumexp(0).sum().backward()
    close(points_score(sde, x)(u.detach(), t), u.grad)


def test_eps_of_several_points_turns_in_the_middle():
    """Figure 7.2: nearly constant while all points are alike, and again when one is left."""
    sde = VP()
    x = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]], dtype=torch.float64)
    path = ode_path(sde, points_score(sde, x), randn(16, 2, 1), uniform_times(sde, 20, low=0.01), rtol=1e-9, atol=1e-9)
    change = relative_change(sde, path).amax(1)
    assert change[0] < 0.1 * change.max()
    assert change[-1] < 1e-6 * change.max()


# Holding and extrapolating (Figures 6.3b, 6.3d, 6.4a, 6.4b)


@ISOTROPIC
def test_what_is_held_on_gaussian_data_is_known(sde):
    """eps = c sigma/spread and score = -c/spread: Delta_eps, Delta_s and the relative change in closed form."""
    every, ts = 4, refined_times(power_times(sde, 5, 2.0, low=1e-3), 4)
    path, c = gaussian_path(sde, ts)
    ratio = sigma(sde, ts) / spread(sde, ts)
    left = torch.arange(len(ts) - 1) // every * every  # the node that each time's step begins with
    held = (ratio[left] - ratio[1:]).abs()
    ours = extrapolation_error(sde, path, every)
    close(ours.eps, torch.outer(held, c))
    close(ours.score, torch.outer(held / sigma(sde, ts[1:]), c), rtol=1e-7)
    of_score = (1 / spread(sde, ts[left]) - 1 / spread(sde, ts[1:])).abs()
    for found in extrapolation_error(sde, path, every, basis="score"):
        close(found, torch.outer(of_score, c))
    change = (ratio.diff() / ratio[:-1]).abs()
    close(relative_change(sde, path), change.unsqueeze(1).expand(-1, len(c)), rtol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_extrapolation_on_gaussian_data_is_that_of_numpy(degree):
    sde, every = VP(), 3
    ts = refined_times(power_times(sde, 6, 2.0, low=1e-3), every)
    path, c = gaussian_path(sde, ts)
    ratio = (sigma(sde, ts) / spread(sde, ts)).numpy()
    nodes, expected = ts[::every].numpy(), []
    for i in range(len(nodes) - 1):
        known = slice(max(0, i - degree), i + 1)
        fit = np.polynomial.Polynomial.fit(nodes[known], ratio[::every][known], min(i, degree))
        inner = slice(i * every + 1, (i + 1) * every + 1)
        expected.append(np.abs(fit(ts.numpy()[inner]) - ratio[inner]))
    found = extrapolation_error(sde, path, every, degree=degree).eps
    close(found, torch.outer(torch.as_tensor(np.concatenate(expected)), c), rtol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_polynomial_is_extrapolated_exactly_by_its_degree(degree):
    sde, every, ts = VP(), 2, refined_times(uniform_times(VP(), 6), 2)
    t = ts.reshape(-1, 1, 1, 1)
    path = ODEPath(ts, torch.zeros(len(ts), 1, 1, 1).double(), -(0.5 + t**degree))
    for r in range(4):
        error = extrapolation_error(sde, path, every, degree=r, basis="score").eps[degree * every :]
        assert (error < 1e-10).all() if r >= degree else (error > 1e-4).any()


@pytest.mark.usefixtures("unchecked")
def test_the_extrapolation_error_falls_by_its_degree():
    """Of a mixture, at the ends of 40 and 80 steps: 2^(r + 1). One path serves both, and every degree."""
    sde = VP(t_min=0.05)
    path = ode_path(sde, ring(sde, 0.5), randn(8, 2, 1), power_times(sde, 160, 2.0), rtol=1e-11, atol=1e-11)
    for degree in (0, 1, 2):
        errors = {
            every: extrapolation_error(sde, path, every, degree=degree).eps[every - 1 :: every] for every in (4, 2)
        }
        coarse, fine = (float(at_ends[degree:].mean()) for at_ends in errors.values())
        assert abs(math.log2(coarse / fine) - (degree + 1)) < 0.25


def test_what_cannot_be_extrapolated_is_named():
    path = ODEPath(uniform_times(VP(), 5), randn(6, 1, 1, 1), randn(6, 1, 1, 1))
    with pytest.raises(ValueError, match="every=2: the 5 parts of the path"):
        extrapolation_error(VP(), path, 2)
    with pytest.raises(ValueError, match="degree=-1"):
        extrapolation_error(VP(), path, 1, degree=-1)


# Samplers (Figures 6.3a, c and 6.4c)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(euler, 1), (held_score, 1), (held_eps, 1), (partial(sample_deis, order=1), 2)],
    ids=["euler", "score", "eps", "t-AB1"],
)
def test_delta_p_falls_with_the_order(solver, order):
    sde = VP(t_min=0.05)
    grids = [power_times(sde, num_steps, 2.0) for num_steps in (80, 160)]
    coarse, fine = pixel_difference(sde, ring(sde, 0.5), randn(32, 2, 1), grids, [solver], rtol=1e-9, atol=1e-9)[
        0
    ].mean(1)
    assert abs(math.log2(coarse / fine) - order) < 0.1


@pytest.mark.parametrize("sde", [VP(), CLD(), BDM(height=2, width=3)], ids=ids)
def test_delta_p_is_zero_where_a_step_is_exact(sde):
    """One point: DDIM and gDDIM in one step and in three; Euler's method is far away."""
    grids = [times(0.9, 0.1), times(0.9, 0.5, 0.3, 0.1)]
    u = sde.perturb(sde.embed(point(sde, 3)), scalar(0.9), randn(*sde.embed(point(sde, 3)).shape))
    found = pixel_difference(sde, points_score(sde, point(sde)), u, grids, [held_eps, euler], **TIGHT)
    assert found.shape == (2, 2, 3)
    assert (found[0] < 1e-8).all()
    assert (found[1] > 1e-2).all()


def test_delta_p_is_in_units_of_the_data():
    """Positions only on CLD; with a map to data, there."""
    sde, ts = CLD(), times(0.8, 0.5, 0.2)
    score, u = points_score(sde, torch.cat([point(sde), -point(sde)])), randn(3, 2, 2)
    exact = sample_ode(sde, score, u, ts, rtol=1e-9, atol=1e-9)
    expected = (euler(sde, score, u, ts) - exact)[..., 0].abs().mean(1)
    options = {"rtol": 1e-9, "atol": 1e-9}
    close(pixel_difference(sde, score, u, [ts], [euler], **options)[0, 0], expected)
    scaled = pixel_difference(sde, score, u, [ts], [euler], decode=lambda u: 3 * sde.project(u), **options)
    close(scaled[0, 0], 3 * expected)


def test_holding_the_score_is_worse_than_euler_and_holding_eps_better():
    """The finding of Figures 6.3a and c, on ten modes of deviation 0.02 in 64 dimensions, at 5 and 10 steps."""
    sde = VP(t_min=1e-3)
    means = 0.5 * randn(10, 64, seed=5)
    grids = [uniform_times(sde, num_steps) for num_steps in (5, 10)]
    found = pixel_difference(
        sde, modes(sde, means, 0.02), randn(64, 64, 1), grids, [held_score, euler, held_eps], rtol=1e-8, atol=1e-8
    )
    score, by_euler, eps = found.mean(2)
    assert (score > 1.5 * by_euler).all()
    assert (by_euler > 1.25 * eps).all()


def test_holding_the_score_is_worse_than_euler_in_the_plane():
    """There holding eps is no better than Euler's method, which is exact on VP where the data have variance 1."""
    sde = VP(t_min=1e-3)
    grids = [power_times(sde, num_steps, 2.0) for num_steps in (10, 20, 50)]
    score, by_euler = pixel_difference(sde, ring(sde, 0.1), randn(64, 2, 1), grids, [held_score, euler]).mean(2)
    assert (score > 2 * by_euler).all()


def test_refused_grids():
    sde, score, u = VP(), lambda u, t, y=None: -u, randn(2, 2, 1)
    with pytest.raises(ValueError, match="give at least one"):
        pixel_difference(sde, score, u, [], [euler])
    with pytest.raises(ValueError, match=r"grids\[1\] runs from 1 to 0.1, grids\[0\] from 1 to 1e-05"):
        pixel_difference(sde, score, u, [uniform_times(sde, 2), uniform_times(sde, 2, low=0.1)], [euler])


# Fitting error (Figure 6.2)


@EVERY
def test_the_fitting_error_is_the_same_in_every_basis(sde):
    """sqrt(d^T Sigma d) = |L^T d| for a score that is off by a tenth, at a time per state."""
    exact = points_score(sde, torch.cat([point(sde), -point(sde)]))
    off = lambda u, t, y=None: 1.1 * exact(u, t)  # noqa: E731
    u_0 = sde.embed(point(sde, 3))
    t = times(0.9, 0.3, 0.05).reshape(3, *[1] * (u_0.ndim - 2))
    u = sde.perturb(u_0, t, randn(*u_0.shape))
    d = 0.1 * exact(u, t)
    found = fitting_error(sde, off, exact, u, t)
    close(found, (d * apply(sde.cov(t), d)).flatten(1).sum(1).sqrt())
    close(found, apply(basis_at(sde, t, "L").mT, d).flatten(1).norm(dim=1))


def test_a_score_fitted_to_draws_errs_where_the_density_is_low():
    """The toy of Figure 6.2: N(0, 0.05^2) in one dimension, eps regressed on random features of draws of (u_t, t)."""
    sde, num = VP(), 4000
    law = Gaussian(sde=sde, mean=torch.zeros(1).double(), cov=torch.full((1, 1), 0.05**2, dtype=torch.float64))
    weights, shifts = 2 * randn(200, 2, seed=1), 2 * randn(200, seed=2)

    def features(u: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(torch.stack([u.flatten(), t.expand(len(u), 1).flatten()], 1) @ weights.T + shifts)

    t = 0.05 + 0.95 * torch.rand(num, 1, dtype=torch.float64, generator=rng(3))
    eps = randn(num, 1, 1, seed=4)
    u = sde.perturb(0.05 * randn(num, 1, 1, seed=5), t, eps)
    X = features(u, t)
    gram = X.T @ X + 1e-3 * torch.eye(200, dtype=torch.float64)
    fitted = torch.linalg.solve(gram, X.T @ eps.flatten())

    def learned(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return sde.score_from_eps((features(u, t) @ fitted).reshape(u.shape), t)

    grid_u, grid_t = torch.meshgrid(
        torch.linspace(-6, 6, 121).double(), torch.linspace(0.1, 1, 10).double(), indexing="ij"
    )
    u, t = grid_u.reshape(-1, 1, 1), grid_t.reshape(-1, 1)
    error = fitting_error(sde, learned, law.score, u, t)
    profile = by_density(error, law.log_prob(u, t), 5)
    assert (profile.log_prob.diff() > 0).all()
    assert profile.values.mean[-1] < 0.1
    assert profile.values.mean[0] > 10 * profile.values.mean[-1]


def test_bins_hold_equal_numbers_in_the_order_of_the_density():
    log_prob = randn(10)
    values = 2 * log_prob + 1
    profile, sorted_log_prob = by_density(values, log_prob, 3), log_prob.sort().values
    parts = [sorted_log_prob[:4], sorted_log_prob[4:7], sorted_log_prob[7:]]
    close(profile.log_prob, torch.stack([part.mean() for part in parts]))
    close(profile.values.mean, 2 * profile.log_prob + 1)
    close(profile.values.error, torch.stack([2 * part.std() / math.sqrt(len(part)) for part in parts]))
    for num_bins in (0, 6):
        with pytest.raises(ValueError, match=f"num_bins={num_bins} must lie between 1 and 5"):
            by_density(values, log_prob, num_bins)
