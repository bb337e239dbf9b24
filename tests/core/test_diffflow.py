"""DiffFlow: the adjoint, the bound and the flow that it becomes without noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import SmallBackbone, randn, rng, scalar
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from indm_core.draw import draw
from indm_core.likelihood import log_prob_u, nelbo, nll
from indm_core.model import DiffFlow
from indm_core.model.diffflow import LinearDrift, fixed_times, flexible_times
from indm_core.nn import UNet
from indm_core.ode import rk45
from indm_core.sample import sample_em, sample_ode
from indm_core.training import AdamW, Trainer

D = 3


def make(num_steps: int = 6, **options) -> DiffFlow:
    options = {"shape": (D,), "g": 0.7, "t_max": 0.4, "schedule": ((0, num_steps),)} | options
    return DiffFlow(SmallBackbone(D, seed=1), SmallBackbone(D, seed=2), **options).double()


class Counted(nn.Module):
    """A network that counts its evaluations."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.count = network, 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.count += 1
        return self.network(x, t, y)


class Linear(nn.Module):
    """a x."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a).double())

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.a * x


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize(("num_steps", "g_end"), [(2, None), (7, None), (5, 1.9), (5, 0.2)])
def test_the_adjoints_gradients_are_those_of_automatic_differentiation(num_steps, g_end, flexible):
    x, found = randn(5, D), []
    for adjoint in (True, False):
        model = make(num_steps, adjoint=adjoint, flexible=flexible, g_end=g_end)
        given = x.clone().requires_grad_()
        losses = model(given, generator=rng())
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(2 * losses.objective.mean(), [given, *parameters])
        found.append((losses.objective, *gradients))
    assert len(found[0]) > 7
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_step_takes_the_evaluations_that_it_says():
    n = 7
    drift, score = Counted(SmallBackbone(D, seed=1)), Counted(SmallBackbone(D, seed=2))
    model = DiffFlow(drift, score, shape=(D,), schedule=((0, n),)).double()
    model(randn(4, D), generator=rng()).objective.mean().backward()
    assert model.evaluations() == {"drift": drift.count, "score": score.count} == {"drift": 2 * n + 1, "score": n}
    drift.count = score.count = 0
    with torch.no_grad():
        model(randn(4, D), generator=rng())
    assert (drift.count, score.count) == (n + 1, n)


def test_the_loss_is_that_of_the_paper_but_for_a_constant():
    """Eqs. 3.14 and 3.15 written out, with differences of states."""
    model = make(5, flexible=False).eval()
    x, g = randn(4, D), model.g.first
    terms = model(x, generator=rng()).terms
    generator = rng()
    eps = [torch.randn(4, D, dtype=torch.float64, generator=generator) for _ in range(5)]
    ts = fixed_times(5, 0.4)
    xs, loss = [x], 0
    for i in range(5):
        dt = ts[i + 1] - ts[i]
        xs.append(xs[i] + model.f(xs[i], ts[i].expand(4)) * dt + g * dt.sqrt() * eps[i])
        t = ts[i + 1].expand(4)
        back = xs[i] - xs[i + 1] + (model.f(xs[i + 1], t) - g**2 * model.s(xs[i + 1], t)) * dt
        loss = loss + 0.5 * (back / (g * dt.sqrt())).square().sum(1) - 0.5 * eps[i].square().sum(1)
    prior = 0.5 * (xs[-1].square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(terms["transitions"], loss.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms["prior"], prior.detach(), rtol=1e-12, atol=0)


def test_the_bound_with_a_volatility_that_changes_is_that_of_the_gaussians():
    """-log p(x_N) + sum log q(x_{i+1} | x_i) - log p(x_i | x_{i+1}), every transition a Gaussian of its own volatility."""
    n = 4
    model = make(n, flexible=False, g=0.5, g_end=1.7, beta=0.6).eval()
    x, generator = randn(3, D), rng()
    found = model(x, generator=rng()).terms["nelbo"]
    ts, expected = 0.4 * (torch.arange(n + 1) / n).double() ** (1 / 0.6), 0
    for t, s in pairwise(ts):
        g_t, g_s, dt = 0.5 * 3.4 ** (t / 0.4), 0.5 * 3.4 ** (s / 0.4), s - t
        forward = torch.distributions.Normal(x + dt * model.f(x, t.expand(3)), g_t * dt.sqrt())
        y = forward.mean + forward.stddev * torch.randn(3, D, dtype=torch.float64, generator=generator)
        mean = y - dt * (model.f(y, s.expand(3)) - g_s**2 * model.s(y, s.expand(3)))
        backward = torch.distributions.Normal(mean, g_s * dt.sqrt())
        expected = expected + (forward.log_prob(y) - backward.log_prob(x)).sum(1)
        x = y
    expected = expected - torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


def test_a_fixed_drift_is_a_diffusion_trained_on_paths():
    """VP's drift, g = 1, T = 6, exact score of N(0, v): the bound falls to the entropy as 1/N; the score alone is trained."""
    v, T = 0.3, 6.0

    class Exact(nn.Module):
        """g sqrt(T) s of the law N(0, 1 + (v - 1) exp(-t))."""

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()).double())

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            var = 1 + (v - 1) * torch.exp(-t * T)
            return -self.gain * math.sqrt(T) * x / var.unsqueeze(1)

    x, excess = math.sqrt(v) * randn(4000, 1), []
    for n in (100, 200):
        model = DiffFlow(LinearDrift(T / 2), Exact(), shape=(1,), g=1.0, t_max=T, schedule=((0, n),)).double()
        assert list(model.networks()) == list(model.evaluations()) == ["score"]
        gap = nelbo(model, x, generator=rng(3)) + torch.distributions.Normal(0.0, math.sqrt(v)).log_prob(x[:, 0])
        excess.append((float(gap.mean()), float(gap.std()) / math.sqrt(len(x))))
    (coarse, error), (fine, _) = excess
    assert 0 < fine < coarse
    assert coarse / fine == pytest.approx(2, abs=0.2 + 5 * error / fine)
    losses = model(x[:8], generator=rng())
    losses.objective.mean().backward()
    assert model.score_network.gain.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"g_end": 0.0}, "g_end=0.0"), ({"beta": 0.0}, "beta=0.0"), ({"g": -1.0}, "g=-1.0")],
)
def test_refused_volatilities_and_grids(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
    for rate in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"rate={rate}"):
            LinearDrift(rate)


