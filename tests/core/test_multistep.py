"""Multistep in data, polynomials in log rho, the corrector that costs nothing: orders, closed forms, twins, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import ids, randn, rng
from test_exponential import EVERY, SCALAR, SMOOTH, Modes, event, slope, starts

from indm_core.exponential import evaluations, guaranteed_order, sample_deis, steps_for
from indm_core.sample import log_rho_times, power_times
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import BDM, CLD, VP, LinearSDE

PEC = {"corrector": True, "reevaluate": False}
STATED: list[tuple[dict, int]] = [
    *(({"prediction": "data", "warmup": "exact", "order": r}, r + 1) for r in range(4)),
    *(({"method": "log-rho-AB", "warmup": "exact", "order": r}, r + 1) for r in range(4)),
    *(({"method": "log-rho-AB", "prediction": "data", "warmup": "exact", "order": r}, r + 1) for r in (1, 2, 3)),
    *(({**PEC, "warmup": "exact", "order": r}, r + 2) for r in (0, 1, 2)),
    *(({**PEC, "prediction": "data", "warmup": "exact", "order": r}, r + 2) for r in (0, 1, 2)),
    ({**PEC, "method": "log-rho-AB", "prediction": "data", "warmup": "exact", "order": 1}, 3),
    ({"prediction": "data", "warmup": "exact", "order": 2, "final": "low-order"}, 2),
]
"""The orders that the documentation states."""


def named(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else ids(value)


def steep(options: dict) -> bool:
    """Degree 3 in log rho."""
    return options.get("method") == "log-rho-AB" and options["order"] == 3


def check_order(sde: LinearSDE, options: dict, expected: int, counts: tuple[int, int]) -> None:
    excess = slope(sde, counts, std=0.5, **options) - expected
    assert excess > -0.25
    # the order of the last steps alone, or of the warm-up's alone, is one that a problem may not show
    of_few_steps = "final" in options or ("corrector" in options and expected == 4)
    assert excess < 0.25 or of_few_steps
    stated = {name: value for name, value in options.items() if name != "prediction"}
    assert guaranteed_order(**stated) == expected


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "expected"), [STATED[k] for k in (2, 5, 8, 12, 15, 18)], ids=named)
def test_methods_of_each_kind_have_the_order_that_is_stated(options, expected):
    check_order(SMOOTH[0], options, expected, (60, 120))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "options", "expected"),
    [(sde, *stated) for sde in SMOOTH for stated in STATED if not (isinstance(sde, BDM) and steep(stated[0]))],
    ids=named,
)
def test_every_method_has_the_order_that_is_stated(sde, options, expected):
    check_order(sde, options, expected, (160, 320))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [options for options, _ in STATED if steep(options)], ids=named)
def test_polynomials_of_degree_3_in_log_rho_have_their_order_away_from_the_pole_of_bdm(options):
    """log rho of BDM has a pole just beyond t_max; from there on slopes of 3.0 to 3.8 are seen up to 1,280 steps."""
    sde = SMOOTH[-1]
    law, u = Modes(sde, 0.5), starts(sde)

    def last(num_steps: int, **options) -> torch.Tensor:
        ts = torch.linspace(0.7**0.5, 0.05**0.5, num_steps + 1, dtype=torch.float64).square()
        return sample_deis(sde, law.score, u, ts, **options)

    exact = last(3000, order=3, warmup="exact")
    coarse, fine = ((last(n, **options) - exact).norm() for n in (320, 640))
    assert abs(float((coarse / fine).log2()) - 4) < 0.25


@pytest.mark.usefixtures("unchecked")
def test_a_free_corrector_makes_a_low_order_warm_up_one_order_better():
    """The first step, of degree 0, is corrected by a polynomial of degree 1: O(h^3)."""
    assert [guaranteed_order(order=order, **PEC) for order in range(4)] == [2, 3, 3, 3]
    assert slope(SMOOTH[0], (40, 80), std=0.5, order=2, **PEC) > 2.75


@EVERY
def test_degree_0_is_one_step_in_eps_and_in_data(sde):
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 6, 2.0)
    in_eps, in_data = (sample_deis(sde, law.score, u, ts, order=0, prediction=kind) for kind in ("eps", "data"))
    torch.testing.assert_close(in_data, in_eps, rtol=1e-7, atol=1e-7)


@EVERY
@pytest.mark.parametrize("method", ["t-AB", "log-rho-AB"])
@pytest.mark.parametrize("options", [{}, PEC, {"corrector": True}, {"warmup": "exact"}], ids=named)
def test_data_in_one_point_is_exact(sde, method, options):
    """eps and E[u_0 | u] are constant: from t = 0.9 to 0.2 in three steps of degree 2."""
    law, eps = Modes(sde, std=0.0, means=(0.7,)), randn(4, *event(sde), sde.prior_cov().shape[-1], seed=1)
    x = torch.full((4, *event(sde)), 0.7, dtype=torch.float64)
    u_0 = torch.stack([x, torch.zeros_like(x)], -1) if isinstance(sde, CLD) else x.unsqueeze(-1)
    ts = torch.tensor([0.9, 0.6, 0.35, 0.2], dtype=torch.float64)
    for kind in ("eps", "data"):
        start = sde.perturb(u_0, ts[0], eps)
        u = sample_deis(sde, law.score, start, ts, order=2, method=method, prediction=kind, **options)
        torch.testing.assert_close(u, sde.perturb(u_0, ts[-1], eps), rtol=1e-7, atol=1e-7)


@SCALAR
def test_data_in_log_rho_is_the_closed_form(sde):
    """Degree 1, with l = -log rho and h = l_s - l_t: u_s = sigma_s/sigma_t u + alpha_s [(1 - e^-h) x + (h - 1 + e^-h) x'],
    x' the divided difference of x in l (DPM-Solver++ 2M with its integrals exact)."""
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 6, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=1, method="log-rho-AB", prediction="data")
    alpha, sigma = sde.psi0(ts).flatten(), sde.R(ts).flatten()
    lam, last = (alpha / sigma).log(), None
    for i in range(6):
        x = (u + sigma[i] ** 2 * law.score(u, ts[i])) / alpha[i]
        slope = torch.zeros_like(x) if last is None else (x - last) / (lam[i] - lam[i - 1])
        h, last = lam[i + 1] - lam[i], x
        whole, first = -torch.expm1(-h), h + torch.expm1(-h)
        u = sigma[i + 1] / sigma[i] * u + alpha[i + 1] * (whole * x + first * slope)
    torch.testing.assert_close(ours, u, rtol=1e-8, atol=1e-8)


