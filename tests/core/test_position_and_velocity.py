"""Likelihoods where a block couples coordinates: the bound uses all that the velocity says, and probes see the noise alone.

One position of data ~ N(0, v) has closed forms throughout; integrals over data and noise of quadratic functions are
Gauss-Hermite sums, exact to rounding.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import FIVE, Coupled, ExactModel, Gaussian, Mixture, ids, randn, rng, scalar
from test_likelihood import hermite
from torch import Tensor

from indm_core import likelihood
from indm_core.likelihood import log_prob_u, nelbo, nll
from indm_core.sde import BDM, CLD, VP, LinearSDE, apply, inverse

SETTINGS = [
    CLD(t_min=1e-3),
    CLD(t_min=1e-2),
    CLD(t_min=1e-3, beta=16.0),
    CLD(t_min=1e-3, vv_gamma=1e-3),
    CLD(t_min=1e-3, gamma=0.5),
]
EVERY = pytest.mark.parametrize("sde", [*FIVE, Coupled()], ids=ids)
OF_CLD = pytest.mark.parametrize("sde", SETTINGS, ids=str)


def model(sde: LinearSDE, cov: Tensor, **options) -> ExactModel:
    """Data ~ N(0, cov), their exact score and their exact law at t_max."""
    shape = (1, sde.height, sde.width) if isinstance(sde, BDM) else ()
    return ExactModel(Gaussian(sde=sde, mean=torch.zeros(len(cov)).double(), cov=cov, shape=shape), **options)


def correlated(d: int, rho: float = 0.8) -> Tensor:
    i = torch.arange(d).double()
    return rho ** (i.unsqueeze(1) - i).abs()


@OF_CLD
@pytest.mark.usefixtures("unchecked")
def test_the_bound_is_the_entropy_of_gaussian_data(sde):
    """Exact score and law: E[-log p_{t_min}(u) + residual] = entropy, but for the width of the data against 1/|q|.

    What is lost to it is the divergence between the Gaussians of variance 1/|q|^2 and v/(1 + v |q|^2). With what the position
    alone says it would be .05 to .42 bits/dim at the first four settings.
    """
    v, t = 0.25, scalar(sde.t_min)
    law = model(sde, torch.tensor([[v]]).double())
    nodes, weights = hermite(3, 3)
    z, eps = math.sqrt(v) * nodes[:, :1], nodes[:, None, 1:]
    u, residual = sde.enter(sde.embed(z), t, eps, law.score)
    entropy = 0.5 * math.log(2 * math.pi * math.e * v)
    excess = float(weights @ (residual - law.law.log_prob(u, t))) - entropy
    p = sde.psi0(t)[:, :1]
    shrunk = v * float(p.T @ inverse(sde.cov(t)) @ p)
    share = shrunk / (1 + shrunk)
    assert excess == pytest.approx(0.5 * (share - 1 - math.log(share)), abs=1e-9)
    assert 0 <= excess + 1e-9 < 2e-6
    nodes = [(t, eps, 1 - sde.t_min)]
    term = float(weights @ (nelbo(law, z, nodes=nodes) - nelbo(law, z, nodes=nodes, residual=False)))
    assert term == pytest.approx(float(weights @ residual), abs=1e-9)


@EVERY
def test_the_residual_is_of_a_density_whatever_the_score(sde):
    """q(u | x) exp(-residual) integrates over x to 1 at a fixed u and a score that has nothing to do with the law."""
    if isinstance(sde, BDM):
        return  # positions are frequencies, and each its own
    t, x = scalar(0.05), torch.linspace(-9, 9, 6001).double()
    positions = 2 if isinstance(sde, Coupled) else 1
    u = sde.perturb(sde.embed(randn(1, positions)), t, randn(1, positions, sde.psi0(t).shape[-1], seed=2))
    eps_hat = sde.eps_from_score(torch.sin(3 * u) - 0.5 * u, t)
    for i in range(positions):  # the others stay at 0, where their factor is divided out
        data = torch.zeros(len(x), positions).double()
        data[:, i] = x
        eps = apply(inverse(sde.R(t)), u - apply(sde.psi0(t), sde.embed(data)))
        log_q = -0.5 * (eps.square().sum((1, 2)) + u[0].numel() * math.log(2 * math.pi))
        log_q = log_q - torch.linalg.slogdet(sde.R(t).expand(positions, *sde.R(t).shape[-2:])).logabsdet.sum()
        log_p = log_q - sde.residual(t, eps, eps_hat.expand_as(eps))
        alone = positions == 1 or _log_p_at_zero(sde, t, u, eps_hat)[1 - i]
        density = log_p.exp() / (1.0 if positions == 1 else math.exp(alone))
        assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, abs=1e-6)


def _log_p_at_zero(sde: LinearSDE, t: Tensor, u: Tensor, eps_hat: Tensor) -> list[float]:
    """log p(x_i = 0 | u) of each position by generalised least squares: p x = R (R^-1 u - eps_hat) with noise R eps."""
    values = []
    for p, R, state, hat in zip(sde.psi0(t), sde.R(t), u[0], eps_hat[0], strict=True):
        precision = p[:, 0] @ torch.linalg.inv(R @ R.mT) @ p[:, 0]
        mean = p[:, 0] @ torch.linalg.inv(R @ R.mT) @ (state - R @ hat) / precision
        values.append(float(torch.distributions.Normal(mean, precision**-0.5).log_prob(scalar(0.0))))
    return values


@EVERY
def test_noise_acts_where_GG_is_not_zero(sde):
    u = torch.zeros(3, *((1, 2, 3) if isinstance(sde, BDM) else (2,)), sde.psi0(scalar(0.5)).shape[-1]).double()
    expected = torch.ones_like(u[:1])
    if isinstance(sde, CLD):
        expected[..., 0] = 0
    if isinstance(sde, Coupled):
        expected[:, 0, 0] = 0  # its second position has noise in both
    torch.testing.assert_close(sde.driven(u), expected, rtol=0, atol=0)


@EVERY
def test_velocity_and_divergence_against_the_whole_jacobian(sde):
    """A score that is not linear: the trace of d(drift - 1/2 GG^T s)/du, by rows of the full Jacobian, and its parts."""
    event = (1, 2, 3) if isinstance(sde, BDM) else (2,)
    k = sde.psi0(scalar(0.5)).shape[-1]
    mix = randn(math.prod(event) * k, math.prod(event) * k, seed=1)

    class Nonlinear(ExactModel):
        def score(self, u, t, y=None):
            return torch.sin(u.flatten(1) @ mix).reshape(u.shape) - u

    given = Nonlinear(Gaussian(sde=sde, mean=torch.zeros(2).double(), cov=torch.eye(2).double()))
    u, t = randn(3, *event, k), scalar(0.3)
    probes = likelihood._probes(sde, u, 1, True, None)
    assert len(probes) == int(sde.driven(u).sum())
    field = likelihood._Field(given, probes, 1.0, None)
    v, divergence = field(t, (u,), torch.arange(3))
    _, _, probed = field.evaluate(u, t, torch.arange(3))
    torch.testing.assert_close(v, sde.reverse_drift(u, t, given.score(u, t), lam=0.0), rtol=1e-12, atol=1e-12)
    for i in range(3):
        whole = lambda flat: sde.reverse_drift(w := flat.reshape(1, *event, k), t, given.score(w, t), lam=0.0).flatten()  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(whole, u[i].flatten())
        assert float(divergence[i]) == pytest.approx(float(jacobian.trace()), rel=1e-10, abs=1e-10)
    alone = u[:1].expand(4000, *event, k)
    many = likelihood._probes(sde, alone, 1, False, rng(3))
    assert bool((many * (1 - sde.driven(u)) == 0).all())
    _, _, draws = likelihood._Field(given, many, 1.0, None).evaluate(alone, t, torch.arange(4000))
    assert abs(float(draws.mean() - probed[0])) < 5 * float(draws.std()) / math.sqrt(4000) + 1e-9


@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_a_probe_on_cld_sees_nothing_of_independent_data(variance):
    """The velocity's block of GG^T ds/du is diagonal: every probe gives the exact divergence. Over the whole state their
    standard deviation would be 2 bits/dim."""
    given = model(CLD(t_min=1e-3), variance * torch.eye(16).double())
    u = given.law.sample(1, scalar(1e-3), rng(1))
    probed = log_prob_u(given, u.expand(4, 16, 2), 1e-3, generator=rng(2))
    exact = log_prob_u(given, u, 1e-3, exact_divergence=True)
    torch.testing.assert_close(probed, exact.expand(4), rtol=0, atol=1e-4)


def test_a_probe_on_cld_has_the_variance_of_the_velocities():
    """Of correlated data: 2 sum over i != j of (int 1/2 g^2 S_ij dt)^2, S the velocities' block of ds/du = -C^-1."""
    sde = CLD(t_min=1e-3)
    given = model(sde, correlated(3))
    r, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(100))
    low, high = math.sqrt(1e-3), 1.0
    r = low + (r + 1) / 2 * (high - low)
    times = r.square().reshape(-1, 1)
    precision = torch.linalg.inv(given.law.moments(times)[1]).reshape(-1, 3, 2, 3, 2)[:, :, 1, :, 1]
    g2 = float(sde.GG(scalar(0.5))[1, 1])
    integral = 0.5 * g2 * torch.einsum("n,nij->ij", weight * (high - low) * r, precision)
    expected = 2 * float(integral.square().sum() - integral.diagonal().square().sum())
    u = given.law.sample(1, scalar(1e-3), rng(1)).expand(400, 3, 2)
    probed = log_prob_u(given, u, 1e-3, rtol=1e-6, atol=1e-6, generator=rng(2))
    assert float(probed.var()) == pytest.approx(expected, rel=0.25)
    exact = given.law.log_prob(u[:1], scalar(1e-3))
    assert abs(float(probed.mean() - exact)) < 5 * float(probed.std()) / 20


