"""Theorems 3 and 4 of the path integral sampler, of controls whose error is known."""

from __future__ import annotations

import math

import pytest
import torch
from problems import rng
from test_pis import F64, Mixture, gaussian, two
from torch import nn

from indm_core.diagnostics.pis import Moved, end_moments, log_slope, theorem_3_scale, w2_to_gaussian
from indm_core.pis import MixtureControl, NetworkControl, PathIntegralSampler, ess

pytestmark = pytest.mark.usefixtures("unchecked")


def correlated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One Gaussian with correlations in three dimensions."""
    means, covs, _ = two()
    return means[:1], covs[:1], torch.ones(1, dtype=F64)


def test_the_moments_of_the_end_are_those_of_samples():
    law = correlated()
    sampler = PathIntegralSampler(Moved(MixtureControl(*law), 0.5), 3, t_max=1.5, g=0.8, num_steps=6)
    mean, cov = end_moments(sampler, Mixture(*law))
    x, _ = sampler.sample(Mixture(*law), 40_000, generator=rng())
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / 200).all()
    spread = torch.outer(cov.diagonal(), cov.diagonal()) + cov.square()  # of the entries of a sample covariance
    assert ((x.T.cov() - cov).abs() < 5 * (spread / 40_000).sqrt()).all()


def test_the_end_of_the_exact_control_comes_to_the_target_like_the_step():
    """Faster than Theorem 3 asks, whose order is 1/2; and at once for the law of the noise moved."""
    law, steps = correlated(), [40, 80, 160]
    sampler = PathIntegralSampler(MixtureControl(*law), 3, t_max=1.0, g=1.0)
    found = [w2_to_gaussian(sampler, Mixture(*law), law[0][0], law[1][0], num_steps=n) for n in steps]
    assert log_slope([1 / n for n in steps], found) == pytest.approx(1, abs=0.05)
    assert all(w2 < 0.3 * theorem_3_scale(sampler, 0, num_steps=n) for n, w2 in zip(steps, found, strict=True))
    law = gaussian([1.0, -2.0], 2.0 * 0.7**2)
    sampler = PathIntegralSampler(MixtureControl(*law), 2, t_max=2.0, g=0.7, num_steps=3)
    assert w2_to_gaussian(sampler, Mixture(*law), law[0][0], law[1][0]) < 1e-6


def test_a_constant_error_shows_as_its_root():
    """Of the law of the noise moved, the end moves by g T sqrt(d epsilon) and keeps its covariance."""
    law = gaussian([1.0, -2.0], 2.0 * 0.7**2)
    for epsilon in (1e-3, 0.1):
        control = Moved(MixtureControl(*law), 2 * epsilon)
        sampler = PathIntegralSampler(control, 2, t_max=2.0, g=0.7, num_steps=5)
        w2 = w2_to_gaussian(sampler, Mixture(*law), law[0][0], law[1][0])
        assert w2 == pytest.approx(0.7 * 2.0 * math.sqrt(2 * epsilon), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_effective_share_keeps_to_theorem_4(epsilon):
    t_max, law = 2.0, gaussian([1.0, -2.0], 2.0 * 0.7**2)
    sampler = PathIntegralSampler(Moved(MixtureControl(*law), epsilon / t_max), 2, t_max=t_max, g=0.7, num_steps=3)
    found = ess(sampler.sample(Mixture(*law), 20_000, generator=rng())[1])
    assert found > 1 - epsilon
    assert found == pytest.approx(math.exp(-epsilon), rel=0.03)


def test_a_control_that_is_not_affine_is_refused():
    control = NetworkControl(2).double()
    torch.nn.init.normal_(control.dense_out.weight, generator=rng())
    with pytest.raises(ValueError, match="not affine"):
        end_moments(PathIntegralSampler(control, 2, num_steps=2), Mixture(*gaussian([0.0, 0.0], 1.0)))


class Product(nn.Module):
    """u = x_1 x_2, which is 0 on both axes."""

    def forward(self, t, x, **given):
        return x.prod(1, keepdim=True).expand_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_odd_controls_and_products_are_not_affine(dtype):
    """On each axis an odd function agrees with a line at 0 and +-1, and x_1 x_2 with 0 everywhere."""
    apart = torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=F64)
    law = apart, 0.25 * torch.eye(2, dtype=F64).repeat(2, 1, 1), torch.ones(2, dtype=F64)
    for control in (MixtureControl(*law), Product()):
        sampler = PathIntegralSampler(control.to(dtype), 2, t_max=9.0, g=1.0, num_steps=2)
        with pytest.raises(ValueError, match="not affine"):
            end_moments(sampler, Mixture(*law))


def test_an_affine_control_is_taken_in_float32_close_to_the_end():
    law = correlated()
    sampler, in_64 = (PathIntegralSampler(MixtureControl(*law).to(dtype), 3) for dtype in (torch.float32, F64))
    found, known = (end_moments(s, Mixture(*law), num_steps=200) for s in (sampler, in_64))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-4)


def test_numbers_out_of_range_are_named():
    sampler = PathIntegralSampler(NetworkControl(2), 2)
    with pytest.raises(ValueError, match="num_steps=-3 must be an integer"):
        sampler.sample(Mixture(*two()), 5, num_steps=-3)
    with pytest.raises(ValueError, match="num_steps=-3 must"):
        theorem_3_scale(sampler, 0.1, num_steps=-3)
    with pytest.raises(ValueError, match="epsilon=-1"):
        theorem_3_scale(sampler, -1.0)


def test_the_slope_of_a_power_law_is_its_order():
    assert log_slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
