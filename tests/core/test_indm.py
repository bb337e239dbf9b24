"""INDM's losses against denoising score matching written out, on the same draws; both modes; pre-training."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from problems import ISOTROPIC_SDES, SDES, Affine, Coupled, SmallBackbone, ids, randn, rng, scalar
from scipy.optimize import brentq
from test_score import Function, log_odds
from torch import Tensor

from indm_core.exponential import sample_deis
from indm_core.flow import Flow, Identity, ResFlow
from indm_core.model import INDM, Bridge, Objective
from indm_core.model.diffusion import truncation_time
from indm_core.nn import MLP
from indm_core.sample import power_times, sample_ode, uniform_times
from indm_core.sde import CLD, VE, VP, apply

ISOTROPIC = pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)
D = 2


def make(sde, flow: Flow | None = None, **objective) -> INDM:
    backbone = SmallBackbone(D * sde.prior_cov().shape[-1])
    return INDM(flow or Identity(), backbone, sde, shape=(D,), objective=Objective(**objective)).double()


def affine() -> Affine:
    return Affine(torch.tensor([[1.2, 0.3], [-0.4, 0.7]]).double(), torch.tensor([0.1, -0.2]).double())


def waking_resflow() -> ResFlow:
    """A residual flow away from the identity; its log-det is exact and draws nothing, its constraint has no state."""
    flow = ResFlow((D,), blocks=(2,), width=8, activation=torch.nn.Tanh, constraint="infinity").double()
    generator = rng(5)
    for p in flow.parameters():
        p.data += 0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator)
    return flow


def draws(num: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The levels q of t and the noise eps that a forward pass takes from its generator, in its order."""
    order = torch.rand(num, dtype=torch.float64, generator=generator).argsort()
    q = (order + torch.rand(num, dtype=torch.float64, generator=generator)) / num
    return q, torch.randn(num, D, k, dtype=torch.float64, generator=generator)


