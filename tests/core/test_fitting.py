"""Fitted grids: the cheapest path against all paths, the descent's Jacobian and its end, and held-out starts of every SDE."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from problems import FIVE, ExactModel, Gaussian, ids, rng
from torch import Tensor

from indm_core.draw import draw_by, fit_times, times_of
from indm_core.exponential import sample_deis
from indm_core.fitting import cheapest_path, fine_solution, fit_grid, refine, step_costs, usual_grids
from indm_core.fitting.least_squares import _gaps, _grid, _jacobian
from indm_core.fitting.remembered import Remembered
from indm_core.sample import power_times, sample_ode, uniform_times
from indm_core.sampling import Sampling
from indm_core.sde import BDM, VP, LinearSDE

EVERY = pytest.mark.parametrize("sde", FIVE, ids=ids)


def event(sde: LinearSDE) -> tuple[int, ...]:
    return (1, 2, 3) if isinstance(sde, BDM) else (2,)


class Modes:
    """Every coordinate is one of two points with a standard deviation of 0.2, of equal weight; the score by hand."""

    def __init__(self, sde: LinearSDE, std: float = 0.2) -> None:
        self.sde, self.std, self.calls = sde, std, 0

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        column = self.sde.psi0(t)[..., :1]
        precision = torch.linalg.inv(self.sde.cov(t) + self.std**2 * column @ column.mT)
        pulls = [(precision * (m * column[..., 0] - u).unsqueeze(-2)).sum(-1) for m in (-1.0, 0.8)]
        away = [m * column[..., 0] - u for m in (-1.0, 0.8)]
        logits = torch.stack([-0.5 * (a * p).sum(-1, keepdim=True) for a, p in zip(away, pulls, strict=True)])
        return (logits.softmax(0) * torch.stack(pulls)).sum(0)


def starts(sde: LinearSDE, num: int, seed: int) -> Tensor:
    return sde.sample_prior(torch.zeros(num, *event(sde), sde.prior_cov().shape[-1], dtype=torch.float64), rng(seed))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 6])
def test_no_path_is_cheaper_than_the_cheapest(num_steps):
    costs = torch.rand(7, 7, dtype=torch.float64, generator=rng(num_steps))
    costs[~torch.ones(7, 7).triu(1).bool()] = torch.inf
    paths = [[0, *between, 6] for between in combinations(range(1, 6), num_steps - 1)]

    def cost(path: list[int]) -> float:
        return float(sum(costs[i, j] for i, j in pairwise(path)))

    found = cheapest_path(costs, num_steps)
    assert found in paths
    assert cost(found) == pytest.approx(min(map(cost, paths)))


@pytest.mark.parametrize("num_steps", [0, 7])
def test_a_path_has_as_many_edges_as_there_are(num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps} must lie in 1 to 6"):
        cheapest_path(torch.ones(7, 7).double(), num_steps)


@EVERY
def test_costs_are_errors_of_single_steps(sde):
    law, ts = Modes(sde), power_times(sde, 4, 2.0)
    solution = fine_solution(sde, law.score, starts(sde, 2, 0), ts, rtol=1e-2, atol=1e-2)
    law.calls = 0
    costs = step_costs(sde, law.score, solution)
    assert law.calls == 4
    assert bool(costs[~torch.ones(5, 5).triu(1).bool()].isinf().all())
    for i, j in ((0, 1), (0, 4), (2, 3)):
        u, v = solution.states[i], solution.states[j]
        stepped = sample_deis(sde, law.score, u, torch.stack([ts[i], ts[j]]), order=0)
        size = v.square().flatten(0, -2).mean(0).sqrt()
        assert float(costs[i, j]) == pytest.approx(float(((stepped - v) / size).square().mean().sqrt()), rel=1e-9)


@EVERY
def test_data_in_one_point_cost_nothing(sde):
    """A step of degree 0 is exact there, up to the solution's own error."""

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return -(torch.linalg.inv(sde.cov(t)) * (u - 0.7 * sde.psi0(t)[..., 0]).unsqueeze(-2)).sum(-1)

    solution = fine_solution(sde, score, starts(sde, 1, 0), power_times(sde, 2, 1.0, low=0.3), rtol=1e-4, atol=1e-4)
    costs = step_costs(sde, score, solution)
    assert float(costs[costs.isfinite()].max()) < 2e-3


def curved(ts: Tensor) -> Tensor:
    """Errors that depend on every time between, with known derivatives by differences."""
    r = ts[1:-1].sqrt()
    return torch.cat([r.square() - 0.5 * r.flip(0), torch.sin(3 * r), r.cumsum(0) * r]).double()


def test_the_jacobian_is_that_of_all_gaps():
    ts = power_times(VP(), 5, 1.5)
    gaps, h = _gaps(ts), 1e-5
    expected = torch.stack(
        [(curved(_grid(gaps + d, ts)) - curved(_grid(gaps - d, ts))) / (2 * h) for d in h * torch.eye(5)], 1
    )
    torch.testing.assert_close(_jacobian(curved, curved(ts), gaps, ts), expected, rtol=0.03, atol=2e-3)
    torch.testing.assert_close(_grid(gaps, ts), ts)


def test_the_descent_finds_a_grid_without_error():
    target = torch.tensor([0.9, 0.35, 0.3, 0.02], dtype=torch.float64)
    found = refine(lambda ts: 0.1 * (ts[1:-1] - target), uniform_times(VP(), 5), iterations=60, enough=0.0)
    torch.testing.assert_close(found.times[1:-1], target, rtol=1e-3, atol=1e-4)
    assert (float(found.times[0]), float(found.times[-1])) == (VP().t_max, VP().t_min)
    assert refine(lambda ts: ts.new_ones(3), uniform_times(VP(), 1)).error == 1.0  # nothing can be moved


