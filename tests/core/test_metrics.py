"""Frechet and kernel distances against closed forms, brute force, Monte-Carlo spreads and torch-fidelity."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from benchmarks.frechet import Problem, problem
from indm_core import frechet
from indm_core.metrics import (
    FrechetDistance,
    Moments,
    fewest_samples,
    frechet_distance,
    frechet_from_samples,
    frechet_infinity,
    inception_score,
    kernel_distance,
)
from pipelines.evaluation.features.networks import torchvision_operators

torchvision_operators()

Estimate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], FrechetDistance]


def make(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=make(seed))


def random_cov(d: int, rank: int, seed: int) -> torch.Tensor:
    factor = randn(d, rank, seed=seed)
    return factor @ factor.T / rank


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def test_streaming_moments_are_those_of_the_batch():
    x = randn(1000, 7, seed=0) @ random_cov(7, 7, seed=1) + 1e4
    moments = Moments()
    for batch in x.split([1, 2, 500, 0, 497]):
        moments.update(batch)
    assert moments.count == 1000
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.cov, torch.cov(x.T), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_shards_merge_to_the_whole_in_any_order(order: tuple[int, ...]):
    x = randn(503, 5, seed=2).exp()
    shards = [Moments().update(shard) for shard in x.split([100, 3, 399, 1])]
    merged = Moments()
    for i in order:
        merged.merge(shards[i])
    left, right = Moments().merge(shards[0]).merge(shards[1]), Moments().merge(shards[2]).merge(shards[3])
    whole = Moments().update(x)
    for moments in (merged, left.merge(right), left.merge(Moments())):
        assert moments.count == 503
        torch.testing.assert_close(moments.mean, whole.mean, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(moments.cov, whole.cov, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(shards[1].mean, x[100:103].mean(0), rtol=1e-14, atol=1e-14)  # merging left it alone


def test_float32_features_far_from_zero_keep_their_covariance():
    x = (100 + randn(4000, 3, seed=3)).float()
    moments = Moments().update(x[:1500]).update(x[1500:])
    torch.testing.assert_close(moments.cov, torch.cov(x.double().T), rtol=1e-12, atol=1e-12)


def test_moments_refuse_what_is_no_sample():
    moments = Moments()
    with pytest.raises(ValueError, match="count=0"):
        _ = moments.mean
    moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="count=1"):
        _ = moments.cov
    with pytest.raises(ValueError, match=r"features: 2 features a sample, .* have 3"):
        moments.update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="other: 2 features"):
        moments.merge(Moments().update(torch.zeros(4, 2)))
    broken = torch.zeros(5, 3)
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features: row 3 is not finite"):
        moments.update(broken)
    with pytest.raises(ValueError, match=r"features: shape \(3,\)"):
        moments.update(torch.zeros(3))


def test_one_dimension_closed_form():
    mean_a, mean_b = torch.tensor([1.0]), torch.tensor([-2.0])
    cov_a, cov_b = torch.tensor([[4.0]]), torch.tensor([[0.25]])
    distance = frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert distance.dtype == torch.float64
    assert distance.shape == ()
    assert float(distance) == pytest.approx(9 + (2 - 0.5) ** 2, rel=1e-14)


def test_commuting_covariances_closed_form():
    Q = rotation(6, seed=6)
    a, b = randn(6, seed=7).exp(), randn(6, seed=8).exp()
    m_a, m_b = randn(6, seed=9), randn(6, seed=10)
    exact = (m_a - m_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    distance = frechet_distance(m_a, Q @ a.diag() @ Q.T, m_b, Q @ b.diag() @ Q.T)
    torch.testing.assert_close(distance, exact, rtol=1e-13, atol=0)


def test_two_dimensions_closed_form_without_commuting():
    # tr (A^1/2 B A^1/2)^1/2 = sqrt(tr AB + 2 sqrt(det A det B)) for 2x2 matrices.
    A, B, zero = random_cov(2, 2, seed=11), random_cov(2, 2, seed=12), torch.zeros(2, dtype=torch.float64)
    cross = ((A @ B).trace() + 2 * (A.det() * B.det()).sqrt()).sqrt()
    exact = A.trace() + B.trace() - 2 * cross
    torch.testing.assert_close(frechet_distance(zero, A, zero, B), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(8, 8), (3, 8), (3, 2), (0, 5)])
def test_symmetry_identity_and_rotation(rank_a: int, rank_b: int):
    d = 8
    A = random_cov(d, rank_a, seed=13) if rank_a else torch.zeros(d, d, dtype=torch.float64)
    B = random_cov(d, rank_b, seed=14)
    m_a, m_b, Q = randn(d, seed=15), randn(d, seed=16), rotation(d, seed=17)
    distance = frechet_distance(m_a, A, m_b, B)
    torch.testing.assert_close(distance, frechet_distance(m_b, B, m_a, A), rtol=1e-12, atol=0)
    turned = frechet_distance(Q @ m_a, Q @ A @ Q.T, Q @ m_b, Q @ B @ Q.T)
    torch.testing.assert_close(distance, turned, rtol=1e-10, atol=0)
    assert 0 <= float(frechet_distance(m_b, B, m_b, B)) < 1e-13 * float(B.trace())


def test_disjoint_singular_covariances_do_not_overlap():
    a, b = torch.tensor([1.0, 2, 0, 0]).double(), torch.tensor([0.0, 0, 3, 4]).double()
    Q, zero = rotation(4, seed=18), torch.zeros(4, dtype=torch.float64)
    distance = frechet_distance(zero, Q @ a.diag() @ Q.T, zero, Q @ b.diag() @ Q.T)
    assert float(distance) == pytest.approx(10, rel=1e-14)


def test_fewer_samples_than_features_keep_all_digits():
    # The distance between rank-deficient sample covariances depends on the subspace alone: compute it there as well.
    x, y, Q = randn(12, 5, seed=19), randn(12, 5, seed=20), rotation(60, seed=21)[:, :5]
    small, large = [Moments().update(v) for v in (x, y)], [Moments().update(v @ Q.T) for v in (x, y)]
    exact = frechet_distance(small[0].mean, small[0].cov, small[1].mean, small[1].cov)
    value = frechet_distance(large[0].mean, large[0].cov, large[1].mean, large[1].cov)
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "d"), [(400, 12), (30, 64)])
def test_equals_torch_fidelity(n: int, d: int):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    x, y = randn(n, d, seed=22) @ random_cov(d, d, seed=23), randn(n + 10, d, seed=24) + 0.3
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    a, b = Moments().update(x), Moments().update(y)
    assert float(frechet_distance(a.mean, a.cov, b.mean, b.cov)) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-6)


def test_frechet_distance_refuses_what_is_no_gaussian():
    mean, cov = torch.zeros(3), torch.eye(3)
    skew = cov.clone()
    skew[0, 2] = 0.5
    with pytest.raises(ValueError, match=r"cov_b: not symmetric, .* 0.5"):
        frechet_distance(mean, cov, mean, skew)
    with pytest.raises(ValueError, match=r"cov_a: eigenvalue -0.1"):
        frechet_distance(mean, torch.tensor([1.0, 1.0, -0.1]).diag(), mean, cov)
    with pytest.raises(ValueError, match="mean_b: 2 features, but mean_a has 3"):
        frechet_distance(mean, cov, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"cov_a: a finite 3x3 matrix .* shape \(2, 2\)"):
        frechet_distance(mean, torch.eye(2), mean, cov)
    with pytest.raises(ValueError, match=r"mean_a: .* 1 values that are not finite"):
        frechet_distance(torch.tensor([0, math.inf, 0]), cov, mean, cov)


def left_out(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.cat([x[:i], x[i + 1 :]]) for i in range(len(x))]


def prepared(x: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> frechet._LeaveOneOut:
    return frechet._leave_one_out(*frechet._as_samples_and_reference(x, mean, cov, at_least=3))


@pytest.mark.parametrize(("n", "d", "rank"), [(30, 8, 8), (9, 8, 8), (8, 8, 8), (12, 20, 20), (12, 20, 5), (3, 4, 4)])
def test_distances_without_one_sample_are_those_of_the_smaller_sets(n: int, d: int, rank: int):
    x, mean, cov = randn(n, d, seed=25), randn(d, seed=26), random_cov(d, rank, seed=27)
    x[1:, 0] = 0  # a direction that the first sample alone has
    sets = prepared(x, mean, cov)
    values = sets.rest_i - 2 * frechet._roots_left_out(sets)
    moments = [Moments().update(part) for part in left_out(x)]
    exact = torch.stack([frechet_distance(m.mean, m.cov, mean, cov) for m in moments])
    torch.testing.assert_close(values, exact, rtol=1e-6, atol=0)
    whole = Moments().update(x)
    result = frechet_from_samples(x, mean, cov)
    assert result.num_samples == n
    assert result.value == pytest.approx(float(frechet_distance(whole.mean, whole.cov, mean, cov)), rel=1e-12)


@pytest.mark.parametrize(("n", "d", "rank"), [(30, 8, 8), (13, 8, 8), (12, 20, 5)])
def test_roots_at_infinity_without_one_sample_are_those_of_the_smaller_sets(n: int, d: int, rank: int):
    x, mean, cov = randn(n, d, seed=28), randn(d, seed=29), random_cov(d, rank, seed=30)
    x[1:, 0] = 0  # a direction that the first sample alone has
    _, roots, _ = frechet._roots_at_infinity(prepared(x, mean, cov))
    exact = torch.stack([frechet._roots_at_infinity(prepared(part, mean, cov))[0] for part in left_out(x)])
    torch.testing.assert_close(roots, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("N", [9, 16, 80])
def test_spectrum_of_the_law_from_that_of_many_samples(N: int):
    # For n, d -> oo with d/n = 8/N, phi solves N phi = sum tau/(tau + u), u = t/(1 - phi); psi = phi + t phi'.
    tau = torch.arange(1, 9, dtype=torch.float64).square()
    t = (64 * torch.arange(-42, 38, dtype=torch.float64).exp()).requires_grad_()
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(200):  # bisection: the right-hand side falls with phi
        phi = (low + high) / 2
        above = phi > (tau.unsqueeze(1) * (1 - phi) / (tau.unsqueeze(1) * (1 - phi) + t)).sum(dim=0) / N
        low, high = torch.where(above, low, phi), torch.where(above, phi, high)
    phi = low.detach()
    e = (1 - phi).requires_grad_()
    residual = (1 - e) - (tau.unsqueeze(1) * e / (tau.unsqueeze(1) * e + t)).sum(dim=0) / N
    by_t, by_e = torch.autograd.grad(residual.sum(), (t, e))
    psi = phi + t.detach() * by_t / by_e
    once, twice = (frechet._root_at_infinity(k * N, phi, psi, t.detach().sqrt()) for k in (1, 2))
    # What grows with N is the root; the rest corrects the mean over Gaussian samples, d/(8 n) for one eigenvalue tau = 1.
    assert float(twice - once) == pytest.approx(float(tau.sqrt().sum()), rel=1e-6)


def test_mean_over_gaussian_samples_is_corrected_by_its_second_order():
    # E s = 1 - (d + 1)/(8 n) in each of d directions of variance 1: d/(8 n) to leading order, 1/(8 n) by the correction.
    t = torch.arange(-42, 38, dtype=torch.float64).exp()
    N = 10**6
    p = 1 / (1 + t)
    once, twice = (frechet._root_at_infinity(k * N, p / N, p.square() / N, t.sqrt()) for k in (1, 2))
    assert float(2 * once - twice) == pytest.approx(1 / (8 * N), rel=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_one_dimension_against_exact_moments():
    # D_n = (m - 0.4)^2 + (s - 1.3)^2 for x ~ N(0, 1), with E s^k = (2/N)^(k/2) Gamma((N + k)/2) / Gamma(N/2).
    n, num_sets = 25, 800
    N, mean, cov = n - 1, torch.tensor([0.4]).double(), torch.tensor([[1.69]]).double()

    def moment(k: int) -> float:
        return (2 / N) ** (k / 2) * math.exp(math.lgamma((N + k) / 2) - math.lgamma(N / 2))

    var_of_mean = 4 * 0.4**2 / n + 2 / n**2
    var_of_std = moment(4) - moment(2) ** 2 - 5.2 * (moment(3) - moment(2) * moment(1)) + 6.76 * (1 - moment(1) ** 2)
    exact, plug_in = 0.4**2 + 0.3**2, 0.4**2 + 1 / n + 1 - 2.6 * moment(1) + 1.69
    sets = [randn(n, 1, seed=3000 + i) for i in range(num_sets)]
    results = [frechet_from_samples(x, mean, cov) for x in sets]
    limits = [frechet_infinity(x, mean, cov) for x in sets]
    values, of_limit = torch.tensor([r.value for r in results]), torch.tensor([r.value for r in limits])
    squares = torch.tensor([r.standard_error**2 for r in results])
    assert abs(float(values.mean()) - plug_in) < 5 * math.sqrt((var_of_mean + var_of_std) / num_sets)
    assert abs(float(of_limit.mean()) - exact) < 5 * float(of_limit.std()) / math.sqrt(num_sets)
    assert abs(float(squares.mean()) - var_of_mean - var_of_std) < 5 * float(squares.std()) / math.sqrt(num_sets)


def test_standard_error_of_many_samples_is_that_of_the_gradient():
    # D is smooth where C > 0: n Var D_n -> Var(g.x + x^T G x) = g^T C g + 2 tr (G C)^2 for a Gaussian law, with the
    # gradient g = 2 (m - m_r), G = I - T, and T the map of optimal transport from N(m, C) to N(m_r, C_r): T C T = C_r.
    n, law = 40_000, problem(5, power=0.5, change=0.7)
    m, C = law.mean, law.factor @ law.factor.T
    B = torch.linalg.cholesky(law.cov_ref)
    values, vectors = torch.linalg.eigh(B.T @ C @ B)
    T = B @ (vectors / values.sqrt() @ vectors.T) @ B.T
    torch.testing.assert_close(T @ C @ T, law.cov_ref, rtol=1e-10, atol=1e-12)
    g, G = 2 * (m - law.mean_ref), torch.eye(5, dtype=torch.float64) - T
    dm, dC = 1e-5 * randn(5, seed=38), 1e-5 * random_cov(5, 5, seed=39)
    up, down = (frechet_distance(m + s * dm, C + s * dC, law.mean_ref, law.cov_ref) for s in (1, -1))
    assert float(up - down) / 2 == pytest.approx(float(g @ dm + (G * dC).sum()), rel=1e-6)

    exact = float(g @ C @ g + 2 * (G @ C @ G @ C).trace()) / n
    x = law.draw(n, make(31))
    errors = [
        estimate(x, law.mean_ref, law.cov_ref).standard_error for estimate in (frechet_from_samples, frechet_infinity)
    ]
    # The square of a square of a Gaussian number varies most: its variance is 32/3 of its squared mean.
    assert errors[0] ** 2 == pytest.approx(exact, rel=5 * math.sqrt(32 / 3 / n))
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def over_sets(estimate: Estimate, law: Problem, n: int, num_sets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and standard errors over independent sets."""
    generator = make(n)
    results = [estimate(law.draw(n, generator), law.mean_ref, law.cov_ref) for _ in range(num_sets)]
    return torch.tensor([r.value for r in results]), torch.tensor([r.standard_error for r in results])


