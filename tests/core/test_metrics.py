"""Frechet and kernel distances against closed forms, brute force, Monte-Carlo spreads and torch-fidelity."""

from __future__ import annotations

import math

import pytest
import torch

from indm_core.metrics import (
    Moments,
    frechet_bootstrap,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from pipelines.evaluation.features import torchvision_operators

torchvision_operators()


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


def test_moments_survive_a_plain_dict():
    moments = Moments().update(randn(10, 4, seed=4))
    state = moments.to_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = Moments.from_dict(state).update(randn(5, 4, seed=5))
    direct = moments.update(randn(5, 4, seed=5))
    assert again.count == direct.count == 15
    assert torch.equal(again.cov, direct.cov)
    assert torch.equal(again.mean, direct.mean)


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


@pytest.mark.parametrize(("n", "d"), [(400, 3), (60, 100)])
def test_bootstrap_resamples_are_distances_of_the_resampled_sets(n: int, d: int):
    x, mean, cov = randn(n, d, seed=25), randn(d, seed=26), random_cov(d, d, seed=27)
    result = frechet_bootstrap(x, mean, cov, num_resamples=4, generator=make(28))
    generator, distances = make(28), []
    for _ in range(4):
        drawn = Moments().update(x[torch.randint(n, (n,), generator=generator)])
        distances.append(frechet_distance(drawn.mean, drawn.cov, mean, cov))
    moments = Moments().update(x)
    assert result.num_samples == n
    assert result.value == pytest.approx(float(frechet_distance(moments.mean, moments.cov, mean, cov)), rel=1e-12)
    assert result.standard_error == pytest.approx(float(torch.stack(distances).std()), rel=1e-6)


def test_bootstrap_standard_error_of_a_shifted_gaussian():
    # a = N(m, I) against N(0, I): d FD = 2 m.dm + tr((I - C_a^-1/2) dC) and C_a = I, so the variance is 4 |m|^2 / n.
    n, d, shift = 800, 4, 1.5
    mean, cov = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    offset = torch.tensor([shift, 0, 0, 0], dtype=torch.float64)
    distances = []
    for seed in range(300):
        moments = Moments().update(randn(n, d, seed=100 + seed) + offset)
        distances.append(frechet_distance(moments.mean, moments.cov, mean, cov))
    monte_carlo, analytic = float(torch.stack(distances).std()), 2 * shift / math.sqrt(n)
    result = frechet_bootstrap(randn(n, d, seed=29) + offset, mean, cov, num_resamples=300, generator=make(30))
    spread = 1 / math.sqrt(2 * 299)  # relative standard error of a standard deviation of 300 numbers
    assert monte_carlo == pytest.approx(analytic, rel=5 * spread)
    # The bootstrap has the sampling error of its sample as well: the sample variance's, sqrt(2/n)/2 of the result.
    assert result.standard_error == pytest.approx(analytic, rel=5 * (spread + math.sqrt(0.5 / n)))
    assert abs(result.value - shift**2) < 5 * analytic


def test_plug_in_distance_is_biased_upward_and_less_so_in_n():
    d, zero, eye = 6, torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    means = []
    for n in (50, 200):
        moments = [Moments().update(randn(n, d, seed=1000 * n + seed)) for seed in range(100)]
        means.append(sum(float(frechet_distance(m.mean, m.cov, zero, eye)) for m in moments) / 100)
    # E = d/n + E|C^1/2 - I|^2 with C - I = O(n^-1/2): d/n + d (d + 1)/(4 n) to first order.
    for n, mean in zip((50, 200), means, strict=True):
        assert mean == pytest.approx((d + d * (d + 1) / 4) / n, rel=0.15)


def test_bootstrap_refuses_too_few():
    mean, cov = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="features: 1 samples, at least 2"):
        frechet_bootstrap(torch.zeros(1, 2), mean, cov)
    with pytest.raises(ValueError, match="num_resamples=1"):
        frechet_bootstrap(torch.zeros(4, 2), mean, cov, num_resamples=1)
    with pytest.raises(ValueError, match="mean_ref: 2 features, but the samples have 3"):
        frechet_bootstrap(torch.zeros(4, 3), mean, cov)


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