def test_bound_and_likelihood_of_a_stationary_gaussian():
    """f = -x/2, g = 1, s = -x: the law N(0, 1) stays, and the backward process has the data's law."""
    n = 400
    model = DiffFlow(Linear(-0.5), Linear(-1.0), shape=(1,), g=1.0, t_max=1.0, schedule=((0, n),)).double()
    x = randn(3000, 1)
    bound = nelbo(model, x, num_draws=1, generator=rng(3))
    error = bound - 0.5 * (x[:, 0].square() + math.log(2 * math.pi))
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(3000) + 2 / n
    flow_nll = nll(model, x[:50], exact_divergence=True, generator=rng(4))
    error = flow_nll - 0.5 * (x[:50, 0].square() + math.log(2 * math.pi))
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(50) + 2 / n


def test_without_noise_it_is_the_flow_of_its_drift():
    """Theorem 1: at g = 1e-6 the likelihood of the marginal ODE is that of dx = f dt."""
    model = make(g=1e-6, t_min=1e-12)
    x = randn(4, D)
    ours = log_prob_u(model, x.unsqueeze(-1), 1e-12, exact_divergence=True, rtol=1e-9, atol=1e-9)

    def field(t, state, rows):
        x, _ = state
        time = t.reshape(-1).expand(len(x))
        divergence = [
            jacobian(lambda v, i=i: model.f(v[None], time[i : i + 1])[0], x[i]).trace() for i in range(len(x))
        ]
        return model.f(x, time).detach(), torch.stack(divergence)

    (x_T, integral), _ = rk45(field, (x, torch.zeros(4).double()), 0.0, 0.4, rtol=1e-9, atol=1e-9)
    theirs = -0.5 * (x_T.square() + math.log(2 * math.pi)).sum(1) + integral
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