@SCALAR
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_free_corrector_is_the_plain_loop(sde, order):
    """PEC in y = u/alpha, where dy/drho = eps: polynomials through all values, integrated by numpy."""
    law, u, ts = Modes(sde), starts(sde), power_times(sde, 6, 2.0)
    ours = sample_deis(sde, law.score, u, ts, order=order, method="rho-AB", **PEC)
    alpha, sigma = sde.psi0(ts).flatten(), sde.R(ts).flatten()
    rho, y = (sigma / alpha).numpy(), (u / alpha[0]).flatten().numpy()

    def eps(y: np.ndarray, i: int) -> np.ndarray:
        state = alpha[i] * torch.from_numpy(y).reshape(u.shape)
        return (-sigma[i] * law.score(state, ts[i])).flatten().numpy()

    def moved(y: np.ndarray, i: int, points: list[int], values: list[np.ndarray]) -> np.ndarray:
        scaled = (rho[points] - rho[i]) / (rho[i + 1] - rho[i])  # the step is [0, 1]
        primitives = np.polynomial.polynomial.polyint(np.linalg.solve(np.vander(scaled, increasing=True), values))
        return y + (rho[i + 1] - rho[i]) * primitives.sum(0)

    known = [eps(y, 0)]
    for i in range(6):
        last = list(range(max(0, i - order), i + 1))
        predicted = moved(y, i, last, [known[j] for j in last])
        if i == 5:
            y = predicted
            break
        known.append(eps(predicted, i + 1))
        last.append(i + 1)
        y = moved(y, i, last, [known[j] for j in last])
    torch.testing.assert_close(ours.flatten(), alpha[-1] * torch.from_numpy(y), rtol=1e-8, atol=1e-8)


