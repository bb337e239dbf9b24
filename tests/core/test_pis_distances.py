"""Distances between weighted samples and exact ones, and modes covered: against closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from problems import randn, rng
from scipy.optimize import linear_sum_assignment

from indm_core.metrics import kernel_distance
from indm_core.pis.distances import mmd, sinkhorn
from indm_core.pis.modes import mode_shares, modes_covered

F64 = torch.float64


@pytest.mark.parametrize("regularisation", [0.02, 0.5])
def test_sinkhorn_is_the_squared_shift_of_samples_that_are_moved_at_every_regularisation(regularisation):
    y, log_w = randn(40, 3), torch.zeros(40, dtype=F64)
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
    found = sinkhorn(y + shift, log_w, y, regularisation=regularisation)
    assert found.value == pytest.approx(float(shift.square().sum()), abs=5e-4)
    assert sinkhorn(y, log_w, y, regularisation=regularisation).value == pytest.approx(0, abs=5e-4)
    assert found.regularisation == pytest.approx(regularisation * float(y.var(0).sum()))


def test_sinkhorn_comes_to_optimal_transport():
    x, y = randn(12, 2) * 0.7 + 1, randn(12, 2, seed=1)
    costs = torch.cdist(x, y).square()
    exact = float(costs[linear_sum_assignment(costs)].mean())
    assert sinkhorn(x, torch.zeros(12), y, regularisation=1e-3).value == pytest.approx(exact, abs=0.01)


def test_a_weight_counts_as_often_as_the_sample_would():
    y, x = randn(30, 2), randn(4, 2, seed=1)
    times = torch.tensor([1, 2, 3, 4])
    again, none = x.repeat_interleave(times, 0), torch.zeros(10)
    found = sinkhorn(torch.cat([x, randn(1, 2)]), torch.cat([times, torch.zeros(1)]).log(), y, tolerance=1e-7)
    assert found.value == pytest.approx(sinkhorn(again, none, y, tolerance=1e-7).value, abs=1e-6)


def test_relaxed_steps_that_run_away_are_given_up(monkeypatch):
    """Of 2,000 samples of the funnel they do at 1.8; here at a factor at which they always do."""
    x, y = 2 * randn(60, 2) + 1, randn(60, 2, seed=1)
    found = sinkhorn(x, torch.zeros(60), y, regularisation=0.5, tolerance=1e-6)
    monkeypatch.setattr("indm_core.pis.distances._RELAXATION", 2.3)
    assert sinkhorn(x, torch.zeros(60), y, regularisation=0.5, tolerance=1e-6).value == pytest.approx(
        found.value, abs=1e-6
    )


def test_sinkhorn_that_does_not_converge_says_so():
    with pytest.raises(RuntimeError, match="raise regularisation or max_iterations"):
        sinkhorn(randn(20, 2) + 1, torch.zeros(20), randn(20, 2, seed=1), tolerance=1e-9, max_iterations=1)


def test_the_discrepancy_is_unbiased():
    """Closed form of two Gaussians; the mean over many pairs of few samples."""
    h, shift, var = 1.2, 0.8, 0.49

    def expected(v: float, gap: float) -> float:
        return math.sqrt(h**2 / (h**2 + v)) * math.exp(-(gap**2) / (2 * (h**2 + v)))

    exact = expected(2 * var, 0) + expected(2.0, 0) - 2 * expected(1 + var, shift)
    x, y = var**0.5 * randn(200, 12, 1) + shift, randn(200, 8, 1, seed=1)
    found = [mmd(a, torch.zeros(12), b, bandwidth=h) for a, b in zip(x, y, strict=True)]
    value, se = torch.tensor([[one.value, one.se] for one in found], dtype=F64).T
    assert abs(float(value.mean()) - exact) < 5 * float(value.std()) / math.sqrt(200)
    assert float(se.square().mean().sqrt()) == pytest.approx(float(value.std()), rel=0.15)


def test_the_discrepancy_of_importance_weights_is_that_of_the_law_they_stand_for():
    """N(0, 1) by weights on N(0.5, 2^2), against exact samples: nothing but noise; without weights, much."""
    x, y = 0.5 + 2 * randn(1500, 1), randn(1000, 1, seed=1)
    normal = torch.distributions.Normal
    log_w = (normal(0.0, 1.0).log_prob(x) - normal(0.5, 2.0).log_prob(x)).sum(1)
    found, plain = mmd(x, log_w, y), mmd(x, torch.zeros(1500), y)
    assert abs(found.value) < 5 * found.se < 0.01
    assert plain.value > 10 * plain.se
    assert found.bandwidth == pytest.approx(math.sqrt(2) * 0.6745, rel=0.05)


def test_the_discrepancy_and_its_error_are_the_kernel_distances_with_another_kernel():
    """A kernel of large bandwidth is 1 - |x - y|^2/(2 l^2), whose MMD^2 is that of the linear kernel over l^2."""
    x, y = randn(60, 3) + 0.5, randn(60, 3, seed=1)
    linear = kernel_distance(x, y, degree=1, gamma=1.0, coef0=0.0)
    found = mmd(x, torch.zeros(60), y, bandwidth=1e3)
    assert found.value * 1e6 == pytest.approx(linear.mean, rel=1e-3)
    assert found.se * 1e6 == pytest.approx(linear.standard_error, rel=1 / 60)  # |x_i|^2 / (n - 1) stays in g


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("distance", [mmd, sinkhorn])
def test_samples_that_do_not_match_are_refused(distance):
    y = randn(5, 2)
    for x, log_w, message in (
        (randn(4, 3), torch.zeros(4), "those of x have 3"),
        (y * math.nan, torch.zeros(5), "x: row 0 is not finite"),
        (y, torch.full((5,), -math.inf), "not all -inf"),
        (y, torch.full((5,), math.nan), "largest is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            distance(x, log_w, y)
    with pytest.raises(ValueError, match="one sample has all the weight"):
        mmd(y, torch.tensor([0.0, *4 * [-math.inf]]), y)


def test_modes_are_counted_by_the_weight_near_their_centres():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [9.0, 9.0]])
    which = torch.randint(3, (300,), generator=rng())
    log_w = torch.tensor([0.0, 1.0, -4.0])[which]
    shares = mode_shares(modes[which] + randn(300, 2).float(), log_w, modes)
    exact = torch.bincount(which, log_w.double().exp(), minlength=4)
    torch.testing.assert_close(shares, exact / exact.sum(), rtol=1e-12, atol=0)
    assert modes_covered(shares) == 2
    assert modes_covered(shares, torch.tensor([0.2, 0.2, 0.005, 0.595])) == 3
    assert modes_covered(shares, at_least=0.01) == 3
    with pytest.raises(ValueError, match="at_least="):
        modes_covered(shares, at_least=0.0)
    with pytest.raises(ValueError, match="names none"):
        mode_shares(randn(3, 2), torch.zeros(3), torch.empty(0, 2))
