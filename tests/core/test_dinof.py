"""DiNof: a flow prior at T_m under every linear SDE."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, Affine, Gaussian, SmallBackbone, ids, randn, rng, scalar
from torch import Tensor, nn

from indm_core.draw import draw
from indm_core.exponential import sample_deis
from indm_core.flow import Glow, Identity
from indm_core.likelihood import log_prob_u, nelbo, nll
from indm_core.model import INDM, DiNof, Objective, diffusion
from indm_core.sample import (
    power_times,
    sample_em,
    sample_ode,
    sample_pc,
    uniform_times,
)
from indm_core.sde import BDM, CLD, VP, LinearSDE, apply, inverse, sqrt_psd
from indm_core.training import AdamW, Trainer

D = 2
LINEAR = pytest.mark.parametrize("sde", [*SDES, CLD(), BDM(height=1, width=D)], ids=ids)


def event(sde: LinearSDE) -> tuple[int, ...]:
    return (1, 1, D) if isinstance(sde, BDM) else (D,)


class ExactBackbone(nn.Module):
    """The eps_hat of a Gaussian law."""

    def __init__(self, law: Gaussian) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        sde = self.law.sde
        u, t = sde.from_network(x), t.reshape(-1, *[1] * (len(self.law.event)))
        return sde.to_network(sde.eps_from_score(self.law.score(u, t), t))


def gaussian(sde: LinearSDE, mean: tuple[float, ...] = (0.3, -0.2), scale: float = 1.0) -> Gaussian:
    cov = scale * torch.tensor([[0.5, 0.2], [0.2, 0.4]]).double()
    return Gaussian(sde=sde, mean=torch.tensor(mean).double(), cov=cov, shape=event(sde))


def exact(sde: LinearSDE, t_m: float, law: Gaussian | None = None) -> DiNof:
    """A model of Gaussian data with the exact score, whose flow is the law at T_m: v -> L^-1 (v - mean)."""
    law = law or gaussian(sde)
    mean, cov = law.moments(scalar(t_m * sde.t_max))
    like = sde.embed(torch.zeros(1, *event(sde), dtype=torch.float64))
    basis = torch.eye(len(mean), dtype=torch.float64).reshape(-1, *like.shape[1:])
    to_v = sde.to_network(apply(inverse(sqrt_psd(sde.prior_cov())), basis)).flatten(1).T
    A = torch.linalg.inv(torch.linalg.cholesky(to_v @ cov @ to_v.T))
    return DiNof(Affine(A, -A @ to_v @ mean), Identity(), ExactBackbone(law), sde, shape=event(sde), t_m=t_m).double()


def projected(law: Gaussian, t: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x = project(u_t)."""
    mean, cov = law.moments(scalar(t))
    basis = torch.eye(len(mean), dtype=torch.float64).reshape(-1, *law.sde.embed(torch.zeros(1, *law.event)).shape[1:])
    P = law.sde.project(basis).flatten(1).mT
    return P @ mean, P @ cov @ P.mT


def named(sampler):
    return lambda sde, score, u, ts, generator: sampler(sde, score, u, ts, generator=generator)


@pytest.mark.parametrize("sde", [*SDES, CLD(), BDM(height=1, width=D), VP(t_max=2.0)], ids=ids)
def test_nll_with_the_exact_law_at_t_m_is_the_closed_form(sde):
    model, law = exact(sde, 0.6), gaussian(sde)
    u_0 = sde.embed(randn(6, *event(sde)))
    u = sde.perturb(u_0, scalar(sde.t_min), randn(*u_0.shape, seed=2))
    ours = log_prob_u(model, u, sde.t_min, exact_divergence=True, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours, law.log_prob(u, scalar(sde.t_min)), rtol=0, atol=1e-5)


@LINEAR
def test_the_law_at_t_m_is_that_of_the_flow(sde):
    model, law = exact(sde, 0.4).requires_grad_(False), gaussian(sde)
    u = model.sample_start(model.state_like(20_000, torch.zeros(0, dtype=torch.float64)), rng())
    mean, cov = law.moments(scalar(0.4 * sde.t_max))
    torch.testing.assert_close(model.log_prob_start(u[:9]), law.log_prob(u[:9], scalar(0.4 * sde.t_max)))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (u.flatten(1) - mean).T, upper=False)
    assert float((white @ white.T / 20_000 - torch.eye(len(mean))).abs().max()) < 5 * math.sqrt(2 / 20_000)


def test_the_bound_holds_the_entropy_on_gaussian_data():
    model, law = exact(VP(), 0.6), gaussian(VP())
    x = law.mean + randn(4000, D) @ torch.linalg.cholesky(law.cov).T
    bound = nelbo(model, x, num_draws=2, generator=rng())
    error = bound + law.log_prob_0(x)
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(4000) + 1e-3


