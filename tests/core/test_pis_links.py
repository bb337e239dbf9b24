"""Links of the path integral sampler to models: samples that are reweighted, and a latent given part of the data."""

from __future__ import annotations

import math

import pytest
import torch
from problems import ExactModel, Gaussian, randn, rng
from torch import Tensor, nn

from indm_core.exponential import sample_deis
from indm_core.pis.amortised import Family
from indm_core.pis.latents import LatentFamily, decoded, latent_posterior
from indm_core.pis.reweighted import Reweighted, gaussian_proposal, model_proposal
from indm_core.pis.targets import GaussianMixture
from indm_core.sde import VP
from indm_core.times import power_times

F64 = torch.float64
MEAN, COV = torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=F64)
LAW = Gaussian(sde=VP(), mean=MEAN, cov=COV)


def model() -> ExactModel:
    """A linear diffusion of a Gaussian with its exact score and law at the start."""
    found = ExactModel(LAW)
    found.dtype = nn.Parameter(torch.zeros((), dtype=F64), requires_grad=False)  # samples have that of the parameters
    return found


def target(scale: float = 1.0) -> GaussianMixture:
    return GaussianMixture(MEAN[None], covs=scale * COV[None])


def test_a_gaussian_that_is_the_target_has_weights_that_are_its_constant():
    mean, log_std = randn(3), 0.3 * randn(3, seed=1)
    law = GaussianMixture(mean[None], stds=log_std.exp()[None])
    drawn = gaussian_proposal(mean, log_std)(law, 20, generator=rng())
    torch.testing.assert_close(drawn.log_w, torch.zeros(20, dtype=F64), rtol=0, atol=1e-12)
    assert drawn.evaluations == 20


def test_weights_of_another_gaussian_are_unbiased():
    law = GaussianMixture(torch.tensor([[0.5, -0.2]], dtype=F64), covs=COV[None])
    drawn = gaussian_proposal(torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))(law, 5000, generator=rng())
    assert abs(drawn.log_z.value) < 5 * drawn.log_z.se < 0.1
    assert drawn.bound.value < drawn.log_z.value
    w = drawn.log_w.softmax(0)
    error = w @ drawn.x - law.means[0]
    assert (error.abs() < 5 * (w[:, None] * (drawn.x - law.means[0])).square().sum(0).sqrt()).all()


def test_a_models_samples_are_weighted_by_its_own_density():
    """Of the exact model of a Gaussian: its law at t_min is known, and so is every weight."""
    exact, num = model(), 100
    drawn = model_proposal(exact)(target(), num, generator=rng())
    t_min = torch.tensor(exact.sde.t_min, dtype=F64)
    known = target().log_prob(drawn.x) - LAW.log_prob(exact.sde.embed(drawn.x), t_min)
    torch.testing.assert_close(drawn.log_w, known.to(drawn.log_w), rtol=0, atol=2e-3)
    wider = model_proposal(exact)(target(0.6), num, generator=rng())
    assert abs(wider.log_z.value) < 5 * wider.log_z.se < 0.3


def grid(exact: ExactModel, num: int) -> Tensor:
    return power_times(exact.sde, num, 2.0)


def test_ddim_comes_to_the_affine_map_of_a_gaussians_ode():
    """Of a scalar Gaussian the ODE keeps a point's place in units of the standard deviation."""
    law = Gaussian(sde=VP(), mean=torch.tensor([0.7], dtype=F64), cov=torch.tensor([[0.3]], dtype=F64))
    exact = ExactModel(law)
    ends = [law.moments(torch.tensor(t, dtype=F64)) for t in (exact.t_start, exact.sde.t_min)]
    (m_1, c_1), (m_0, c_0) = ends
    z = randn(5, 1)
    known = m_0 + (c_0 / c_1).sqrt() * (z - m_1)
    errors = [float((decoded(exact, z, grid(exact, n)) - known).abs().max()) for n in (20, 40, 80)]
    assert errors[2] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_ddim_is_the_samplers():
    exact, z = model(), randn(4, 2)
    ts = grid(exact, 7)
    found = exact.decode(sample_deis(exact.sde, exact.score, exact.sde.embed(z), ts, order=0))
    torch.testing.assert_close(decoded(exact, z, ts), found)


