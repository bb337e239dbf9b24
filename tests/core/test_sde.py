"""Linear SDEs: every coefficient against its differential equation, every derived quantity against a direct form."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from problems import ISOTROPIC_SDES, SDES, Coupled, Gaussian, ids, randn, rng, scalar
from torch import Tensor

from indm_core.checks import check_sde
from indm_core.sde import (
    BDM,
    CLD,
    VE,
    VP,
    LinearSDE,
    SubVP,
    apply,
    event_sum,
    gaussian_log_prob,
    inverse,
    log_abs_det,
    sqrt_psd,
)

EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)
COEFFICIENTS = pytest.mark.parametrize(
    "sde", [*SDES, CLD(), CLD(gamma=1.5), CLD(gamma=0.4), BDM(height=3, width=4)], ids=str
)
ISOTROPIC = pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
TIMES = [1e-5, 1e-3, 0.1, 0.5, 0.9]


def derivative(coefficient, t: float) -> Tensor:
    """d/dt of a tensor-valued function, by autograd."""
    return torch.autograd.functional.jacobian(coefficient, scalar(t))


def eye_like(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype).expand(A.shape)


def flat_block_diagonal(A: Tensor, d: int) -> Tensor:
    """The (dK, dK) matrix of a coefficient (*e, K, K) at a 0-d time."""
    return torch.block_diag(*A.expand(d, *A.shape[-2:]))


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), CLD(), CLD(gamma=1.5), BDM(height=3, width=4)], ids=str)
def test_every_identity_holds(sde):
    """What follows holds to more digits, or is no identity of the class alone."""
    check_sde(sde)


@COEFFICIENTS
def test_psi_is_the_identity_at_equal_times_and_composes(sde):
    for t in TIMES:
        psi = sde.psi(scalar(t), scalar(t))
        torch.testing.assert_close(psi, eye_like(psi), rtol=0, atol=1e-14)
    t, s, r = scalar(0.9), scalar(0.4), scalar(1e-5)
    torch.testing.assert_close(sde.psi(t, s) @ sde.psi(s, r), sde.psi(t, r), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(sde.psi(s, t) @ sde.psi(t, s), eye_like(sde.psi(s, t)), rtol=0, atol=1e-12)
    torch.testing.assert_close(sde.psi0(t), sde.psi(t, scalar(0.0)), rtol=0, atol=0)


@COEFFICIENTS
@pytest.mark.parametrize("t", TIMES)
def test_psi_solves_its_equation(sde, t):
    left = derivative(lambda time: sde.psi(time, scalar(0.3)), t)
    torch.testing.assert_close(left, sde.F(scalar(t)) @ sde.psi(scalar(t), scalar(0.3)), rtol=1e-12, atol=1e-13)


@COEFFICIENTS
@pytest.mark.parametrize("t", TIMES)
def test_cov_solves_the_lyapunov_equation(sde, t):
    F, cov = sde.F(scalar(t)), sde.cov(scalar(t))
    right = F @ cov + cov @ F.mT + sde.GG(scalar(t))
    torch.testing.assert_close(derivative(sde.cov, t).expand_as(right), right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), BDM(height=3, width=4)], ids=ids)
@pytest.mark.parametrize("t", TIMES)
def test_R_solves_its_equation(sde, t):
    cov = sde.cov(scalar(t))
    right = (sde.F(scalar(t)) + 0.5 * sde.GG(scalar(t)) @ inverse(cov)) @ sde.R(scalar(t))
    torch.testing.assert_close(derivative(sde.R, t).expand_as(right), right, rtol=1e-11, atol=1e-13)


@COEFFICIENTS
@pytest.mark.parametrize("t", [0.0, *TIMES, 1.0])
def test_R_is_a_root_of_cov(sde, t):
    R = sde.R(scalar(t))
    torch.testing.assert_close(R @ R.mT, sde.cov(scalar(t)), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("t", ["1e-5", "1e-3", "0.5", "1"])
def test_values_against_fifty_digits(t):
    """float64 without cancellation: relative error below 1e-14, even where Sigma is 1e-6 or 1e-12."""
    with mpmath.workdps(50):
        time = mpmath.mpf(t)
        beta = mpmath.mpf("0.1") + time * (mpmath.mpf(20) - mpmath.mpf("0.1"))
        B = mpmath.quad(lambda s: mpmath.mpf("0.1") + s * (mpmath.mpf(20) - mpmath.mpf("0.1")), [0, time])
        sigma_ve = mpmath.mpf("0.01") * mpmath.mpf(5000) ** time
        exact = {
            VP: (-beta / 2, beta, mpmath.exp(-B / 2), 1 - mpmath.exp(-B)),
            SubVP: (-beta / 2, beta * (1 - mpmath.exp(-2 * B)), mpmath.exp(-B / 2), (1 - mpmath.exp(-B)) ** 2),
            VE: (mpmath.mpf(0), 2 * mpmath.log(5000) * sigma_ve**2, mpmath.mpf(1), sigma_ve**2),
        }
        values = {law: [float(value) for value in row] for law, row in exact.items()}
    u = scalar(float(t))
    for law, row in values.items():
        sde = law()
        for ours, value in zip((sde.F(u), sde.GG(u), sde.psi0(u), sde.cov(u)), row, strict=True):
            assert float(ours) == pytest.approx(value, rel=1e-14, abs=0)
        assert float(sde.R(u)) == pytest.approx(math.sqrt(row[3]), rel=1e-14)


def test_float32_times_lose_little_of_sigma():
    """expm1 in place of 1 - exp: at t = 1e-5 the naive form is wrong by 0.6 %."""
    t = torch.tensor(1e-5, dtype=torch.float32)
    for sde in (VP(), SubVP()):
        assert sde.R(t).dtype == torch.float32
        assert float(sde.R(t)) == pytest.approx(float(sde.R(scalar(1e-5))), rel=1e-6)


@COEFFICIENTS
@pytest.mark.parametrize("t", TIMES)
def test_trace_M_is_the_derivative_of_log_importance(sde, t):
    slope = derivative(lambda s: sde.log_importance(s.reshape(1))[0], t)
    torch.testing.assert_close(slope, sde.trace_M(scalar(t).reshape(1))[0], rtol=1e-11, atol=0)
    direct = (sde.GG(scalar(t)) @ inverse(sde.cov(scalar(t)))).diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    torch.testing.assert_close(sde.trace_M(scalar(t).reshape(1))[0], direct, rtol=1e-10, atol=0)


@COEFFICIENTS
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_log_det_R_grows_as_the_nelbo_says(sde, t):
    """d/dt log det R = tr F + 1/2 tr M, the NELBO's constant."""
    slope = derivative(lambda time: 0.5 * log_abs_det(sde.cov(time)), t)
    M = sde.M(scalar(t))
    right = (sde.F(scalar(t)) + 0.5 * M).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(slope.expand(right.shape), right, rtol=1e-10, atol=1e-12)
    R_inv = inverse(sde.R(scalar(t)))
    torch.testing.assert_close(M, R_inv @ sde.GG(scalar(t)) @ R_inv.mT, rtol=1e-13, atol=1e-14)


