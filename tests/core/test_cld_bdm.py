"""CLD and blurring diffusion: R against its own equation, covariances at the smallest times, bases, exact likelihoods."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import mpmath
import pytest
import torch
from problems import ExactModel, Gaussian, ids, randn, rng, scalar
from scipy.fft import dctn

from indm_core.checks import check_sde
from indm_core.draw import draw
from indm_core.likelihood import log_prob_u, nll
from indm_core.sample import (
    edm_times,
    log_rho_times,
    power_times,
    sample_em,
    sample_ode,
    sample_pc,
    uniform_times,
)
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP, inverse

FIVE = pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), CLD(), BDM(height=3, width=4)], ids=ids)
TIMES = torch.logspace(-5, 0, 200, dtype=torch.float64)


@pytest.mark.parametrize("sde", [CLD(), CLD(gamma=1.5, vv_gamma=1.0), CLD(gamma=0.4, beta=2.0)], ids=str)
def test_R_of_cld_is_the_solution_of_its_equation(sde):
    """From t = 1e-5 to every later time by Runge-Kutta in log t: the free rotation is the one that comes from R(0)."""
    assert torch.equal(sde.R(scalar(0.0))[0], torch.zeros(2).double())
    torch.testing.assert_close(
        sde.R(scalar(0.0))[1], torch.tensor([0.0, sde.start_var**0.5], dtype=torch.float64), rtol=0, atol=1e-12
    )

    n = 4000
    x = torch.linspace(math.log(1e-5), 0, 2 * n + 1, dtype=torch.float64)  # steps and their middles
    t = x.exp().reshape(-1, 1, 1)
    slopes = t[..., None, None] * (sde.F(t) + 0.5 * sde.GG(t) @ inverse(sde.cov(t)))
    A, R, h = slopes.reshape(-1, 2, 2).numpy(), sde.R(scalar(1e-5)).numpy(), float(x[2] - x[0])
    for i in range(n):
        left, middle, right = A[2 * i : 2 * i + 3]
        k_1 = left @ R
        k_2 = middle @ (R + h / 2 * k_1)
        k_3 = middle @ (R + h / 2 * k_2)
        R = R + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + right @ (R + h * k_3))
        if i % 500 == 499:
            torch.testing.assert_close(sde.R(x[2 * i + 2].exp()), torch.from_numpy(R), rtol=0, atol=1e-8)


@pytest.mark.parametrize("t", ["1e-5", "1e-3", "0.3", "1"])
def test_cov_of_cld_against_fifty_digits(t):
    """Sigma_inf - psi (Sigma_inf - Sigma_0) psi^T in 50 digits, where float64 would lose all of Sigma_xx."""
    with mpmath.workdps(50):
        A = mpmath.matrix([[0, 4], [-1, -4]]) * 4 * mpmath.mpf(t)
        psi = mpmath.expm(A)
        law = mpmath.matrix([[1, 0], [0, mpmath.mpf("0.25")]])
        start = mpmath.matrix([[0, 0], [0, mpmath.mpf("0.04") / 4]])
        exact = law - psi * (law - start) * psi.T
        values = [[float(exact[i, j]) for j in range(2)] for i in range(2)]
        determinant = float(mpmath.det(exact))
    cov = CLD().cov(scalar(float(t)))
    torch.testing.assert_close(cov, torch.tensor(values, dtype=torch.float64), rtol=1e-13, atol=1e-15)
    assert float(torch.linalg.det(cov)) == pytest.approx(determinant, rel=1e-11)


def test_the_unseen_direction_of_cld():
    """M has rank one: its complement is a projector that M does not weight."""
    sde = CLD()
    t = TIMES[::20].reshape(-1, 1)
    projector, M = sde.unseen(t), sde.M(t)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-10)
    assert float((M @ projector).abs().max() / M.abs().max()) < 1e-10
    trace = projector.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(trace, torch.ones_like(trace), rtol=0, atol=1e-10)
    assert all(other.unseen(t) is None for other in (VP(), SubVP(), VE(), BDM()))


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 4)])
def test_bdm_s_basis_is_the_orthonormal_cosine_transform(size):
    sde, x = BDM(height=size[0], width=size[1]), randn(2, 3, *size)
    expected = torch.as_tensor(dctn(x.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(sde.embed(x).squeeze(-1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sde.project(sde.embed(x)), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sde.to_network(sde.embed(x)), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sde.from_network(x), sde.embed(x), rtol=0, atol=0)


def test_bdm_s_signal_to_noise_runs_from_ten_to_minus_ten():
    sde = BDM(height=4, width=4)
    for t, log_snr in ((0.0, 10.0), (0.5, 0.0), (1.0, -10.0)):
        alpha, sigma = sde._phase(scalar(t)).cos(), sde._phase(scalar(t)).sin()
        assert float(2 * (alpha / sigma).log()) == pytest.approx(log_snr, abs=1e-9)
    assert float(sde.cov(scalar(0.0))) == pytest.approx(float(torch.sigmoid(scalar(-10.0))), rel=1e-12)
    assert bool(sde.F(scalar(1.0)).isfinite().all())
    fading = sde.psi0(scalar(0.2)).squeeze()
    assert bool((fading.diff(dim=0) < 0).all())  # high frequencies fade first
    assert bool((fading.diff(dim=1) < 0).all())
    assert (sde.pixelwise, CLD().pixelwise) == (False, True)


def test_cld_stacks_position_and_velocity_as_channels():
    sde, x = CLD(), randn(2, 3, 4, 4)
    u = sde.embed(x)
    assert u.shape == (2, 3, 4, 4, 2)
    assert not u[..., 1].any()
    noise = randn(*u.shape, seed=1)
    assert sde.to_network(noise).shape == (2, 6, 4, 4)
    torch.testing.assert_close(sde.to_network(noise)[:, :3], noise[..., 0])
    torch.testing.assert_close(sde.from_network(sde.to_network(noise)), noise)


@pytest.mark.usefixtures("unchecked")
def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), the SDE has height=32, width=32"):
        BDM().embed(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CLD(beta=0.0), "beta=0.0"),
        (lambda: CLD(gamma=-1.0), "gamma=-1.0"),
        (lambda: CLD(vv_gamma=0.0), "vv_gamma=0.0"),
        (lambda: BDM(height=0), "height=0"),
        (lambda: BDM(min_scale=0.0), "min_scale=0.0"),
        (lambda: BDM(sigma_blur_max=-1.0), "sigma_blur_max=-1.0"),
    ],
)
def test_settings_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def gaussian(sde: LinearSDE) -> ExactModel:
    """Correlated Gaussian data: four coordinates, for BDM an image of 2x2."""
    root = torch.tensor(
        [[0.9, 0, 0, 0], [0.3, 0.7, 0, 0], [-0.2, 0.1, 0.8, 0], [0.4, 0.0, 0.3, 0.6]], dtype=torch.float64
    )
    mean = torch.tensor([0.4, -0.7, 0.1, 0.3], dtype=torch.float64)
    shape = (1, 2, 2) if isinstance(sde, BDM) else (4,)
    return ExactModel(Gaussian(sde=sde, mean=mean, cov=root @ root.mT, shape=shape))


LATER_TWO = pytest.mark.parametrize("sde", [CLD(), BDM(height=2, width=2)], ids=ids)


@LATER_TWO
def test_log_prob_u_is_the_log_density_of_the_law(sde):
    """Exact score, divergence and law at t_max: 1e-5 nats per coordinate of u at t_min."""
    model, t = gaussian(sde), scalar(sde.t_min)
    u = model.law.sample(8, t, rng(0))
    found = log_prob_u(model, u, sde.t_min, exact_divergence=True, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found, model.law.log_prob(u, t), rtol=0, atol=1e-5 * u[0].numel())


@LATER_TWO
def test_the_nll_agrees_with_the_law_of_gaussian_data(sde):
    """With its residual: of a CLD too, whose p(x | u) uses the velocity. The ODE errs by up to 1e-5 nats per coordinate."""
    model = gaussian(sde)
    x = model.law.mean + randn(300, 4, seed=3) @ torch.linalg.cholesky(model.law.cov).mT
    x = x.reshape(300, *model.shape)
    options = {"exact_divergence": True, "rtol": 1e-6, "atol": 1e-6}
    difference = nll(model, x, generator=rng(1), **options) + model.log_prob(x)
    error = float(difference.std()) / 300**0.5
    assert abs(float(difference.mean())) < 5 * error + 1e-5 * model.sde.embed(x)[0].numel()


@LATER_TWO
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sampler", ["ode", "em", "pc"])
def test_the_general_samplers_take_them_as_they_are(sde, sampler):
    """2,000 samples of the data's law: mean and covariance within five standard errors and the method's own error."""
    sde = replace(sde, t_min=1e-3)
    model, num = gaussian(sde), 2000
    ts = uniform_times(sde, 1) if sampler == "ode" else power_times(sde, 300, 2.0)
    chosen = {"ode": sample_ode, "em": sample_em, "pc": partial(sample_pc, snr=0.005)}[
        sampler
    ]  # few dimensions: see PC

    def of(sde, score, u, ts, generator):
        return chosen(sde, score, u, ts, generator=generator)

    x = draw(model, of, ts, torch.zeros(1).double(), num, generator=rng(0)).flatten(1)
    v = model.law.cov.diagonal()
    slack = 0.05  # of the step size
    assert ((x.mean(0) - model.law.mean).abs() < 5 * (v / num).sqrt() + slack).all()
    assert ((x.T.cov() - model.law.cov).abs() < 5 * ((v.outer(v) + model.law.cov**2) / num).sqrt() + slack).all()


@FIVE
def test_autocast_leaves_the_diffusion_in_full_precision(sde):
    """What is drawn is what is in the state: a matmul in bfloat16 would leave 30 times the noise in CLD's eps."""
    shape = (1, 3, 4) if isinstance(sde, BDM) else (5,)
    u_0 = sde.embed(randn(6, *shape).float())
    t = torch.full((6, *[1] * len(shape)), 1e-2, dtype=torch.float64)
    eps = randn(*u_0.shape, seed=2).float()
    exact = sde.perturb(u_0, t, eps)
    with torch.autocast("cpu", torch.bfloat16):
        state = sde.perturb(u_0, t, eps)
        image = sde.embed(sde.project(u_0))
    assert state.dtype == image.dtype == torch.float32
    torch.testing.assert_close(state, exact, rtol=0, atol=0)
    torch.testing.assert_close(image, u_0, rtol=0, atol=1e-5)