def written_out(sde, backbone, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Denoising score matching of a K = 1 diffusion, from the formulas of Song et al. 2021, with scalars only."""
    q, eps = draws(len(x), 1, generator)
    eps = eps.squeeze(-1)
    low, high = log_odds(sde, torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64).numpy())
    mass = high - low
    t = [brentq(lambda s, a=float(a): log_odds(sde, s) - low - a * mass, 1e-6, 1.1, xtol=1e-17, rtol=1e-15) for a in q]
    t = torch.tensor(t, dtype=torch.float64)
    B = 0.0 if isinstance(sde, VE) else t * sde.beta_min + t**2 / 2 * (sde.beta_max - sde.beta_min)
    B_T = 0.0 if isinstance(sde, VE) else sde.beta_min + (sde.beta_max - sde.beta_min) / 2
    B, B_T = torch.as_tensor(B, dtype=torch.float64), torch.as_tensor(B_T, dtype=torch.float64)
    if isinstance(sde, VE):
        sigma, sigma_T = (sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** s for s in (t, scalar(1.0)))
        sigma_0 = sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** scalar(sde.t_min)
        ratio = torch.full_like(t, 2 * math.log(sde.sigma_max / sde.sigma_min))
    else:
        power = 0.5 if isinstance(sde, VP) else 1.0
        beta = sde.beta_min + t * (sde.beta_max - sde.beta_min)
        B_0 = scalar(sde.t_min * sde.beta_min + sde.t_min**2 / 2 * (sde.beta_max - sde.beta_min))
        sigma, sigma_T, sigma_0 = ((-torch.expm1(-b)) ** power for b in (B, B_T, B_0))
        ratio = beta / -torch.expm1(-B) if power == 0.5 else beta * (1 + torch.exp(-B)) / -torch.expm1(-B)
    alpha, alpha_T = torch.exp(-B / 2), torch.exp(-B_T / 2)
    prior_var = sigma_T**2 if isinstance(sde, VE) else scalar(1.0)
    x_t = alpha.expand(len(x)).unsqueeze(-1) * x + sigma.unsqueeze(-1) * eps
    square = (backbone(x_t, t) - eps).square().sum(1)
    prior = 0.5 * ((alpha_T * x).square().sum(1) + D * sigma_T**2) / prior_var + D / 2 * torch.log(
        2 * math.pi * prior_var
    )
    likelihood, variance = mass / 2 * square, mass / (2 * ratio) * square
    constant = D * torch.log(sigma_T / sigma_0)
    return {"nll": likelihood + prior, "fid": variance + prior, "nelbo": likelihood + prior - constant}


@ISOTROPIC
@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_identity_flow_is_denoising_score_matching(sde, mode):
    """The same draws give the same loss and gradient to 1e-12: INDM with the identity is the linear diffusion."""
    model, x = make(sde, mode=mode), randn(32, D)
    losses = model(x, generator=rng(7))
    direct = written_out(sde, model.score_model.backbone, x, rng(7))
    torch.testing.assert_close(losses.objective, direct[mode], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.terms["nelbo"], direct["nelbo"].detach(), rtol=1e-12, atol=1e-12)
    parameters = list(model.score_model.parameters())
    ours = torch.autograd.grad(losses.objective.mean(), parameters)
    for a, b in zip(ours, torch.autograd.grad(direct[mode].mean(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def two_passes(model: INDM, x: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Algorithm 1 as published: the flow by the NELBO, then, on the same draws, the score by the variance weight."""
    sde, k = model.sde, model.sde.prior_cov().shape[-1]
    q, eps = draws(len(x), k, rng(seed))
    ends = sde.log_importance(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    t = sde.time_at(ends[0] + q * (ends[1] - ends[0])).reshape(-1, 1)
    weight = (ends[1] - ends[0]) / sde.trace_M(t.flatten())

    def error(z: Tensor) -> Tensor:
        return model.score_model.eps(sde.perturb(sde.embed(z), t, eps), t) - eps

    z, log_det = model.flow(x)
    d = error(z)
    GG, R_inv = sde.GG(t).expand(len(x), D, k, k), torch.linalg.inv(sde.R(t)).expand(len(x), D, k, k)
    scores = torch.einsum("beji,bej->bei", R_inv, d)
    likelihood = 0.5 * weight * torch.einsum("bei,beij,bej->b", scores, GG, scores)
    prior = -model.expected_log_prob_start(sde.embed(z), eps)
    flow_gradient = torch.autograd.grad((likelihood + prior - log_det).mean(), list(model.flow.parameters()))
    variance = 0.5 * weight * error(z.detach()).square().flatten(1).sum(1)
    return list(flow_gradient), list(torch.autograd.grad(variance.mean(), list(model.score_model.parameters())))


@EVERY
@pytest.mark.parametrize("make_flow", [affine, waking_resflow], ids=["Affine", "ResFlow"])
def test_fid_mode_gives_both_gradients_of_the_two_pass_form_draw_by_draw(sde, make_flow):
    """One flow pass and one evaluation of the score, single images and batches; Coupled takes the second branch."""
    model = make(sde, make_flow(), mode="fid")
    for_flow, for_score = list(model.flow.parameters()), list(model.score_model.parameters())
    for num, seed in ((1, 0), (1, 1), (1, 2), (16, 3)):
        x = randn(num, D, seed=seed)
        objective = model(x, generator=rng(seed)).objective.mean()
        ours = torch.autograd.grad(objective, [*for_flow, *for_score], allow_unused=True)
        flow_direct, score_direct = two_passes(model, x, seed)
        for a, b in zip(ours, [*flow_direct, *score_direct], strict=True):
            assert b.abs().max() > 1e-9
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11 * float(b.abs().max()))


@EVERY
def test_both_modes_report_the_same_nelbo(sde):
    x, flow = randn(8, D), affine()
    terms = [make(sde, flow, mode=mode)(x, generator=rng(2)).terms for mode in ("nll", "fid")]
    for name in ("nelbo", "denoising", "prior", "log_det"):
        torch.testing.assert_close(terms[0][name], terms[1][name], rtol=1e-13, atol=1e-13)
        assert not terms[0][name].requires_grad
    total = terms[0]["denoising"] + terms[0]["prior"] - terms[0]["log_det"]
    torch.testing.assert_close(terms[0]["nelbo"], total, rtol=1e-12, atol=1e-12)


@EVERY
def test_expected_log_prior_is_the_mean_over_noise(sde):
    """The closed Gaussian cross-entropy against its Gauss-Hermite quadrature: two nodes per axis are exact."""
    model, x = make(sde), randn(3, D)
    u_0 = sde.embed(x)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * u_0[0].numel())
    T = scalar(sde.t_max)
    values = [sde.log_prior(sde.perturb(u_0, T, sign.reshape(1, *u_0.shape[1:]).expand_as(u_0))) for sign in signs]
    ours = model.expected_log_prob_start(u_0, torch.zeros_like(u_0))
    torch.testing.assert_close(ours, torch.stack(values).mean(0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_the_joint_phase_starts_at_the_loss_of_the_linear_model(mode):
    """Pre-training trains the score alone; at the switch the flow is the identity, so the loss does not jump."""
    flow = ResFlow((D,), blocks=(3,), width=16)
    joint, linear = make(VP(), flow, mode=mode, pretrain_steps=10), make(VP(), mode=mode)
    assert [joint.phase(step) for step in (0, 9, 10)] == ["pretraining", "pretraining", "joint"]
    x = randn(64, D)
    reference = linear(x, generator=rng(1))
    joint.begin_phase("pretraining")
    losses = joint(x, generator=rng(1))
    torch.testing.assert_close(losses.objective, reference.objective, rtol=0, atol=0)
    losses.objective.mean().backward()
    assert all(p.grad is None for p in joint.flow.parameters())
    assert any(p.grad.any() for p in joint.score_model.parameters())
    joint.begin_phase("joint")
    losses = joint(x, generator=rng(1))
    torch.testing.assert_close(losses.objective, reference.objective, rtol=1e-12, atol=0)
    losses.objective.mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in joint.flow.parameters())


def test_networks_and_states():
    assert set(make(VP()).networks()) == {"score"}
    model = make(VP(), affine())
    assert set(model.networks()) == {"score", "flow"}
    x = randn(4, D)
    u, log_det = model.encode(x)
    torch.testing.assert_close(model.decode(u), x)
    torch.testing.assert_close(log_det.exp(), torch.linalg.det(model.flow.A).abs().expand(4))
    assert model.state_like(5, x).shape == (5, D, 1)
    assert make(Coupled()).state_like(5, x).shape == (5, D, 2)
    torch.testing.assert_close(
        model.sample_start(u, rng(0)), torch.randn(4, D, 1, dtype=torch.float64, generator=rng(0))
    )


def test_a_copy_is_independent_and_a_seed_decides():
    model, x = make(VP(), affine()), randn(4, D)
    twin = copy.deepcopy(model)
    first = model(x, generator=rng(3)).objective
    torch.testing.assert_close(twin(x, generator=rng(3)).objective, first, rtol=0, atol=0)
    assert not torch.equal(model(x, generator=rng(4)).objective, first)


def test_float32_agrees_with_float64():
    model, x = make(VP(), affine(), mode="fid"), randn(64, D)
    exact = model(x, generator=rng(0)).terms
    single = copy.deepcopy(model).float()
    terms = single(x.float(), generator=rng(0)).terms
    assert all(value.dtype == torch.float32 for value in terms.values())
    torch.testing.assert_close(terms["prior"].double(), exact["prior"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["log_det"].double(), exact["log_det"], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_settings_out_of_range_are_named():
    for setting, value in {"pretrain_steps": -1, "mode": "both", "soft_truncation": 0.5, "data_var": -1.0}.items():
        with pytest.raises(ValueError, match=re.escape(f"{setting}={value!r}")):
            Objective(**{setting: value})


def test_the_variance_of_the_objective_preconditions_the_score():
    """A backbone of zeros: eps_hat is R^T (v p p^T + Sigma)^-1 u, so that VP's score is -u / (v alpha^2 + sigma^2)."""
    sde, u, t = VP(), randn(4, D)[..., None], scalar(0.3)
    for v in (0.5, 2.0):
        model = INDM(Identity(), Function(torch.zeros_like), sde, shape=(D,), objective=Objective(data_var=v))
        direct = -u / (v * sde.alpha(t, scalar(0.0)) ** 2 + sde.sigma(t) ** 2)
        torch.testing.assert_close(model.score(u, t), direct, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [1.0, 1.2, 2.0])
def test_the_truncation_time_is_the_quantile_of_its_density(k):
    """tau ~ tau^-k on [low, high]: u against the integral of the density up to tau, by quadrature in log tau."""
    low, high = 1e-5, 0.8
    nodes = torch.linspace(math.log(low), math.log(high), 200_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(torch.exp((1 - k) * nodes), nodes)
    for u in (0.0, 1e-3, 0.25, 0.5, 0.9):
        tau = truncation_time(k, scalar(u), low, high)
        below = float((mass / mass[-1])[max(0, int(torch.searchsorted(nodes, math.log(tau))) - 2)])
        assert below == pytest.approx(u, abs=1e-4)
    assert low < truncation_time(k, scalar(1 - 1e-16), low, high) < high


@ISOTROPIC
@pytest.mark.parametrize("mode", ["nll", "fid"])
def test_soft_truncation_is_the_loss_of_a_diffusion_that_ends_at_tau(sde, mode):
    model, x = make(sde, affine(), mode=mode, soft_truncation=1.2), randn(16, D)
    losses = model(x, generator=rng(3))
    generator = rng(3)
    u = torch.rand(16, dtype=torch.float64, generator=generator)[0]
    tau = truncation_time(1.2, u, sde.t_min, sde.t_max)
    cut = replace(sde, t_min=float(tau))
    objective = Objective(mode=mode)
    plain = INDM(model.flow, model.score_model.backbone, cut, shape=(D,), objective=objective).double()
    direct = plain(x, generator=generator)
    torch.testing.assert_close(losses.objective, direct.objective, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(losses.terms["nelbo"], direct.terms["nelbo"], rtol=1e-9, atol=1e-9)


@EVERY
def test_a_bridge_adds_the_flow_s_likelihood_of_the_second_set(sde):
    """-log pi(h(y)) - log|det dh/dy| with pi's position block, written out with torch.distributions."""
    flow = affine()
    plain, x, y = make(sde, flow), randn(8, D), randn(8, D, seed=9)
    bridge = Bridge(flow, plain.score_model.backbone, sde, shape=(D,)).double()
    losses, direct = bridge(x, y, rng(1)), plain(x, generator=rng(1))
    z = y @ flow.A.T + flow.b
    cov = sde.prior_cov()[..., :1, :1].reshape(-1).expand(D)
    latent = sde.embed(z)[..., 0]
    log_p = torch.distributions.Normal(0.0, cov.sqrt()).log_prob(latent).sum(1) + flow.A.det().abs().log()
    torch.testing.assert_close(losses.terms["partner"], -log_p.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses.objective - losses.terms["partner"], direct.objective, rtol=1e-10, atol=1e-10)
    losses.objective.sum().backward()
    assert flow.A.grad is not None
    bridge.begin_phase("pretraining")
    assert "partner" not in bridge(x, y, rng(1)).terms


def test_a_bridge_needs_pairs():
    bridge = Bridge(affine(), SmallBackbone(D), VP(), shape=(D,)).double()
    with pytest.raises(ValueError, match="trained on pairs"):
        bridge(randn(4, D))


def test_the_unseen_direction_is_trained_and_nothing_else_is_touched():
    """CLD in NLL mode: the score's gradient is that of d^T M d / 2 + |Pi d|^2 / 2, the flow's that of the NELBO alone."""
    sde, flow, x = CLD(), affine(), randn(16, D)
    model = make(sde, flow)
    losses = model(x, generator=rng(1))
    for_flow, for_score = list(flow.parameters()), list(model.score_model.parameters())
    ours = torch.autograd.grad(losses.objective.mean(), [*for_flow, *for_score])
    q, eps = draws(len(x), 2, rng(1))
    ends = sde.log_importance(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    t = sde.time_at(ends[0] + q * (ends[1] - ends[0])).reshape(-1, 1)
    weight = (ends[1] - ends[0]) / sde.trace_M(t.flatten())
    z, log_det = flow(x)
    d = model.score_model.eps(sde.perturb(sde.embed(z), t, eps), t) - eps
    likelihood = 0.5 * weight * (d * apply(sde.M(t), d)).flatten(1).sum(1)
    bound = likelihood - model.expected_log_prob_start(sde.embed(z), eps) - log_det
    flow_direct = torch.autograd.grad(bound.mean(), for_flow, retain_graph=True)
    R_inv_G = torch.linalg.solve(sde.R(t), sde.GG(t).sqrt()[..., 1:])
    unit = R_inv_G / R_inv_G.norm(dim=-2, keepdim=True)
    missed = d - (unit.squeeze(-1) * (unit.squeeze(-1) * d).sum(-1, keepdim=True))
    score_direct = torch.autograd.grad(
        (likelihood + 0.5 * weight * missed.square().flatten(1).sum(1)).mean(), for_score
    )
    for a, b in zip(ours, [*flow_direct, *score_direct], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.abs().max()))


@pytest.mark.slow
def test_exponential_integrators_work_on_a_trained_cld():
    """A small network, trained in NLL mode on two modes: DEIS in 120 steps ends where RK45 does."""
    torch.manual_seed(0)
    sde = CLD()
    model = INDM(Identity(), MLP(4, time_feature=lambda t: 5 * t.sqrt(), width=64, depth=2), sde, shape=(D,))
    optimiser, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), rng(0)
    for _ in range(600):
        x = 0.3 * torch.randn(256, D, generator=generator) + torch.where(
            torch.rand(256, 1, generator=generator) < 0.5, -1, 1
        )
        model(x, generator=generator).objective.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    u = model.sample_start(torch.zeros(200, D, 2), rng(1))
    exact = sample_ode(sde, model.score, u, uniform_times(sde, 1), rtol=1e-6, atol=1e-6)
    found = sample_deis(sde, model.score, u, power_times(sde, 120, 2.0), order=2)
    assert float((found - exact)[..., 0].abs().median()) < 0.05
    assert float(exact[..., 0].std()) == pytest.approx(1.04, abs=0.15)