def test_entering_by_a_step_is_the_first_term_of_the_bound():
    model = make(5, flexible=False).eval()
    x, eps = randn(4, D), randn(4, D, 1, seed=8)
    t = scalar(model.sde.t_min)
    u, correction = model.sde.enter(x.unsqueeze(-1), t, eps, model.score)
    dt = float(t)
    x_1 = x + dt * model.f(x, torch.zeros(4).double()) + model.g.first * math.sqrt(dt) * eps[..., 0]
    torch.testing.assert_close(u[..., 0], x_1, rtol=1e-12, atol=1e-12)
    mean = x_1 - dt * (model.f(x_1, t.expand(4)) - model.g.first**2 * model.s(x_1, t.expand(4)))
    scale = model.g.first * math.sqrt(dt)
    forward = torch.distributions.Normal(x_1 - scale * eps[..., 0], scale).log_prob(x_1).sum(1)
    backward = torch.distributions.Normal(mean, scale).log_prob(x).sum(1)
    torch.testing.assert_close(correction, forward - backward, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.sde.denoise(u, t, model.score(u, t))[..., 0], mean, rtol=1e-10, atol=1e-10)


def test_grids():
    ts = fixed_times(30, 0.05)
    torch.testing.assert_close(ts, torch.tensor([(i / 30) ** (1 / 0.9) * 0.05 for i in range(31)]).double())
    assert (ts.diff().diff() > 0).all()
    for seed in range(20):
        drawn = flexible_times(10, 0.4, rng(seed))
        bins = fixed_times(9, 0.4)
        assert drawn.shape == (11,)
        assert drawn[0] == 0
        assert drawn[-1] == 0.4
        assert ((drawn[1:-1] >= bins[:-1]) & (drawn[1:-1] <= bins[1:])).all()
    own = make(10).times(10, make(10).sde.t_min)
    assert len(own) == 10  # nine steps, and the last by `denoise`
    torch.testing.assert_close(own, fixed_times(10, 0.4)[1:].flip(0))


def test_flexible_times_are_uniform_in_their_bins_and_independent():
    bins, num = fixed_times(4, 1.0), 4000
    generator = rng()
    drawn = torch.stack([flexible_times(5, 1.0, generator)[1:-1] for _ in range(num)])
    u = (drawn - bins[:-1]) / bins.diff()
    assert (u.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * num)
    assert (u.var(0) * 12 - 1).abs().max() < 0.1
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 5 / math.sqrt(num)


def test_times_are_drawn_in_training_only(monkeypatch):
    def refuse(*given: object) -> Tensor:
        raise AssertionError

    model = make()
    monkeypatch.setattr("indm_core.model.diffflow.flexible_times", refuse)
    model.eval()(randn(2, D), generator=rng())
    with pytest.raises(AssertionError):
        model.train()(randn(2, D), generator=rng())


def test_the_bound_is_the_mean_over_its_draws():
    model, x = make(), randn(5, D)
    together = nelbo(model, x, num_draws=4, generator=rng(3))
    generator = rng(3)
    apart = torch.stack([nelbo(model, x, num_draws=1, generator=generator) for _ in range(4)])
    torch.testing.assert_close(together, apart.mean(0), rtol=1e-12, atol=1e-12)
    assert float(apart.std(0).min()) > 1e-3


def test_the_forward_process_has_the_moments_of_its_steps():
    """Euler-Maruyama on dx = a x dt + g dw: x and the variance follow (1 + a h) x and (1 + a h)^2 v + g^2 h."""
    model, num, a = DiffFlow(Linear(-0.8), Linear(0.0), shape=(1,), g=0.7, t_max=0.4).double(), 20_000, -0.8 / 0.4
    model.requires_grad_(False)
    s, t = scalar(0.1), scalar(0.3)
    u = model.sde.transition(torch.full((num, 1, 1), 1.5).double(), t, s, rng())
    h, mean, variance = 0.2 / 15, 1.5, 0.0
    for _ in range(15):
        mean, variance = (1 + a * h) * mean, (1 + a * h) ** 2 * variance + 0.49 * h
    assert abs(float(u.mean()) - mean) < 5 * math.sqrt(variance / num)
    assert abs(float(u.var()) / variance - 1) < 5 * math.sqrt(2 / num)