EQUAL_AND_DIFFERENT = [(0.0, 0.0), (0.0, 0.3), (1.0, 0.0), (1.0, 0.3)]


@pytest.mark.parametrize(("power", "change"), EQUAL_AND_DIFFERENT)
@pytest.mark.parametrize(("d", "n"), [(8, 4), (8, 16), (8, 160), (64, 32), (64, 128), (64, 320)])
@pytest.mark.usefixtures("unchecked")
def test_standard_error_of_the_plug_in_distance(d: int, n: int, power: float, change: float):
    values, errors = over_sets(frechet_from_samples, problem(d, power, change), n, 200)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


RATIOS = [0.5, 0.8, 1, 1.2, 2, 5, 20]


@pytest.mark.slow
@pytest.mark.parametrize(("power", "change"), [*EQUAL_AND_DIFFERENT, (2.0, 0.0)])
@pytest.mark.parametrize(("d", "ratio"), [*((d, r) for d in (8, 64, 200) for r in RATIOS), (8, 200), (64, 200)])
@pytest.mark.usefixtures("unchecked")
def test_standard_error_of_the_plug_in_distance_everywhere(d: int, ratio: float, power: float, change: float):
    num_sets = 400
    values, errors = over_sets(frechet_from_samples, problem(d, power, change), int(ratio * d), num_sets)
    spread = 1 / math.sqrt(2 * num_sets)  # the relative standard error of the truth
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2 + spread)