@EVERY
def test_a_low_order_end_is_degree_0(sde):
    law, u, ts = Modes(sde), starts(sde, 4), power_times(sde, 2, 2.0)
    for kind in ("eps", "data"):
        plain, ended = (
            sample_deis(sde, law.score, u, ts, prediction=kind, **options)
            for options in ({"order": 0}, {"order": 3, "final": "low-order"})
        )
        torch.testing.assert_close(ended, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("warmup", ["low-order", "exact"])
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_a_free_corrector_takes_no_evaluation(num_steps, order, warmup):
    sde, options = VP(), {"order": order, "warmup": warmup}
    law = Modes(sde)
    sample_deis(sde, law.score, starts(sde, 2), power_times(sde, num_steps, 2.0), prediction="data", **options, **PEC)
    assert law.calls == evaluations(num_steps, **options, **PEC) == evaluations(num_steps, **options)
    assert steps_for(30, **options, **PEC) == steps_for(30, **options)


@EVERY
def test_polynomials_in_log_rho_take_any_grid_that_falls(sde):
    law, u = Modes(sde), starts(sde, 3).float()
    score = lambda u, t, y=None: law.score(u.double(), t).float()  # noqa: E731
    for kind in ("eps", "data"):
        found = sample_deis(sde, score, u, log_rho_times(sde, 8), order=1, method="log-rho-AB", prediction=kind, **PEC)
        assert found.dtype == torch.float32
        assert found.isfinite().all()


def test_a_rho_that_does_not_grow_is_named():
    sde = CLD(gamma=0.4)
    with pytest.raises(ValueError, match="method='log-rho-AB' needs a rho that grows with t"):
        sample_deis(sde, Modes(sde).score, starts(sde, 2), power_times(sde, 8, 1.0), method="log-rho-AB")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "speed"}, "prediction='speed' is none of eps, data, velocity"),
        ({"final": "none"}, "final='none' is none of full, low-order"),
        ({"reevaluate": False}, "reevaluate=False is of a corrector; give corrector=True"),
        ({"prediction": "data", "method": "iPNDM"}, "prediction='data' needs method among 't-AB', .*, got 'iPNDM'"),
        ({"corrector": True, "method": "rho-RK"}, "corrector=True needs method among 't-AB'"),
        ({"final": "low-order", "method": "rho-RK"}, "final='low-order' needs method among"),
        (
            {"prediction": "velocity", "lam": 0.5},
            "lam=0.5 above 0 needs .* prediction 'eps' or 'data'; got .*'velocity'",
        ),
        ({"prediction": "velocity", "method": "iPNDM"}, "prediction='velocity' needs method among 't-AB'"),
        ({"prediction": "data", "basis": "L"}, "basis='L' needs .* and eps, got data"),
    ],
)
def test_what_does_not_go_together_is_named(options, message):
    sde = VP()
    with pytest.raises(ValueError, match=message):
        sample_deis(sde, Modes(sde).score, starts(sde, 2), power_times(sde, 3, 2.0), **options)


@pytest.mark.parametrize(("order", "steps"), [(1, 1), (2, 1), (2, 2)])
def test_a_grid_with_fewer_steps_than_the_order_needs_is_named(order, steps):
    """By what a user writes; 3, the default, is what a short grid allows, and an exact warm-up needs none."""
    few = Sampling(sampler="deis", order=order, steps=steps)
    message = f"order={order}: its polynomial goes through {order + 1} values, and a grid of {steps} steps has {steps}"
    with pytest.raises(ValueError, match=message):
        _ = few.num_steps
    with pytest.raises(ValueError, match=message):
        _ = replace(few, steps=1000, nfe=steps + 1).num_steps
    for allowed in ({"steps": order + 1}, {"order": 3}, {"warmup": "exact"}, {"method": "t-RK"}):
        assert replace(few, **allowed).num_steps == allowed.get("steps", steps)


@pytest.mark.parametrize(("order", "steps", "lower"), [(1, 2, 0), (2, 3, 1), (2, 4, 1)])
def test_a_degree_that_falls_before_it_is_reached_is_named(order, steps, lower):
    """With `final` low-order such a grid has the steps of a lower order; a corrector's degree is higher by one."""
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 2), power_times(sde, steps, 2.0)
    same = [sample_deis(sde, law.score, u, ts, order=r, final="low-order") for r in (order, lower)]
    assert torch.equal(*same)
    few = Sampling(sampler="deis", order=order, steps=steps, final="low-order")
    with pytest.raises(ValueError, match=f"order={order}: .* of {steps} steps never reaches it; take order={lower}"):
        _ = few.num_steps
    for allowed in ({"steps": 2 * order + 1}, {"order": lower}, {"final": "full"}, {"corrector": True}):
        assert replace(few, **allowed).num_steps == allowed.get("steps", steps)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["grid", "predictor"])
def test_a_word_that_there_is_not_is_named(name):
    with pytest.raises(ValueError, match=f"{name}='none' is none of "):
        Sampling(sampler="collage", **{name: "none"})


def test_the_options_of_a_sampling_are_those_of_the_function():
    """Every option that deis reads reaches it; -1 is its own stochasticity, 0."""
    chosen = {"order": 2, "prediction": "data", "lam": 0.5, "corrector": True, "reevaluate": False}
    sampling = Sampling(sampler="deis", steps=6, **chosen)
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 3), power_times(sde, 6, 2.0)
    direct = sample_deis(sde, law.score, u, ts, generator=rng(1), **chosen)
    assert torch.equal(sampler_of(sampling)(sde, law.score, u, ts, rng(1)), direct)
    churned = Sampling(sampler="deis", method="t-RK", order=1, churn=2.0, churn_noise=1.1, churn_from=0.1, churn_to=0.5)
    assert (churned.multistep.lam, churned.multistep.churn_to, churned.num_steps) == (0.0, 0.5, 1000)
    with pytest.raises(ValueError, match=r"churn=1\.0: sampler=em does not read it"):
        Sampling(sampler="em", churn=1.0)
