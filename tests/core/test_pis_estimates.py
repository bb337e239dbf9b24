"""Paths that are resampled on the way, paths of the optimal process, and what their weights tell: against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from problems import rng
from test_pis import F64, Mixture, gaussian, two
from torch import Tensor

from indm_core.diagnostics.pis import Moved
from indm_core.noise import Noise, randn_like, seeded
from indm_core.pis import (
    Draws,
    Estimate,
    GradControl,
    MixtureControl,
    NetworkControl,
    PathIntegralSampler,
    ResampledPaths,
    Target,
    WeightedPaths,
    effective_count,
    ess,
    eubo,
    forward_ess,
    log_z,
    log_z_bound,
    optimal_paths,
    resampled,
)
from indm_core.pis.estimates import renewed

pytestmark = pytest.mark.usefixtures("unchecked")


class Exact(Mixture):
    """Three times one Gaussian, with exact samples."""

    exact = True

    def __init__(self, means: Tensor, covs: Tensor, weights: Tensor) -> None:
        super().__init__(means, covs, weights)
        self.mean, self.root = means[0], torch.linalg.cholesky(covs[0])

    def sample(self, num: int, generator: Noise = None) -> Tensor:
        return self.mean + randn_like(self.mean.expand(num, -1), generator) @ self.root.T


class Recorded(torch.nn.Module):
    """A control that keeps where it was asked."""

    def __init__(self, control: torch.nn.Module) -> None:
        super().__init__()
        self.control, self.given = control, list[Tensor]()

    def forward(self, t: Tensor, x: Tensor, *, target: Target, t_max: float, g: float) -> Tensor:
        self.given.append(x)
        return self.control(t, x, target=target, t_max=t_max, g=g)


def crude(num_steps: int, dim: int = 3) -> PathIntegralSampler:
    """A control that knows nothing of its target, but does something."""
    control = NetworkControl(dim).double()
    for p in control.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=rng())
    return PathIntegralSampler(control, dim, t_max=1.0, g=1.5, num_steps=num_steps)


@pytest.mark.parametrize("schedule", [lambda s: s, lambda s: s**3, lambda s: float(s == 1)], ids=["t/T", "cube", "end"])
def test_without_resampling_the_weights_are_those_of_the_path_for_every_guess(schedule):
    law, sampler = Mixture(*two()), crude(6)
    method = ResampledPaths(sampler=sampler, share=1e-9, schedule=schedule, num_groups=5)
    found = method(law, 50, generator=rng())
    x, log_w = sampler.sample(law, 50, generator=rng())
    torch.testing.assert_close(found.x, x, rtol=0, atol=0)
    torch.testing.assert_close(found.log_w, log_w, rtol=0, atol=1e-12)
    assert found.log_z.value == pytest.approx(log_z(log_w).value, abs=1e-12)


def test_a_guess_that_knows_nothing_till_the_end_resamples_nothing_and_asks_the_target_once_a_path():
    law, sampler = Mixture(*two()), crude(6)
    found = ResampledPaths(sampler=sampler, share=1.0, schedule=lambda s: float(s == 1), num_groups=5)(
        law, 50, generator=rng()
    )
    torch.testing.assert_close(found.log_w, sampler.sample(law, 50, generator=rng())[1], rtol=0, atol=1e-12)
    assert found.evaluations == 50
    assert ResampledPaths(sampler=sampler)(law, 50, generator=rng()).evaluations == 6 * 50


@pytest.mark.parametrize("num_steps", [2, 8])
@pytest.mark.parametrize("schedule", [lambda s: s, lambda s: s**2], ids=["t/T", "square"])
def test_resampled_paths_are_unbiased_for_any_control(num_steps, schedule):
    """Small populations, renewed at every step, of which many are drawn: a wrong weight shows."""
    law = Mixture(*two())
    found = ResampledPaths(sampler=crude(num_steps), share=1.0, schedule=schedule, num_groups=800)(
        law, 16_000, generator=rng()
    )
    assert found.log_z.se < 0.06
    assert abs(math.exp(found.log_z.value - law.log_z) - 1) < 5 * found.log_z.se
    assert found.bound.value < law.log_z
    x, w = found.x, found.log_w.softmax(0)
    parts = (w[:, None] * (x - w @ x)).reshape(800, -1, 3).sum(1)  # populations are independent, their paths are not
    assert ((w @ x - two()[2] @ two()[0]).abs() < 5 * parts.square().sum(0).sqrt()).all()


def test_resampling_helps_where_the_guess_is_good_and_the_control_is_not():
    law = gaussian([1.5, -1.5, 1.0], 0.2)
    sampler, target = PathIntegralSampler(NetworkControl(3).double(), 3, t_max=1.0, g=1.0, num_steps=20), Mixture(*law)
    found = ResampledPaths(sampler=sampler, num_groups=20)(target, 4000, generator=rng())
    plain = log_z(sampler.sample(target, 4000, generator=rng())[1])
    assert abs(found.log_z.value - target.log_z) < 5 * found.log_z.se
    assert found.log_z.se < 0.5 * plain.se


def test_resampling_by_a_guess_spreads_the_equal_weights_of_an_exact_control():
    """At t = s T the logarithms of the weights vary by s (1 - s)^2 |m|^2 / (T g^2), here up to 16 * 4/27."""
    law = gaussian([4.0, 0.0], 1.0)
    sampler, target = PathIntegralSampler(MixtureControl(*law), 2, t_max=1.0, g=1.0, num_steps=6), Mixture(*law)
    equal = ResampledPaths(sampler=sampler, share=0.0)(target, 20, generator=rng())
    assert equal.bound.value == pytest.approx(target.log_z, abs=1e-10)
    found = ResampledPaths(sampler=sampler, num_groups=1000)(target, 4000, generator=rng())
    assert abs(math.exp(found.log_z.value - target.log_z) - 1) < 5 * found.log_z.se
    assert found.bound.value < target.log_z - 5 * found.bound.se


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"share": math.nan}, "share=nan"),
        ({"schedule": lambda s: 0.5 * s}, "0.5 at 1"),
        ({"num_groups": 1}, "num_groups=1"),
        ({"num_groups": 0}, "num_groups=0"),
    ],
)
def test_settings_that_would_bias_the_estimate_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ResampledPaths(sampler=crude(2), **given)


def test_paths_that_do_not_fill_populations_and_streams_per_path_are_refused():
    method, law = ResampledPaths(sampler=crude(2)), Mixture(*two())
    for num in (10, 25):
        with pytest.raises(ValueError, match=f"num={num} paths"):
            method(law, num)
    with pytest.raises(ValueError, match="20 generators, one per sample"):
        method(law, 20, generator=seeded(range(20)))


def test_plain_paths_are_a_method_that_counts_the_gradients_its_control_asks_for():
    law, num_steps = Mixture(*two()), 6
    sampler = PathIntegralSampler(GradControl(3, begin=0.3).double(), 3, t_max=1.0, g=1.5, num_steps=num_steps)
    x, log_w = sampler.sample(law, 20, generator=seeded(range(20)))
    found = WeightedPaths(sampler=sampler)(law, 20, generator=seeded(range(20)))
    assert torch.equal(found.x, x)
    assert torch.equal(found.log_w, log_w)
    assert (found.log_z, found.bound) == (log_z(log_w), log_z_bound(log_w))
    assert found.evaluations == 20 * (num_steps + 1)
    assert WeightedPaths(sampler=sampler, num_steps=3)(law, 20).evaluations == 20 * (3 + 1)


def test_only_rows_of_a_small_share_are_resampled_and_one_without_weight_stays():
    none = torch.full((1, 40), -math.inf, dtype=F64)
    log_w = torch.cat([torch.zeros(1, 40, dtype=F64), 3 * torch.randn(1, 40, dtype=F64, generator=rng()), none])
    index, poor = renewed(log_w, 0.5, rng())
    assert poor.flatten().tolist() == [False, True, False]
    assert torch.equal(index[1] - 40, resampled(log_w[1], 40, rng()))
    assert torch.equal(index[[0, 2]], torch.arange(120).reshape(3, 40)[[0, 2]])


def test_each_row_is_resampled_by_its_own_weights():
    log_w = torch.randn(3, 50, dtype=F64, generator=rng())
    for row, chosen in zip(log_w, resampled(log_w, 400, rng(1)), strict=True):
        assert ((torch.bincount(chosen, minlength=50) - 400 * row.softmax(0)).abs() < 1 + 1e-9).all()


def test_the_effective_count_of_independent_weights_is_their_ess():
    log_w = torch.randn(70, dtype=F64, generator=rng())
    assert effective_count(log_z(log_w), 70) == pytest.approx(70 * ess(log_w), rel=1e-12)
    draws = Draws(x=torch.zeros(70, 2), log_w=log_w, log_z=log_z(log_w), evaluations=140)
    assert draws.ess_per_evaluation() == pytest.approx(0.5 * ess(log_w), rel=1e-12)
    assert math.isnan(Draws(x=torch.zeros(70, 2), log_w=log_w, evaluations=1).ess_per_evaluation())


def test_optimal_paths_weigh_the_same_under_the_optimal_control():
    t_max, g = 2.0, 0.7
    law = gaussian([1.0, -2.0, 0.5], t_max * g**2)
    sampler = PathIntegralSampler(MixtureControl(*law), 3, t_max=t_max, g=g, num_steps=7)
    x, log_w = optimal_paths(sampler, Exact(*law), 50, generator=rng())
    torch.testing.assert_close(log_w, torch.full_like(log_w, math.log(3)), rtol=0, atol=1e-10)
    assert eubo(log_w) == pytest.approx(Estimate(math.log(3), 0), abs=1e-10)
    assert forward_ess(log_w) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(x, Exact(*law).sample(50, rng()), rtol=0, atol=0)


def test_both_bounds_of_a_control_that_is_off_by_a_constant():
    """KL of either process from the other is e T/2, and the ESS exp(-e T), at every number of steps."""
    t_max, g, error = 2.0, 0.7, 0.3
    law = gaussian([1.0, -2.0, 0.5], t_max * g**2)
    sampler = PathIntegralSampler(Moved(MixtureControl(*law), error), 3, t_max=t_max, g=g, num_steps=4)
    _, forward = optimal_paths(sampler, Exact(*law), 4000, generator=rng())
    _, backward = sampler.sample(Exact(*law), 4000, generator=rng())
    for bound, gap in ((eubo(forward), error * t_max / 2), (log_z_bound(backward), -error * t_max / 2)):
        assert abs(bound.value - math.log(3) - gap) < 5 * bound.se < 0.1
        assert bound.se == pytest.approx(math.sqrt(error * t_max / 4000), rel=0.06)
    assert ess(backward) == pytest.approx(math.exp(-error * t_max), rel=0.1)
    assert forward_ess(forward) == pytest.approx(math.exp(-error * t_max), rel=0.1)


@pytest.mark.parametrize("num_steps", [1, 5])
def test_optimal_paths_have_the_law_of_the_weighted_ones(num_steps):
    """E[1/w] = 1/Z over them for any control: a wrong bridge or weight shows."""
    law = gaussian([0.6, -0.4, 0.2], 0.8)
    target, sampler = Exact(*law), crude(num_steps)
    _, log_w = optimal_paths(sampler, target, 20_000, generator=rng())
    inverse = log_z(-log_w)
    assert inverse.se < 0.05
    assert abs(inverse.value + target.log_z) < 5 * inverse.se
    assert eubo(log_w).value - 5 * eubo(log_w).se > target.log_z


def test_optimal_paths_are_bridges():
    """Of x_i the mean is t_i/T m and the covariance t_i^2/T^2 C + g^2 t_i (T - t_i)/T I, and the weights are right to 1 %."""
    law = gaussian([1.0, -0.5], 0.6)
    control = Recorded(MixtureControl(*law))
    sampler = PathIntegralSampler(control, 2, t_max=2.0, g=0.8, num_steps=4)
    _, log_w = optimal_paths(sampler, Exact(*law), 20_000, generator=rng())
    for s, x in zip((0.75, 0.5, 0.25, 0.0), control.given, strict=True):
        var = s**2 * 0.6 + 0.8**2 * 2.0 * s * (1 - s)
        assert ((x.mean(0) - s * law[0][0]).abs() <= 5 * math.sqrt(var / 20_000)).all()
        assert ((x.var(0) - var).abs() <= 5 * var * math.sqrt(2 / 20_000)).all()
    inverse = log_z(-log_w)
    assert inverse.se < 0.01
    assert abs(inverse.value + math.log(3)) < 5 * inverse.se


def test_a_target_without_exact_samples_has_no_optimal_paths():
    with pytest.raises(ValueError, match="Mixture has no exact samples"):
        optimal_paths(crude(2), Mixture(*two()), 5)