@pytest.mark.parametrize(("power", "change"), EQUAL_AND_DIFFERENT)
@pytest.mark.parametrize(("d", "n"), [(8, 16), (8, 160), (64, 75), (64, 320)])
@pytest.mark.usefixtures("unchecked")
def test_distance_at_infinity_is_unbiased_and_its_error_honest(d: int, n: int, power: float, change: float):
    law = problem(d, power, change)
    values, errors = over_sets(frechet_infinity, law, n, 200)
    assert abs(float(values.mean()) - law.distance) < 5 * float(values.std()) / math.sqrt(200)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


@pytest.mark.usefixtures("unchecked")
def test_distance_at_infinity_of_samples_that_are_not_gaussian():
    # Exponential numbers have four times the excess of a Gaussian's fourth moment: the jackknife takes it out of the bias.
    n, d, num_sets = 80, 8, 400
    mean, cov = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    sets = [torch.empty(n, d, dtype=torch.float64).exponential_(generator=make(7000 + i)) - 1 for i in range(num_sets)]
    values = torch.tensor([frechet_infinity(x, mean, cov).value for x in sets])
    plug_in = torch.tensor([frechet_from_samples(x, mean, cov).value for x in sets])
    assert abs(float(values.mean())) < 5 * float(values.std()) / math.sqrt(num_sets)
    assert abs(float(values.mean())) < 0.1 * float(plug_in.mean())


