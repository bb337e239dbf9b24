"""The score model, the importance law of t, stratified uniforms, and the likelihood weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import SDES, Coupled, Gaussian, SmallBackbone, ids, randn, rng, scalar
from scipy.integrate import quad
from scipy.stats import kstest
from torch import nn

from indm_core.model import ScoreModel
from indm_core.model.score import (
    importance_times,
    likelihood_error,
    preconditioning,
    stratified,
)
from indm_core.sde import BDM, CLD, VE, VP, SubVP, apply

EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)


def log_odds(sde, t: np.ndarray) -> np.ndarray:
    """A primitive of g^2/sigma^2, by hand: log(e^B - 1) for VP, 2 log(e^B - 1) - B for sub-VP, linear in t for VE."""
    if isinstance(sde, VE):
        return 2 * np.log(sde.sigma_max / sde.sigma_min) * t
    B = t * sde.beta_min + t**2 / 2 * (sde.beta_max - sde.beta_min)
    return np.log(np.expm1(B)) if isinstance(sde, VP) else 2 * np.log(np.expm1(B)) - B


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=ids)
@pytest.mark.parametrize(("low", "high"), [(1e-5, 1.0), (0.01, 0.6)])
def test_importance_times_follow_their_law(sde, low, high):
    t, density = importance_times(sde, torch.rand(5000, dtype=torch.float64, generator=rng()), low, high)
    assert low <= float(t.min()) < float(t.max()) <= high
    ends = log_odds(sde, np.array([low, high]))
    assert kstest(t.numpy(), lambda s: (log_odds(sde, s) - ends[0]) / (ends[1] - ends[0])).pvalue > 1e-4
    for i in (0, 7, 100):
        h = 1e-5 * float(t[i])
        slope = np.diff(log_odds(sde, float(t[i]) + np.array([-h, h])))[0] / (2 * h)
        assert float(density[i]) == pytest.approx(slope / (ends[1] - ends[0]), rel=1e-6)


@EVERY
def test_the_density_of_t_integrates_to_one(sde):
    """p(t) of the returned t, integrated over log t."""
    low, high = sde.t_min, sde.t_max

    def density(t: float) -> float:
        edges = sde.log_importance(torch.tensor([low, high, t], dtype=torch.float64))
        q = (edges[2] - edges[0]) / (edges[1] - edges[0])
        time, p = importance_times(sde, q.reshape(1), low, high)
        assert float(time) == pytest.approx(t, rel=1e-9)
        return float(p)

    total, _ = quad(lambda s: np.exp(s) * density(np.exp(s)), np.log(low), np.log(high), epsabs=1e-10, epsrel=1e-10)
    assert total == pytest.approx(1, abs=1e-8)


@EVERY
def test_times_at_the_ends(sde):
    t, _ = importance_times(sde, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1e-5, 1.0)
    torch.testing.assert_close(t, torch.tensor([1e-5, 1.0], dtype=torch.float64), rtol=1e-10, atol=0)


def test_stratified_uniforms():
    generator = rng()
    draws = torch.stack([stratified(8, torch.zeros(1), generator) for _ in range(3000)])
    assert draws.dtype == torch.float64
    strata = (draws * 8).long().sort(1).values
    assert torch.equal(strata, torch.arange(8).expand(3000, 8))
    for column in (0, 3, 7):
        assert kstest(draws[:, column].numpy(), "uniform").pvalue > 1e-4
    first = (draws[:, 0] * 8).long()
    counts = torch.bincount(first, minlength=8).double()
    assert float(((counts - 375) ** 2 / 375).sum()) < 32  # chi^2 with 7 degrees of freedom: 1 in 25,000


def test_stratified_uniforms_are_a_function_of_the_generator():
    torch.testing.assert_close(
        stratified(5, torch.zeros(1), rng(3)), stratified(5, torch.zeros(1), rng(3)), rtol=0, atol=0
    )


@EVERY
def test_likelihood_error_is_the_weighted_square_of_the_scores_error(sde):
    """1/2 d^T M d = 1/2 |G^T (s - grad log q)|^2, by the definition of the two scores."""
    t = torch.tensor([1e-3, 0.2, 0.9], dtype=torch.float64).reshape(3, 1)
    k = sde.prior_cov().shape[-1]
    eps, eps_hat = randn(3, 2, k), randn(3, 2, k, seed=1)
    error = sde.score_from_eps(eps_hat, t) - sde.score_from_eps(eps, t)
    GG = sde.GG(t).expand(3, 2, k, k)
    direct = 0.5 * torch.einsum("bei,beij,bej->b", error, GG, error)
    torch.testing.assert_close(likelihood_error(sde, eps_hat - eps, t), direct, rtol=1e-10, atol=0)


@EVERY
def test_score_model_is_minus_R_inverse_transposed_times_the_backbone(sde):
    k = sde.prior_cov().shape[-1]
    model = ScoreModel(SmallBackbone(2 * k), sde)
    u = randn(3, 2, k)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    score = model(u, t.reshape(3, 1))
    for i in range(3):
        out = model.backbone(u[i].flatten()[None], t[i : i + 1])
        R = torch.block_diag(*sde.R(t[i]).expand(2, k, k))
        direct = -torch.linalg.solve(R.T, out.flatten())
        torch.testing.assert_close(score[i].flatten(), direct, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model(u[i : i + 1], t[i]), score[i : i + 1], rtol=1e-12, atol=1e-12)


def test_labels_reach_the_backbone():
    class Labelled(torch.nn.Module):
        def forward(self, x, t, y=None):
            return x * (0 if y is None else y.unsqueeze(-1))

    model = ScoreModel(Labelled(), VP())
    u, y = randn(3, 2, 1), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(model.eps(u, scalar(0.5), y), u * y.reshape(3, 1, 1))
    assert not model.eps(u, scalar(0.5)).any()


def test_per_position_coefficients_reach_the_weight():
    """Coupled's two positions have weights of their own: the same error costs differently at each."""
    d = torch.zeros(2, 2, 2, dtype=torch.float64)
    d[0, 0, 1] = d[1, 1, 1] = 1.0
    first, second = likelihood_error(Coupled(), d, scalar(0.5)).tolist()
    assert abs(first - second) > 1e-2


