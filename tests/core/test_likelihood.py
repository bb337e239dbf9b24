"""Likelihoods against Gaussian laws whose log-densities are known: NLL, NELBO, residual, control variate, bits/dim.

`EXACT` is a correlated Gaussian behind an affine flow, with the exact score and the exact law at t_max.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from problems import ISOTROPIC_SDES, SDES, Affine, Coupled, ExactModel, Gaussian, Mixture, ids, randn, rng, scalar
from torch import Tensor

from indm_core.likelihood import bits_per_dim, dequantise, log_prob_u, nelbo, nll, quantise
from indm_core.sde import VP

EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)
ISOTROPIC = pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
COV = torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
TIGHT = {"exact_divergence": True, "rtol": 1e-8, "atol": 1e-8}


def exact(sde, **options) -> ExactModel:
    """Latents N(MEAN, COV); data through an affine flow."""
    flow = Affine(torch.tensor([[1.2, 0.3], [-0.4, 0.9]]).double(), torch.tensor([0.1, -0.2]).double())
    return ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV), flow=flow, **options).requires_grad_(False)


def data(model: ExactModel, num: int, seed: int = 0) -> Tensor:
    z = model.law.mean + randn(num, len(MEAN), seed=seed) @ torch.linalg.cholesky(model.law.cov).T
    return model.flow.inverse(z)


def data_nodes(model: ExactModel, order: int = 3) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes of the data's law and their weights."""
    eps, weights = hermite(2, order)
    return model.flow.inverse(model.law.mean + eps @ torch.linalg.cholesky(model.law.cov).T), weights