@pytest.mark.parametrize("estimate", [frechet_from_samples, frechet_infinity])
def test_estimates_scale_with_the_features_and_do_not_depend_on_their_basis(estimate: Estimate):
    x, mean, cov, Q = randn(40, 6, seed=32), randn(6, seed=33), random_cov(6, 4, seed=34), rotation(6, seed=35)
    plain = estimate(x, mean, cov)
    scaled = estimate(1e3 * x @ Q.T, 1e3 * Q @ mean, 1e6 * Q @ cov @ Q.T)
    assert scaled.value == pytest.approx(1e6 * plain.value, rel=1e-8)
    assert scaled.standard_error == pytest.approx(1e6 * plain.standard_error, rel=1e-6)


def test_constant_features_and_a_reference_in_one_point():
    x, zero, eye = torch.ones(20, 3).double(), torch.zeros(3).double(), torch.eye(3).double()
    assert frechet_from_samples(x, zero, eye) == FrechetDistance(value=6.0, standard_error=0.0, num_samples=20)
    # Against a point D = |m|^2 + tr C = E |x|^2: its unbiased estimate is the mean of |x|^2 and has a known error.
    x = randn(20, 3, seed=36)
    squares = x.square().sum(dim=1)
    result = frechet_infinity(x, zero, 0 * eye)
    assert result.value == pytest.approx(float(squares.mean()), rel=1e-12)
    assert result.standard_error == pytest.approx(float(squares.std()) / math.sqrt(20), rel=0.05)


