"""Exponential integrators: convergence orders, exactness on one point, identities of DDIM and gDDIM, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from problems import FIVE, ids, randn, rng, scalar
from torch import Tensor

from indm_core.exponential import evaluations, guaranteed_order, noise_factor, sample_deis, steps_for
from indm_core.exponential.coefficients import plan
from indm_core.exponential.options import Multistep
from indm_core.noise import seeded
from indm_core.sample import power_times, sample_em, sample_ode, uniform_times
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP, apply, inverse

DEIS = Multistep(order=3, method="t-AB", warmup="low-order", corrector=False, basis="R")
EVERY = pytest.mark.parametrize("sde", FIVE, ids=ids)
SCALAR = pytest.mark.parametrize("sde", FIVE[:3], ids=ids)
METHODS = [
    *((method, False, "low-order") for method in ("t-AB", "rho-AB", "rho-RK", "iPNDM")),
    *((method, False, "exact") for method in ("t-AB", "rho-AB")),
    *(("t-AB", True, warmup) for warmup in ("low-order", "exact")),
]


def event(sde: LinearSDE) -> tuple[int, ...]:
    return (1, 2, 3) if isinstance(sde, BDM) else (1,)


class Modes:
    """Coordinates (of the SDE's basis) drawn independently from three modes of standard deviation `std`; score by hand."""

    def __init__(self, sde: LinearSDE, std: float = 0.3, means: tuple[float, ...] = (-1.2, 0.1, 1.3)) -> None:
        self.sde, self.std, self.calls = sde, std, 0
        self.means = torch.tensor(means, dtype=torch.float64)

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        column = self.sde.psi0(t)[..., :1]
        precision = inverse(self.sde.cov(t) + self.std**2 * column @ column.mT)
        pulls = [apply(precision, m * column[..., 0] - u) for m in self.means]
        logits = torch.stack(
            [-0.5 * ((m * column[..., 0] - u) * p).sum(-1) for m, p in zip(self.means, pulls, strict=True)]
        )
        return (logits.softmax(0).unsqueeze(-1) * torch.stack(pulls)).sum(0)


def starts(sde: LinearSDE, num: int = 16) -> Tensor:
    return sde.sample_prior(torch.zeros(num, *event(sde), sde.prior_cov().shape[-1], dtype=torch.float64), rng(3))


@lru_cache
def solution(sde: LinearSDE, std: float = 0.3) -> Tensor:
    return sample_ode(sde, Modes(sde, std).score, starts(sde), uniform_times(sde, 1), rtol=1e-12, atol=1e-13)


def errors(sde: LinearSDE, counts: tuple[int, int], std: float = 0.3, **options) -> tuple[float, float]:
    """Mean error over the starts against RK45 at 1e-12, for two numbers of steps of the quadratic grid."""
    law, u, exact, found = Modes(sde, std), starts(sde), solution(sde, std), []
    for num_steps in counts:
        u_s = sample_deis(sde, law.score, u, power_times(sde, num_steps, 2.0), **options)
        found.append(float((u_s - exact).flatten(1).norm(dim=1).mean()))
    return found[0], found[1]


def slope(sde: LinearSDE, counts: tuple[int, int], std: float = 0.3, **options) -> float:
    coarse, fine = errors(sde, counts, std, **options)
    return math.log2(coarse / fine)


STATED: list[dict] = [
    *({"method": "t-AB", "warmup": "exact", "order": r, "expected": r + 1} for r in range(4)),
    *({"method": "rho-AB", "warmup": "exact", "order": r, "expected": r + 1} for r in range(4)),
    *({"method": "rho-RK", "order": r, "expected": r + 1} for r in range(4)),
    *({"method": "iPNDM", "order": r, "expected": 2} for r in (1, 2, 3)),
    {"method": "t-AB", "corrector": True, "order": 0, "expected": 2},
]
"""Orders of convergence that the module's docstring states; iPNDM 0 is t-AB 0."""
SMOOTH = [replace(sde, t_min=0.05) for sde in FIVE]
IN_BRIEF = (VP, CLD)
"""The diffusions, of scalar and of matrix coefficients, that stand for all outside the slow tests."""


def slow_unless(brief: bool, *values: object) -> object:
    """Parameters that are among the slow tests, but for brief ones."""
    return pytest.param(*values, marks=() if brief else pytest.mark.slow)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "stated"),
    [
        slow_unless(isinstance(sde, IN_BRIEF), sde, stated)
        for sde in SMOOTH
        for stated in STATED
        if sde.scalar or not stated["method"].startswith("rho")
    ],
    ids=lambda value: f"{value['method']}-{value['order']}" if isinstance(value, dict) else ids(value),
)
def test_every_method_has_the_order_that_is_stated(sde, stated):
    options = {name: value for name, value in stated.items() if name != "expected"}
    counts = (80, 160) if stated["method"] == "rho-RK" else (160, 320)
    assert abs(slope(sde, counts, std=0.5, **options) - stated["expected"]) < 0.25
    assert guaranteed_order(**options) == stated["expected"]


