"""Diagnostics against Ito's formula by hand, exact Gaussian laws, brute-force Jacobians and actual samples."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from problems import (
    ISOTROPIC_SDES,
    SDES,
    Affine,
    Coupled,
    ExactModel,
    Gaussian,
    Mixture,
    SmallBackbone,
    ids,
    randn,
    rng,
    scalar,
)
from torch import Tensor

from indm_core.diagnostics import (
    along_times,
    discretisation_error,
    hessian_norm,
    induced_norm_ratio,
    induced_sde,
    mean_and_error,
    path_cosine,
    score_rate,
    squared_norms,
)
from indm_core.flow import Flow, Identity, ResFlow
from indm_core.model import INDM, ScoreModel
from indm_core.nn.unet import UNet
from indm_core.noise import Noise
from indm_core.sample import power_times, sample_em, uniform_times
from indm_core.sde import VE, VP, apply, sqrt_psd

EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)
ISOTROPIC = pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
COV = torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
A = torch.tensor([[1.5, 0.4], [-0.3, 0.8]], dtype=torch.float64)
SHIFT = torch.tensor([0.3, -0.2], dtype=torch.float64)

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Twist(Flow):
    """h(x) = (x_1, x_2 exp(x_1)); h^-1(z) = (z_1, z_2 exp(-z_1))."""

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return torch.stack([x[:, 0], x[:, 1] * x[:, 0].exp()], 1), x[:, 0]

    def inverse(self, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 1] * (-z[:, 0]).exp()], 1)


def gaussian(sde) -> Gaussian:
    return Gaussian(sde=sde, mean=MEAN, cov=COV)


def mixture(sde) -> Mixture:
    one, other = gaussian(sde), Gaussian(sde=sde, mean=-2 * MEAN, cov=0.3 * COV)
    return Mixture(weights=torch.tensor([0.4, 0.6]).double(), components=(one, other))


def jittered(flow: ResFlow) -> ResFlow:
    """Weights of a fixed seed away from the identity, float64, evaluation mode."""
    flow = flow.double().eval()
    with torch.no_grad():
        for i, p in enumerate(flow.parameters()):
            p.copy_(0.3 * randn(*p.shape, seed=i))
    return flow


def assert_mean(values: Tensor, expected: Tensor) -> None:
    """The mean over the last axis within five standard errors."""
    mean, error = mean_and_error(values)
    assert ((mean - expected).abs() <= 5 * error).all(), ((mean - expected) / error).tolist()


# Induced data SDE (Figures 1 and 2)


@EVERY
def test_an_affine_flow_induces_an_affine_sde(sde):
    """z = A x + b: f_x = A^-1 P drift and G_x = A^-1 P G, without an Ito term."""
    model = ExactModel(gaussian(sde), flow=Affine(A, SHIFT))
    u, t = sde.perturb(sde.embed(randn(4, 2)), scalar(0.3), randn(*sde.embed(randn(4, 2)).shape, seed=1)), scalar(0.3)
    x, drift, volatility = induced_sde(model, u, t)
    G = sqrt_psd(sde.GG(t)).expand(2, *sde.GG(t).shape[-2:])
    noise = torch.block_diag(*G)[:: u.shape[-1]]  # positions: the first coordinate of each block
    close(x, model.decode(u))
    close(drift, torch.linalg.solve(A, sde.project(sde.drift(u, t)).T).T)
    close(volatility, torch.linalg.solve(A, noise).expand(4, -1, -1))


@ISOTROPIC
def test_ito_of_a_nonlinear_flow_by_hand(sde):
    """x_2 = z_2 exp(-z_1): dx_2 = [f x_2 (1 - z_1) + g^2 x_2/2] dt - g x_2 dw_1 + g exp(-z_1) dw_2."""
    model, t, x = ExactModel(gaussian(sde), flow=Twist()), scalar(0.4), randn(5, 2)
    f, g2 = sde.f(t), sde.g2(t)
    found, drift, volatility = induced_sde(model, model.encode(x)[0], t)
    x_1, x_2 = x.unbind(1)
    close(found, x)
    close(drift, torch.stack([f * x_1, f * x_2 * (1 - x_1) + 0.5 * g2 * x_2], 1))
    rows = [torch.stack([torch.ones(5).double(), torch.zeros(5).double()], 1), torch.stack([-x_2, (-x_1).exp()], 1)]
    close(volatility, g2.sqrt() * torch.stack(rows, 1))


def increments(model: ExactModel, u: Tensor, t: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """E[dx]/h and E[dx dx^T]/h over the exact transition to t + h, by Gauss-Hermite quadrature in two dimensions."""
    nodes, weights = torch.tensor([-math.sqrt(3), 0, math.sqrt(3)]).double(), torch.tensor([1, 4, 1]).double() / 6
    sde, s = model.sde, t + h
    psi = sde.psi(s, t)
    root = sqrt_psd(sde.cov(s) - psi @ sde.cov(t) @ psi.mT)
    x, first, second = model.decode(u), 0.0, 0.0
    for a, w_a in zip(nodes, weights, strict=True):
        for b, w_b in zip(nodes, weights, strict=True):
            eps = torch.stack([a, b]).reshape(1, 2, 1).expand_as(u)
            dx = model.decode(apply(psi, u) + apply(root, eps)) - x
            first, second = first + w_a * w_b * dx, second + w_a * w_b * dx.unsqueeze(2) * dx.unsqueeze(1)
    return first / h, second / h


@pytest.mark.parametrize("flow", [Twist(), jittered(ResFlow((2,), blocks=(2,), width=8))], ids=ids)
def test_induced_coefficients_are_the_rates_of_the_increments(flow, monkeypatch):
    """Of the decoded exact transition, extrapolated from steps h and h/2, which leaves an error of order h^2."""
    if isinstance(flow, ResFlow):  # an inverse good to 1e-6 is not to be divided by h
        monkeypatch.setattr(flow, "inverse", partial(flow.inverse, tolerance=1e-13))
    model, t, h = ExactModel(gaussian(VP()), flow=flow), scalar(0.2), 2e-5
    u = model.encode(randn(3, 2))[0].detach()
    (d_1, c_1), (d_2, c_2) = increments(model, u, t, h), increments(model, u, t, h / 2)
    x, drift, volatility = induced_sde(model, u, t)
    assert (drift - model.sde.f(t) * x).norm() > 0.25 * drift.norm()  # the flow does matter
    torch.testing.assert_close(2 * d_2 - d_1, drift, rtol=0, atol=2e-4)
    torch.testing.assert_close(2 * c_2 - c_1, volatility @ volatility.mT, rtol=0, atol=2e-4)


def test_induced_coefficients_of_a_row_do_not_depend_on_the_others():
    """As many rows as dimensions among them: a matrix of noise is not a batch of vectors."""
    model, t = ExactModel(gaussian(VP()), flow=Twist()), scalar(0.2)
    u = model.encode(randn(4, 2))[0].detach()
    together = induced_sde(model, u, t)
    for rows in (slice(0, 1), slice(0, 2), slice(1, 4)):
        for part, whole in zip(induced_sde(model, u[rows], t), together, strict=True):
            close(part, whole[rows])


# Norm ratio (Figure 4)


@ISOTROPIC
def test_a_linear_flow_has_no_nonlinear_drift(sde):
    for flow in (Identity(), Affine(2.5 * torch.eye(2).double(), torch.zeros(2).double())):
        model = ExactModel(gaussian(sde), flow=flow)
        assert (induced_norm_ratio(model, randn(4, 2, 1), scalar(0.3), 0.01) < 1e-12).all()


@ISOTROPIC
def test_induced_norm_ratio_by_hand(sde):
    """The twist: f_x - f x = (0, -f x_1 x_2 + g^2 x_2/2) and |G_x|^2 = g^2 (1 + x_2^2 + exp(-2 x_1))."""
    model, t, x = ExactModel(gaussian(sde), flow=Twist()), scalar(0.4), randn(5, 2)
    (x_1, x_2), f, g2 = x.unbind(1), sde.f(t), sde.g2(t)
    expected = (0.5 * g2 * x_2 - f * x_1 * x_2).abs() * 0.1 / (g2 * (1 + x_2**2 + (-2 * x_1).exp())).sqrt()
    close(induced_norm_ratio(model, model.encode(x)[0], t, 0.01), expected)


def test_refused_norm_ratios():
    with pytest.raises(ValueError, match="blocks have size 2"):
        induced_norm_ratio(ExactModel(gaussian(Coupled())), randn(3, 2, 2), scalar(0.5), 0.01)
    with pytest.raises(ValueError, match=r"dt=0\.0 "):
        induced_norm_ratio(ExactModel(gaussian(VP())), randn(3, 2, 1), scalar(0.5), 0.0)


# Smoothness (Figure 7a, b)


def brute_hessian(score, u: Tensor, t: Tensor) -> Tensor:
    """|d score/du|_F of each sample from full Jacobians."""
    norms = []
    for row in u:
        J = torch.autograd.functional.jacobian(lambda v: score(v.unsqueeze(0), t).squeeze(0), row)
        norms.append(J.flatten().norm())
    return torch.stack(norms)


@EVERY
def test_hessian_norm_squared_is_unbiased(sde):
    law, t = mixture(sde), scalar(0.3)
    u = law.sample(3, t, rng(0))
    expected = brute_hessian(law.score, u, t).square()
    many = u.repeat_interleave(2000, 0)
    squares = hessian_norm(law.score, many, t, generator=rng(1)).square().reshape(3, 2000)
    assert_mean(squares, expected)


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_hessian_of_a_gaussian(sde):
    """-C_t^-1. Diagonal: one probe is exact. Otherwise the mean of very many probes."""
    t, diagonal = scalar(0.3), Gaussian(sde=sde, mean=MEAN, cov=torch.diag(COV.diag()))
    u = diagonal.sample(3, t, rng(0))
    if u.shape[-1] == 1:
        expected = torch.linalg.inv(diagonal.moments(t)[1]).norm().expand(3)
        close(hessian_norm(diagonal.score, u, t), expected)
    law = gaussian(sde)
    expected = torch.linalg.inv(law.moments(t)[1]).norm().expand(3)
    torch.testing.assert_close(
        hessian_norm(law.score, u, t, num_probes=1000, generator=rng(2)), expected, rtol=0.05, atol=0
    )


@EVERY
def test_score_rate_of_a_gaussian(sde):
    """d/dt [-C^-1 (u - m)] = C^-1 C' C^-1 (u - m) + C^-1 m', with C' = F C + C F^T + GG^T and m' = F m."""
    law, t = gaussian(sde), scalar(0.35)
    u = law.sample(4, t, rng(3))
    m, C = law.moments(t)
    F, GG = (torch.block_diag(*value.expand(2, *value.shape[-2:])) for value in (sde.F(t), sde.GG(t)))
    C_dot = F @ C + C @ F.T + GG
    P, centred = torch.linalg.inv(C), (u.flatten(1) - m).T
    rate = (P @ C_dot @ P @ centred + (P @ F @ m).unsqueeze(1)).T
    expected = rate.norm(dim=1) / u.flatten(1).norm(dim=1)
    close(score_rate(law.score, u, t), expected)
    if u.shape[-1] == 1:  # `Gaussian.moments` takes a batch of times for any K, the matrix exponential for some
        close(score_rate(law.score, u, t.expand(4, 1)), expected)


@pytest.mark.parametrize("sde", [VP(), VE()], ids=ids)
def test_score_rate_of_a_network_is_the_difference_quotient(sde):
    score, u, t, h = ScoreModel(SmallBackbone(6), sde), randn(3, 6, 1), scalar(0.4), 1e-4
    with torch.no_grad():
        quotient = (score(u, t + h) - score(u, t - h)) / (2 * h)
    expected = quotient.flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(score_rate(score, u, t), expected, rtol=1e-6, atol=0)


def test_a_score_without_time_has_no_rate():
    close(score_rate(lambda u, t, y=None: -u, randn(3, 2, 1), scalar(0.5)), torch.zeros(3).double())


def test_a_unet_with_attention_has_both_norms():
    """Against difference quotients, in the time and along probes of the state."""
    net = UNet(
        (1, 8, 8), time_feature=lambda t: 9 * t, nf=4, ch_mult=(1, 1), num_res_blocks=1, attention=(8,), dropout=0.0
    )
    net = net.double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 0.1 * randn(*p.shape, seed=i)
    score, u, t, h = ScoreModel(net, VP()), randn(2, 1, 8, 8, 1), scalar(0.4), 1e-4
    with torch.no_grad():
        quotient = (score(u, t + h) - score(u, t - h)) / (2 * h)
    expected = quotient.flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(score_rate(score, u, t), expected, rtol=1e-5, atol=0)
    exact = brute_hessian(score, u, t)
    torch.testing.assert_close(hessian_norm(score, u, t, num_probes=50, generator=rng(0)), exact, rtol=0.1, atol=0)


def test_along_times_averages_over_the_model():
    """Gaussian latents: E |score| at each time is that over direct draws of u_t; VP, |score|^2 = tr C^-1 on average."""
    model, ts = ExactModel(gaussian(VP()), flow=Affine(A, SHIFT)), torch.tensor([0.01, 0.2, 0.9]).double()
    x = model.decode(model.sde.embed(MEAN + randn(4000, 2) @ torch.linalg.cholesky(COV).T))
    values = along_times(model, x, ts, lambda s, u, t: s(u, t).flatten(1).square().sum(1), generator=rng(5))
    assert values.shape == (3, 4000)
    assert_mean(values, torch.stack([torch.linalg.inv(model.law.moments(t)[1]).trace() for t in ts]))


def test_models_are_compared_on_the_same_noise():
    """The flow's own draws do not move the noise of u_t."""
    ts, seen = torch.tensor([0.5]).double(), []

    def keep(score, u: Tensor, t: Tensor) -> Tensor:
        seen.append(u)
        return u.sum((1, 2))

    for flow in (Identity(), ResFlow((2,), blocks=(1,), width=4, exact_eval=1).double().eval()):
        along_times(ExactModel(gaussian(VP()), flow=flow), randn(3, 2), ts, keep, generator=rng(0))
    close(seen[0], seen[1])