def test_plug_in_distance_is_biased_upward_and_less_so_in_n():
    d, zero, eye = 6, torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    means = []
    for n in (50, 200):
        moments = [Moments().update(randn(n, d, seed=1000 * n + seed)) for seed in range(100)]
        means.append(sum(float(frechet_distance(m.mean, m.cov, zero, eye)) for m in moments) / 100)
    # E = d/n + E|C^1/2 - I|^2 with C - I = O(n^-1/2): d/n + d (d + 1)/(4 n) to first order.
    for n, mean in zip((50, 200), means, strict=True):
        assert mean == pytest.approx((d + d * (d + 1) / 4) / n, rel=0.15)


def test_estimates_refuse_too_few():
    with pytest.raises(ValueError, match=r"features: shape \(5, 0\)"):
        frechet_from_samples(torch.zeros(5, 0), torch.zeros(0), torch.zeros(0, 0))
    mean, cov = torch.zeros(64), torch.eye(64)
    for num in (0, 1, 2):
        with pytest.raises(ValueError, match=f"features: {num} samples, at least 3"):
            frechet_from_samples(torch.zeros(num, 64), mean, cov)
    with pytest.raises(ValueError, match="mean_ref: 64 features, but the samples have 3"):
        frechet_from_samples(torch.zeros(4, 3), mean, cov)
    assert fewest_samples(64) == 75
    with pytest.raises(
        ValueError, match=r"features: 74 samples of 64 features do not show .*: give 75 samples or more"
    ) as refused:
        frechet_infinity(randn(74, 64, seed=37), mean, cov)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="cov_ref: eigenvalue -1 is negative"):
        frechet_infinity(randn(75, 64, seed=37), mean, -cov)
    frechet_infinity(randn(75, 64, seed=37), mean, cov)


