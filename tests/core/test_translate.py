"""What a bridge carries from one data set to the other: laws and maps against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, Affine, ExactModel, Gaussian, ids, randn, rng, scalar

from indm_core.draw import start_times, translate_backward, translate_forward
from indm_core.exponential import sample_deis
from indm_core.sample import sample_ode
from indm_core.sde import CLD, VP
from indm_core.times import power_times

MEAN, COV = torch.tensor([0.4, -0.7]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
NUM = 20_000


def bridge(sde, exact_start: bool = False) -> ExactModel:
    """Latents h(x) of the first set ~ N(MEAN, COV) under an affine h, with the exact score."""
    flow = Affine(torch.tensor([[1.2, 0.3], [-0.4, 0.8]]).double(), torch.tensor([0.1, -0.2]).double())
    law = Gaussian(sde=sde, mean=MEAN, cov=COV)
    return ExactModel(law, flow=flow, exact_start=exact_start).double()


def has_moments(z: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> None:
    """Mean and covariance of Gaussian rows within five standard errors."""
    n, found = len(z), torch.cov(z.T)
    assert ((z.mean(0) - mean).abs() < 5 * (cov.diagonal() / n).sqrt()).all()
    error = ((cov.square() + torch.outer(cov.diagonal(), cov.diagonal())) / n).sqrt()
    assert ((found - cov).abs() < 5 * error).all()


def ode(sde, score, u, ts, generator):
    return sample_ode(sde, score, u, ts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=ids)
def test_the_ode_carries_forward_and_back_to_where_it_came_from(sde):
    """For K = 1 the two maps are inverses of each other; CLD's velocities are drawn anew."""
    model = bridge(sde)
    x = model.flow.inverse(MEAN + randn(16, 2, seed=1) @ torch.linalg.cholesky(COV).T)
    y = translate_forward(model, x, deterministic=True, rtol=1e-9, atol=1e-9)
    assert y.shape == x.shape
    again = translate_forward(model, x, deterministic=True, rtol=1e-9, atol=1e-9, generator=rng(9))
    assert torch.equal(y, again)
    if sde.prior_cov().shape[-1] == 1:
        back = translate_backward(model, y, ode, start_times(model), denoise=False)
        torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


def test_the_ode_s_map_is_the_optimal_one_of_one_dimension():
    """Between Gaussians of one dimension a flow that keeps order is u_T = m_T + (s_T/s_0) (u_0 - m_0)."""
    sde, mean, var = VP(), torch.tensor([0.7]).double(), torch.tensor([[0.4]]).double()
    law = Gaussian(sde=sde, mean=mean, cov=var)
    model = ExactModel(law).double()
    x = mean + var.sqrt() * randn(32, 1, seed=2)
    (m_0, v_0), (m_T, v_T) = (law.moments(scalar(t)) for t in (sde.t_min, sde.t_max))
    expected = m_T + (v_T / v_0).sqrt().squeeze() * (x - m_0)
    y = translate_forward(model, x, deterministic=True, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=ids)
def test_the_diffusion_s_end_has_its_law_whatever_it_came_from(sde):
    """h(y) given x is N(psi embed(h(x)), Sigma_T), seen in its positions."""
    model = bridge(sde)
    x = randn(1, 2, seed=3).expand(NUM, 2)
    z, _ = model.flow(translate_forward(model, x, generator=rng(4)).detach())
    T = scalar(sde.t_max)
    end = sde.psi0(T) @ sde.embed(model.flow(x[:1])[0]).unsqueeze(-1)
    cov = torch.diag(sde.cov(T)[..., 0, 0].expand(2))
    has_moments(z.detach(), sde.project(end.squeeze(-1)).squeeze(0).detach(), cov)


@pytest.mark.parametrize("sde", [VP(), CLD(t_min=1e-3)], ids=ids)
def test_the_second_set_is_carried_to_the_law_of_the_first(sde):
    """y = h^-1(z), z ~ pi: what comes out has the latent law N(MEAN, COV), up to what pi and the law at T differ by."""

    def deis(sde, score, u, ts, generator):
        return sample_deis(sde, score, u, ts, order=3)

    model, ts = bridge(sde), power_times(sde, 100, 2.0)
    prior = math.sqrt(float(sde.prior_cov().flatten()[0]))
    y = model.flow.inverse(prior * randn(NUM, 2, seed=5)).detach()
    z, _ = model.flow(translate_backward(model, y, deis, ts, denoise=False, generator=rng(6)))
    law = model.law
    mean, cov = law.moments(scalar(sde.t_min))
    at = slice(None) if sde.prior_cov().shape[-1] == 1 else slice(0, None, 2)
    has_moments(z.detach(), mean[at], cov[at, at])


@pytest.mark.parametrize("sde", [VP(), SDES[-1]], ids=ids)
def test_states_begin_at_the_prior_given_their_positions(sde):
    """First coordinates are h(y); the others are pi's, given them: regression and residual variance."""
    model, seen = bridge(sde), []

    def sampler(sde, score, u, ts, generator):
        seen.append(u)
        return u

    y = model.flow.inverse(randn(NUM, 2, seed=7)).detach()
    translate_backward(model, y, sampler, start_times(model), denoise=False, generator=rng(8))
    (u,), z = seen, model.flow(y)[0].detach()
    torch.testing.assert_close(u[..., 0], z, rtol=1e-12, atol=1e-12)
    if u.shape[-1] == 1:
        return
    pi = sde.prior_cov()
    slope, rest = pi[:, 1, 0] / pi[:, 0, 0], pi[:, 1, 1] - pi[:, 1, 0] ** 2 / pi[:, 0, 0]
    residual = u[..., 1] - slope * z
    has_moments(residual, torch.zeros(2).double(), torch.diag(rest))
    correlation = (residual * z).mean(0) / (rest.sqrt() * z.std(0))
    assert (correlation.abs() < 5 / math.sqrt(NUM)).all()