def hermite(dims: int, order: int = 2) -> tuple[Tensor, Tensor]:
    """Nodes (n, dims) and weights (n,) of N(0, I): exact for polynomials of degree 2 order - 1 in each axis."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    nodes = torch.tensor(list(product(x, repeat=dims)), dtype=torch.float64)
    weights = torch.tensor(list(product(w / w.sum(), repeat=dims)), dtype=torch.float64).prod(1)
    return nodes, weights


def quadrature(sde, eps: Tensor, num_times: int = 64) -> list[tuple[Tensor, Tensor, float]]:
    """Nodes of the NELBO at one noise per row: Gauss-Legendre in log t where Sigma_0 = 0, in t where it is not."""
    s, w = np.polynomial.legendre.leggauss(num_times)
    if float(sde.cov(scalar(0.0)).max()) == 0:
        low, high = math.log(sde.t_min), math.log(sde.t_max)
        times = np.exp(low + (s + 1) / 2 * (high - low))
        mass = w / 2 * (high - low) * times
    else:
        times = sde.t_min + (s + 1) / 2 * (sde.t_max - sde.t_min)
        mass = w / 2 * (sde.t_max - sde.t_min)
    return [(scalar(t), eps, float(m)) for t, m in zip(times, mass, strict=True)]


def all_nodes(model: ExactModel) -> tuple[Tensor, Tensor, Tensor]:
    """Data, noise and weight of each pair of a data node and a noise node: what integrates quadratics of both."""
    x, x_weights = data_nodes(model)
    event = model.state_like(1, MEAN).shape[1:]
    eps, eps_weights = hermite(math.prod(event))
    rows, noise = x.repeat_interleave(len(eps), 0), eps.repeat(len(x), 1).reshape(-1, *event)
    return rows, noise, x_weights.repeat_interleave(len(eps)) * eps_weights.repeat(len(x))


def residual_loss(model: ExactModel) -> float:
    """What the residual's p(x | u) loses at t_min, the divergence of two Gaussians: it is the posterior of data of infinite
    width. Below 1e-6 nats where the noise at t_min is small; `Coupled` begins with a noise of variance .05."""
    sde, t = model.sde, scalar(model.sde.t_min)
    psi, cov = (torch.block_diag(*A.expand(2, *A.shape[-2:])) for A in (sde.psi0(t), sde.cov(t)))
    A = psi @ sde.embed(torch.eye(2).double()).flatten(1).T
    precision = A.T @ torch.linalg.inv(cov) @ A
    posterior = torch.linalg.inv(torch.linalg.inv(COV) + precision)
    normal, zeros = torch.distributions.MultivariateNormal, torch.zeros(2).double()
    loss = torch.distributions.kl_divergence(normal(zeros, posterior), normal(zeros, torch.linalg.inv(precision)))
    assert isinstance(sde, Coupled) or float(loss) < 1e-6
    return float(loss)


@EVERY
def test_log_prob_u_is_the_log_density_of_the_law(sde):
    """Exact score, divergence and law at t_max: 1e-5 nats per coordinate at t_min and at later times."""
    model = exact(sde)
    for t in (sde.t_min, 0.1, 0.6):
        u = model.law.sample(16, scalar(t), rng(1))
        ours = log_prob_u(model, u, t, **TIGHT)
        torch.testing.assert_close(ours, model.law.log_prob(u, scalar(t)), rtol=0, atol=1e-5 * u[0].numel())


@ISOTROPIC
def test_log_prob_u_at_other_tolerances(sde):
    """1e-6 gives the 1e-5 nats per coordinate; the default 1e-5 gives 1e-5 nats for most samples, 3e-4 for the worst."""
    model = exact(sde)
    u = model.law.sample(200, scalar(sde.t_min), rng(1))
    for tolerance, worst in ((1e-6, 2e-5), (1e-5, 5e-4)):
        ours = log_prob_u(model, u, sde.t_min, exact_divergence=True, rtol=tolerance, atol=tolerance)
        error = (ours - model.law.log_prob(u, scalar(sde.t_min))).abs()
        assert float(error.max()) < worst
        assert float(error.mean()) < 5 * tolerance


def test_log_prob_u_of_a_mixture():
    """A score that is not linear: two modes, correlated."""
    sde = VP()
    parts = [Gaussian(sde=sde, mean=m * MEAN, cov=c * COV) for m, c in ((2.0, 0.3), (-2.0, 0.2))]
    law = Mixture(weights=torch.tensor([0.3, 0.7]).double(), components=tuple(parts))
    u = law.sample(16, scalar(1e-3), rng(0))
    ours = log_prob_u(ExactModel(law), u, 1e-3, **TIGHT)
    torch.testing.assert_close(ours, law.log_prob(u, scalar(1e-3)), rtol=0, atol=2e-5)


@EVERY
def test_log_prob_u_at_t_max_is_that_of_the_start(sde):
    model = exact(sde)
    u = model.law.sample(4, scalar(1.0), rng(0))
    torch.testing.assert_close(log_prob_u(model, u, 1.0), model.log_prob_start(u), rtol=0, atol=1e-12)


@EVERY
def test_hutchinson_is_unbiased(sde):
    """Rademacher probes held along a trajectory: the mean over probes is the exact divergence."""
    model = exact(sde)
    u = model.law.sample(1, scalar(sde.t_min), rng(1))
    probed = log_prob_u(model, u.expand(400, *u.shape[1:]), sde.t_min, rtol=1e-7, atol=1e-7, generator=rng(2))
    direct = log_prob_u(model, u, sde.t_min, **TIGHT)
    standard_error = float(probed.std()) / 20
    assert standard_error > 1e-4  # the probe matters: the divergence is not diagonal
    assert abs(float(probed.mean() - direct)) < 5 * standard_error
    several = log_prob_u(
        model, u.expand(400, *u.shape[1:]), sde.t_min, num_probes=4, rtol=1e-7, atol=1e-7, generator=rng(3)
    )
    assert abs(float(several.mean() - direct)) < 5 * float(several.std()) / 20
    assert float(several.var() / probed.var()) == pytest.approx(0.25, abs=0.12)


@EVERY
def test_nll_agrees_with_the_data_law(sde):
    """Over x and the draw at t_min: the residual makes -log p_{t_min} an estimate of -log p(x)."""
    model = exact(sde)
    x = data(model, 400)
    difference = nll(model, x, generator=rng(3), **TIGHT) + model.log_prob(x)
    standard_error = float(difference.std()) / 20
    assert abs(float(difference.mean()) - residual_loss(model)) < 5 * standard_error + 1e-7  # of the ODE
    assert standard_error < (1e-2 if sde == Coupled() else 1e-4)


@ISOTROPIC
def test_nll_with_probes_and_default_tolerances_agrees_with_the_data_law(sde):
    model = exact(sde)
    x = data(model, 2000)
    difference = nll(model, x, generator=rng(4)) + model.log_prob(x)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(2000)


@ISOTROPIC
def test_nll_before_correction_feeds_x_at_t_min(sde):
    model = exact(sde)
    x = data(model, 8)
    u, log_det = model.encode(x)
    direct = -log_det - model.law.log_prob(u, scalar(sde.t_min))
    torch.testing.assert_close(nll(model, x, residual=False, **TIGHT), direct, rtol=0, atol=2e-5)


@ISOTROPIC
def test_the_mismatch_of_the_prior_is_its_kullback_leibler_divergence(sde):
    """With pi in place of the exact law the NLL rises by KL(p_T | pi): 1e-5 nats per dimension for VP."""
    model, with_prior = exact(sde), exact(sde, exact_start=False)
    x, weights = data_nodes(model)
    eps, share = hermite(2)
    rise = 0.0
    for e, p in zip(eps, share, strict=True):  # u at t_min over its law: data nodes times noise nodes
        u = sde.perturb(model.encode(x)[0], scalar(sde.t_min), e.reshape(1, 2, 1).expand(len(x), 2, 1))
        with_pi, with_law = (log_prob_u(m, u, sde.t_min, **TIGHT) for m in (with_prior, model))
        rise += float(p * (weights * (with_law - with_pi)).sum())
    mean, cov = model.law.moments(scalar(sde.t_max))
    law = torch.distributions.MultivariateNormal(mean, cov)
    prior_cov = float(sde.prior_cov()) * torch.eye(2).double()
    pi = torch.distributions.MultivariateNormal(torch.zeros(2).double(), prior_cov)
    divergence = float(torch.distributions.kl_divergence(law, pi))
    assert rise == pytest.approx(divergence, abs=1e-9, rel=1e-4)
    assert divergence < 2 * 4e-4


def test_one_score_evaluation_serves_drift_and_divergence():
    calls = 0

    class Counted(ExactModel):
        def score(self, u, t, y=None):
            nonlocal calls
            calls += 1
            return super().score(u, t)

    model = Counted(Gaussian(sde=VP(), mean=MEAN, cov=COV))
    u = model.law.sample(1, scalar(1e-5), rng(0))
    log_prob_u(model, u, 1e-5)
    single = calls
    calls = 0
    log_prob_u(model, u, 1e-5, exact_divergence=True)
    assert single > 10
    assert calls % 6 == single % 6 == 2  # a Dormand-Prince step is six evaluations, after two to begin with


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@EVERY
@pytest.mark.usefixtures("unchecked")
def test_nelbo_equals_nll_equals_the_entropy_by_quadrature(sde, t_min):
    """Theorem 1: under the exact score the bound is the NLL, both are the entropy of the data, to 1e-6 nats.

    Of `Coupled` alone the residual's p(x | u) is wider than the posterior, and its divergence is added.
    """
    model = exact(replace(sde, t_min=t_min))
    x, eps, weights = all_nodes(model)
    entropy = -float(weights @ model.log_prob(x))
    bound = float(weights @ nelbo(model, x, nodes=quadrature(model.sde, eps)))
    assert bound == pytest.approx(entropy + residual_loss(model), abs=1e-6)
    u_0, log_det = model.encode(x)
    u = model.sde.perturb(u_0, scalar(t_min), eps)
    eps_hat = model.sde.eps_from_score(model.score(u, scalar(t_min)), scalar(t_min))
    residual = model.sde.residual(scalar(t_min), eps, eps_hat)
    ode = float(weights @ (residual - log_det - log_prob_u(model, u, t_min, **TIGHT)))
    assert bound == pytest.approx(ode, abs=1e-6)


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@EVERY
@pytest.mark.usefixtures("unchecked")
def test_nelbo_without_residual_is_the_cross_entropy_at_t_min(sde, t_min):
    """For each x: E_q[-log p_{t_min}(u)] - log_det, an equality under the exact score."""
    model = exact(type(sde)(t_min=t_min))
    x, eps, weights = all_nodes(model)
    bound = nelbo(model, x, nodes=quadrature(model.sde, eps), residual=False)
    u_0, log_det = model.encode(x)
    direct = -log_det - model.law.log_prob(model.sde.perturb(u_0, scalar(t_min), eps), scalar(t_min))
    per_x = (weights * (bound - direct)).reshape(9, -1).sum(1) / weights.reshape(9, -1).sum(1)
    torch.testing.assert_close(per_x, torch.zeros_like(per_x), rtol=0, atol=1e-6)


@EVERY
def test_nodes_may_have_weights_and_times_per_row(sde):
    model = exact(sde)
    x, eps = data(model, 3), randn(*model.state_like(3, MEAN).shape, seed=4)
    together = nelbo(model, x, nodes=[(scalar(0.3), eps, 0.6), (scalar(0.8), -eps, 0.39999)])
    t = torch.full((3, 1), 0.3, dtype=torch.float64), torch.full((3, 1), 0.8, dtype=torch.float64)
    weights = torch.full((3,), 0.6, dtype=torch.float64), torch.full((3,), 0.39999, dtype=torch.float64)
    by_row = nelbo(model, x, nodes=[(t[0], eps, weights[0]), (t[1], -eps, weights[1])])
    torch.testing.assert_close(by_row, together, rtol=1e-12, atol=1e-12)
    alone = nelbo(model, x[:1], nodes=[(scalar(0.3), eps[:1], 0.6), (scalar(0.8), -eps[:1], 0.39999)])
    torch.testing.assert_close(alone, together[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_draws", [pytest.param(1, marks=pytest.mark.slow), 2, 16])
@pytest.mark.parametrize(
    "gain", [pytest.param(1.0, marks=pytest.mark.slow, id="exact score"), pytest.param(1.1, id="wrong score")]
)
@EVERY
@pytest.mark.usefixtures("unchecked")
def test_nelbo_by_draws_is_unbiased(sde, gain, num_draws):
    """Replicate batches of one x agree with the quadrature within 5 standard errors, control variate included."""
    model = exact(sde, gain=gain)
    nodes, eps, weights = all_nodes(model)
    x, first = nodes[:1], len(nodes) // 9
    rows = nelbo(model, x.expand(first, 2), nodes=quadrature(sde, eps[:first]))
    direct = float(weights[:first] @ rows / weights[:first].sum())
    generator = rng(num_draws)
    replicates = torch.stack(
        [nelbo(model, x.expand(64, 2), num_draws=num_draws, generator=generator).mean() for _ in range(24)]
    )
    assert abs(float(replicates.mean()) - direct) < 5 * float(replicates.std()) / math.sqrt(24)


@pytest.mark.usefixtures("unchecked")
def test_the_control_variate_lowers_the_variance():
    """From two draws on: stratified times are all that sixteen gain."""
    model = exact(VP())
    x, generator = data(model, 1).expand(64, 2), rng(0)
    variance = {
        n: float(torch.stack([nelbo(model, x, num_draws=n, generator=generator).mean() for _ in range(60)]).var())
        for n in (2, 16)
    }
    assert variance[2] < 0.1
    assert 16 * variance[16] < 1.25 * 2 * variance[2]


@pytest.mark.usefixtures("unchecked")
def test_the_sign_of_the_gap_is_no_theorem():
    """N(0, 1) data, VP, score -1.1 z: the ODE's NLL is 1.782, the NELBO 1.469, the generative SDE's NLL 1.428."""
    sde = VP()
    unit = Gaussian(sde=sde, mean=torch.zeros(1).double(), cov=torch.eye(1).double())
    model = ExactModel(unit, gain=1.1, exact_start=False)
    x, x_weights = hermite(1, 3)
    eps, eps_weights = hermite(1)
    rows, noise = x.repeat_interleave(2, 0), eps.repeat(3, 1).unsqueeze(-1)
    weights = x_weights.repeat_interleave(2) * eps_weights.repeat(3)
    bound = float(weights @ nelbo(model, rows, nodes=quadrature(sde, noise), residual=False))
    ode = float(x_weights @ nll(model, x, residual=False, **TIGHT))
    assert round(ode, 3) == 1.782
    assert round(bound, 3) == 1.469
    B = 0.1 + 19.9 / 2
    variance = 1 / 1.2 + (1 - 1 / 1.2) * math.exp(-1.2 * B)  # dv = (1 - 1.2 v) beta dtau from v = 1
    assert round(0.5 * math.log(2 * math.pi * variance) + 0.5 / variance, 3) == 1.428
    scale = math.exp(0.05 * B)  # the ODE stretches by exp(B/20)
    assert ode == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5 * scale**2 - 0.05 * B, abs=2e-5)


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (17, 4.087)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_uniform_noise_has_log2_of_its_levels_in_bits(levels, bits, low, high):
    """The density 1/(high - low)^D of dequantised uniform levels, in any range."""
    dims = 64
    nats = torch.full((1,), dims * math.log(high - low), dtype=torch.float64)
    assert float(bits_per_dim(nats, dims, levels, low, high)) == pytest.approx(bits, abs=5e-4)
    offset = {256: {0.0: 8, -1.0: 7}}.get(levels, {}).get(low)
    if offset is not None:
        assert float(bits_per_dim(torch.zeros(1), dims, levels, low, high)) == offset


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantisation_is_uniform_within_a_level(levels):
    k = torch.arange(levels).repeat(400, 1)
    x = dequantise(k, levels, -1.0, 1.0, rng(0))
    within = (x.double() + 1) / 2 * levels - k
    assert -1e-4 < float(within.min()) < float(within.max()) < 1 + 1e-4
    assert float(within.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * within.numel()))
    assert float(within.var()) == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(quantise(x, levels, -1.0, 1.0), k)
    torch.testing.assert_close(x, dequantise(k, levels, -1.0, 1.0, rng(0)), rtol=0, atol=0)


@pytest.mark.parametrize(("levels", "low", "high"), [(1, 0.0, 1.0), (256, 1.0, 1.0)])
def test_levels_out_of_range_are_named(levels, low, high):
    with pytest.raises(ValueError, match=f"levels={levels}"):
        bits_per_dim(torch.zeros(1), 4, levels, low, high)


def test_options_out_of_range_are_named():
    model = exact(VP())
    x = data(model, 2)
    u, _ = model.encode(x)
    with pytest.raises(ValueError, match="t=1e-06"):
        log_prob_u(model, u, 1e-6)
    with pytest.raises(ValueError, match="num_probes=0"):
        log_prob_u(model, u, 1e-3, num_probes=0)
    with pytest.raises(ValueError, match="rtol=0"):
        nll(model, x, rtol=0.0)
    for num_draws in (0, 3):
        with pytest.raises(ValueError, match=f"num_draws={num_draws}"):
            nelbo(model, x, num_draws=num_draws)


def test_a_sample_does_not_depend_on_its_batch():
    """One generator per sample: its NLL is the same alone and among others."""
    model = exact(VP())
    x = data(model, 5)
    together = nll(model, x, generator=[rng(i) for i in range(5)])
    alone = torch.cat([nll(model, x[i : i + 1], generator=[rng(i)]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


def test_an_empty_batch_has_no_likelihoods():
    model = exact(VP())
    assert nll(model, torch.zeros(0, 2).double()).shape == (0,)
    assert nll(model, torch.zeros(0, 2).double(), exact_divergence=True).shape == (0,)
    assert nelbo(model, torch.zeros(0, 2).double(), num_draws=8).shape == (0,)