def test_kernel_distance_by_loops():
    x, y = randn(7, 3, seed=31), randn(7, 3, seed=32) + 0.5

    def k(u: torch.Tensor, v: torch.Tensor) -> float:
        return float((u @ v) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    exact = (
        sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 42
        - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 49
    )
    result = kernel_distance(x, y, num_subsets=5)
    assert result.mean == pytest.approx(exact, rel=1e-12)
    assert result.subset_size == 7


def test_kernel_distance_equals_torch_fidelity_on_whole_sets():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = randn(80, 16, seed=33), 1.2 * randn(80, 16, seed=34)
    theirs = kid_features_to_metric(x, y, kid_subsets=2, kid_subset_size=80, verbose=False)
    assert kernel_distance(x, y, subset_size=80).mean == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)


@pytest.mark.parametrize(("n_a", "n_b", "size"), [(60, 60, 60), (90, 200, 40)])
def test_kernel_distance_is_unbiased_for_equal_laws_and_its_error_no_smaller_than_true(n_a: int, n_b: int, size: int):
    results = [
        kernel_distance(
            randn(n_a, 4, seed=2000 + 2 * i),
            randn(n_b, 4, seed=2001 + 2 * i),
            num_subsets=20,
            subset_size=size,
            generator=make(i),
        )
        for i in range(200)
    ]
    means = torch.tensor([result.mean for result in results])
    errors = torch.tensor([result.standard_error for result in results])
    assert abs(float(means.mean())) < 5 * float(means.std()) / math.sqrt(200)
    assert float(means.std()) < float(errors.square().mean().sqrt())


@pytest.mark.parametrize(("n", "size", "num_subsets"), [(150, 150, 1), (300, 60, 20), (300, 60, 1), (300, 60, 4)])
def test_kernel_distance_standard_error_for_different_laws(n: int, size: int, num_subsets: int):
    # Monte Carlo over independent sets; the exact MMD^2 of the linear kernel x.y is |shift|^2.
    results = [
        kernel_distance(
            randn(n, 3, seed=5000 + 2 * i) + 1,
            randn(n, 3, seed=5001 + 2 * i),
            degree=1,
            gamma=1.0,
            num_subsets=num_subsets,
            subset_size=size,
            generator=make(i),
        )
        for i in range(200)
    ]
    means = torch.tensor([result.mean for result in results])
    errors = torch.tensor([result.standard_error for result in results])
    assert abs(float(means.mean()) - 3) < 5 * float(means.std()) / math.sqrt(200)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(means.std()), rel=5 / math.sqrt(2 * 199))


def test_kernel_distance_is_reproducible_and_refuses_what_it_must():
    x, y = randn(50, 3, seed=35), randn(50, 3, seed=36)
    results = [kernel_distance(x, y, subset_size=20, num_subsets=3, generator=make(1)) for _ in range(2)]
    assert results[0] == results[1]
    with pytest.raises(ValueError, match="features_b: 2 features a sample, but features_a has 3"):
        kernel_distance(x, y[:, :2])
    with pytest.raises(ValueError, match="features_a: 1 samples"):
        kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match="subset_size=1"):
        kernel_distance(x, y, subset_size=1)
    with pytest.raises(ValueError, match="num_subsets=0"):
        kernel_distance(x, y, num_subsets=0)


def test_inception_score_limits():
    certain = 1000 * torch.eye(5)[torch.arange(200) % 5]
    assert inception_score(certain[torch.randperm(200, generator=make(37))], splits=2).mean == pytest.approx(
        5, rel=0.05
    )
    ordered = inception_score(certain.reshape(40, 5, 5).transpose(0, 1).reshape(200, 5), splits=10)
    assert ordered.mean == pytest.approx(5, rel=1e-6)
    assert ordered.standard_error < 1e-6
    assert inception_score(torch.ones(40, 5)).mean == pytest.approx(1, rel=1e-12)


def test_inception_score_equals_torch_fidelity():
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    logits = 2 * randn(103, 6, seed=38)
    ours = inception_score(logits, splits=2)
    dealt = torch.cat([logits[0::2][:51], logits[1::2], logits[0::2][51:]])  # their halves are contiguous
    theirs = isc_features_to_metric(dealt[:102], splits=2, shuffle=False)
    even = inception_score(logits[:102], splits=2)
    assert even.mean == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-12)
    # Their spread is the population standard deviation of the splits.
    assert even.standard_error == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-10)
    assert ours.num_samples == 103
    with pytest.raises(ValueError, match="logits: 19 samples, at least 20"):
        inception_score(logits[:19])