AT_LEAST: list[dict] = [
    *({"method": "t-AB", "warmup": "low-order", "order": r, "expected": 2} for r in (2, 3)),
    *({"method": "rho-AB", "warmup": "low-order", "order": r, "expected": 2} for r in (2, 3)),
    *({"method": "t-AB", "corrector": True, "warmup": "exact", "order": r, "expected": r + 1} for r in (1, 2, 3)),
    *({"method": "t-AB", "corrector": True, "warmup": "low-order", "order": r, "expected": 2} for r in (2, 3)),
]
"""What is guaranteed where a problem may show more; with r < 2 the two warm-ups are one."""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "stated"),
    [
        (sde, stated)
        for stated in AT_LEAST
        for sde in ([SMOOTH[0]] if stated["method"] == "rho-AB" else [SMOOTH[2], SMOOTH[4]])
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else ids(value),
)
@pytest.mark.slow
def test_every_method_has_at_least_the_order_that_is_guaranteed(sde, stated):
    """VE and BDM, where the first steps of the low-order warm-up weigh most."""
    options = {name: value for name, value in stated.items() if name != "expected"}
    counts = (
        (160, 320) if stated.get("corrector") else (320, 640)
    )  # a corrected step of order 4 is soon as exact as the oracle
    assert slope(sde, counts, std=0.5, **options) > stated["expected"] - 0.3
    assert guaranteed_order(**options) == stated["expected"]


def test_the_orders_of_degree_0_and_1_are_stated():
    for order, expected in ((0, 1), (1, 2)):
        for method in ("t-AB", "rho-AB", "rho-RK", "iPNDM"):
            assert guaranteed_order(order=order, method=method) == expected
    assert guaranteed_order() == 2  # the default of sample_deis: t-AB 3 as published


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sde", SMOOTH, ids=ids)
def test_euler_maruyama_without_noise_has_order_1(sde):
    law, u, exact = Modes(sde, 0.5), starts(sde), solution(sde, 0.5)
    found = [sample_em(sde, law.score, u, power_times(sde, n, 2.0), lam=0.0) - exact for n in (160, 320)]
    coarse, fine = (float(error.flatten(1).norm(dim=1).mean()) for error in found)
    assert abs(math.log2(coarse / fine) - 1) < 0.25


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("order", [slow_unless(order == 3, order) for order in range(4)])
@pytest.mark.parametrize(
    ("sde", "basis"),
    [(SMOOTH[0], "score"), (SMOOTH[3], "score"), (SMOOTH[3], "L")],
    ids=lambda v: v if isinstance(v, str) else ids(v),
)
def test_the_order_is_the_same_in_every_basis(sde, basis, order):
    found = slope(sde, (160, 320), std=0.5, order=order, warmup="exact", basis=basis)
    assert abs(found - (order + 1)) < 0.25