@EVERY
def test_coefficients_of_batched_times_are_those_of_single_times(sde):
    t = torch.tensor([1e-5, 0.2, 0.7], dtype=torch.float64)
    batched = t.reshape(-1, 1)
    functions = [sde.F, sde.GG, sde.cov, sde.R, sde.psi0, sde.M]
    for function in functions:
        rows = torch.stack([function(single).expand(function(batched)[0].shape) for single in t])
        torch.testing.assert_close(function(batched), rows, rtol=1e-14, atol=0)
    for function in (sde.log_importance, sde.trace_M, sde.log_sigma, sde.log_rho):
        torch.testing.assert_close(function(t), torch.cat([function(one.reshape(1)) for one in t]), rtol=1e-14, atol=0)
    u, eps = randn(3, 2, sde.R(scalar(0.5)).shape[-1]), randn(3, 2, sde.R(scalar(0.5)).shape[-1], seed=1)
    for function in (sde.perturb,):
        rows = torch.cat([function(u[i : i + 1], t[i], eps[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(u, batched, eps), rows, rtol=1e-14, atol=0)
    for function in (sde.score_from_eps, sde.eps_from_score, sde.drift):
        rows = torch.cat([function(u[i : i + 1], t[i]) for i in range(3)])
        torch.testing.assert_close(function(u, batched), rows, rtol=1e-14, atol=0)
    rows = torch.cat([sde.residual(t[i], u[i : i + 1], eps[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(sde.residual(batched, u, eps), rows, rtol=1e-13, atol=0)


@EVERY
def test_perturb_has_the_moments_of_the_transition(sde):
    """The map eps -> u_t is affine: its matrix and offset give the law without sampling."""
    d, t = 2, scalar(0.4)
    u_0 = sde.embed(randn(1, d))
    k = u_0.shape[-1]
    basis = torch.eye(d * k, dtype=torch.float64).reshape(d * k, d, k)
    offset = sde.perturb(u_0, t, torch.zeros_like(u_0)).flatten(1)
    columns = sde.perturb(u_0.expand(d * k, d, k), t, basis).flatten(1) - offset
    psi, cov = flat_block_diagonal(sde.psi0(t), d), flat_block_diagonal(sde.cov(t), d)
    torch.testing.assert_close(offset[0], psi @ u_0.flatten(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(columns.T @ columns, cov, rtol=1e-12, atol=1e-14)


@EVERY
@pytest.mark.parametrize("t", TIMES)
def test_score_and_eps_are_inverse_and_the_score_is_that_of_the_transition(sde, t):
    k, d = sde.R(scalar(t)).shape[-1], 2
    eps = randn(5, d, k)
    score = sde.score_from_eps(eps, scalar(t))
    torch.testing.assert_close(sde.eps_from_score(score, scalar(t)), eps, rtol=1e-11, atol=1e-12)
    noise = apply(sde.R(scalar(t)), eps).requires_grad_()
    cov = flat_block_diagonal(sde.cov(scalar(t)), d)
    log_q = torch.distributions.MultivariateNormal(torch.zeros(d * k).double(), cov).log_prob(noise.flatten(1))
    (direct,) = torch.autograd.grad(log_q.sum(), noise)
    torch.testing.assert_close(score, direct, rtol=1e-9, atol=1e-9)


@EVERY
@pytest.mark.parametrize("t", [1e-3, 0.2, 0.6])
def test_denoise_is_the_posterior_mean_of_a_gaussian(sde, t):
    """E[u_0 | u_t] by conditioning the joint Gaussian of (u_0, u_t), the noise of cov(0) counted as part of u_t."""
    z_cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    law = Gaussian(sde=sde, mean=torch.tensor([0.5, -1.0], dtype=torch.float64), cov=z_cov)
    u = law.sample(4, scalar(t), torch.Generator().manual_seed(0))
    E = sde.embed(torch.eye(2, dtype=torch.float64)).flatten(1).T
    psi, cov = flat_block_diagonal(sde.psi0(scalar(t)), 2), flat_block_diagonal(sde.cov(scalar(t)), 2)
    start_mean, start_cov = E @ law.mean, E @ z_cov @ E.T
    gain = start_cov @ psi.T @ torch.linalg.inv(psi @ start_cov @ psi.T + cov)
    direct = start_mean + (u.flatten(1) - psi @ start_mean) @ gain.T
    ours = sde.denoise(u, scalar(t), law.score(u, scalar(t))).flatten(1)
    torch.testing.assert_close(ours, direct, rtol=1e-9, atol=1e-10)


@EVERY
@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.1])
def test_residual_is_the_difference_of_its_two_densities(sde, t):
    """p(x | u) by generalised least squares on the whole state: R eps_hat taken off u, noise of covariance R R^T."""
    x, d = randn(6, 2), 2
    u_0 = sde.embed(x)
    eps, eps_hat = randn(*u_0.shape, seed=1), randn(*u_0.shape, seed=2)
    time = scalar(t)
    psi, R = flat_block_diagonal(sde.psi0(time), d), flat_block_diagonal(sde.R(time), d)
    u = sde.perturb(u_0, time, eps).flatten(1)
    normal = torch.distributions.MultivariateNormal
    log_q = normal(u_0.flatten(1) @ psi.T, scale_tril=torch.linalg.cholesky(R @ R.T)).log_prob(u)
    A = psi @ sde.embed(torch.eye(2).double()).flatten(1).T
    least = torch.linalg.lstsq(torch.linalg.solve(R, A), torch.linalg.solve(R, u.T) - eps_hat.flatten(1).T).solution.T
    spread = torch.linalg.inv(A.T @ torch.linalg.inv(R @ R.T) @ A)
    log_p = normal(least, (spread + spread.T) / 2).log_prob(x)
    ours = sde.residual(time, eps, eps_hat)
    scale = float((log_q.abs() + log_p.abs()).max())
    torch.testing.assert_close(ours, log_q - log_p, rtol=1e-8, atol=1e-8 * scale)


@ISOTROPIC
def test_residual_where_both_densities_share_their_norm(sde):
    eps, eps_hat, t = randn(6, 3, 1), randn(6, 3, 1, seed=1), scalar(1e-3)
    closed = 0.5 * (eps_hat - eps).square().flatten(1).sum(1) - 0.5 * eps.square().flatten(1).sum(1)
    closed = closed - 3 * sde.psi0(t).log().flatten()
    torch.testing.assert_close(sde.residual(t, eps, eps_hat), closed, rtol=1e-12, atol=1e-12)


@EVERY
def test_prior(sde):
    cov = sde.prior_cov()
    k = cov.shape[-1]
    u = sde.sample_prior(torch.zeros(40_000, 2, k, dtype=torch.float64), torch.Generator().manual_seed(0)).flatten(1)
    full = flat_block_diagonal(cov, 2)
    standard_error = torch.sqrt((full.diagonal().outer(full.diagonal()) + full**2) / len(u))
    assert ((u.T @ u / len(u) - full).abs() < 5 * standard_error).all()
    direct = torch.distributions.MultivariateNormal(torch.zeros(2 * k).double(), full).log_prob(u[:5])
    torch.testing.assert_close(sde.log_prior(u[:5].reshape(5, 2, k)), direct, rtol=1e-11, atol=1e-11)


@EVERY
def test_the_law_at_t_max_is_near_the_prior(sde):
    unit = Gaussian(sde=sde, mean=torch.zeros(2).double(), cov=torch.eye(2).double())
    ratio = unit.moments(scalar(sde.t_max))[1] @ torch.linalg.inv(flat_block_diagonal(sde.prior_cov(), 2))
    torch.testing.assert_close(ratio, torch.eye(len(ratio)).double(), rtol=0, atol=5e-4)


@EVERY
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_reverse_drift(sde, lam):
    k, t = sde.prior_cov().shape[-1], scalar(0.3)
    u, score = randn(3, 2, k), randn(3, 2, k, seed=1)
    F, GG = flat_block_diagonal(sde.F(t), 2), flat_block_diagonal(sde.GG(t), 2)
    direct = u.flatten(1) @ F.T - 0.5 * (1 + lam**2) * score.flatten(1) @ GG.T
    torch.testing.assert_close(sde.reverse_drift(u, t, score, lam).flatten(1), direct, rtol=1e-13, atol=1e-13)


@EVERY
def test_maps_to_and_from_the_network_are_inverse_isometries(sde):
    x = randn(4, 2)
    u = sde.embed(x)
    torch.testing.assert_close(sde.project(u), x, rtol=0, atol=0)
    noise = randn(*u.shape, seed=1)
    out = sde.to_network(noise)
    torch.testing.assert_close(sde.from_network(out), noise, rtol=0, atol=0)
    torch.testing.assert_close(out.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))


@ISOTROPIC
def test_images_keep_their_shape(sde):
    x = randn(2, 3, 4, 5)
    u = sde.embed(x)
    assert u.shape == (2, 3, 4, 5, 1)
    assert sde.to_network(u).shape == x.shape
    t = torch.tensor([0.1, 0.7], dtype=torch.float64).reshape(2, 1, 1, 1)
    eps = randn(*u.shape, seed=1)
    alpha, sigma = sde.psi0(t).reshape(2, 1, 1, 1, 1), sde.R(t).reshape(2, 1, 1, 1, 1)
    torch.testing.assert_close(sde.perturb(u, t, eps), alpha * u + sigma * eps, rtol=1e-14, atol=1e-14)


def test_blocks_against_numpy():
    A, u = randn(3, 2, 2), randn(5, 3, 2, seed=1)
    torch.testing.assert_close(apply(A, u), torch.einsum("eij,bej->bei", A, u))
    torch.testing.assert_close(apply(A[:, :1, :1], u[..., :1]), A[:, :1, 0] * u[..., :1])
    spd = A @ A.mT
    torch.testing.assert_close(sqrt_psd(spd) @ sqrt_psd(spd), spd)
    singular = torch.diag(torch.tensor([0.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(sqrt_psd(singular), singular / 2)
    torch.testing.assert_close(log_abs_det(A), torch.linalg.det(A).abs().log())
    torch.testing.assert_close(event_sum(torch.tensor([1.0, 2.0, 4.0]), torch.zeros(5, 3, 2)), torch.full((5,), 7.0))
    direct = torch.distributions.MultivariateNormal(torch.zeros(3, 2).double(), spd).log_prob(u).sum(1)
    torch.testing.assert_close(gaussian_log_prob(u, spd), direct)


@pytest.mark.usefixtures("unchecked")
def test_apply_casts_to_the_state_and_refuses_other_blocks():
    assert apply(torch.ones(1, 1, dtype=torch.float64), torch.ones(2, 3, 1)).dtype == torch.float32
    with pytest.raises(ValueError, match="blocks have size 1"):
        apply(torch.ones(2, 2), torch.ones(4, 3, 1))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VP(beta_min=0.0), "beta_min=0.0"),
        (lambda: SubVP(beta_min=3.0, beta_max=2.0), "beta_min=3.0"),
        (lambda: VE(sigma_min=1.0, sigma_max=0.5), "sigma_min=1.0"),
        (lambda: VP(t_min=0.0), "t_min=0.0"),
        (lambda: VE(t_max=1e-6), "t_max=1e-06"),
    ],
)
def test_settings_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@EVERY
def test_times_outside_the_range_are_refused(sde: LinearSDE):
    sde.check_time("t", sde.t_min)
    sde.check_time("t", sde.t_max)
    for t in (0.0, 0.9e-5, 1.01, math.nan):
        with pytest.raises(ValueError, match="t_here="):
            sde.check_time("t_here", t)


def test_sdes_are_values():
    assert VP() == VP(beta_max=20.0)
    assert VP() != VP(beta_max=10.0)
    with pytest.raises(AttributeError):
        VP().beta_min = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert Coupled() == Coupled()


@EVERY
def test_a_transition_has_the_law_of_the_diffusion(sde):
    """From data at 0, and on from s: mean psi u and covariance Sigma_t - psi Sigma_s psi^T, by draws."""
    num, t, s = 40_000, scalar(0.7), scalar(0.2)
    u = sde.embed(torch.tensor([[0.7, -0.4]]).double()).expand(num, -1, -1)
    for start in (scalar(0.0), s):
        drawn = sde.transition(u, t, start, rng(3))
        psi = sde.psi(t, start)
        cov = sde.cov(t) - (psi @ sde.cov(s) @ psi.mT if start > 0 else 0)
        centred = drawn - apply(psi, u)
        found = torch.einsum("bik,bil->ikl", centred, centred) / num
        torch.testing.assert_close(
            found, cov.expand_as(found), rtol=0, atol=5 * 2**0.5 * float(cov.abs().max()) / num**0.5
        )
        assert float(centred.mean(0).abs().max()) < 5 * float(cov.abs().max()) ** 0.5 / num**0.5
