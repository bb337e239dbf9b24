r"""Samples that start from data noised to a share of the time (SDEdit), against a Gaussian law, where all is known.

With x ~ N(m, v), u_t = p x + r eps and v_t = p^2 v + r^2 the variance at t, the probability-flow ODE carries u_t to
m + sqrt(v/v_t) (u_t - p m), so that a sample that starts from x follows N(m + sqrt(v/v_t) p (x - m), r^2 v/v_t).
"""

from __future__ import annotations

import math

import pytest
import torch
from problems import ExactModel, Gaussian, scalar

from indm_core.draw import draw_by, times_of
from indm_core.sampling import Sampling
from indm_core.sde import VP

SDE, M, V = VP(), 0.5, 0.3
LAW = Gaussian(sde=SDE, mean=torch.tensor([M]).double(), cov=torch.tensor([[V]]).double())
DEIS = Sampling(sampler="deis", steps=40, order=2)


def model() -> ExactModel:
    made = ExactModel(LAW)
    made.state_like = lambda num, like: SDE.embed(torch.zeros(num, 1, dtype=torch.float64))
    made.register_parameter("like", torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))
    return made


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.0])
def test_samples_from_noised_data_follow_the_law_of_the_ode(strength, unchecked):
    num, x = 3000, -1.0
    t = scalar(strength * SDE.t_max)
    p, r2 = float(SDE.psi0(t)), float(SDE.cov(t))
    v_t = p**2 * V + r2
    drawn = draw_by(model(), range(num), DEIS, torch.full((num, 1), x), strength=strength).x.flatten()
    mean, var = M + math.sqrt(V / v_t) * p * (x - M), r2 * V / v_t
    assert abs(float(drawn.mean()) - mean) < 5 * math.sqrt(var / num)
    assert abs(float(drawn.var()) - var) < 5 * var * math.sqrt(2 / num)


@pytest.mark.parametrize("grid", ["uniform", "power", "edm", "log-rho", "trained"])
def test_times_begin_at_the_share(grid):
    sampling = Sampling(sampler="em", steps=20, grid=grid)
    ts = times_of(model(), sampling, 0.3)
    assert float(ts[0]) == pytest.approx(0.3 * SDE.t_max)
    assert float(ts[-1]) == pytest.approx(SDE.t_min)
    assert bool((ts.diff() < 0).all())
    assert torch.equal(times_of(model(), sampling), times_of(model(), sampling, 1.0))


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, 1e-6, math.nan])
def test_a_strength_is_a_share_above_the_end(strength):
    with pytest.raises(ValueError, match=r"strength=.* must lie above"):
        draw_by(model(), range(2), DEIS, torch.zeros(2, 1), strength=strength)


def test_a_strength_without_data_is_refused():
    with pytest.raises(ValueError, match=r"strength=0\.5: .* give start"):
        draw_by(model(), range(2), DEIS, strength=0.5)