def test_log_prob_u_of_a_mixture_of_two_velocities():
    """A score that is not linear in the velocity."""
    sde = CLD()
    parts = [
        Gaussian(sde=sde, mean=m * torch.ones(2).double(), cov=c * correlated(2)) for m, c in ((1.5, 0.3), (-1.5, 0.2))
    ]
    law = Mixture(weights=torch.tensor([0.3, 0.7]).double(), components=tuple(parts))
    u = law.sample(8, scalar(1e-2), rng(0))
    ours = log_prob_u(ExactModel(law), u, 1e-2, exact_divergence=True, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours, law.log_prob(u, scalar(1e-2)), rtol=0, atol=4e-5)


@OF_CLD
def test_the_nll_of_one_image_has_no_noise_left(sde):
    """p(x | u) is nearly the posterior, so that -log p(u) + log q(u | x) - log p(x | u) is -log p(x) at every single draw."""
    given = model(sde, torch.tensor([[1.0, 0.5], [0.5, 0.6]]).double())
    x = randn(6, 2) @ torch.linalg.cholesky(given.law.cov).T
    ours = nll(given, x, exact_divergence=True, rtol=1e-7, atol=1e-7, generator=rng(1))
    torch.testing.assert_close(ours, -given.log_prob(x), rtol=0, atol=0.1 if sde.t_min > 5e-3 else 0.02)


