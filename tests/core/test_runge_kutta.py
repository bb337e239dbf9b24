"""Single-step exponential integrators: orders for matrix coefficients, the tableaux that they are in rho, the velocity."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from problems import Coupled, ids, randn
from test_exponential import SCALAR, SMOOTH, Modes, event, slope, starts
from torch import Tensor

from indm_core.exponential import check_method, evaluations, guaranteed_order, sample_deis
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP, apply, inverse, over_event
from indm_core.times import power_times

TABLEAUX = (
    ((), (1.0,)),
    (((1.0,),), (1 / 2, 1 / 2)),
    (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)
"""Euler, Heun, Kutta's third-order and the classical method: what each stage adds up of those before it, and the weights."""


def named(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else ids(value)


@SCALAR
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_in_rho_they_are_the_tableaux(sde, order):
    """dy/drho = eps, y = u/psi(t, 0), by the methods that books print."""
    law, u, ts = Modes(sde), starts(sde, 4), power_times(sde, 5, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=order, method="rho-RK")
    stages, weights = TABLEAUX[order]
    rho = (sde.R(ts) / sde.psi0(ts)).flatten()
    for i in range(5):
        y, h = u / sde.psi0(ts[i]).squeeze(), rho[i + 1] - rho[i]
        slopes = [sde.eps_from_score(law.score(u, ts[i]), ts[i])]
        for row in stages:
            t = sde.time_at(2 * torch.log(rho[i] + sum(row) * h).reshape(1))[0] if sum(row) < 1 else ts[i + 1]
            state = sde.psi0(t).squeeze() * (y + sum(a * h * k for a, k in zip(row, slopes, strict=True)))
            slopes.append(sde.eps_from_score(law.score(state, t), t))
        y = y + sum(w * h * k for w, k in zip(weights, slopes, strict=True))
        u = sde.psi0(ts[i + 1]).squeeze() * y
    torch.testing.assert_close(ours, u, rtol=1e-8, atol=1e-8)


ORDERS: list[dict] = [
    *({"method": "t-RK", "order": r} for r in (1, 2, 3)),
    *({"method": "t-RK", "order": r, "prediction": "data"} for r in (1, 2, 3)),
]


def check_order(sde: LinearSDE, options: dict, counts: tuple[int, int]) -> None:
    stated = {name: value for name, value in options.items() if name != "prediction"}
    assert slope(sde, counts, std=0.5, **options) > guaranteed_order(**stated) - 0.3
    assert guaranteed_order(**stated) == options["order"] + 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "options"),
    [(SMOOTH[3], ORDERS[0]), (SMOOTH[3], ORDERS[1]), (SMOOTH[3], ORDERS[5]), (SMOOTH[4], ORDERS[2])],
    ids=named,
)
def test_matrix_coefficients_keep_the_order(sde, options):
    """CLD, whose coefficients do not commute, and BDM, whose coordinates differ."""
    check_order(sde, options, (20, 40))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        *ORDERS,
        *({"method": method, "order": r, "prediction": "velocity"} for method in ("t-RK", "rho-RK") for r in (1, 2, 3)),
        *({"method": "rho-RK", "order": r, "prediction": "data"} for r in (1, 2, 3)),
    ],
    ids=named,
)
@pytest.mark.parametrize("sde", SMOOTH, ids=ids)
def test_every_kind_keeps_its_order(sde, options):
    try:
        check_method(sde, options["method"], options.get("prediction", "eps"))
    except ValueError:
        pytest.skip("not of this SDE")
    check_order(
        sde, options, (40, 80) if options["order"] == 3 else (160, 320)
    )  # on VE in data an error passes 0 before


@pytest.mark.parametrize("sde", [VP(), CLD(), BDM(height=2, width=3), Coupled()], ids=ids)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_step_is_exact_on_one_point(sde, order):
    """eps is constant along the ODE of data in one point: one step from t = 0.9 to 0.2."""
    e = (2,) if isinstance(sde, Coupled) else event(sde)
    x, eps = torch.full((3, *e), 0.7, dtype=torch.float64), randn(3, *e, sde.prior_cov().shape[-1], seed=1)
    u_0 = sde.embed(x) if not isinstance(sde, BDM) else x.unsqueeze(-1)
    ts = torch.tensor([0.9, 0.2], dtype=torch.float64)
    exact = [sde.perturb(u_0, t, eps) for t in ts]

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return -apply(inverse(sde.cov(t)), u - apply(sde.psi0(t), u_0))

    for prediction in ("eps", "data"):
        u = sample_deis(sde, score, exact[0], ts, order=order, method="t-RK", prediction=prediction)
        torch.testing.assert_close(u, exact[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_evaluations_are_counted(order):
    sde, law = CLD(), Modes(CLD())
    sample_deis(sde, law.score, starts(sde, 2), power_times(sde, 3, 2.0), order=order, method="t-RK", denoise=True)
    assert law.calls == evaluations(3, order=order, method="t-RK", denoise=True) == 3 * (order + 1) + 1


# Velocity

ONE = pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), BDM(height=2, width=3)], ids=ids)


