"""FFJORD: its loss is the likelihood of its flow, its gradient that of the loss, and it is DiffFlow's limit g = 0."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SmallBackbone, randn, rng
from torch import Tensor, nn

from indm_core.draw import draw, start_times
from indm_core.likelihood import nelbo, nll
from indm_core.model import FFJORD, DiffFlow
from indm_core.sample import sample_em, sample_ode
from indm_core.training import AdamW, Trainer

D = 3


def make(num_steps: int = 8, **options) -> FFJORD:
    return FFJORD(SmallBackbone(D, seed=1), **({"shape": (D,), "t_max": 0.7} | options), num_steps=num_steps).double()


class Linear(nn.Module):
    """T f = A x."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x @ self.A.T


def test_a_linear_flow_has_its_closed_form():
    """x_T = exp(A) x and int div f = tr A: the likelihood is that of N(0, (exp(A)^T exp(A))^-1)."""
    A, x = 0.5 * randn(D, D), randn(6, D, seed=1)
    model = FFJORD(Linear(A), shape=(D,), t_max=0.7, num_steps=20)
    whole = torch.linalg.matrix_exp(A)
    exact = 0.5 * ((x @ whole.T).square() + math.log(2 * math.pi)).sum(1) - A.trace()
    # a probe's v^T A v is not tr A: averaged over all 2^3 signs it is
    probes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * D)
    parts = [model._loss(x, p.expand(6, D)) for p in probes]
    mean = torch.stack([prior - divergence for prior, divergence in parts]).mean(0)
    torch.testing.assert_close(mean.detach(), exact, rtol=0, atol=1e-6)
    ours = nll(model, x, exact_divergence=True, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-7)


def test_the_training_loss_converges_to_the_likelihood_at_order_four():
    x, errors = randn(5, D), []
    probes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * D)
    exact = nll(make(t_max=3.0), x, exact_divergence=True, rtol=1e-11, atol=1e-12)
    for n in (4, 8):
        model = make(n, t_max=3.0)
        with torch.no_grad():
            parts = [model._loss(x, p.expand(5, D)) for p in probes]
        errors.append(float((torch.stack([a - b for a, b in parts]).mean(0) - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 3.5


def test_the_gradient_is_that_of_the_loss():
    """Checkpointed steps against central differences, for a parameter of each kind and for x."""
    x, model = randn(2, D), make(3)
    given = x.clone().requires_grad_()
    losses = model(given, generator=rng())
    losses.objective.sum().backward()

    def value(x: Tensor) -> float:
        with torch.no_grad():
            return float(model(x, generator=rng()).objective.sum())

    for parameter in model.parameters():
        h, flat = 1e-6, parameter.data.view(-1)
        kept = float(flat[0])
        flat[0] = kept + h
        above = value(x)
        flat[0] = kept - h
        below = value(x)
        flat[0] = kept
        assert float(parameter.grad.view(-1)[0]) == pytest.approx((above - below) / (2 * h), rel=1e-6, abs=1e-8)
    step = 1e-6 * torch.eye(D).double()[0]
    assert float(given.grad[:, 0].sum()) == pytest.approx((value(x + step) - value(x - step)) / 2e-6, rel=1e-6)


def test_it_is_diffflow_without_noise():
    """Theorem 1: the marginal ODE of a DiffFlow with the same drift, as g falls."""
    x, ours = randn(4, D), make(t_max=0.4)
    exact = nll(ours, x, exact_divergence=True, rtol=1e-9, atol=1e-9)
    options = {"shape": (D,), "t_max": 0.4, "g": 1e-6, "t_min": 1e-12}
    theirs = DiffFlow(SmallBackbone(D, seed=1), SmallBackbone(D, seed=2), **options).double()
    found = nll(theirs, x, residual=False, exact_divergence=True, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_samples_invert_the_flow():
    """The midpoint rule carries samples of the ODE sampler back to the noise that they came from; Euler's agree."""
    model, n = make(), 400
    start = {"like": randn(1), "num": 50, "generator": rng()}
    x = draw(model, lambda *given: sample_ode(*given[:4], rtol=1e-9, atol=1e-9), start_times(model), **start)
    u, back, h = model.sample_start(model.state_like(50, x), rng()), x, 0.7 / n
    with torch.no_grad():
        for i in range(n):
            begin, middle = (torch.full((50,), (i + share) * h).double() for share in (0, 0.5))
            back = back + h * model.f(back + 0.5 * h * model.f(back, begin), middle)
    torch.testing.assert_close(back, u.squeeze(-1), rtol=0, atol=1e-5)
    start["generator"] = rng()
    euler = draw(model, lambda *given: sample_em(*given[:4], lam=0.0), model.times(200, 0.0), **start)
    assert float((euler - x).abs().max()) < 0.05


@pytest.mark.slow
def test_training_lowers_the_likelihood_loss():
    torch.manual_seed(0)
    model = FFJORD(SmallBackbone(2, seed=3), shape=(2,), num_steps=4).double()
    data = randn(512, 2) @ torch.tensor([[1.5, 0.4], [0.0, 0.5]]).double()
    trainer = Trainer(model, {"drift": AdamW(lr=2e-2, weight_decay=0.0, clip=100.0)})
    before = float(nelbo(model, data, generator=rng()).mean())
    for _ in range(150):
        trainer.step([(data, None)], rng(trainer.step_count))
    after = float(nelbo(model, data, num_draws=4, generator=rng()).mean())
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * torch.cov(data.T, correction=0))
    assert after < before - 0.2
    assert after - float(entropy) < 0.05


def test_refusals():
    with pytest.raises(ValueError, match="num_steps=0"):
        make(0)
    with pytest.raises(ValueError, match="no conditional form"):
        make()(randn(2, D), torch.zeros(2))
    with pytest.raises(ValueError, match="num_draws=0"):
        nelbo(make(), randn(2, D), num_draws=0)
