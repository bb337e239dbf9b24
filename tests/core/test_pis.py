"""The path integral sampler: weights, controls and gradients against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from problems import rng
from torch import Tensor

from indm_core.pis import (
    GradControl,
    MixtureControl,
    MonteCarloControl,
    NetworkControl,
    PathIntegralSampler,
    Target,
    ess,
    log_z,
    log_z_bound,
    resampled,
)

F64 = torch.float64


class Mixture(Target):
    """3 sum_k w_k N(m_k, C_k)."""

    log_z = math.log(3)

    def __init__(self, means: Tensor, covs: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.dim = means.shape[1]
        self.law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, covs)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x) + self.log_z


def gaussian(mean: list[float], var: float) -> tuple[Tensor, Tensor, Tensor]:
    m = torch.tensor([mean], dtype=F64)
    return m, var * torch.eye(len(mean), dtype=F64)[None], torch.ones(1, dtype=F64)


def two() -> tuple[Tensor, Tensor, Tensor]:
    """Two Gaussians with correlations in three dimensions."""
    roots = torch.randn(2, 3, 3, dtype=F64, generator=rng())
    means = torch.tensor([[1.0, -0.5, 0.3], [-1.2, 0.4, 0.8]], dtype=F64)
    return means, 0.2 * roots @ roots.mT + 0.1 * torch.eye(3, dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)


def test_the_weights_of_the_exact_control_are_constant_for_the_law_of_the_noise_moved():
    t_max, g = 2.0, 0.7
    law = gaussian([1.0, -2.0, 0.5], t_max * g**2)
    sampler = PathIntegralSampler(MixtureControl(*law), 3, t_max=t_max, g=g, num_steps=7)
    _, log_w = sampler.sample(Mixture(*law), 50, generator=rng())
    torch.testing.assert_close(log_w, torch.full_like(log_w, math.log(3)), rtol=0, atol=1e-10)


def test_the_spread_of_the_weights_falls_as_the_root_of_the_step():
    law = gaussian([1.0], 0.25)
    sampler, target = PathIntegralSampler(MixtureControl(*law), 1, t_max=1.0, g=1.0), Mixture(*law)
    spread = []
    for num_steps in (25, 100, 400):
        _, log_w = sampler.sample(target, 4000, generator=rng(), num_steps=num_steps)
        spread.append(float(log_w.std()))
        value, se = log_z(log_w)
        assert abs(value - target.log_z) < 5 * se
    assert spread == pytest.approx([0.22, 0.107, 0.053], rel=0.05)


@pytest.mark.parametrize("num_steps", [1, 3, 20])
def test_the_mean_weight_is_unbiased_for_any_control(num_steps):
    law = two()
    target, control = Mixture(*law), NetworkControl(3).double()
    for p in control.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=rng())
    sampler = PathIntegralSampler(control, 3, t_max=1.0, g=1.5, num_steps=num_steps)
    x, log_w = sampler.sample(target, 20_000, generator=rng())
    value, se = log_z(log_w)
    assert se < 0.05
    assert abs(value - target.log_z) < 5 * se
    assert log_z_bound(log_w).value < value
    w = log_w.softmax(0)
    error = (w @ x - law[2] @ law[0]).abs()
    assert (error < 5 * (w[:, None] * (x - w @ x)).square().sum(0).sqrt()).all()


def test_the_exact_control_is_the_gradient_of_the_log_expectation():
    """g grad log E[mu/mu^0 (x + g sqrt(T - t) xi)], by quadrature in one dimension and automatic differentiation."""
    means, covs, weights = (torch.tensor(v, dtype=F64) for v in ([[1.0], [-2.0]], [[[0.3]], [[0.05]]], [0.4, 0.6]))
    t_max, g, t = 1.5, 1.2, torch.tensor([0.0, 0.4, 1.3], dtype=F64)
    x = torch.tensor([[0.0], [0.7], [-1.1]], dtype=F64)
    found = MixtureControl(means, covs, weights)(t, x, target=Mixture(means, covs, weights), t_max=t_max, g=g)
    ends = torch.linspace(-12, 12, 20001, dtype=F64)
    normal = torch.distributions.Normal
    given = x.clone().requires_grad_()
    log_mu = Mixture(means, covs, weights).log_prob(ends[:, None])
    log_ratio = log_mu - normal(0.0, math.sqrt(t_max) * g).log_prob(ends)
    log_phi = torch.logsumexp(normal(given, g * (t_max - t).sqrt()[:, None]).log_prob(ends) + log_ratio, 1)
    (gradient,) = torch.autograd.grad(log_phi.sum(), given)
    torch.testing.assert_close(found, g * gradient, rtol=1e-8, atol=1e-8)


def test_the_monte_carlo_control_comes_to_the_exact_one():
    law = two()
    t, x = torch.tensor([0.3, 0.8], dtype=F64), torch.tensor([[0.2, 0.1, -0.3], [0.5, -0.2, 0.4]], dtype=F64)
    given = {"target": Mixture(*law), "t_max": 1.0, "g": 1.5}
    exact = MixtureControl(*law)(t, x, **given)
    errors = [
        float((MonteCarloControl(3, num_draws=n).double()(t, x, **given) - exact).abs().max()) for n in (400, 400_000)
    ]
    assert errors[1] < 0.05 < errors[0]


@pytest.mark.parametrize("make", [NetworkControl, GradControl], ids=["NN", "Grad"])
def test_the_three_gradients_of_the_cost_agree(make):
    control, found = make(3).double(), []
    for gradient in ("autograd", "checkpoint", "adjoint"):
        sampler = prepared(control, gradient=gradient)
        sampler.zero_grad()
        losses = sampler(40, generator=rng())
        losses.objective.mean().backward()
        found.append([losses.objective.detach(), *(p.grad for p in sampler.control.parameters())])
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert theirs.abs().max() > 1e-6
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("exploration", [1.0, 1.7])
@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_the_log_variance_is_that_of_the_weights_along_given_paths(gradient, exploration):
    """Of paths that are drawn by hand, with all their densities written out."""
    sampler = prepared(NetworkControl(3).double(), loss="log-variance", gradient=gradient, exploration=exploration)
    num, steps, target = 30, sampler.num_steps, sampler.target
    law = Mixture(*two())
    losses = sampler(num, generator=rng())
    losses.objective.mean().backward()
    found = [p.grad for p in sampler.control.parameters()]
    sampler.zero_grad()
    d, g, generator, x, s = sampler.t_max / steps, sampler.g, rng(), torch.zeros(num, 3, dtype=F64), 0
    normal = torch.distributions.Normal
    for i in range(steps):
        t = torch.full((num,), i * d, dtype=F64)
        u = sampler.control(t, x, target=target, t_max=sampler.t_max, g=g)
        eps = torch.randn(num, 3, dtype=F64, generator=generator)
        y = x + (g * d * u + g * math.sqrt(d) * exploration * eps).detach()
        s = s + (normal(x + g * d * u, g * math.sqrt(d)).log_prob(y) - normal(x, g * math.sqrt(d)).log_prob(y)).sum(1)
        x = y
    s = s + normal(torch.zeros(3, dtype=F64), math.sqrt(sampler.t_max) * g).log_prob(x).sum(1) - law.log_prob(x)
    torch.testing.assert_close(losses.objective.detach().mean(), s.var().detach(), rtol=1e-10, atol=0)
    s.var().backward()
    for ours, p in zip(found, sampler.control.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-8, atol=1e-10)


def prepared(control: torch.nn.Module, **options) -> PathIntegralSampler:
    """A sampler of two Gaussians whose control does something."""
    for p in control.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=rng())
    return PathIntegralSampler(control, 3, target=Mixture(*two()), t_max=1.0, g=1.3, num_steps=7, **options)


def test_estimates_in_log_space_do_not_overflow():
    log_w = torch.tensor([1000.0, 1000.0 + math.log(3)], dtype=F64)
    assert log_z(log_w).value == pytest.approx(1000 + math.log(2))
    assert ess(log_w) == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))
    assert log_z(log_w).se == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))


def test_systematic_resampling_takes_each_as_often_as_its_weight_to_within_one():
    log_w = torch.randn(50, dtype=F64, generator=rng())
    counts = torch.bincount(resampled(log_w, 400, rng()), minlength=50)
    assert ((counts - 400 * log_w.softmax(0)).abs() < 1 + 1e-9).all()


class Box:
    """The uniform density on [-1/2, 1/2]^2; Z = 1."""

    dim = 2

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where((x.abs() < 0.5).all(1), 0.0, -math.inf).to(x)


def test_a_monte_carlo_control_whose_ends_all_miss_the_target_leaves_the_path_alone():
    sampler = PathIntegralSampler(MonteCarloControl(2, num_draws=20).double(), 2, t_max=0.5, g=1.0, num_steps=4)
    x, log_w = sampler.sample(Box(), 4000, generator=rng())
    missed = torch.full((1, 2), 20.0, dtype=F64)
    u = sampler.control(missed[0, :1] * 0, missed, target=Box(), t_max=0.5, g=1.0)
    assert not u.any()
    assert x.isfinite().all()
    found = log_z(log_w)
    assert abs(math.exp(found.value) - 1) < 5 * found.se < 0.5


class Bare:
    """What a script of the user's own may hand over: a density and its dimension, no more."""

    dim = 3

    def __init__(self, shape: tuple[int, ...] = (-1,)) -> None:
        self.shape = shape

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1).reshape(self.shape)