@LINEAR
def test_at_t_m_one_with_the_identity_it_is_the_plain_diffusion(sde):
    k = sde.prior_cov().shape[-1]
    torch.manual_seed(0)
    backbone = SmallBackbone(D * k)
    x = randn(5, *event(sde))
    dinof = DiNof(Identity(), Identity(), backbone, sde, shape=event(sde), t_m=1.0).double()
    plain = INDM(Identity(), backbone, sde, shape=event(sde), objective=Objective(mode="fid")).double()
    options = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(*(nll(m, x, generator=rng(1), **options) for m in (dinof, plain)), rtol=0, atol=1e-9)
    samples = [draw(m, named(sample_em), uniform_times(sde, 20), x, 4, generator=rng(2)) for m in (dinof, plain)]
    torch.testing.assert_close(*samples, rtol=0, atol=1e-9)
    losses = [m(x, generator=rng(3)) for m in (dinof, plain)]
    torch.testing.assert_close(*(loss.terms["denoising"] for loss in losses), rtol=1e-12, atol=0)
    bounds = [nelbo(m, x.repeat(400, *[1] * (x.ndim - 1)), num_draws=2, generator=rng(4)) for m in (dinof, plain)]
    assert abs(float((bounds[0] - bounds[1]).mean())) < 0.1  # the prior's term is drawn, not closed


@LINEAR
def test_every_sampler_starts_from_t_m(sde):
    """Data far from the prior, T_m = 0.15: mean and covariance of the samples, against the law's at the last time."""
    law, num = gaussian(sde, mean=(2.0, -1.5), scale=0.1), 1000
    model = exact(sde, 0.15, law)
    mean, cov = projected(law, 1e-3)
    root, x, low = torch.linalg.cholesky(cov), randn(1, *event(sde)), {"low": 1e-3, "high": model.t_start}
    for sampler, ts in (
        (sample_em, power_times(sde, 200, 2.0, **low)),
        (sample_ode, uniform_times(sde, 1, **low)),
        (sample_deis, power_times(sde, 30, 2.0, **low)),
    ):
        drawn = draw(model, named(sampler), ts, x, num, generator=rng(5), denoise=False).flatten(1)
        white = torch.linalg.solve_triangular(root, (drawn - mean).T, upper=False)
        assert float(white.mean(1).abs().max()) < 5 / math.sqrt(num) + 0.05
        spread = white @ white.T / num - torch.eye(D)
        assert float(spread.abs().max()) < 5 * math.sqrt(2 / num) + 0.05
    drawn = draw(model, named(sample_pc), uniform_times(sde, 30, **low), x, 20, generator=rng(5))
    assert drawn.isfinite().all()  # its corrector is wrong in two dimensions


def test_temperature_scales_the_noise_behind_the_flow():
    model = exact(VP(), 0.5)
    mean, _ = gaussian(VP()).moments(scalar(0.5))
    like = torch.zeros(3, D, 1).double()
    away = model.sample_start(like, rng()).flatten(1) - mean
    for temperature in (1e-9, 0.5, 2.0):
        u = model.sample_start(like, rng(), temperature=temperature)
        torch.testing.assert_close(u.flatten(1), mean + temperature * away, rtol=1e-9, atol=1e-9)


def test_one_noise_serves_score_and_prior(monkeypatch):
    """The terms of a training loss, from the noise that it drew: it draws one."""
    model, x, drawn = exact(VP(), 0.5), randn(4, D), []

    def kept(like: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.randn(like.shape, generator=generator, dtype=like.dtype))
        return drawn[-1]

    monkeypatch.setattr(diffusion, "randn_like", kept)
    terms = model(x, generator=rng(3)).terms
    (eps,) = drawn
    u = model.sde.perturb(model.sde.embed(x), scalar(0.5), eps)
    torch.testing.assert_close(terms["prior"], -model.log_prob_start(u))


def test_it_trains_with_a_latent_flow_and_a_flow_prior():
    torch.manual_seed(0)
    latent, prior = (Glow((D,), levels=1, steps=2, hidden=8, start=start) for start in ("identity", "data"))
    objective = Objective(mode="nll", pretrain_steps=2)
    model = DiNof(prior, latent, SmallBackbone(D), VP(), shape=(D,), t_m=0.3, objective=objective).double()
    trainer = Trainer(model, {name: AdamW(lr=3e-3) for name in ("score", "flow", "prior")})
    assert set(model.networks()) == {"score", "flow", "prior"}
    before = {name: [p.clone() for p in network.parameters()] for name, network in model.networks().items()}
    for step in range(5):
        assert model.phase(step) == ("pretraining" if step < 2 else "joint")
        report = trainer.step([(randn(64, D, seed=step), None)], rng(step))
        assert not report.skipped
        moved = {
            n: any((p != q).any() for p, q in zip(net.parameters(), before[n], strict=True))
            for n, net in model.networks().items()
        }
        assert moved == {"score": True, "prior": True, "flow": step >= 2}


@pytest.mark.parametrize("t_m", [0.0, -0.5, 1.5, float("nan")])
def test_t_m_outside_is_refused(t_m):
    with pytest.raises(ValueError, match=rf"t_m={t_m} must lie in \(0, 1\]"):
        DiNof(Identity(), Identity(), SmallBackbone(D), VP(), shape=(D,), t_m=t_m)
