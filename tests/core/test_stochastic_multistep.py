"""Multistep with noise and churn: the law of Gaussian data after the steps, exactly, and its order; closed forms; refusals.

For Gaussian data every step is affine in the state, the earlier values and the noise. So a run with the noise z_i = 0 or a unit
vector gives the matrices of u = A u_0 + sum_i B_i z_i + c, and with them the law that the sampler has, without a draw. From the
exact law at ts[0] its covariance is to be the exact one, C_s. The mean of that law is exact in every step, as the score
vanishes along it; so the start is taken off it by a vector of ones, and the SDE leaves of it, at s,

    C_s psi(t, s)^T C_t^-1 for lam = 1,      psi(s, t)^(-lam^2) (C_s/C_t)^((1 + lam^2)/2) for K = 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import ids, randn, rng, scalar
from test_exponential import EVERY, SCALAR, SMOOTH, Modes, event, starts
from torch import Tensor

from indm_core.exponential import churn, coefficients, guaranteed_order, noise_factor, sample_deis
from indm_core.exponential.options import Multistep
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, apply, inverse, sqrt_psd
from indm_core.times import power_times

PEC = {"corrector": True, "reevaluate": False}
MEAN, STD = 0.7, 0.5
Law = tuple[Tensor, Tensor]


def named(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else ids(value)


def exact_law(sde: LinearSDE, t: Tensor, std: float) -> Law:
    """Mean (*event, K) and covariance (*event, K, K) of data N(MEAN, std^2) diffused to t."""
    column = sde.psi0(t)[..., :1]
    shape = (*event(sde), sde.prior_cov().shape[-1])
    cov = sde.cov(t) + std**2 * column @ column.mT
    return (MEAN * column[..., 0]).expand(shape), cov.expand(*shape, shape[-1])


def law_after(sde: LinearSDE, ts: Tensor, monkeypatch: pytest.MonkeyPatch, std: float = STD, **options) -> Law:
    """The law at ts[-1] of the sampler that starts from the exact law at ts[0], moved by ones."""
    k, calls = sde.prior_cov().shape[-1], 0
    u = torch.zeros(1 + k * (1 + len(ts)), *event(sde), k, dtype=torch.float64)
    u[torch.arange(1, 1 + k), ..., torch.arange(k)] = 1

    def unit(like: Tensor, generator: object) -> Tensor:
        nonlocal calls
        calls += 1
        z = torch.zeros_like(like)
        z[1 + k * calls + torch.arange(k), ..., torch.arange(k)] = 1
        return z

    for module in (churn, coefficients):
        monkeypatch.setattr(module, "randn_like", unit)
    law = Modes(sde, std, means=(MEAN,))
    u = sample_deis(sde, law.score, u, ts, **options)
    c, columns = u[0], u[1:] - u[0]
    A, B = columns[:k].movedim(0, -1), columns[k:].movedim(0, -1)
    mean, cov = exact_law(sde, ts[0], std)
    return apply(A, mean + 1) + c, A @ cov @ A.mT + B @ B.mT


def reversed_law(sde: LinearSDE, ts: Tensor, std: float, lam: float) -> Law:
    """What the SDE of the same marginals makes of the same start."""
    (_, cov_t), (mean, cov) = exact_law(sde, ts[0], std), exact_law(sde, ts[-1], std)
    if mean.shape[-1] == 1:
        kept = sde.psi(ts[-1], ts[0]) ** -(lam**2) * (cov / cov_t) ** ((1 + lam**2) / 2)
    else:
        assert lam == 1, "no closed form"
        kept = cov @ sde.psi(ts[0], ts[-1]).mT @ inverse(cov_t)
    return mean + apply(kept, torch.ones_like(mean)), cov


def distances(
    sde: LinearSDE, ts: Tensor, monkeypatch: pytest.MonkeyPatch, lam: float, **options
) -> tuple[float, float]:
    """Of mean and covariance from the exact ones, the largest over coordinates."""
    found, exact = law_after(sde, ts, monkeypatch, lam=lam, **options), reversed_law(sde, ts, STD, lam)
    mean, cov = (float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))
    return mean, cov


def slopes(
    sde: LinearSDE, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch, lam: float, **options
) -> tuple[float, float]:
    """Of both against the number of steps; infinite where there is no error."""
    coarse, fine = (distances(sde, power_times(sde, n, 2.0), monkeypatch, lam, **options) for n in counts)
    mean, cov = (math.log2(a / b) if b > 1e-12 else math.inf for a, b in zip(coarse, fine, strict=True))
    return mean, cov


@EVERY
@pytest.mark.parametrize("lam", [0.3, 1.0])
@pytest.mark.parametrize("options", [{"order": 0}, {"order": 1}, {"order": 3}, {"order": 2, **PEC}], ids=named)
def test_data_in_one_point_have_their_law_at_every_degree(sde, lam, options, monkeypatch):
    """E[u_0 | u] is constant, and the noise of a step is exact: four steps from t = 0.9 to 0.2."""
    ts = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.2], dtype=torch.float64)
    mean, cov = law_after(sde, ts, monkeypatch, std=0.0, lam=lam, prediction="data", **options)
    torch.testing.assert_close(cov, exact_law(sde, ts[-1], 0.0)[1], rtol=1e-8, atol=1e-9)
    if lam == 1 or mean.shape[-1] == 1:
        torch.testing.assert_close(mean, reversed_law(sde, ts, 0.0, lam)[0], rtol=1e-8, atol=1e-9)


STOCHASTIC: list[dict] = [
    *({"prediction": "data", "order": r} for r in range(4)),
    *({"prediction": "data", "order": r, **PEC} for r in range(3)),
    *({"prediction": "eps", "order": r} for r in (1, 2, 3)),
    *({"prediction": "data", "method": "log-rho-AB", "order": r} for r in (1, 2)),
    {"prediction": "data", "order": 1, "corrector": True},
]
"""In eps on scalar SDEs alone: on CLD and BDM psi(s, t) multiplies the noise of a long step by up to 1e5."""


def check_orders(sde: LinearSDE, lam: float, options: dict, counts: tuple[int, int], monkeypatch) -> None:
    stated = {name: value for name, value in options.items() if name != "prediction"}
    mean, cov = slopes(sde, counts, monkeypatch, lam, **options)
    assert mean > guaranteed_order(**stated) - 0.3
    assert cov > guaranteed_order(lam=lam, **stated) - 0.3
    assert guaranteed_order(lam=lam, **stated) == min(2, guaranteed_order(**stated))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", STOCHASTIC, ids=named)
def test_the_law_has_the_order_that_is_stated(options, monkeypatch):
    check_orders(SMOOTH[0], 0.5, options, (80, 160) if options["prediction"] == "eps" else (40, 80), monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "options"),
    [(sde, options) for options in STOCHASTIC for sde in SMOOTH if sde.scalar or options["prediction"] == "data"],
    ids=named,
)
def test_the_law_has_the_order_that_is_stated_on_every_sde(sde, options, monkeypatch):
    check_orders(sde, 1.0 if isinstance(sde, CLD) else 0.7, options, (160, 320), monkeypatch)


@pytest.mark.usefixtures("unchecked")
def test_order_2_of_the_covariance_is_all_that_noise_allows(monkeypatch):
    """2 for degree 3, and 1 for degree 0. At lam = 1 the mean is exact in data, where E[u_0 | u] has no drift along the SDE."""
    for order, expected, counts in ((3, 2, (160, 320)), (0, 1, (40, 80))):
        mean, cov = slopes(SMOOTH[0], counts, monkeypatch, 1.0, prediction="data", order=order)
        assert mean == math.inf
        assert abs(cov - expected) < 0.3


@SCALAR
def test_degree_1_in_log_rho_is_the_closed_form(sde):
    """With l = -log rho, h = l_s - l_t and g = 1 + lam^2: u_s = sigma_s/sigma_t e^(-lam^2 h) u + alpha_s [(1 - e^(-g h)) x +
    (h - (1 - e^(-g h))/g) x'] + sigma_s (1 - e^(-2 lam^2 h))^(1/2) z, x' the divided difference of x in l (SA-Solver's
    two-step predictor with its integrals exact)."""
    lam, law, u, ts = 0.7, Modes(sde), starts(sde, 4), power_times(sde, 6, 2.0)
    options = {"order": 1, "method": "log-rho-AB", "prediction": "data"}
    ours = sample_deis(sde, law.score, u, ts, lam=lam, generator=rng(7), **options)
    alpha, sigma = sde.psi0(ts).flatten(), sde.R(ts).flatten()
    clock, last, noise, g = (alpha / sigma).log(), None, rng(7), 1 + lam**2
    for i in range(6):
        z = torch.randn(u.shape, generator=noise, dtype=u.dtype)
        x = (u + sigma[i] ** 2 * law.score(u, ts[i])) / alpha[i]
        slope = torch.zeros_like(x) if last is None else (x - last) / (clock[i] - clock[i - 1])
        h, last = clock[i + 1] - clock[i], x
        whole = -torch.expm1(-g * h)
        kept = sigma[i + 1] / sigma[i] * torch.exp(-(lam**2) * h) * u
        u = kept + alpha[i + 1] * (whole * x + (h - whole / g) * slope)
        u = u + sigma[i + 1] * (-torch.expm1(-2 * lam**2 * h)).sqrt() * z
    torch.testing.assert_close(ours, u, rtol=1e-8, atol=1e-8)


@EVERY
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_degree_0_is_gddim(sde, lam):
    """u_s = psi (u_t - R_t eps) + R_s W eps + R_s (I - W W^T)^(1/2) z, whichever is predicted, with the noise of one seed."""
    law, u, ts = Modes(sde), starts(sde, 4), power_times(sde, 5, 2.0)
    ours = [
        sample_deis(sde, law.score, u, ts, order=0, lam=lam, prediction=p, generator=rng(3)) for p in ("eps", "data")
    ]
    noise = rng(3)
    for t, s in pairwise(ts):
        W = noise_factor(sde, t.reshape(1), s.reshape(1), lam)[0]
        eps = sde.eps_from_score(law.score(u, t), t)
        mean = apply(sde.psi(s, t), u - apply(sde.R(t), eps)) + apply(sde.R(s) @ W, eps)
        z = torch.randn(u.shape, generator=noise, dtype=u.dtype)
        u = mean + apply(sde.R(s) @ sqrt_psd(torch.eye(W.shape[-1]).to(W) - W @ W.mT), z)
    for found in ours:
        torch.testing.assert_close(found, u, rtol=1e-9, atol=1e-9)


@EVERY
@pytest.mark.parametrize("prediction", ["eps", "data"])
def test_a_little_noise_is_almost_none(sde, prediction):
    """lam = 1e-12 against lam = 0: the deterministic method is the limit."""
    law, u, ts = Modes(sde), starts(sde, 4), power_times(sde, 6, 2.0)
    options = {"order": 3, "prediction": prediction, **(PEC if prediction == "data" else {})}
    little, none = (sample_deis(sde, law.score, u, ts, lam=lam, generator=rng(0), **options) for lam in (1e-12, 0.0))
    torch.testing.assert_close(little, none, rtol=1e-6, atol=1e-6)


def test_collocation_is_the_closed_form_and_a_semigroup():
    """At lam = 1, and at lam = 0.4 as two steps in turn, to 1e-9; a step over all times included."""
    from indm_core.exponential.noise_factor import _collocated

    sde, t, s = CLD(), torch.tensor([1.0, 0.9, 1e-3]).double(), torch.tensor([1e-5, 0.2, 1e-5]).double()
    torch.testing.assert_close(_collocated(sde, t, s, 1.0), noise_factor(sde, t, s, 1.0), rtol=0, atol=1e-9)
    middle, through = (t * s).sqrt(), lambda t, s: noise_factor(sde, t, s, 0.4)
    torch.testing.assert_close(through(middle, s) @ through(t, middle), through(t, s), rtol=0, atol=1e-9)


def test_one_seed_is_one_sample_with_noise_at_every_degree():
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 3), power_times(sde, 5, 2.0)
    draws = [
        sample_deis(sde, law.score, u, ts, order=2, lam=0.5, prediction="data", generator=rng(k)) for k in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] - draws[2]).abs().min() > 0


# Churn

SINGLE: list[dict] = [{"method": "t-RK", "order": r} for r in (0, 1, 2)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "sde",
    [VP(), BDM(height=2, width=3), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (CLD(), VE()))],
    ids=ids,
)
def test_churn_leaves_the_law_as_it_is(sde, monkeypatch):
    """An exact score: the error of the covariance is that of the steps, and falls with their order."""
    sde = replace(sde, t_min=0.05)

    def error(num_steps: int) -> float:
        ts = power_times(sde, num_steps, 2.0)
        _, found = law_after(sde, ts, monkeypatch, churn=2.0, method="t-RK", order=2)
        return float((found - exact_law(sde, ts[-1], STD)[1]).abs().max())

    assert math.log2(error(24) / error(48)) > 2.7


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", SINGLE, ids=named)
def test_churn_keeps_the_order_of_the_steps(options, monkeypatch):
    _, cov = slopes(SMOOTH[0], (20, 40), monkeypatch, 0.0, churn=2.0, **options)
    assert cov > guaranteed_order(**options) - 0.3


@EVERY
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_a_state_is_noised_by_the_transition_times_a_factor(sde, factor, monkeypatch):
    """From the law at s exactly to psi Cov psi^T + factor^2 (Sigma_t - psi Sigma_s psi^T) at t."""
    s, t = scalar(0.3), scalar(0.35)
    u = randn(2, *event(sde), sde.prior_cov().shape[-1], seed=2)
    monkeypatch.setattr(churn, "randn_like", lambda u, generator: torch.ones_like(u))
    psi = sde.psi(t, s)
    spread = factor * sqrt_psd(sde.cov(t) - psi @ sde.cov(s) @ psi.mT)
    torch.testing.assert_close(
        churn.noised(sde, u, t, s, factor, None), apply(psi, u) + apply(spread, torch.ones_like(u))
    )


@pytest.mark.parametrize("sde", [VP(), BDM(height=2, width=3)], ids=ids)
def test_the_times_of_churn(sde):
    """rho(t^) = (1 + churn/N) rho(t), at most sqrt 2 rho(t) and rho(ts[0]), and t itself out of the range."""
    ts = power_times(sde, 10, 2.0)
    log_rho = sde.log_rho(ts)[:-1]

    def raised(**options) -> Tensor:
        return churn.raised(sde, ts, Multistep(**options))

    assert torch.equal(raised(), ts[:-1])
    for amount, gamma in ((1.0, 0.1), (1e9, math.sqrt(2) - 1)):
        found = raised(churn=amount)
        wanted = (log_rho + math.log1p(gamma)).clamp(max=log_rho[0])
        torch.testing.assert_close(sde.log_rho(found), wanted, rtol=0, atol=1e-6)
        assert found[0] == ts[0]
    some = raised(churn=1.0, churn_from=0.2, churn_to=0.6)
    inside = (ts[:-1] >= 0.2 * sde.t_max) & (ts[:-1] <= 0.6 * sde.t_max)
    assert torch.equal(some > ts[:-1], inside)


def test_without_noise_churn_is_a_step_back_on_the_ray():
    """churn_noise = 0 at order 0 on VP: u -> psi u at t^, then DDIM from there, by hand."""
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 3), power_times(VP(), 4, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=0, churn=0.4, churn_noise=0.0)
    rho = (sde.R(ts) / sde.psi0(ts)).flatten()
    for i in range(4):
        t = ts[i] if i == 0 else sde.time_at(2 * torch.log(1.1 * rho[i]).reshape(1))[0]
        u = apply(sde.psi(t, ts[i]), u)
        u = sample_deis(sde, law.score, u, torch.stack([t, ts[i + 1]]), order=0)
    torch.testing.assert_close(ours, u, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": 1.0}, r"churn=1.0 needs steps that know no earlier ones, order=0 or method among 't-RK', 'rho-RK'"),
        ({"churn": 1.0, "order": 0, "lam": 0.5}, "churn=1.0 needs .* lam=0 and corrector=False; got .* lam=0.5"),
        ({"churn": 1.0, "order": 0, "corrector": True}, "churn=1.0 needs .* corrector=False"),
        ({"churn": 1.0, "order": 0, "basis": "L"}, "basis='L' needs .* churn=0, got 1.0"),
        ({"churn": -1.0, "order": 0}, "churn=-1.0 must not be negative"),
        ({"churn": math.nan, "order": 0}, "churn=nan"),
        ({"churn": 1.0, "order": 0, "churn_noise": -0.1}, "churn_noise=-0.1"),
        ({"churn_from": 0.5, "churn_to": 0.4}, "churn_from=0.5 and churn_to=0.4 are shares"),
        ({"churn_to": 1.5}, "churn_to=1.5"),
        ({"sde": CLD(gamma=0.4), "churn": 1.0, "order": 0}, "churn=1.0 needs a rho that grows with t"),
    ],
)
def test_what_churn_and_noise_cannot_do_is_named(options, message):
    sde = options.pop("sde", VP())
    with pytest.raises(ValueError, match=message):
        sample_deis(sde, Modes(sde).score, starts(sde, 2), power_times(sde, 5, 1.0), **options)
