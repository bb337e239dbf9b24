"""The log-density by exponential integrators: closed forms, order, error estimate, cost, refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import ISOTROPIC_SDES, MODELS, SDES, ExactModel, Gaussian, Mixture, ids, rng, scalar
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.exponential import Local, carry_density
from indm_core.likelihood import log_prob_u, nll
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE
from indm_core.times import arctan_times, clock

pytestmark = pytest.mark.usefixtures("unchecked")
EVERY = pytest.mark.parametrize("sde", [*SDES, CLD(), BDM(height=1, width=2)], ids=ids)
COV = torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
EXACT = {"exact_divergence": True, "solver": "exponential"}


def gaussian(sde: LinearSDE) -> ExactModel:
    shape = (1, 1, 2) if isinstance(sde, BDM) else (2,)
    return ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV, shape=shape))


def mixture(sde: LinearSDE) -> ExactModel:
    parts = [Gaussian(sde=sde, mean=m * MEAN, cov=c * COV) for m, c in ((2.0, 0.3), (-2.0, 0.2))]
    return ExactModel(Mixture(weights=torch.tensor([0.3, 0.7]).double(), components=tuple(parts)))


def errors(model: ExactModel, num: int, **options) -> Tensor:
    """Of the log-density at t_min."""
    sde = model.sde
    u = model.law.sample(num, scalar(sde.t_min), rng(1))
    found = log_prob_u(model, u, sde.t_min, **EXACT, **options)
    return (found - model.law.log_prob(u, scalar(sde.t_min))).abs()


@pytest.mark.parametrize("sde", [*SDES, BDM(height=1, width=2)], ids=ids)
def test_the_log_density_of_gaussian_data(sde):
    """To a tolerance in nats, whatever the coefficients."""
    assert float(errors(gaussian(sde), 8, tolerance=2e-2).max()) < 2e-2


SLOW_CLD = pytest.param(CLD(), 3, marks=pytest.mark.slow, id="CLD")


@pytest.mark.parametrize(("sde", "order"), [SLOW_CLD, pytest.param(BDM(height=1, width=2), 4, id="BDM")])
def test_order_where_coordinates_differ(sde, order):
    """CLD: of the first steps, which are of lower degree; its noise in the position begins like t^(3/2)."""
    coarse, fine = (float(errors(gaussian(sde), 4, nfe=n + 1).mean()) for n in (60, 120))
    assert math.log2(coarse / fine) > order - 0.5
    assert fine < 5e-3


@pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
def test_order_four(sde):
    """Slopes of 3.6 to 3.9: the first steps, of less, are those of a law that hardly moves."""
    found = [float(errors(gaussian(sde), 16, nfe=n + 1).mean()) for n in (20, 40, 80)]
    assert all(math.log2(a / b) > 3.4 for a, b in pairwise(found))
    assert found[-1] < 5e-5


def carried(model: ExactModel, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The log-density at t_min of a model with scalar coefficients, and its estimated error."""
    sde = model.sde

    def local(u: Tensor, t: Tensor) -> Local:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            score = model.score(u, t)
            slopes = [torch.autograd.grad(score[:, i].sum(), u, retain_graph=True)[0][:, i, 0] for i in range(2)]
        return Local(score=score.detach(), probed=-0.5 * sde.GG(t).squeeze() * (slopes[0] + slopes[1]))

    found = carry_density(sde, local, u, sde.t_min, sde.t_max, num_steps=num_steps)
    return model.log_prob_start(found.u) + found.growth, found.error


def test_the_estimate_is_above_the_error_and_falls_with_it():
    """Two modes, where the polynomials have something to miss. It is no bound: of 64 samples one may err by a little more."""
    model = mixture(VP())
    u = model.law.sample(64, scalar(1e-5), rng(0))
    exact, estimates = model.law.log_prob(u, scalar(1e-5)), []
    for num_steps in (30, 60, 120):
        found, estimate = carried(model, u, num_steps)
        error = (found - exact).abs()
        ratio = error / estimate
        assert int((ratio > 1).sum()) <= 1
        assert float(ratio.max()) < 1.5
        assert float(ratio.median()) < 0.3
        assert float(error.mean()) > 0.005 * float(estimate.mean())
        estimates.append(float(estimate.mean()))
    assert all(math.log2(a / b) > 2.3 for a, b in pairwise(estimates))  # of a method of order 3


def test_a_tolerance_is_met_and_costs_what_it_needs():
    costs = []

    class Counted(ExactModel):
        def score(self, u, t, y=None):
            costs[-1] += len(u)
            return super().score(u, t)

    model = Counted(mixture(VP()).law)
    for tolerance in (1e-1, 1e-2):
        costs.append(0)
        assert float(errors(model, 32, tolerance=tolerance).max()) < tolerance
    assert 32 * 31 <= costs[0] < costs[1] < 32 * 150
    costs.append(0)
    errors(model, 32, nfe=31)
    assert costs[-1] == 32 * 31


def test_a_sample_does_not_depend_on_its_neighbours():
    model = mixture(VP())
    u = model.law.sample(3, scalar(1e-5), rng(0))
    together = log_prob_u(model, u, 1e-5, tolerance=2e-2, **EXACT)
    alone = torch.cat([log_prob_u(model, row[None], 1e-5, tolerance=2e-2, **EXACT) for row in u])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


def test_the_same_probes_as_rk45():
    """One seed, one estimate of the likelihood, whichever the solver."""
    model, options = gaussian(VE()), {"num_probes": 2}
    x = MEAN + torch.randn(8, 2, generator=rng(3), dtype=torch.float64) @ torch.linalg.cholesky(COV).mT
    fine = nll(model, x, rtol=1e-8, atol=1e-8, generator=rng(2), **options)
    found = nll(model, x, solver="exponential", nfe=120, generator=rng(2), **options)
    torch.testing.assert_close(found, fine, rtol=0, atol=2e-4)
    assert float((found - nll(model, x, generator=rng(4), **options)).abs().max()) > 1e-2


@EVERY
def test_at_t_max_it_is_that_of_the_start(sde):
    model = gaussian(sde)
    u = model.law.sample(4, scalar(1.0), rng(0))
    torch.testing.assert_close(log_prob_u(model, u, 1.0, **EXACT), model.log_prob_start(u), rtol=0, atol=1e-12)


@EVERY
def test_the_clock_of_the_grid(sde):
    ts = arctan_times(sde, 12, low=1e-4, high=0.9)
    assert float(ts[0]) == 0.9
    assert float(ts[-1]) == 1e-4
    ticks = clock(sde, ts).diff()
    torch.testing.assert_close(ticks, ticks.mean().expand(12), rtol=1e-8, atol=0)


def test_refusals():
    model, x = gaussian(VP()), torch.zeros(2, 2, dtype=torch.float64)
    for options, message in (
        ({"solver": "euler"}, "solver='euler' is none of rk45, exponential"),
        ({"nfe": 20}, "nfe=20 is of solver='exponential'"),
        ({"solver": "exponential", "nfe": 1}, "nfe=1 must be at least 2"),
        ({"solver": "exponential", "tolerance": 0.0}, "tolerance=0.0 must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            nll(model, x, **options)
    learned = MODELS["DiffFlow"]()
    with pytest.raises(ValueError, match="needs a linear SDE, not"):
        log_prob_u(learned, torch.zeros(2, 3, 1), learned.sde.t_min, solver="exponential")
    with pytest.raises(ConvergenceError, match="steps were not enough for 2 of 2 samples"):
        log_prob_u(mixture(VP()), torch.full((2, 2, 1), math.nan, dtype=torch.float64), 1e-5, **EXACT)
