"""What the baselines of the path integral sampler move points by: reversibility, invariance, adaptation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from densities import Mixture, Undefined, bridge, gaussian, modes
from problems import rng
from scipy import stats

from indm_core.pis.annealing.dual_averaging import DualAveraging
from indm_core.pis.annealing.hamiltonian import leapfrog
from indm_core.pis.baselines import HMC, HMCMoves, RandomWalkMoves
from indm_core.pis.baselines.tempering import exchanged, placed

F64 = torch.float64


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_leapfrog_steps_are_undone_by_turning_the_momenta(beta):
    at = bridge(modes())
    begin, p = at.begin(20, rng()), torch.randn(20, 2, dtype=F64, generator=rng())
    betas, step = torch.full((20,), beta, dtype=F64), torch.tensor([[0.3, 0.2]], dtype=F64)
    end, q = leapfrog(at, begin, p, betas, step, 12)
    assert (end.x - begin.x).abs().max() > 1
    back, r = leapfrog(at, end, -q, betas, step, 12)
    torch.testing.assert_close(back.x, begin.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(-r, p, rtol=0, atol=1e-9)


def test_the_error_of_the_energy_falls_as_the_step_squared():
    at = bridge(gaussian(3))
    begin, p = at.begin(50, rng()), torch.randn(50, 3, dtype=F64, generator=rng())
    beta, errors = torch.full((50,), 0.7, dtype=F64), []
    for num_steps in (20, 40, 80):
        end, q = leapfrog(at, begin, p, beta, torch.full((1, 1), 1.0 / num_steps, dtype=F64), num_steps)
        energy = at.log_prob(end, beta) - at.log_prob(begin, beta) + (p.square() - q.square()).sum(1) / 2
        errors.append(float(energy.square().mean().sqrt()))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.05)


@pytest.mark.parametrize(
    "moves",
    [HMCMoves(num_leapfrog=3), HMCMoves(num_leapfrog=3, spread=1.5), RandomWalkMoves()],
    ids=["HMC", "HMC of all steps", "walk"],
)
def test_moves_leave_every_tempered_law_as_it_is(moves):
    """Exact samples of Gaussian pi_beta, a beta for each, stay exact; so do those of two modes at beta = 1."""
    num, mean, var, sigma = 20_000, 1.0, 0.25, 2.0
    law = Mixture(*(torch.tensor(v, dtype=F64) for v in ([[mean]], [[var]], [1.0])))
    at, beta = bridge(law, sigma), torch.linspace(0, 1, num, dtype=F64)
    precision = (1 - beta) / sigma**2 + beta / var
    centre = beta * mean / var / precision
    points = at.at(centre[:, None] + (torch.randn(num, dtype=F64, generator=rng()) / precision.sqrt())[:, None])
    step = (1.4 / precision.sqrt())[:, None]
    shares = []
    for seed in (1, 2, 3):  # not that of the points
        points, accepted = moves(at, points, beta, step, rng(seed))
        shares.append(float(accepted.mean()))
    assert 0.2 < min(shares) < 0.95
    standard = (points.x[:, 0] - centre) * precision.sqrt()
    assert stats.kstest(standard.numpy(), "norm").pvalue > 1e-4
    torch.testing.assert_close(points.log_mu, law.log_prob(points.x))


def test_a_kernel_without_its_acceptance_would_be_seen_by_the_check_above():
    num, at = 20_000, bridge(gaussian(1))
    points = at.at(gaussian(1).sample(num, rng()))
    step = torch.full((1, 1), 0.45, dtype=F64)
    end, _ = leapfrog(at, points, torch.randn(num, 1, dtype=F64, generator=rng()), torch.ones(num, dtype=F64), step, 3)
    assert stats.kstest(((end.x[:, 0] + 1) / math.sqrt(0.1)).numpy(), "norm").pvalue < 1e-8


def test_dual_averaging_comes_to_the_wanted_share(unchecked):
    steps = DualAveraging(torch.tensor([1e-3, 30.0], dtype=F64), 0.65)
    noise = torch.randn(1000, 2, dtype=F64, generator=rng())
    for e in noise:
        steps.update((-steps.step + 0.1 * e).exp().clamp(max=1))
    torch.testing.assert_close(steps.settled, torch.full((2,), -math.log(0.65), dtype=F64), rtol=0.1, atol=0)


def test_neighbours_exchange_in_detailed_balance():
    target, beta = modes(), torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=F64)
    at = bridge(target)
    points = at.begin(4 * 500, rng())
    gain = at.gain(points).reshape(4, 500)
    swap, accept = exchanged(beta, gain, True, rng())
    log_pi = torch.stack([at.log_prob(points, b.expand(2000)).reshape(4, 500) for b in beta])  # [temperature, place]
    for k in range(3):
        before, after = log_pi[k, k] + log_pi[k + 1, k + 1], log_pi[k, k + 1] + log_pi[k + 1, k]
        torch.testing.assert_close(accept[k], (after - before).clamp(max=0).exp())
    assert not swap[0].any()
    assert not swap[2].any()
    assert abs(float((swap[1].double() - accept[1]).mean())) < 5 * 0.5 / math.sqrt(500)


def test_a_ladder_is_placed_at_equal_distances_of_the_rejected_shares():
    beta, rejected = torch.tensor([0.0, 0.5, 1.0], dtype=F64), torch.tensor([0.6, 0.2], dtype=F64)
    torch.testing.assert_close(
        placed(beta, rejected), torch.tensor([0.0, 0.5 * 0.401 / 0.601, 1.0], dtype=F64), rtol=1e-9, atol=0
    )


def test_nan_that_is_met_on_the_way_is_refused_and_on_a_trajectory_that_diverges_is_not():
    with pytest.raises(ValueError, match="target Undefined"):
        HMC(num_warm_up=30, sigma=0.1)(Undefined(1.0), 50, generator=rng())
    at, beta = bridge(Undefined(1e3), 1.0), torch.ones(20)
    points = at.begin(20, rng())
    for step in (1e4, 1e38):  # to nan within two steps, and to infinity
        after, accepted = HMCMoves(num_leapfrog=4)(at, points, beta, torch.full((1, 1), step), rng())
        assert (accepted == 0).all()
        assert torch.equal(after.x, points.x)