def test_the_temperature_is_a_factor_of_the_start():
    model = make()
    like = model.state_like(8, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(model.sample_start(like, rng(), 0.5), 0.5 * model.sample_start(like, rng()))


def test_the_schedule_gives_the_phases():
    model = make(schedule=((0, 5), (10, 8), (20, 12)))
    assert [model.phase(step) for step in (0, 9, 10, 25)] == ["N=5", "N=5", "N=8", "N=12"]
    model.begin_phase("N=8")
    assert model.evaluations() == {"drift": 17, "score": 8}
    assert model.sde.t_min == float(fixed_times(12, 0.4)[1])


def test_training_lowers_the_bound_and_samples_follow():
    torch.manual_seed(0)
    model = DiffFlow(
        SmallBackbone(2, 32, seed=1), SmallBackbone(2, 32, seed=2), shape=(2,), g=0.5, t_max=1.0, schedule=((0, 8),)
    ).double()
    trainer = Trainer(model, {"drift": AdamW(lr=3e-3), "score": AdamW(lr=3e-3)}, ema_decay=0.98)
    mean, bounds = torch.tensor([1.5, -1.0]).double(), []
    for step in range(400):
        x = mean + 0.4 * randn(256, 2, seed=step)
        bounds.append(float(trainer.step([(x, None)], rng(step)).terms["nelbo"]))
    entropy = 2 * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(0.4))
    assert bounds[0] > entropy + 1
    assert sum(bounds[-20:]) / 20 < entropy + 0.4
    best = trainer.averaged.eval()
    for sampler, ts in ((sample_em, best.times(8, best.sde.t_min)), (sample_ode, best.times(8, best.sde.t_min))):
        x = draw(
            best,
            lambda *given, sampler=sampler: sampler(*given[:4], generator=given[4]),
            ts,
            torch.zeros(()).double(),
            2000,
            generator=rng(9),
        )
        assert float((x.mean(0) - mean).abs().max()) < 0.15
        assert float((x.std(0) - 0.4).abs().max()) < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": ((0, 1),)}, "N=1 must be at least 2"),
        ({"schedule": ((5, 10),)}, "must begin at 0 and increase"),
        ({"schedule": ((0, 10), (0, 20))}, "must begin at 0 and increase"),
        ({"schedule": ()}, "must begin at 0"),
        ({"g": 0.0}, "g=0.0, g_end=0.0 and t_max=0.4 must be positive"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_grids_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="num_steps=1: a DiffFlow trained on N=6 steps is sampled in 2 to 6"):
        make().times(1, 0.0)


def test_what_needs_a_linear_sde_is_refused():
    model = make()
    with pytest.raises(ValueError, match="nodes: DiffFlow's bound is over paths"):
        nelbo(model, randn(2, D), nodes=[])
    for draws in (0, -1):
        with pytest.raises(ValueError, match=f"num_draws={draws} must be at least 1"):
            nelbo(model, randn(2, D), num_draws=draws)
    with pytest.raises(ValueError, match="y: DiffFlow has no conditional form"):
        model(randn(2, D), torch.zeros(2))


class Kept:
    """A tensor that automatic differentiation keeps, and how many bytes of such there are at a time."""

    alive = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
        Kept.alive += self.bytes
        Kept.peak = max(Kept.peak, Kept.alive)

    def __del__(self) -> None:
        Kept.alive -= self.bytes


def test_memory_of_the_adjoint_does_not_grow_with_the_steps():
    peaks = {}
    for adjoint in (True, False):
        for num_steps in (5, 30):
            torch.manual_seed(0)
            drift, score = (
                UNet((1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1, 2), dropout=0.0) for _ in range(2)
            )
            model = DiffFlow(drift, score, shape=(1, 8, 8), schedule=((0, num_steps),), adjoint=adjoint)
            Kept.alive = Kept.peak = 0
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                model(torch.zeros(4, 1, 8, 8), generator=rng()).objective.mean().backward()
            peaks[adjoint, num_steps] = Kept.peak
    assert peaks[True, 30] == peaks[True, 5]
    assert peaks[True, 30] < peaks[False, 30] / 10