@pytest.mark.parametrize(
    "options",
    [{}, {"corrector": True}, {"prediction": "data", "corrector": True, "reevaluate": False}, {"warmup": "exact"}],
    ids=str,
)
def test_what_runs_share_is_evaluated_once(options):
    """The same states as without memory; a run whose time k is moved asks for what comes after it alone."""
    sde, law = VP(), Modes(VP())
    u, ts = starts(sde, 2, 0), power_times(sde, 5, 2.0)
    moved = ts.clone()
    moved[3] *= 1.01
    remembered = Remembered(law.score, 64)
    for grid in (ts, moved):
        remembered.begin()
        assert torch.equal(
            sample_deis(sde, remembered, u, grid, **options), sample_deis(sde, law.score, u, grid, **options)
        )
    law.calls = 0
    remembered.begin()
    sample_deis(sde, remembered, u, moved, **options)
    assert law.calls == 0
    if not options:
        assert remembered.evaluations == 5 + 2  # t_0, t_1 and t_2 are shared


@pytest.mark.parametrize("sde", [VP(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in FIVE[1:])], ids=ids)
def test_a_fitted_grid_is_better_on_other_starts(sde):
    law, steps = Modes(sde), 3
    options = {"prediction": "data", "order": 2}

    def sampler(sde, score, u, ts, generator):
        return sample_deis(sde, score, u, ts, **options)

    u = starts(sde, 16, 1)
    fit = fit_grid(sde, sampler, law.score, u, usual_grids(sde, steps), tolerance=1e-2, iterations=3, fine_steps=6)
    assert fit.error <= fit.before
    u = starts(sde, 16, 2)
    exact = sde.project(sample_ode(sde, law.score, u, uniform_times(sde, 1), rtol=1e-3, atol=1e-3))

    def error(ts: Tensor) -> float:
        return float((sde.project(sampler(sde, law.score, u, ts, None)) - exact).square().mean().sqrt())

    assert error(fit.times) < min(error(power_times(sde, steps, power)) for power in (1.0, 2.0))


def test_no_grid_to_begin_with():
    with pytest.raises(ValueError, match="grids: there is none"):
        fit_grid(VP(), lambda sde, score, u, ts, generator: u, Modes(VP()).score, starts(VP(), 2, 0), [])


def two_points() -> ExactModel:
    """A model whose law is that of `Modes`."""
    sde = VP()
    model = ExactModel(Gaussian(sde=sde, mean=torch.zeros(2).double(), cov=torch.eye(2).double()), exact_start=False)
    model.state_like = lambda num, like: sde.embed(torch.zeros(num, 2, dtype=torch.float64))
    model.score = Modes(sde).score
    return model


@pytest.fixture(scope="module")
def fitted():
    sampling = Sampling(sampler="deis", prediction="data", order=2)
    return fit_times(two_points(), 4, sampling=sampling, num=16, tolerance=1e-2, iterations=2)


def test_a_model_is_sampled_along_its_grid(fitted, unchecked):
    model, sampling = two_points(), fitted.sampling
    assert (sampling.grid, sampling.nfe, sampling.num_steps, len(sampling.times)) == ("fitted", 4, 3, 4)
    assert torch.equal(times_of(model, sampling), fitted.fit.times)
    assert "times" not in str(sampling)
    other = Sampling(sampler="deis", prediction="data", order=2, nfe=4)
    exact, found, plain = (draw_by(model, range(32), s) for s in (Sampling(rtol=1e-3, atol=1e-3), sampling, other))
    assert found.evaluations == 4
    assert float((found.x - exact.x).norm()) < 0.7 * float((plain.x - exact.x).norm())


REFUSED = {
    "Euler-Maruyama": (lambda: fit_times(two_points(), 5, sampling=Sampling(sampler="em")), "grid=fitted is of deis"),
    "noise": (
        lambda: fit_times(two_points(), 5, sampling=Sampling(sampler="deis", order=0, lam=0.5)),
        "grid=fitted is of deis without noise",
    ),
    "many steps": (lambda: fit_times(two_points(), 500), "nfe=500, steps=499: .* at most 100 steps"),
    "one evaluation": (lambda: fit_times(two_points(), 1), "nfe=1: one step takes 2"),
    "times of another grid": (lambda: Sampling(sampler="deis", times=(1.0, 0.5)), "times=.* they are of grid=fitted"),
    "times of other steps": (
        lambda: Sampling(sampler="deis", nfe=5, grid="fitted", times=(1.0, 0.5)),
        "times: 2 of them, and 4 steps have one more",
    ),
    "not yet fitted": (
        lambda: two_points().sample(2, sampler=Sampling(sampler="deis", nfe=5, grid="fitted")),
        "grid=fitted: it has yet to be fitted; take the sampling that fit_times",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fitted_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_grid_is_of_one_stop_and_of_the_whole_time(fitted):
    with pytest.raises(ValueError, match=r"times: fitted from 1 to 1e-05, and samples go from 1 to 0\.1"):
        times_of(two_points(), replace(fitted.sampling, stop=0.1))
    with pytest.raises(ValueError, match=r"strength=0\.5: a fitted grid begins where the model starts"):
        draw_by(two_points(), range(2), fitted.sampling, torch.zeros(2, 2).double(), strength=0.5)
