r"""Maps score -> score on Gaussian laws, whose conditional laws and posterior means are known."""

from __future__ import annotations

import pytest
import torch
from problems import Gaussian, ids, randn, rng, scalar
from torch import Tensor

from indm_core.collage import BlockMeans, Grey, Pixels, guided, reconstruction, replacement, sample_collage
from indm_core.collage.conditions import posterior_mean
from indm_core.sample import power_times
from indm_core.sde import CLD, VE, VP, SubVP

PIXELWISE = pytest.mark.parametrize("sde", [VP(), SubVP(), VE(sigma_min=0.01, sigma_max=10.0), CLD()], ids=ids)


def gaussian(sde, d: int, seed: int = 0, shape: tuple[int, ...] = ()) -> Gaussian:
    root = randn(d, d, seed=seed)
    return Gaussian(sde=sde, mean=randn(d, seed=seed + 1), cov=root @ root.mT / d + 0.2 * torch.eye(d), shape=shape)


def dense_posterior(law: Gaussian, u: Tensor, t: Tensor) -> Tensor:
    """E[x | u] of the joint Gaussian of x and u = A x + noise."""
    mean, cov = law.moments(t)
    none = Gaussian(sde=law.sde, mean=torch.zeros_like(law.mean), cov=torch.zeros_like(law.cov))
    _, noise = none.moments(t)
    k = len(mean) // len(law.mean)
    A = torch.kron(torch.eye(len(law.mean), dtype=torch.float64), law.sde.psi0(t)[..., :1].reshape(k, 1))
    assert torch.allclose(A @ law.cov @ A.mT + noise, cov)
    gain = law.cov @ A.mT @ torch.linalg.inv(cov)
    return law.mean + (u.reshape(len(u), -1) - mean) @ gain.mT


@PIXELWISE
@pytest.mark.parametrize("t", [0.05, 0.7])
def test_the_posterior_mean_is_that_of_the_joint_law(sde, t):
    law, t = gaussian(sde, 4), scalar(t)
    u = law.sample(3, t, rng())
    assert torch.allclose(posterior_mean(sde, u, t, law.score(u, t)), dense_posterior(law, u, t), atol=1e-9)
    each = t.expand(3).reshape(3, 1)
    assert torch.allclose(posterior_mean(sde, u, each, law.score(u, each)), dense_posterior(law, u, t), atol=1e-9)