@pytest.mark.parametrize("sde", [VP(), CLD(t_min=1e-2)], ids=ids)
@pytest.mark.usefixtures("unchecked")
def test_one_image_alone_is_bounded_as_well_as_in_a_batch(sde):
    """Standard deviation of its NELBO over repetitions at a batch of one and in one of 64, of 16 draws in 8 strata.

    Without a control the eight pairs would leave c^2 D/2 of the importance's range squared, c = 1 in its early third.
    """
    d = 4
    given = model(sde, torch.eye(d).double())
    x, generator = randn(1, d), rng(0)
    alone = torch.cat([nelbo(given, x, num_draws=16, generator=generator) for _ in range(24)])
    batch = nelbo(given, x.expand(64, d), num_draws=16, generator=generator)
    assert 0.5 < float(alone.std() / batch.std()) < 1.7  # 1 +- .17
    first, last = sde.log_importance(torch.tensor([sde.t_min, 1.0]).double())
    uncontrolled = float(last - first) * math.sqrt(d / 2 / 8 / 3)
    assert float(alone.std()) < 0.4 * uncontrolled


@pytest.mark.parametrize("sde", [VP(), CLD(), BDM(height=1, width=2, sigma_blur_max=2.0)], ids=ids)
@pytest.mark.usefixtures("unchecked")
def test_the_bound_is_unbiased_for_every_number_of_draws(sde):
    """One row of a mixture, a score that is not linear: 1, 2, 8 and 16 draws agree with 64 within 5 standard errors."""
    shape = (1, 1, 2) if isinstance(sde, BDM) else ()
    parts = [
        Gaussian(sde=sde, mean=m * torch.ones(2).double(), cov=0.1 * torch.eye(2).double(), shape=shape)
        for m in (1.0, -1.0)
    ]
    given = ExactModel(Mixture(weights=torch.tensor([0.5, 0.5]).double(), components=tuple(parts)), gain=1.1)
    x = torch.tensor([[0.9, 1.2]]).double().reshape(1, *given.shape)
    found = {}
    for num_draws, num in ((1, 1000), (2, 500), (8, 150), (16, 80), (64, 40)):
        rows = nelbo(given, x.expand(num, *given.shape), num_draws=num_draws, generator=rng(num_draws))
        found[num_draws] = float(rows.mean()), float(rows.std()) / math.sqrt(num)
    mean, error = found.pop(64)
    for other, its_error in found.values():
        assert abs(other - mean) < 5 * math.hypot(error, its_error)
