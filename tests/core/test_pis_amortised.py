"""One control for all observations: a linear Gaussian family, whose posteriors and constants are known."""

from __future__ import annotations

import math

import pytest
import torch
from problems import randn, rng
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.pis import Counted, GradControl, NetworkControl, PathIntegralSampler, ess, log_z
from indm_core.pis.amortised import AmortisedSampler, Given
from indm_core.pis.targets import GaussianMixture
from indm_core.training import AdamW, Trainer

F64 = torch.float64
A = torch.tensor([[1.0, 0.5]], dtype=F64)
STD = 0.5
"""y = A x + N(0, STD^2), x ~ N(0, I)."""


class Linear:
    """p(x) p(y | x)."""

    dim = 2

    def observe(self, num: int, generator: Noise = None) -> Tensor:
        x = randn_like(torch.empty(num, 2, dtype=F64), generator)
        return x @ A.mT + STD * randn_like(x[:, :1], generator)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        error = (y - x @ A.to(x).mT) / STD
        each = 0.5 * error.square() + math.log(STD) + 0.5 * math.log(2 * math.pi)
        return -each.sum(1) - (0.5 * x.square() + 0.5 * math.log(2 * math.pi)).sum(1)


def evidence(y: float) -> float:
    """log p(y)."""
    var = float(A.square().sum()) + STD**2
    return -0.5 * (y**2 / var + math.log(2 * math.pi * var))


def posterior(y: float) -> GaussianMixture:
    cov = torch.linalg.inv(torch.eye(2, dtype=F64) + A.mT @ A / STD**2)
    return GaussianMixture((cov @ A.mT @ torch.tensor([y], dtype=F64) / STD**2)[None], covs=cov[None])


def sampler(control: torch.nn.Module, loss: str = "kl") -> PathIntegralSampler:
    return PathIntegralSampler(control, 2, t_max=1.0, g=1.2, num_steps=10, gradient="autograd", loss=loss)


def begun(dim_y: int = 1) -> GradControl:
    """A control whose last layers are not zero."""
    torch.manual_seed(0)
    control = GradControl(2, width=16, begin=0.1, dim_y=dim_y).double()
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return control


def test_a_family_given_y_is_the_posterior_with_its_constant():
    x, y = randn(5, 2), 0.7
    found = Given(Linear(), torch.tensor([y], dtype=F64)).log_prob(x)
    torch.testing.assert_close(found, posterior(y).log_prob(x) + evidence(y), rtol=1e-12, atol=1e-12)


def test_each_path_pays_for_its_own_observation():
    """Paths of several y at once cost what each costs by itself, by the same noise."""
    paths, ys = sampler(begun()), torch.tensor([[-1.0], [0.2], [2.0]], dtype=F64)
    noise = [randn(1, 2, seed=i) for i in range(10)]

    def cost(y: Tensor, rows: int) -> Tensor:
        path = paths.path(Given(Linear(), y))
        return path.costs(paths.begin(rows), [eps.expand(rows, -1) for eps in noise], 1).sum(0)

    torch.testing.assert_close(cost(ys, 3), torch.cat([cost(y, 1) for y in ys]), rtol=1e-12, atol=1e-12)


def test_the_loss_is_that_of_observations_drawn_first():
    amortised, generator = AmortisedSampler(sampler(begun()), Linear()), rng(3)
    found = amortised(7, generator=rng(3)).objective
    target = Given(Linear(), Linear().observe(7, generator))
    torch.testing.assert_close(found, amortised.sampler.losses(target, 7, generator).objective, rtol=0, atol=0)


def test_a_trained_control_knows_the_constant_of_every_observation():
    torch.manual_seed(0)
    paths = sampler(GradControl(2, width=32, begin=0.5, dim_y=1).double())
    amortised = AmortisedSampler(paths, Linear())
    trainer = Trainer(amortised, {"control": AdamW(lr=1e-2, weight_decay=0.0, decay="cosine")}, steps=60, ema_decay=0.0)
    for step in range(60):
        trainer.step([(64, None)], rng(step))
    for y in (-1.5, 0.0, 1.0):
        target = Counted(Given(Linear(), torch.tensor([y], dtype=F64)))
        x, log_w = paths.sample(target, 1000, generator=rng(1))
        assert target.evaluations == 11 * 1000
        value, se = log_z(log_w)
        assert abs(value - evidence(y)) < 5 * se < 0.2
        assert ess(log_w) > 0.6
        w, mean = log_w.softmax(0), posterior(y).means[0]
        error = (w[:, None] * (x - mean)).sum(0)
        assert (error.abs() < 5 * (w[:, None] * (x - mean)).square().sum(0).sqrt()).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="log-variance"):
        AmortisedSampler(sampler(begun(), "log-variance"), Linear())
    with pytest.raises(ValueError, match="one observation, or one per row"):
        Given(Linear(), torch.zeros(3, 1)).log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="GaussianMixture: the control sees an observation"):
        sampler(NetworkControl(2, dim_y=1).double()).sample(posterior(0.0), 3)