# Geometry (Figure 7c)


@ISOTROPIC
@pytest.mark.parametrize(
    "mean", [torch.zeros(2).double(), torch.tensor([2.0, -0.5]).double()], ids=["centred", "shifted"]
)
def test_path_cosine_of_independent_gaussians(sde, mean):
    """u_i(t) = m_i(t) + c_i(t) w_i with c_i = sqrt C_ii, so that the velocity is m' + c' w and the chord a difference."""
    law = Gaussian(sde=sde, mean=mean, cov=torch.diag(torch.tensor([4.0, 0.05]).double()))
    ts = power_times(sde, 6, 2.0).flip(0).clamp(min=0.01)[1:]
    u = law.sample(5, ts[0], rng(0))
    m_0, C_0 = law.moments(ts[0])
    w = (u.squeeze(-1) - m_0) / C_0.diag().sqrt()

    def at(t: Tensor) -> Tensor:
        m, C = law.moments(t)
        return m + C.diag().sqrt() * w

    v = torch.stack([torch.autograd.functional.jacobian(at, t) for t in ts])
    expected = torch.nn.functional.cosine_similarity(v, at(ts[-1]) - at(ts[0]), dim=2)
    found = path_cosine(sde, law.score, u, ts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_straight_paths_and_turning_ones():
    """N(0, s^2 I) keeps direction: cosine 1. A far mean is pulled in while narrow noise grows: some paths turn round."""
    sde, ts = VP(), torch.tensor([0.01, 0.1, 0.4, 1.0]).double()
    straight = Gaussian(sde=sde, mean=torch.zeros(2).double(), cov=0.1 * torch.eye(2).double())
    close(path_cosine(sde, straight.score, straight.sample(4, ts[0], rng(0)), ts), torch.ones(4, 4).double())
    turning = Gaussian(sde=sde, mean=torch.tensor([0.5]).double(), cov=torch.tensor([[1e-4]]).double())
    cosine = path_cosine(sde, turning.score, turning.sample(64, ts[0], rng(0)), ts)
    assert set(cosine.round().flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.usefixtures("unchecked")
def test_path_cosine_of_a_matrix_sde_refers_to_the_whole_state():
    """Against the linear ODE's path from a fine grid of Euler's method: chord and first velocity."""
    sde, ts = Coupled(), torch.tensor([0.05, 0.4]).double()
    law = gaussian(sde)
    u = law.sample(3, ts[0], rng(1))
    fine = torch.linspace(0.4, 0.05, 401).double()
    state = u.clone()
    for s, t in zip(fine.flip(0)[:-1], fine.flip(0)[1:], strict=True):
        middle = state + 0.5 * (t - s) * sde.reverse_drift(state, s, law.score(state, s), 0.0)
        state = state + (t - s) * sde.reverse_drift(middle, (s + t) / 2, law.score(middle, (s + t) / 2), 0.0)
    v = sde.reverse_drift(u, ts[0], law.score(u, ts[0]), 0.0)
    expected = torch.nn.functional.cosine_similarity(v.flatten(1), (state - u).flatten(1), dim=1)
    torch.testing.assert_close(path_cosine(sde, law.score, u, ts)[0], expected, rtol=0, atol=1e-4)


# Norms (Table 2)


@EVERY
def test_squared_norms_have_their_gaussian_means(sde):
    law = gaussian(sde)
    model = ExactModel(law, flow=Affine(A, SHIFT), exact_start=False)
    z = MEAN + randn(4000, 2) @ torch.linalg.cholesky(COV).T
    x = model.flow.inverse(z)
    data, latent, prior = squared_norms(model, x, generator=rng(7))
    A_inv = torch.linalg.inv(A)
    close(data, x.square().sum(1))
    close(latent, z.square().sum(1))
    assert_mean(data, (A_inv @ (MEAN - SHIFT)).square().sum() + (A_inv @ COV @ A_inv.T).trace())
    assert_mean(latent, MEAN.square().sum() + COV.trace())
    assert_mean(prior, sde.prior_cov()[..., 0, 0].expand(2).sum())


def test_standard_error():
    values = randn(3, 50)
    mean, error = mean_and_error(values)
    close(mean, values.mean(1))
    close(error.square(), (values - mean[:, None]).square().sum(1) / (49 * 50))
    with pytest.raises(ValueError, match="at least 2 samples"):
        mean_and_error(randn(3, 1))


# Sensitivity to discretisation (Figure 6)


def one_dimensional(mean: float, std: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[mean]]).double(), torch.tensor([[[std**2]]]).double()


@EVERY
@pytest.mark.parametrize("a", [0.5, 3.0])
def test_euler_error_is_that_of_euler_samples(sde, a):
    """lam = 0 maps states affinely: three of them give the sampler's own law exactly."""
    ts, mean, var = uniform_times(sde, 20), torch.tensor([0.3, -0.8]).double(), torch.tensor([0.5, 0.02]).double()
    law = Gaussian(sde=sde, mean=a * mean, cov=torch.diag(a**2 * var))
    m_T, C_T = law.moments(ts[0])
    rows = torch.cat([m_T[None], m_T + torch.linalg.cholesky(C_T).T]).reshape(len(m_T) + 1, 2, -1)
    u = sample_em(sde, law.score, rows, ts, lam=0.0)
    x, (m, C) = sde.project(u), law.moments(ts[-1])
    std = (x[1:] - x[0]).square().sum(0).sqrt()  # the recursion is block by block: no correlation between positions
    K = u.shape[-1]
    m, s = m[::K], C.diag()[::K].sqrt()
    w2 = ((x[0] - m).square() + (std - s).square()).sum().sqrt() / a
    kl = ((std / s) ** 2 - 1 - 2 * (std / s).log() + ((x[0] - m) / s) ** 2).sum() / 2
    cov = torch.zeros(2, K, K).double()
    cov[:, 0, 0] = var
    error = discretisation_error(sde, a, ts, sde.embed(mean[None])[0], cov, lam=0.0)
    close(error.w2, w2, rtol=1e-8)
    close(error.kl, kl, rtol=1e-8)


@ISOTROPIC
@pytest.mark.parametrize("a", [0.25, 4.0])
@pytest.mark.usefixtures("unchecked")
def test_euler_maruyama_error_is_that_of_samples(sde, a):
    """20,000 decoded samples at 12 steps: their mean and variance, hence both distances, within five standard errors."""
    num, ts, (mean, cov) = 20_000, uniform_times(sde, 12), one_dimensional(0.4, 0.5)
    law = Gaussian(sde=sde, mean=a * mean[0], cov=a**2 * cov[0])
    x = sample_em(sde, law.score, law.sample(num, ts[0], rng(0)), ts, generator=rng(1)).flatten() / a
    m, C = law.moments(ts[-1])
    m, s = float(m) / a, math.sqrt(float(C)) / a
    error = discretisation_error(sde, a, ts, mean, cov)
    std = float(x.std())
    off = math.hypot(float(x.mean()) - m, std - s)
    assert abs(off - float(error.w2)) < 5 * std / math.sqrt(num)  # |d W2| <= |d(mean, std)|
    ratio, shift = std / s, (float(x.mean()) - m) / s
    slope = math.hypot(shift * ratio, (ratio**2 - 1) / math.sqrt(2)) + 2 * ratio**2 / math.sqrt(num)
    kl = (ratio**2 - 1) / 2 - math.log(ratio) + shift**2 / 2
    assert abs(kl - float(error.kl)) < 5 * slope / math.sqrt(num)


@ISOTROPIC
@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.usefixtures("unchecked")
def test_error_is_of_order_one(sde, lam):
    """W2 halves when the steps do, up to what vanishes with them; KL goes with its square."""
    mean, cov = one_dimensional(0.3, 0.5)
    low, high = (discretisation_error(sde, 64.0, uniform_times(sde, n), mean, cov, lam=lam) for n in (500, 1000))
    assert 1.9 < float(low.w2 / high.w2) < 2.1
    assert 3.6 < float(low.kl / high.kl) < 4.4


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_measured_sensitivity_of_vp_is_u_shaped(lam):
    """100 steps, data of standard deviation 1/2: the error falls and then grows with a; it is not proportional to 1/a."""
    mean, cov = one_dimensional(0.0, 0.5)
    ts = uniform_times(VP(), 100)
    errors = [float(discretisation_error(VP(), a, ts, mean, cov, lam=lam).w2) for a in (0.25, 1.0, 2.0, 8.0, 64.0)]
    least = errors.index(min(errors))
    assert 0 < least < len(errors) - 1
    assert errors[0] > 5 * errors[least]
    assert errors[-1] > 5 * errors[least]


def test_discretisation_error_of_independent_coordinates_adds_up():
    stds, ts, sde = torch.tensor([0.1, 0.5, 2.0]).double(), uniform_times(VP(), 50), VP()
    mean, cov = torch.tensor([0.1, 0.0, -1.0]).double()[:, None], stds.square()[:, None, None]
    together = discretisation_error(sde, 2.0, ts, mean, cov)
    alone = [discretisation_error(sde, 2.0, ts, m[None], c[None]) for m, c in zip(mean, cov, strict=True)]
    close(together.w2.square(), sum(e.w2.square() for e in alone))
    close(together.kl, sum(e.kl for e in alone))


def test_refusals():
    sde, (mean, cov) = VP(), one_dimensional(0.0, 1.0)
    with pytest.raises(ValueError, match=r"a=0\.0 "):
        discretisation_error(sde, 0.0, uniform_times(sde, 5), mean, cov)
    with pytest.raises(ValueError, match=r"lam=-1\.0 "):
        discretisation_error(sde, 1.0, uniform_times(sde, 5), mean, cov, lam=-1.0)
    with pytest.raises(ValueError, match="num_probes=0 "):
        hessian_norm(gaussian(sde).score, randn(2, 2, 1), scalar(0.5), num_probes=0)
    with pytest.raises(ValueError, match="lies outside"):
        along_times(ExactModel(gaussian(sde)), randn(2, 2), torch.tensor([0.0]).double(), score_rate)


def test_an_indm_has_every_figure():
    """A flow, a network and an SDE as trained models have them, in float32 where they are."""
    model = INDM(jittered(ResFlow((2,), blocks=(2,), width=8)), SmallBackbone(2), VP(), shape=(2,)).eval()
    x, ts = randn(6, 2), torch.tensor([0.01, 0.5, 1.0]).double()
    u = model.sde.perturb(model.encode(x)[0].detach(), ts[0], randn(6, 2, 1, seed=1))
    norms = squared_norms(model, x, generator=rng(0))
    curves = [
        along_times(model, x, ts, m, generator=rng(1)) for m in (partial(hessian_norm, generator=rng(2)), score_rate)
    ]
    cosine = path_cosine(model.sde, model.score, u, ts)
    values = [*norms, *curves, cosine, *induced_sde(model, u, ts[1]), induced_norm_ratio(model, u, ts[1], 0.01)]
    assert all(value.isfinite().all() and not value.requires_grad for value in values)
    assert (cosine.abs() <= 1 + 1e-12).all()