@pytest.mark.usefixtures("unchecked")
def test_a_warm_up_of_low_order_leaves_order_2():
    """t-AB 3 on sub-VP, where the error of the first steps is what is left at 320 steps."""
    sde = replace(SubVP(), t_min=1e-3)
    assert abs(slope(sde, (320, 640), order=3) - 2) < 0.25
    assert slope(sde, (320, 640), order=3, warmup="exact") > 3.75


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("order", "least"), [(0, 0.95), (1, 1.9), (2, 2.85), (3, 3.5)])
def test_t_ab_on_vp_has_its_order(order, least):
    assert slope(VP(t_min=1e-3), (160, 320), order=order, warmup="exact") >= least


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("order", "least"), [(1, 1.95), (2, 2.85), (3, 3.9)])
def test_rho_rk_on_vp_has_its_order(order, least):
    assert slope(VP(t_min=1e-3), (160, 320), order=order, method="rho-RK") >= least


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sde", [replace(sde, t_min=1e-3) for sde in FIVE[1:]], ids=ids)
@pytest.mark.slow
def test_order_1_is_kept_at_small_times(sde):
    assert slope(sde, (160, 320), order=1, warmup="exact") >= 1.85


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_corrector_is_more_exact_at_the_same_steps(order):
    sde = VP(t_min=1e-3)
    plain, _ = errors(sde, (160, 20), order=order, warmup="exact")
    corrected, _ = errors(sde, (160, 20), order=order, warmup="exact", corrector=True)
    assert corrected < 0.7 * plain


@EVERY
@pytest.mark.parametrize(("method", "warmup"), [("t-AB", "low-order"), ("t-AB", "exact"), ("iPNDM", "low-order")])
@pytest.mark.parametrize("order", [0, 3])
def test_one_step_is_exact_on_one_point(sde, method, warmup, order):
    """eps is constant along the ODE of data in one point: from t = 0.9 to 0.2 in one step, to 1e-8."""
    law, eps = Modes(sde, std=0.0, means=(0.7,)), randn(8, *event(sde), sde.prior_cov().shape[-1], seed=1)
    x = torch.full((8, *event(sde)), 0.7, dtype=torch.float64)
    u_0 = torch.stack([x, torch.zeros_like(x)], -1) if isinstance(sde, CLD) else x.unsqueeze(-1)
    t, s = scalar(0.9), scalar(0.2)
    options = {"order": order, "method": method, "warmup": warmup}
    u = sample_deis(sde, law.score, sde.perturb(u_0, t, eps), torch.stack([t, s]), **options)
    torch.testing.assert_close(u, sde.perturb(u_0, s, eps), rtol=1e-8, atol=1e-8)


@EVERY
@pytest.mark.parametrize("warmup", ["low-order", "exact"])
@pytest.mark.parametrize("num_steps", [10, 20])
def test_few_steps_keep_the_spread_of_gaussian_data(sde, warmup, num_steps):
    """N(0, 1/2) by 10 and 20 steps of order 3: nothing grows, and the spread is right to a third, whatever the diffusion."""
    law, u = Modes(sde, std=0.5**0.5, means=(0.0,)), starts(sde, 400)
    u = sample_deis(sde, law.score, u, power_times(sde, num_steps, 2.0), order=3, warmup=warmup)
    assert abs(float(u[..., 0].square().mean().sqrt()) / 0.5**0.5 - 1) < 1 / 3


def test_the_cholesky_factor_is_no_basis_for_cld():
    sde, eps = CLD(), randn(8, 1, 2, seed=1)
    law, u_0 = Modes(sde, std=0.0, means=(0.7,)), torch.tensor([0.7, 0.0], dtype=torch.float64).expand(8, 1, 2)
    ts = torch.tensor([0.9, 0.2], dtype=torch.float64)
    u = sample_deis(sde, law.score, sde.perturb(u_0, ts[0], eps), ts, order=0, basis="L")
    assert float((u - sde.perturb(u_0, ts[1], eps)).abs().max()) > 0.1
    many = power_times(replace(sde, t_min=0.2, t_max=0.9), 400, 1.0)  # it converges, slowly
    u = sample_deis(sde, law.score, sde.perturb(u_0, ts[0], eps), many, order=1, basis="L")
    torch.testing.assert_close(u, sde.perturb(u_0, ts[1], eps), rtol=0, atol=1e-3)