def test_the_posterior_of_the_start_is_that_of_the_map():
    """x(z) of a Gaussian model is affine, so Z = p(y) is a Gaussian's density, and so is the posterior's mode."""
    exact, sigma, known = model(), 0.3, torch.tensor([True, False])
    ts, y = grid(exact, 10), torch.tensor([0.9], dtype=F64)
    law = latent_posterior(exact, y, known, sigma=sigma, ts=ts)
    at_0 = decoded(exact, torch.zeros(1, 2, dtype=F64), ts)[0]
    A = decoded(exact, torch.eye(2, dtype=F64), ts) - at_0  # rows: images of the axes
    m, c = LAW.moments(torch.tensor(exact.t_start, dtype=F64))
    mean, var = (at_0 + m @ A)[0], (A.mT @ c @ A)[0, 0] + sigma**2
    exact_log_z = float(torch.distributions.Normal(mean, var.sqrt()).log_prob(y[0]))
    line = torch.linspace(-7, 7, 281, dtype=F64)
    total = law.log_prob(torch.cartesian_prod(line, line)).logsumexp(0) + 2 * math.log(0.05)
    assert float(total) == pytest.approx(exact_log_z, abs=1e-8)
    proposal = gaussian_proposal(m, torch.full((2,), math.log(1.2), dtype=F64))
    found = proposal(law, 20_000, generator=rng()).log_z
    assert abs(found.value - exact_log_z) < 5 * found.se < 0.15
    gain = c @ A[:, 0] / var
    mode = (m + gain * (y[0] - mean)).requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(mode[None]).sum(), mode)
    assert slope.abs().max() < 1e-9


def test_the_family_of_the_start_observes_the_model_and_has_its_posteriors():
    exact, known, ts = model(), torch.tensor([True, False]), grid(model(), 10)
    family = LatentFamily(model=exact, known=known, sigma=0.3, ts=ts)
    at_0 = decoded(exact, torch.zeros(1, 2, dtype=F64), ts)[0]
    A = decoded(exact, torch.eye(2, dtype=F64), ts) - at_0
    m, c = LAW.moments(torch.tensor(exact.t_start, dtype=F64))
    mean, var = (at_0 + m @ A)[0], (A.mT @ c @ A)[0, 0] + 0.3**2
    y = family.observe(4000, rng())
    assert y.shape == (4000, 1)
    assert abs(y.mean() - mean) < 5 * (var / 4000).sqrt()
    assert abs(y.var() / var - 1) < 5 * math.sqrt(2 / 4000)
    z, ys = randn(3, 2), y[:3]
    each = [latent_posterior(exact, one, known, sigma=0.3, ts=ts).log_prob(z)[i] for i, one in enumerate(ys)]
    torch.testing.assert_close(family.log_prob(z, ys), torch.stack(each))
    assert isinstance(family, Family)


def test_what_is_refused():
    exact, known, y = model(), torch.tensor([True, False]), torch.zeros(1)
    ts = grid(exact, 4)
    with pytest.raises(ValueError, match="y of"):
        latent_posterior(exact, torch.zeros(2), known, sigma=0.1, ts=ts)
    with pytest.raises(ValueError, match="known of the shape"):
        latent_posterior(exact, y, known[:1], sigma=0.1, ts=ts)
    with pytest.raises(ValueError, match="sigma=0"):
        latent_posterior(exact, y, known, sigma=0.0, ts=ts)
    with pytest.raises(ValueError, match="t_start"):
        latent_posterior(exact, y, known, sigma=0.1, ts=ts[1:])
    proposal = Reweighted(sample=lambda num, _: torch.zeros(num, 3), log_prob=lambda x: x.sum(1))
    with pytest.raises(ValueError, match=r"sample gave the shape \(5, 3\)"):
        proposal(target(), 5)


def test_a_density_of_another_shape_is_refused_and_named():
    proposal = gaussian_proposal(torch.zeros(2), torch.zeros(2))
    law = target()
    law.log_prob = lambda x: -x.square().sum(1, keepdim=True)
    with pytest.raises(ValueError, match=r"target GaussianMixture: log_prob gave the shape \(5, 1\)"):
        proposal(law, 5)