OBSERVATIONS = {
    "pixels": Pixels(torch.tensor([[True, False, True, True], [False, False, True, False]])),
    "blocks": BlockMeans(2),
    "grey": Grey(3),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_what_is_lifted_is_an_orthogonal_projection(name):
    observation, x = OBSERVATIONS[name], randn(2, 3, 2, 4)

    def project(x):
        return observation.lift(observation.measure(x))

    assert torch.allclose(project(project(x)), project(x))
    other = randn(2, 3, 2, 4, seed=1)
    assert torch.allclose((project(x) * other).sum(), (x * project(other)).sum())
    y = observation.measure(x)
    assert torch.allclose(observation.measure(observation.lift(y)), y)


@PIXELWISE
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_reconstruction_is_the_gradient_in_closed_form(sde, name):
    observation, law, t = OBSERVATIONS[name], gaussian(sde, 24, shape=(3, 2, 4)), scalar(0.3)
    u, y = law.sample(2, t, rng()), observation.measure(randn(1, 3, 2, 4, seed=7))
    got = reconstruction(law.score, sde, observation, y, 0.7)(u, t)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: dense_posterior(Gaussian(sde=sde, mean=law.mean, cov=law.cov), v.unsqueeze(0), t).squeeze(0),
        u[0].flatten(),
    )
    x_hat = dense_posterior(Gaussian(sde=sde, mean=law.mean, cov=law.cov), u, t).reshape(2, 3, 2, 4)
    error = observation.measure(x_hat) - y
    eye = torch.eye(24, dtype=torch.float64).reshape(24, 3, 2, 4)
    A = observation.measure(eye).reshape(24, -1).mT
    pull = error.flatten(1) @ torch.linalg.pinv(A).mT @ jacobian * float(sde.signal(t)[0]) ** 2
    wanted = law.score(u, t) - 0.7 * pull.reshape(u.shape)
    assert torch.allclose(got, wanted, atol=1e-8 * float(wanted.abs().max()))
    assert not got.requires_grad


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_reconstruction_is_exact_where_all_that_is_known_of_x_is_its_noised_state(name):
    """Of a flat law x | u ~ N(u/p, r^2/p^2), so that y = A x given u has the covariance A A^T r^2/p^2 about A u/p."""
    sde, observation, t = VP(), OBSERVATIONS[name], scalar(0.3)
    eye = torch.eye(24, dtype=torch.float64)
    law = Gaussian(sde=sde, mean=0 * eye[0], cov=1e8 * eye, shape=(3, 2, 4))
    u, y = randn(2, 3, 2, 4, 1), observation.measure(randn(1, 3, 2, 4, seed=7))
    p, r = float(sde.psi0(t)), float(sde.R(t))
    A = observation.measure(torch.eye(24, dtype=torch.float64).reshape(24, 3, 2, 4)).reshape(24, -1).mT
    off = y.flatten(1) - u.flatten(1) @ A.mT / p
    wanted = (off @ torch.linalg.pinv(A @ A.mT) @ A * p / r**2).reshape(u.shape)
    assert torch.allclose(reconstruction(law.score, sde, observation, y)(u, t), wanted, atol=1e-5)


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_replacement_ends_in_what_is_known_and_with_many_steps_samples_the_rest_given_it(sde):
    law, num = gaussian(sde, 4, seed=3), 200
    known = torch.tensor([True, False, True, False])
    x = torch.tensor([[0.5, 0.0, -1.0, 0.0]], dtype=torch.float64)
    a, b = known.nonzero().flatten(), (~known).nonzero().flatten()
    mean = law.mean[b] + law.cov[b][:, a] @ torch.linalg.inv(law.cov[a][:, a]) @ (x[0, a] - law.mean[a])
    score = replacement(law.score, sde, Pixels(known), x)
    u = sde.sample_prior(randn(num, 4, len(sde.prior_cov())), rng(1))
    error = []
    for langevin_steps in (2, 40):
        options = {"step": 0.2, "langevin_steps": langevin_steps, "generator": rng(2)}
        got = sde.project(sample_collage(sde, score, u, power_times(sde, 20, 2.0), **options))
        assert (got[:, known] - x[:, known]).abs().max() < 0.15
        error.append(float((got[:, b].mean(0) - mean).norm()))
    assert error[1] < 0.7 * error[0]


def test_replacement_moves_positions_that_are_seen_alone():
    sde, t = VP(), scalar(0.4)
    law, u = gaussian(sde, 24, shape=(3, 2, 4)), randn(2, 3, 2, 4, 1)
    y = OBSERVATIONS["pixels"].measure(randn(2, 3, 2, 4, seed=5))
    got, s = replacement(law.score, sde, OBSERVATIONS["pixels"], y)(u, t), law.score(u, t)
    known = OBSERVATIONS["pixels"].known.expand(2, 3, 2, 4).unsqueeze(-1)
    assert torch.equal(got[~known], s[~known])
    pull = -(u - float(sde.psi0(t)) * y.unsqueeze(-1)) / float(sde.cov(t))
    assert torch.allclose(got[known], pull[known])


def test_guidance_extrapolates_from_no_class():
    seen = []

    def score(u, t, y):
        seen.append((len(u), t.ndim))
        return u * (y + 2).reshape(-1, 1, 1)

    u, y, null = randn(3, 2, 1), torch.tensor([0, 4, 1]), torch.tensor(-1)
    assert torch.equal(guided(score, 0.0, null)(u, scalar(0.1), y), score(u, scalar(0.1), y))
    got = guided(score, 1.5, null)(u, torch.full((3, 1), 0.1), y)
    assert torch.allclose(got, u * (y + 2 + 1.5 * (y + 1)).reshape(3, 1, 1))
    assert seen[-1] == (6, 2)
    with pytest.raises(ValueError, match="y: guidance needs a label"):
        guided(score, 1.0, null)(u, scalar(0.1))
    with pytest.raises(ValueError, match="weight=-1"):
        guided(score, -1.0, null)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="factor=3 does not divide the sides 4 x 6"):
        BlockMeans(3).measure(randn(1, 1, 4, 6))