def test_strong_damping_is_finite_and_every_coefficient_is_differentiable():
    for sde in (CLD(gamma=50.0, beta=8.0), CLD(gamma=100.0)):
        assert bool(sde.psi0(scalar(1.0)).isfinite().all())
        assert bool(sde.cov(scalar(1.0)).isfinite().all())
    slope = torch.autograd.functional.jacobian(CLD().R, scalar(1.0))
    right = (CLD().F(scalar(1.0)) + 0.5 * CLD().GG(scalar(1.0)) @ inverse(CLD().cov(scalar(1.0)))) @ CLD().R(
        scalar(1.0)
    )
    torch.testing.assert_close(slope, right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"m_inv": 3.0, "gamma": 2 / 3**0.5},
        {"m_inv": 2.0, "gamma": 2**0.5},
        {"gamma": 50.0, "beta": 8.0},
        {"gamma": 0.05},
        {"vv_gamma": 1e-6},
    ],
    ids=str,
)
def test_cld_of_any_damping_solves_its_equations(settings):
    """Critical damping to rounding, strong and weak damping, a small start."""
    check_sde(CLD(**settings))


def test_scales_that_no_series_resolves_are_refused():
    with pytest.raises(ValueError, match=r"vv_gamma=1e-12: scales too far apart for R to be resolved"):
        CLD(vv_gamma=1e-12)


def test_grids_in_rho_need_a_rho_that_grows():
    for make in (log_rho_times, edm_times):
        with pytest.raises(ValueError, match=r"a rho that grows with t, which CLD\(.*gamma=0.4"):
            make(CLD(gamma=0.4, beta=2.0), 5)