def constant_score(sde: LinearSDE) -> tuple[Tensor, Tensor]:
    """Three states, and one score c for them all."""
    shape = (*event(sde), sde.prior_cov().shape[-1])
    return randn(3, *shape, seed=1), randn(1, *shape, seed=2)


def solved_by_hand(sde: LinearSDE, u: Tensor, c: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u_s = psi u_t - C c with C = int_t^s 1/2 psi(s, tau) GG^T dtau, from F and GG alone."""
    psi = sde.psi(s, t)
    if isinstance(sde, VP):  # GG^T = -2 F and d psi(s, tau)/dtau = -psi F
        C = 1 - psi
    elif isinstance(sde, SubVP):  # b = B(tau): 1/2 int e^{b/2} (1 - e^{-2b}) db = e^{b/2} + e^{-3b/2}/3
        primitive = lambda b: torch.exp(b / 2) + torch.exp(-1.5 * b) / 3  # noqa: E731
        C = torch.exp(-sde.B(s) / 2) * (primitive(sde.B(s)) - primitive(sde.B(t))).reshape(1, 1)
    elif isinstance(sde, VE):  # psi = 1 and GG^T = dSigma/dt
        C = 0.5 * (sde.cov(s) - sde.cov(t))
    else:  # CLD: F and GG^T are constant
        C = 0.5 * (psi - torch.eye(2).double()) @ inverse(sde.F(t)) @ sde.GG(t)
    return apply(psi, u) - apply(C, c).expand_as(u)


@pytest.mark.parametrize("sde", FIVE[:4], ids=ids)
@pytest.mark.parametrize("options", [{"order": 0}, {"order": 3, "warmup": "exact"}, {"order": 2, "corrector": True}])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_a_constant_score_is_integrated_exactly(sde, options, num_steps):
    """Eq. 6.8 from t_max to t_min, in one step and in five, to 1e-10."""
    (u, c), ts = constant_score(sde), power_times(sde, num_steps, 2.0)
    found = sample_deis(sde, lambda u, t, y=None: c.expand_as(u), u, ts, basis="score", **options)
    exact = solved_by_hand(sde, u, c, ts[0], ts[-1])
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10 * float(exact.abs().max()))


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_a_constant_score_agrees_with_runge_kutta(sde):
    """BDM, whose coefficients have a pole just beyond t_max, included."""
    (u, c), ts = constant_score(sde), power_times(sde, 2, 2.0)
    score = lambda u, t, y=None: c.expand_as(u)  # noqa: E731
    found = sample_deis(sde, score, u, ts, order=0, basis="score")
    exact = sample_ode(sde, score, u, ts, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


@pytest.mark.parametrize("sde", [*FIVE[:3], FIVE[4]], ids=ids)
def test_the_cholesky_factor_is_r_without_blocks(sde):
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 4, 2.0)
    in_L, in_R = (sample_deis(sde, law.score, u, ts, order=3, basis=basis) for basis in ("L", "R"))
    torch.testing.assert_close(in_L, in_R, rtol=1e-7, atol=1e-7)


def test_order_0_on_vp_is_ddim():
    """x_s = alpha_s x0_hat + sigma_s eps_hat (Song, Meng, Ermon 2021, Eq. 12 without noise), to 1e-12."""
    sde, u = VP(), randn(5, 3, 1)
    law, ts = Modes(sde), power_times(VP(), 7, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=0)
    B = lambda t: t * sde.beta_min + t**2 / 2 * (sde.beta_max - sde.beta_min)  # noqa: E731
    for t, s in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        bar_t, bar_s = math.exp(-B(t)), math.exp(-B(s))
        eps = -math.sqrt(1 - bar_t) * law.score(u, scalar(t))
        x_0 = (u - math.sqrt(1 - bar_t) * eps) / math.sqrt(bar_t)
        u = math.sqrt(bar_s) * x_0 + math.sqrt(1 - bar_s) * eps
    torch.testing.assert_close(ours, u, rtol=1e-12, atol=1e-12)


def test_order_0_agrees_with_the_ddim_scheduler_of_diffusers():
    """Its table of alphas filled with those of VP at 1,000 times; nine steps of a hundred, in float64."""
    from diffusers import DDIMScheduler

    sde, law, num = VP(), Modes(VP()), 1000
    t = torch.linspace(sde.t_min, sde.t_max, num, dtype=torch.float64)
    alphas = sde.psi0(t.reshape(-1, 1, 1)).flatten().square()
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    scheduler = DDIMScheduler(num, trained_betas=betas.numpy(), clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = alphas  # the scheduler's own product is in float32
    scheduler.final_alpha_cumprod = alphas[0]
    scheduler.set_timesteps(10)
    u = start = starts(sde, 5).squeeze(-1)
    for k in scheduler.timesteps:
        eps = sde.eps_from_score(law.score(u.unsqueeze(-1), t[k]), t[k]).squeeze(-1)
        u = scheduler.step(eps, int(k), u).prev_sample
    ours = sample_deis(sde, law.score, start.unsqueeze(-1), t[scheduler.timesteps], order=0)
    torch.testing.assert_close(ours.squeeze(-1), u, rtol=1e-7, atol=1e-7)


@SCALAR
def test_the_methods_of_order_0_are_one(sde):
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 9, 2.0)
    reference = sample_deis(sde, law.score, u, ts, order=0)
    for method in ("rho-AB", "rho-RK", "iPNDM"):
        other = sample_deis(sde, law.score, u, ts, order=0, method=method)
        torch.testing.assert_close(other, reference, rtol=1e-9, atol=1e-9)


@EVERY
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 10])
def test_stochastic_gddim_has_the_law_of_one_point(sde, lam, num_steps):
    """Data in one point: mean and covariance at t = 0.2 are exact for any number of steps, within 5 standard errors."""
    num, K = 4000, sde.prior_cov().shape[-1]
    law, x = Modes(sde, std=0.0, means=(0.7,)), torch.full((num, *event(sde)), 0.7, dtype=torch.float64)
    u_0 = torch.stack([x, torch.zeros_like(x)], -1) if isinstance(sde, CLD) else x.unsqueeze(-1)
    ts = torch.linspace(0.9, 0.2, num_steps + 1, dtype=torch.float64)
    u = sde.perturb(u_0, ts[0], randn(*u_0.shape, seed=4))
    u = sample_deis(sde, law.score, u, ts, order=0, lam=lam, generator=rng(5))
    mean, cov = apply(sde.psi0(ts[-1]), u_0[:1])[0], sde.cov(ts[-1])
    var = cov.diagonal(dim1=-2, dim2=-1).expand(*event(sde), K)
    assert ((u.mean(0) - mean).abs() < 5 * (var / num).sqrt()).all()
    centred = u - mean
    found = torch.einsum("b...i,b...j->...ij", centred, centred) / num
    bound = ((var.unsqueeze(-1) * var.unsqueeze(-2) + cov.square()) / num).sqrt()
    assert ((found - cov).abs() < 5 * bound).all()


@EVERY
def test_covariances_of_gddim_are_symmetric_and_not_negative(sde):
    """P = R_s (I - W W^T) R_s^T, against the Lyapunov equation of its definition by central differences."""
    grid = torch.linspace(0.9, 0.2, 11, dtype=torch.float64)
    t = torch.cat([torch.tensor([0.9, 0.5, 0.9, 1e-3], dtype=torch.float64), grid[:-1]])
    s = torch.cat([torch.tensor([0.2, 0.499, 1e-5, 1e-5], dtype=torch.float64), grid[1:]])
    for lam in (0.0, 0.3, 1.0):
        W, R = noise_factor(sde, t, s, lam), sde.R(s.reshape(-1, 1, 1))
        P = R @ (torch.eye(W.shape[-1]).double() - W @ W.mT) @ R.mT
        trace = sde.cov(s.reshape(-1, 1, 1)).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(P, P.mT, rtol=0, atol=1e-14)
        assert (torch.linalg.eigvalsh(P).amin(-1) >= -1e-12 * trace).all()
        if lam == 0:
            assert (P.abs() <= 1e-14).all()


@EVERY
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_psi_hat_is_the_transition_of_f_hat(sde, lam):
    """Psi_hat = R_s W R_t^-1: d/ds Psi_hat = (F + (1 + lam^2)/2 GG^T Sigma^-1) Psi_hat, by central differences."""
    s = torch.tensor([0.6, 0.3, 0.05], dtype=torch.float64)
    h = 1e-4 * s
    times = torch.stack([s - 2 * h, s - h, s, s + h, s + 2 * h]).reshape(-1, 1, 1)
    W = noise_factor(sde, torch.full((15,), 0.8, dtype=torch.float64), times.flatten(), lam)
    psi_hat = sde.R(times) @ W @ inverse(sde.R(scalar(0.8)))
    psi_hat = psi_hat.reshape(5, 3, *psi_hat.shape[1:])
    at = s.reshape(-1, 1, 1)
    h = h.reshape(-1, *[1] * (psi_hat.ndim - 2))
    numeric = (8 * (psi_hat[3] - psi_hat[1]) - (psi_hat[4] - psi_hat[0])) / (12 * h)
    F_hat = sde.F(at) + 0.5 * (1 + lam**2) * sde.GG(at) @ inverse(sde.cov(at))
    direct = (F_hat @ psi_hat[2]).expand_as(numeric)
    for ours, theirs in zip(numeric, direct, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * float(theirs.abs().max()))


@EVERY
def test_no_noise_at_lam_0(sde):
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 5, 2.0)
    first, second = (sample_deis(sde, law.score, u, ts, order=0, generator=rng(seed)) for seed in (0, 1))
    assert torch.equal(first, second)


@EVERY
def test_a_sample_is_that_of_its_seed(sde):
    law, u, ts = Modes(sde), starts(sde, 4), power_times(sde, 5, 2.0)
    for options in ({"order": 0, "lam": 0.5}, {"order": 2}):
        together = sample_deis(sde, law.score, u, ts, generator=seeded(range(4)), **options)
        alone = sample_deis(sde, law.score, u[2:3], ts, generator=seeded([2]), **options)
        torch.testing.assert_close(alone, together[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("method", "corrector", "warmup"), METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_evaluations_are_counted(method, corrector, order, warmup, denoise, num_steps):
    law, sde = Modes(VP()), VP()
    options = {"order": order, "method": method, "warmup": warmup, "corrector": corrector, "denoise": denoise}
    sample_deis(sde, law.score, starts(sde, 2), uniform_times(sde, num_steps), **options)
    assert law.calls == evaluations(num_steps, **options)
    found = steps_for(30, **options)
    assert evaluations(found, **options) <= 30 < evaluations(found + 1, **options)


def test_float32_states_stay_float32():
    for sde in FIVE:
        law, u = Modes(sde), starts(sde, 3).float()
        score = lambda u, t, y=None, law=law: law.score(u.double(), t).float()  # noqa: E731
        for options in ({"order": 3, "warmup": "exact"}, {"order": 0, "lam": 1.0}, {"order": 2, "method": "iPNDM"}):
            assert (
                sample_deis(sde, score, u, power_times(sde, 5, 2.0), generator=rng(0), **options).dtype == torch.float32
            )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": CLD(), "method": "rho-AB"}, "method='rho-AB': rho is no scalar for CLD; use 't-AB' or 'iPNDM'"),
        ({"sde": BDM(height=2, width=3), "method": "rho-RK"}, "rho is no scalar for BDM"),
        ({"order": 4}, "order=4 must be"),
        ({"order": -1}, "order=-1"),
        ({"lam": 1.5, "order": 0}, r"lam=1.5 must lie in \[0, 1\]"),
        (
            {"lam": 0.5, "method": "rho-RK"},
            "lam=0.5 above 0 needs method among 't-AB', 'rho-AB', .* got 'rho-RK'",
        ),
        ({"lam": 0.5, "warmup": "exact"}, "lam=0.5 above 0 needs .* warmup='low-order'"),
        ({"warmup": "exact", "method": "iPNDM"}, "warmup='exact' needs"),
        ({"method": "euler"}, "method='euler' is none of"),
        ({"warmup": "none"}, "warmup='none'"),
        ({"basis": "Q"}, "basis='Q' is none of R, L, score"),
        ({"basis": "score", "lam": 0.5, "order": 0}, "basis='score' needs method='t-AB' and lam=0, got .*lam=0.5"),
        ({"basis": "score", "method": "rho-AB"}, "basis='score' needs method='t-AB' and lam=0, got method='rho-AB'"),
        ({"basis": "score", "method": "rho-RK"}, "basis='score' needs method='t-AB'"),
        ({"basis": "score", "method": "iPNDM"}, "basis='score' needs method='t-AB'"),
        ({"basis": "L", "method": "iPNDM"}, "basis='L' needs method='t-AB'"),
        ({"ts": torch.tensor([0.5, 0.5, 0.1]).double()}, r"ts must decrease: ts\[0\]=0.5 is followed by ts\[1\]=0.5"),
        ({"ts": torch.tensor([0.1, 0.5]).double()}, "ts must decrease"),
        ({"ts": torch.tensor([1.5, 0.5]).double()}, "outside"),
        ({"u": torch.zeros(2, 1, 2).double()}, "blocks have size 2"),
        ({"sde": BDM(height=4, width=4), "u": torch.zeros(2, 1, 8, 8, 1).double()}, r"made for positions \(4, 4\)"),
        ({"sde": BDM(height=4, width=4), "u": torch.zeros(2, 1, 1, 1, 1).double()}, r"made for positions \(4, 4\)"),
        ({"ts": torch.tensor([0.5, 0.1])}, "give float64"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    sde = options.pop("sde", VP())
    u = options.pop("u", torch.zeros(2, *event(sde), sde.prior_cov().shape[-1]).double())
    with pytest.raises(ValueError, match=message):
        sample_deis(sde, Modes(sde).score, u, options.pop("ts", uniform_times(sde, 3)), **options)


def test_evaluations_that_buy_no_step():
    with pytest.raises(ValueError, match="nfe=2: one step takes 4 evaluations"):
        steps_for(2, order=3, method="rho-RK")


def test_a_plan_in_pieces_is_the_same(monkeypatch):
    from indm_core.exponential import coefficients

    sde, law = BDM(height=2, width=3), Modes(BDM(height=2, width=3))
    ts, u = power_times(sde, 11, 2.0), starts(sde, 2)
    whole = sample_deis(sde, law.score, u, ts, order=2, corrector=True)
    monkeypatch.setattr(coefficients, "PLAN_ENTRIES", 40 * 6 * 4)
    coefficients.plan.cache_clear()
    torch.testing.assert_close(sample_deis(sde, law.score, u, ts, order=2, corrector=True), whole, rtol=0, atol=0)


def test_coefficients_of_fifty_steps_are_quick():
    """The plan of a scalar SDE: milliseconds (the bound is loose, so that a busy machine does not fail it)."""
    import time

    ts, times = power_times(VP(), 50, 2.0), []
    for _ in range(20):
        began = time.perf_counter()
        plan.__wrapped__(VP(), tuple(ts.tolist()), DEIS)
        times.append(time.perf_counter() - began)
    assert np.median(times) < 0.1