@ONE
@pytest.mark.parametrize("method", ["t-AB", "t-RK"])
def test_degree_0_of_the_velocity_is_that_of_eps(sde, method):
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 6, 2.0)
    both = [sample_deis(sde, law.score, u, ts, order=0, method=method, prediction=kind) for kind in ("eps", "velocity")]
    torch.testing.assert_close(both[1], both[0], rtol=1e-7, atol=1e-7)


@ONE
@pytest.mark.parametrize("method", ["t-AB", "log-rho-AB", "t-RK"])
def test_data_in_one_point_is_exact_in_the_velocity(sde, method):
    law, eps = Modes(sde, std=0.0, means=(0.7,)), randn(4, *event(sde), 1, seed=1)
    u_0, ts = torch.full_like(eps, 0.7), torch.tensor([0.9, 0.6, 0.35, 0.2], dtype=torch.float64)
    u = sample_deis(sde, law.score, sde.perturb(u_0, ts[0], eps), ts, order=2, method=method, prediction="velocity")
    torch.testing.assert_close(u, sde.perturb(u_0, ts[-1], eps), rtol=1e-7, atol=1e-7)


def test_the_velocity_of_vp_is_a_rotation():
    """alpha = cos phi, sigma = sin phi, v = alpha_t eps - sigma_t x with alpha_t, sigma_t of the step's start for all values:
    u_s = cos(d) u_t + int cos(phi_s - phi_t)/cos(phi - phi_t)^2 v dphi, v the straight line in t. As dphi is not at hand, the
    integral is a Riemann sum over phi itself, at 20,001 equal steps of t^(1/2)."""
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 4), power_times(VP(), 5, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=1, prediction="velocity")
    pairs: list[tuple[Tensor, Tensor]] = []
    for i in range(5):
        fine = torch.linspace(float(ts[i].sqrt()), float(ts[i + 1].sqrt()), 20_001, dtype=torch.float64).square()
        phi = torch.atan2(sde.R(over_event(fine)), sde.psi0(over_event(fine))).flatten()
        t, at, score = ts[i], phi[0], law.score(u, ts[i])
        pairs.insert(0, ((u + at.sin() ** 2 * score) / at.cos(), -at.sin() * score))
        v = [at.cos() * eps - at.sin() * x for x, eps in pairs[:2]]
        line = (
            [torch.ones_like(fine)] if i == 0 else [(fine - ts[i - 1]) / (t - ts[i - 1]), (fine - t) / (ts[i - 1] - t)]
        )
        factor = (phi[-1] - at).cos() / (phi - at).cos() ** 2
        weights = [torch.trapezoid(factor * part, phi) for part in line]
        u = (phi[-1] - at).cos() * u + sum(w * value for w, value in zip(weights, v, strict=True))
    torch.testing.assert_close(ours, u, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_in_the_velocity_has_its_order(order):
    found = slope(SMOOTH[0], (60, 120), std=0.5, order=order, prediction="velocity", warmup="exact")
    assert abs(found - (order + 1)) < 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sde", [SMOOTH[k] for k in (0, 1, 2, 4)], ids=ids)
@pytest.mark.parametrize("options", [{}, {"corrector": True, "reevaluate": False}], ids=named)
def test_multistep_in_the_velocity_has_its_order_on_every_sde(sde, order, options):
    stated = {"order": order, "warmup": "exact", **options}
    assert slope(sde, (160, 320), std=0.5, prediction="velocity", **stated) > guaranteed_order(**stated) - 0.3


@pytest.mark.parametrize("sde", [CLD(), Coupled()], ids=ids)
def test_a_velocity_of_blocks_is_refused_by_name(sde):
    u = torch.zeros(2, 2, 2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=f"prediction='velocity': {type(sde).__name__} couples 2 coordinates.*; use 'eps'"
    ):
        sample_deis(sde, partial(torch.mul, 0.0), u, power_times(sde, 3, 2.0), prediction="velocity")