class Function(nn.Module):
    """A backbone that forgets the time."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return self.f(x)


ALL_SDES = pytest.mark.parametrize("sde", [*SDES, CLD(), BDM(height=1, width=2)], ids=ids)


@ALL_SDES
@pytest.mark.parametrize("t", [1e-5, 1e-2, 0.3, 1.0])
def test_a_preconditioned_score_begins_as_that_of_gaussian_data(sde, t):
    v, event = 0.6, (1, 1, 2) if isinstance(sde, BDM) else (2,)
    law = Gaussian(sde=sde, mean=torch.zeros(2).double(), cov=v * torch.eye(2).double(), shape=event)
    model = ScoreModel(Function(torch.zeros_like), sde, data_var=v)
    u = randn(5, *sde.embed(torch.zeros(1, *event)).shape[1:])
    torch.testing.assert_close(model(u, scalar(t)), law.score(u, scalar(t)), rtol=1e-6, atol=1e-8)


@ALL_SDES
@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_the_spread_is_the_root_of_the_covariance_of_eps(sde, t):
    skip, spread = preconditioning(sde, scalar(t), 0.6)
    eye = torch.eye(spread.shape[-1]).double()
    torch.testing.assert_close(spread, spread.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(spread @ spread, (eye - skip @ sde.R(scalar(t))).expand_as(spread), rtol=0, atol=1e-8)
    assert float(torch.linalg.eigvalsh(spread).min()) > -1e-12


@ALL_SDES
def test_a_preconditioned_score_has_a_time_for_each_sample(sde):
    event = (1, 1, 2) if isinstance(sde, BDM) else (2,)
    model = ScoreModel(Function(lambda x: torch.sin(3 * x)), sde, data_var=0.6)
    u, times = randn(3, *sde.embed(torch.zeros(1, *event)).shape[1:]), torch.tensor([0.1, 0.5, 0.9]).double()
    together = model.eps(u, times.reshape(-1, *[1] * len(event)))
    for i, t in enumerate(times):
        torch.testing.assert_close(together[i : i + 1], model.eps(u[i : i + 1], t), rtol=1e-10, atol=1e-12)
        skip, spread = preconditioning(sde, t, 0.6)
        out = sde.from_network(torch.sin(3 * sde.to_network(u[i : i + 1])))
        by_hand = apply(skip, u[i : i + 1]) + apply(spread, out)
        torch.testing.assert_close(together[i : i + 1], by_hand, rtol=1e-10, atol=1e-12)


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match=r"data_var=-1\.0 must not be negative"):
        ScoreModel(SmallBackbone(2), VP(), data_var=-1.0)
