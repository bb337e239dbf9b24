"""Dormand-Prince 5(4) with a step per sample: against SciPy, closed forms, its order, and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import randn, scalar
from scipy.integrate import solve_ivp
from torch import Tensor

from indm_core import ode
from indm_core.errors import ConvergenceError
from indm_core.ode import in_sqrt_time, rk45

LOOSE = {"rtol": 1e-5, "atol": 1e-5}
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def pendulum(t: Tensor, state, rows: Tensor):
    """q'' = -(1 + t/2) sin q as a first-order system, one row per sample."""
    q, p = state[0].unbind(-1)
    return (torch.stack([p, -(1 + t / 2) * torch.sin(q)], -1),)


def by_scipy(start: Tensor, t_0: float, t_1: float) -> Tensor:
    def slope(t, y):
        return [y[1], -(1 + t / 2) * math.sin(y[0])]

    rows = [solve_ivp(slope, (t_0, t_1), y.numpy(), method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1] for y in start]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize(
    ("t_0", "t_1"), [(0.0, 3.0), (3.0, 0.0), (1.0, -1.0)], ids=["forwards", "backwards", "below 0"]
)
def test_agrees_with_scipy(t_0, t_1):
    start = randn(6, 2)
    (y,), nfe = rk45(pendulum, (start,), t_0, t_1, **TIGHT)
    torch.testing.assert_close(y, by_scipy(start, t_0, t_1), rtol=0, atol=1e-8)
    assert (nfe % 6 == 2).all()


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_the_tolerance_means_what_it_means_in_scipy(tolerance):
    """Errors and evaluations of a population are those of SciPy's RK45, which takes one trajectory at a time."""
    start, exact = randn(20, 2), by_scipy(randn(20, 2), 0.0, 3.0)
    (y,), nfe = rk45(pendulum, (start,), 0.0, 3.0, rtol=tolerance, atol=tolerance)
    solved = [
        solve_ivp(lambda t, q: [q[1], -(1 + t / 2) * math.sin(q[0])], (0, 3), row, rtol=tolerance, atol=tolerance)
        for row in start.numpy()
    ]
    theirs = torch.from_numpy(np.stack([one.y[:, -1] for one in solved]))
    ours, error = (y - exact).abs().amax(1), (theirs - exact).abs().amax(1)
    assert float(ours.max()) == pytest.approx(float(error.max()), rel=0.05)
    assert float(ours.median()) == pytest.approx(float(error.median()), rel=0.05)
    assert float(nfe.double().mean()) == pytest.approx(np.mean([one.nfev for one in solved]), rel=0.03)


def test_time_may_be_counted_by_its_root():
    """The field in r = sqrt t takes the same trajectory between the same times, forwards and backwards."""
    start = randn(5, 2)
    for t_0, t_1 in ((1e-5, 1.0), (2.0, 0.25)):
        (in_t,), _ = rk45(pendulum, (start,), t_0, t_1, **TIGHT)
        (in_root,), _ = rk45(in_sqrt_time(pendulum), (start,), math.sqrt(t_0), math.sqrt(t_1), **TIGHT)
        torch.testing.assert_close(in_root, in_t, rtol=0, atol=1e-8)


def test_there_and_back_again():
    start = randn(5, 2)
    (y,), _ = rk45(pendulum, (start,), 0.0, 2.0, **TIGHT)
    (back,), _ = rk45(pendulum, (y,), 2.0, 0.0, **TIGHT)
    torch.testing.assert_close(back, start, rtol=0, atol=1e-8)


def test_order_five_and_an_error_estimate_of_order_five():
    """One step of size h: the value is wrong by O(h^6), the estimate is O(h^5) (that of the embedded fourth order)."""
    start, rows, errors, estimates = randn(16, 2), torch.arange(16), [], []
    for h in (0.2, 0.1, 0.05):
        t, step = torch.zeros(16).double(), torch.full((16,), h, dtype=torch.float64)
        slope = pendulum(t, (start,), rows)
        (y,), k_new, estimate = ode._step(pendulum, t, step, (start,), slope, rows, 1e-12, 1.0)
        errors.append(float((y - by_scipy(start, 0.0, h)).norm()))
        estimates.append(float(estimate.norm()))
        torch.testing.assert_close(k_new[0], pendulum(t + h, (y,), rows)[0])  # first same as last
    assert math.log2(errors[1] / errors[2]) == pytest.approx(6, abs=0.5)
    assert math.log2(estimates[1] / estimates[2]) == pytest.approx(5, abs=0.5)


def test_the_tableau():
    """Row sums are the nodes; the weights integrate degree four, and those of the error vanish up to degree three."""
    for c, row in zip(ode._C, ode._A, strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-15)
    for degree in range(5):
        integral = sum(b * c**degree for b, c in zip(ode._A[6], ode._C, strict=False))
        assert integral == pytest.approx(1 / (degree + 1), abs=1e-14)
    for degree in range(4):
        assert sum(e * c**degree for e, c in zip(ode._E, ode._C, strict=True)) == pytest.approx(0, abs=1e-14)
    assert abs(sum(e * c**4 for e, c in zip(ode._E, ode._C, strict=True))) > 1e-4


def varied(t: Tensor, state, rows: Tensor):
    """A row's own frequency, from 1 to 200, and a second tensor that integrates its square."""
    frequency = torch.tensor([1.0, 200.0, 5.0, 40.0], dtype=torch.float64)[rows % 4]
    y = state[0]
    return torch.cos(frequency * t).unsqueeze(-1) * frequency.unsqueeze(-1) * torch.ones_like(y), y.square().sum(1)