def test_an_object_with_a_density_is_a_target_and_is_named():
    sampler = PathIntegralSampler(GradControl(3), 3, target=Bare(), num_steps=4)
    sampler(5, generator=rng()).objective.mean().backward()
    with pytest.raises(ValueError, match=r"target Bare: log_prob gave the shape \(5, 1\)"):
        sampler.sample(Bare((-1, 1)), 5, generator=rng())
    control = MonteCarloControl(3, num_draws=4)
    with pytest.raises(ValueError, match=r"target Bare: log_prob gave the shape \(8, 1\)"):
        control(torch.zeros(2), torch.zeros(2, 3), target=Bare((-1, 1)), t_max=1.0, g=1.0)


@pytest.mark.parametrize("loss", ["kl", "log-variance"])
@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "adjoint"])
def test_a_training_step_takes_the_evaluations_that_it_says(loss, gradient):
    control, seen = NetworkControl(3), list[int]()
    control.dense_in.register_forward_hook(lambda layer, given, out: seen.append(len(out)))
    target = Mixture(*two()).float()
    for num_steps in (1, 9):
        sampler = PathIntegralSampler(control, 3, target=target, num_steps=num_steps, loss=loss, gradient=gradient)
        seen.clear()
        sampler(5, generator=rng()).objective.mean().backward()
        assert sum(seen) / 5 == sampler.evaluations()["control"] <= 2 * num_steps
    assert gradient != "autograd" or len(seen) == 9