def test_a_row_is_solved_alone_as_in_any_batch():
    """Solution and number of evaluations, bit for bit."""
    start = (randn(4, 3), torch.zeros(4).double())
    (y, integral), nfe = rk45(varied, start, 0.0, 1.0, **LOOSE)
    assert nfe.unique().numel() == 4
    assert int(nfe[1]) > 5 * int(nfe[0])
    for i in range(4):
        single = (start[0][i : i + 1], start[1][i : i + 1])
        (y_i, integral_i), nfe_i = rk45(lambda t, s, rows, i=i: varied(t, s, rows + i), single, 0.0, 1.0, **LOOSE)
        assert torch.equal(y_i, y[i : i + 1])
        assert torch.equal(integral_i, integral[i : i + 1])
        assert int(nfe_i) == int(nfe[i])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = (start[0][order], start[1][order])
    (y_s, _), nfe_s = rk45(lambda t, s, rows: varied(t, s, order[rows]), shuffled, 0.0, 1.0, **LOOSE)
    assert torch.equal(y_s, y[order])
    assert torch.equal(nfe_s, nfe[order])


def test_every_tensor_of_the_state_meets_the_tolerance():
    """An easy first tensor does not hide a hard second one."""

    def f(t, state, rows):
        return torch.zeros_like(state[0]), 50 * torch.cos(50 * t)

    (_, hard), _ = rk45(f, (randn(3, 400), torch.zeros(3).double()), 0.0, 1.0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(hard, torch.full((3,), math.sin(50.0)).double(), rtol=0, atol=1e-6)


def test_the_error_norm_is_the_worst_of_the_tensors_root_mean_squares():
    errors, y, y_new = ([randn(4, 3, seed=s), randn(4, seed=s + 1)] for s in (0, 2, 4))
    ours = ode._norm(tuple(errors), tuple(y), tuple(y_new), 0.1, 0.2)
    for i in range(4):
        norms = []
        for e, a, b in zip(errors, y, y_new, strict=True):
            scaled = e[i] / (0.2 + 0.1 * torch.maximum(a[i].abs(), b[i].abs()))
            norms.append(float(scaled.square().mean().sqrt()))
        assert float(ours[i]) == pytest.approx(max(norms), rel=1e-12)


def test_a_slope_that_is_the_state_itself():
    (y,), _ = rk45(lambda t, state, rows: state, (randn(3, 2),), 0.0, 1.0, **TIGHT)
    torch.testing.assert_close(y, math.e * randn(3, 2), rtol=1e-8, atol=0)


def test_the_start_is_left_as_it_was():
    start = randn(3, 2)
    rk45(pendulum, (start,), 0.0, 1.0, **LOOSE)
    assert torch.equal(start, randn(3, 2))


def test_a_stiff_start_is_met_by_a_small_first_step():
    """y' = -1e5 (y - cos t): a first step of 1e-2 of the span would explode."""
    calls = []

    def f(t, state, rows):
        calls.append(float(t.min()))
        return (-1e5 * (state[0] - torch.cos(t).unsqueeze(-1)),)

    (y,), nfe = rk45(f, (torch.full((1, 1), 2.0, dtype=torch.float64),), 0.0, 1e-2, **LOOSE)
    assert float(y) == pytest.approx(math.cos(1e-2), abs=1e-4)
    assert calls[1] < 1e-4
    assert int(nfe) < 5000


def test_float32_states():
    (y,), _ = rk45(pendulum_32, (randn(3, 2).float(),), 0.0, 1.0, **LOOSE)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), by_scipy(randn(3, 2), 0.0, 1.0), rtol=0, atol=1e-4)


def pendulum_32(t: Tensor, state, rows: Tensor):
    assert t.dtype == torch.float64
    return pendulum(t.float(), state, rows)


def test_an_empty_batch_and_an_empty_span():
    (y, integral), nfe = rk45(varied, (torch.zeros(0, 3).double(), torch.zeros(0).double()), 0.0, 1.0, **LOOSE)
    assert y.shape == (0, 3)
    assert integral.shape == nfe.shape == (0,)
    start = randn(3, 2)
    (y,), _ = rk45(pendulum, (start,), 0.5, 0.5, **LOOSE)
    torch.testing.assert_close(y, start, rtol=0, atol=0)


def test_what_does_not_converge_raises():
    ones = torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match=r"step size vanished for 3 of 3 samples \(first: sample 0 at t=1"):
        rk45(lambda t, state, rows: (state[0] ** 2,), (ones,), 0.0, 2.0, **LOOSE)  # blows up at t = 1
    with pytest.raises(ConvergenceError, match="sample 1"):
        rk45(
            lambda t, state, rows: (torch.where(rows == 1, math.nan, 0.0).unsqueeze(-1).double(),),
            (ones,),
            0.0,
            1.0,
            **LOOSE,
        )
    with pytest.raises(ConvergenceError, match="5 steps were not enough"):
        rk45(pendulum, (randn(2, 2),), 0.0, 100.0, max_steps=5, **LOOSE)


@pytest.mark.parametrize("tolerances", [{"rtol": 0.0, "atol": 1e-5}, {"rtol": 1e-5, "atol": -1.0}])
def test_tolerances_must_be_positive(tolerances):
    with pytest.raises(ValueError, match="must be positive"):
        rk45(pendulum, (randn(2, 2),), 0.0, 1.0, **tolerances)


def test_time_is_given_to_every_row():
    seen = []

    def f(t, state, rows):
        seen.append((t.shape, rows.shape, t.dtype))
        return (torch.zeros_like(state[0]),)

    rk45(f, (randn(3, 2),), 0.0, 1.0, **LOOSE)
    assert all(shape == rows == (3,) and dtype == scalar(0.0).dtype for shape, rows, dtype in seen)
