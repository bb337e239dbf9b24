"""The three sampling errors against linear recursions of moments, Gaussian kernels, closed divergences and total variations.

A model's score is that of a Gaussian: the data's own, or another, a wrong one. The SDEs end early, so that pi is visibly wrong.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from problems import Affine, Coupled, ExactModel, Gaussian, Mixture, SmallBackbone, ids, randn, rng, scalar
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from indm_core.diagnostics import discretisation_error, mean_and_error
from indm_core.diagnostics.sampling_error import (
    SampleSets,
    Smoothness,
    common_seed,
    coupled_em,
    draw_sets,
    gaussian_prior_error,
    ou_clock,
    prior_divergence,
    sample_frechet_distance,
    sampling_errors,
    score_divergence,
    smoothness,
    total_variation_bound,
)
from indm_core.flow import Identity, ResFlow
from indm_core.likelihood import nelbo
from indm_core.metrics import frechet_distance
from indm_core.model import INDM, DiffFlow, DiNof
from indm_core.noise import seeded
from indm_core.sample import power_times, sample_em, uniform_times
from indm_core.sde import CLD, VE, VP, SubVP

WEAK = [VP(beta_max=2.0), SubVP(beta_max=3.0), VE(sigma_max=2.0), CLD(beta=1.0), Coupled()]
EVERY = pytest.mark.parametrize("sde", WEAK, ids=ids)
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64)
DATA = (MEAN, COV)
OTHER_MEAN, OTHER_COV = MEAN + torch.tensor([0.3, 0.0]).double(), 1.5 * COV

Law = tuple[Tensor, Tensor]

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def gaussian(sde) -> Gaussian:
    return Gaussian(sde=sde, mean=MEAN, cov=COV)


def other(sde) -> Gaussian:
    return Gaussian(sde=sde, mean=OTHER_MEAN, cov=OTHER_COV)


def data(num: int, seed: int = 3) -> Tensor:
    return MEAN + randn(num, 2, seed=seed) @ torch.linalg.cholesky(COV).T


def prior(sde, like: Tensor) -> Law:
    """Mean and dense covariance of pi, for two positions."""
    return torch.zeros_like(like), dense(sde.prior_cov())


def dense(A: Tensor, d: int = 2) -> Tensor:
    return torch.block_diag(*A.expand(d, *A.shape[-2:]))


def em_moments(learned: Gaussian, moments: Law, ts: Tensor) -> Law:
    """Mean and covariance of Euler-Maruyama with a Gaussian's score, an affine map per step."""
    sde, d, (m, C) = learned.sde, len(learned.mean), moments
    for t, s in pairwise(ts):
        h, GG, (m_t, C_t) = t - s, dense(sde.GG(t), d), learned.moments(t)
        A = torch.eye(len(m)).double() - h * (dense(sde.F(t), d) + GG @ torch.linalg.inv(C_t))
        m, C = A @ m + h * GG @ torch.linalg.solve(C_t, m_t), A @ C @ A.T + h * GG
    return m, C


def w2_squared(a: Law, b: Law) -> Tensor:
    """Of the two positions."""
    (m_a, C_a), (m_b, C_b) = ((m[:: len(m) // 2], C[:: len(m) // 2, :: len(m) // 2]) for m, C in (a, b))
    return frechet_distance(m_a, C_a, m_b, C_b)


def union(ts: Tensor, ts_fine: Tensor) -> Tensor:
    merged = torch.cat([ts, ts_fine]).sort(descending=True).values
    return merged[torch.cat([torch.ones(1).bool(), merged.diff().abs() > 1e-9])]


# The errors as distances


@EVERY
@pytest.mark.parametrize("learned", [gaussian, other], ids=["exact", "wrong"])
@pytest.mark.usefixtures("unchecked")
def test_errors_of_samples_are_those_of_the_moments(sde, learned):
    """All five contrasts of 4000 samples against the recursion on the same two grids."""
    ts, ts_fine, law, score_law = power_times(sde, 6, 2.0), power_times(sde, 36, 2.0), gaussian(sde), learned(sde)
    sets = draw_sets(ExactModel(score_law, exact_start=False), data(4000), ts, ts_fine, generator=rng(1))
    found = sampling_errors(sets, sample_frechet_distance)
    start, stopped, pi = law.moments(ts[0]), law.moments(ts[-1]), prior(sde, law.moments(ts[0])[0])
    fine, coarse = (em_moments(score_law, start, grid) for grid in (union(ts, ts_fine), ts))
    exact = {
        "prior": w2_squared(em_moments(score_law, pi, union(ts, ts_fine)), fine),
        "discretisation": w2_squared(coarse, fine),
        "score": w2_squared(fine, stopped),
        "truncation": w2_squared(stopped, DATA),
        "total": w2_squared(em_moments(score_law, pi, ts), DATA),
    }
    for name, value in exact.items():
        mean, error = getattr(found, name)
        assert abs(mean - value) <= 5 * error + 1e-12, (name, float(mean), float(error), float(value))
    assert found.discretisation.mean > 5 * found.discretisation.error  # a visible error in each
    if learned is other:
        assert found.score.mean > 4 * found.score.error


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_closed_forms_of_the_exact_score(sde):
    """The recursion's distance from the exact law is `discretisation_error`; its E_pri tends to that of the kernel."""
    mean, var = MEAN, torch.tensor([0.5, 0.02]).double()
    law = Gaussian(sde=sde, mean=mean, cov=torch.diag(var))
    embedded = sde.embed(mean[None])[0]
    cov = torch.zeros(2, embedded.shape[-1], embedded.shape[-1]).double()
    cov[:, 0, 0] = var
    errors = []
    for num_steps in (100, 200, 400):
        ts = power_times(sde, num_steps, 2.0)
        fine, stopped = em_moments(law, law.moments(ts[0]), ts), law.moments(ts[-1])
        close(w2_squared(fine, stopped).sqrt(), discretisation_error(sde, 1.0, ts, embedded, cov).w2, rtol=1e-5)
        errors.append(w2_squared(em_moments(law, prior(sde, fine[0]), ts), fine))
    found = gaussian_prior_error(sde, ts[-1], ts[0], embedded, cov)
    a, b, c = errors
    torch.testing.assert_close((a - 6 * b + 8 * c) / 3, found, rtol=5e-4, atol=1e-12)  # Richardson, twice


@EVERY
def test_short_steps_are_those_of_sample_em(sde):
    law, ts, ts_fine = gaussian(sde), uniform_times(sde, 4), power_times(sde, 9, 2.0)
    u = law.sample(5, ts[0], rng(0))
    _, fine = coupled_em(sde, law.score, u, ts, ts_fine, rng(1))
    close(fine, sample_em(sde, law.score, u, union(ts, ts_fine), generator=rng(1)))
    coarse, fine = coupled_em(sde, law.score, u, ts, ts, rng(1))
    close(coarse, fine)
    coarse, _ = coupled_em(sde, law.score, u, ts, ts_fine, rng(1), lam=0.0)
    close(coarse, sample_em(sde, law.score, u, ts, lam=0.0))


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_paths_are_coupled_strongly(sde):
    """Additive noise: the paths of N steps are at a root mean square distance of order 1/N from those of many."""
    law, distances = gaussian(sde), []
    for num_steps in (20, 40):
        ts, ts_fine = (uniform_times(sde, n, low=0.1) for n in (num_steps, 8 * num_steps))
        coarse, fine = coupled_em(sde, law.score, law.sample(500, ts[0], rng(0)), ts, ts_fine, rng(1))
        distances.append(sde.project(coarse - fine).square().mean().sqrt())
    assert 1.8 < distances[0] / distances[1] < 2.3


def test_a_common_seed_is_a_coupling():
    """A full one where no noise is drawn; on equal grids the noise is the same too, from either start (to 0.05, not 1)."""
    sde = VP()
    model, ts, ts_fine = ExactModel(other(sde), exact_start=False), uniform_times(sde, 5), uniform_times(sde, 20)

    def em(sde, score, u, ts, generator, lam=1.0):
        return sample_em(sde, score, u, ts, generator=generator, lam=lam)

    couplings = (partial(common_seed, partial(em, lam=0.0)), partial(coupled_em, lam=0.0))
    one, two = (draw_sets(model, data(4), ts, ts_fine, coupling=c, generator=rng(2)) for c in couplings)
    for name in vars(one):
        close(getattr(one, name), getattr(two, name))
    for generator in (rng(5), seeded(range(4))):
        sets = draw_sets(model, data(4), ts, ts, coupling=partial(common_seed, em), generator=generator)
        close(sets.coarse, sets.fine)
        assert 1e-6 < (sets.prior - sets.fine).abs().max() < 0.05 < sets.fine.std()


MODELS = [
    INDM(ResFlow((2,), blocks=(2,), width=8), SmallBackbone(4), CLD(), shape=(2,)),
    DiNof(Affine(COV, MEAN), Identity(), SmallBackbone(2), VP(), t_m=0.5, shape=(2,)),
    DiffFlow(SmallBackbone(2, seed=1), SmallBackbone(2, seed=2), shape=(2,)),
]


@pytest.mark.parametrize("model", [model.double().eval() for model in MODELS], ids=ids)
def test_every_model_has_its_sets(model):
    """With one grid for both no discretisation error is left; rows depend on their own generators alone."""
    ts, x = model.times(8, model.sde.t_min), data(6)
    sets = draw_sets(model, x, ts, ts, generator=seeded(range(6)))
    close(sets.coarse, sets.fine)
    close(sets.sampled, sets.prior)
    few = draw_sets(model, x[2:5], ts, ts, generator=seeded(range(2, 5)))
    for name in vars(few):
        torch.testing.assert_close(getattr(few, name), getattr(sets, name)[2:5], rtol=1e-4, atol=1e-4)


def same_sets(a: Tensor, b: Tensor) -> SampleSets:
    return SampleSets(data=b, stopped=b, fine=a, prior=a, coarse=a, sampled=a)


def mean_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.mean(0) - b.mean(0)).square().sum()


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.1, 1.8), (1.0, 0.85, 1.15)], ids=["equal", "apart"])
def test_the_jackknife_is_unbiased_and_its_error_honest(shift, low, high):
    """|m_a - m_b|^2 put in is too large by 2 d/n; the error is that of 200 repetitions, or too large where laws agree."""
    found = [
        sampling_errors(same_sets(randn(100, 3, seed=i) + shift, randn(100, 3, seed=1000 + i)), mean_distance).score
        for i in range(200)
    ]
    values, errors = torch.stack([f.mean for f in found]), torch.stack([f.error for f in found])
    mean, error = mean_and_error(values)
    assert abs(mean - 3 * shift**2) <= 5 * error < 0.5 * (6 / 100 if shift == 0 else 1.0)
    assert low < errors.square().mean().sqrt() / values.std() < high


def test_features_and_refusals():
    x, sde = randn(60, 2), VP()
    sets = same_sets(x, randn(60, 2, seed=1))
    twice, once = (sampling_errors(s, sample_frechet_distance) for s in (sets.map(lambda x: 2 * x.flip(1)), sets))
    close(twice.score.mean, 4 * once.score.mean)
    close(twice.score.error, 4 * once.score.error)
    rows = SampleSets(**{name: torch.full((4, 1), 2.0**i).double() for i, name in enumerate(vars(sets))})
    found = sampling_errors(rows, mean_distance, num_groups=2)
    exact = {"prior": (8, 4), "discretisation": (16, 4), "score": (4, 2), "truncation": (2, 1), "total": (32, 1)}
    for name, (a, b) in exact.items():  # data, stopped, fine, prior, coarse, sampled: 1, 2, 4, 8, 16, 32
        close(getattr(found, name).mean, scalar(float((a - b) ** 2)))
    with pytest.raises(ValueError, match="num_groups=40 must lie"):
        sampling_errors(sets, sample_frechet_distance, num_groups=40)
    model, ts = ExactModel(gaussian(sde)), uniform_times(sde, 3)
    for end, message in (({"high": 0.5}, r"from 0\.5 to"), ({"low": 0.1}, r"from 1 to 0\.1 ")):
        with pytest.raises(ValueError, match=f"ts_fine: {message}"):
            draw_sets(model, x, ts, uniform_times(sde, 9, **end), generator=rng(0))
    with pytest.raises(ValueError, match="generator=None"):
        draw_sets(model, x, ts, ts, generator=None)


# The errors as bounds


def kl_gaussian(a: Law, b: Law) -> Tensor:
    return kl_divergence(MultivariateNormal(*a), MultivariateNormal(*b))


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_prior_divergence_of_a_gaussian(sde):
    law, T = gaussian(sde), scalar(sde.t_max)
    exact = kl_gaussian(law.moments(T), prior(sde, law.moments(T)[0]))
    found = prior_divergence(ExactModel(law, exact_start=False), data(2000), generator=rng(1))
    assert found.lower.mean - 5 * found.lower.error <= exact <= found.upper.mean + 5 * found.upper.error
    assert 0 < found.upper.mean - found.lower.mean < 5e-3  # a closed bracket
    information = 0.5 * (torch.logdet(law.moments(T)[1]) - torch.logdet(dense(sde.cov(T))))
    assert abs(found.prior_loss.mean - exact - information) <= 5 * found.prior_loss.error
    itself = prior_divergence(ExactModel(law), data(2000), generator=rng(1))
    assert abs(itself.upper.mean) < 5e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("beta_max", [2.0, 8.0])
def test_prior_divergence_of_a_mixture_and_its_standard_error(beta_max):
    """The truth by 40,000 draws of log p_T / pi; the error is the scatter over 60 data sets."""
    sde, T = VP(beta_max=beta_max), scalar(1.0)
    law = Mixture(weights=torch.tensor([0.3, 0.7]).double(), components=(gaussian(sde), other(sde)))
    u = law.sample(40_000, T, rng(0))
    mean, error = mean_and_error(law.log_prob(u, T) - sde.log_prior(u))
    model, t = ExactModel(law, exact_start=False), scalar(1e-9)
    found = [prior_divergence(model, law.sample(200, t, rng(i))[..., 0], generator=rng(90 + i)) for i in range(60)]
    for name, sign in (("lower", -1), ("upper", 1)):
        values = torch.stack([getattr(f, name).mean for f in found])
        errors = torch.stack([getattr(f, name).error for f in found])
        average, scatter = mean_and_error(values)
        assert sign * (average - mean) >= -5 * (scatter**2 + error**2).sqrt()
        assert 0.75 < errors.mean() / values.std() < 1.3


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_prior_loss_of_an_indm_is_closed(sde):
    """The mean over the data of KL(N(psi h(x), Sigma_T) || pi), without noise."""
    flow, x, T = Affine(COV, MEAN), data(50), scalar(1.0)
    model = INDM(flow, SmallBackbone(sde.embed(x)[0].numel()), sde, shape=(2,)).double()
    psi, cov, (_, pi) = dense(sde.psi0(T)), dense(sde.cov(T)), prior(sde, MEAN)
    means = sde.embed(flow(x)[0].detach()).flatten(1) @ psi.T
    exact = torch.stack([kl_gaussian((m, cov), (0 * m, pi)) for m in means])
    found = prior_divergence(model, x, generator=rng(0)).prior_loss
    close(found.mean, exact.mean(), rtol=1e-6, atol=1e-12)
    close(found.error, mean_and_error(exact).error, rtol=1e-6, atol=1e-12)
    one = prior_divergence(model, x[:1].expand(50, 2), generator=rng(0))  # no choice of p_i
    close(one.lower.mean, one.upper.mean)
    assert abs(one.upper.mean - one.prior_loss.mean) <= 5 * one.upper.error


def score_kl(law: Gaussian, learned: Gaussian) -> Tensor:
    """1/2 int E|G^T (s_theta - s)|^2 dt by the trapezoidal rule in log t, both scores affine."""
    ts = torch.logspace(math.log10(law.sde.t_min), math.log10(law.sde.t_max), 400, dtype=torch.float64)
    rates = []
    for t in ts:
        (m, C), (m_1, C_1) = law.moments(t), learned.moments(t)
        P, P_1 = torch.linalg.inv(C), torch.linalg.inv(C_1)
        shift, spread = P_1 @ (m - m_1), (P_1 - P) @ C @ (P_1 - P)
        rates.append(0.5 * (dense(law.sde.GG(t)) * (spread + torch.outer(shift, shift))).sum())
    return torch.trapezoid(torch.stack(rates), ts)


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_score_divergence_and_the_sum_of_divergences(sde):
    """KL_est in closed form, and E[nelbo] = entropy at t_min + KL_pri + KL_est, all within five standard errors."""
    law, learned, x = gaussian(sde), other(sde), data(2000)
    model, exact = ExactModel(learned, exact_start=False), score_kl(law, learned)
    found = score_divergence(model, law.score, x, generator=rng(1))
    assert abs(found.kl.mean - exact) <= 5 * found.kl.error < 0.5 * exact
    T, t_min = (law.moments(scalar(t)) for t in (sde.t_max, sde.t_min))
    bound = mean_and_error(nelbo(model, x, residual=False, num_draws=8, generator=rng(2)))
    expected = MultivariateNormal(*t_min).entropy() + kl_gaussian(T, prior(sde, T[0])) + exact
    assert abs(bound.mean - expected) <= 5 * bound.error
    none = score_divergence(ExactModel(law), law.score, x[:10], generator=rng(1))
    assert none.kl.mean == none.M == 0


def total_variation(m_a: Tensor, var_a: Tensor, m_b: Tensor, var_b: Tensor) -> float:
    """int |p - q| of two laws on the line."""
    x = torch.linspace(-12, 12, 200_001).double()
    p, q = (torch.exp(-((x - m) ** 2) / (2 * v)) / (2 * math.pi * v).sqrt() for m, v in ((m_a, var_a), (m_b, var_b)))
    return float(torch.trapezoid((p - q).abs(), x))


def line(sde, mean: float, std: float) -> Gaussian:
    return Gaussian(sde=sde, mean=torch.tensor([mean]).double(), cov=torch.tensor([[std**2]]).double())


def reversed_from(learned: Gaussian, m: Tensor, var: Tensor) -> Law:
    """Moments at t_min of the learned reverse SDE from N(m, var) at t_max: a Gaussian kernel."""
    sde, s, T = learned.sde, scalar(learned.sde.t_min), scalar(learned.sde.t_max)
    (m_s, C_s), (m_T, C_T) = learned.moments(s), learned.moments(T)
    H = C_s * sde.psi(T, s)[0] / C_T
    return (m_s + H[0] * (m - m_T)).squeeze(), (C_s + H**2 * (var - C_T)).squeeze()


def test_the_prior_bound_holds_and_the_printed_one_does_not():
    """Data broader than pi: the reverse SDE forgets less of its start than a factor exp(-T)."""
    sde, T = VP(), scalar(1.0)
    law = line(sde, 2.0, 3.0)
    m, C = (v.squeeze() for v in law.moments(T))
    pi = torch.zeros(1).double(), torch.ones(1, 1).double()
    kl = kl_gaussian((m[None], C[None, None]), pi)
    stopped = (v.squeeze() for v in law.moments(scalar(sde.t_min)))
    tv, bound = total_variation(*reversed_from(law, *pi), *stopped), total_variation_bound(float(kl))
    printed = math.exp(-float(ou_clock(sde, T[None]))) * bound
    assert 2 * printed < tv <= bound
    assert total_variation(*(v.squeeze() for v in pi), m, C) <= bound


def test_the_score_bound_holds_and_the_printed_one_does_not():
    """Data N(0, 1), the score of N(c, 1): s_theta - s = c psi(t, 0), KL_est = c^2 (1 - psi^2)/2, M = c."""
    sde, c = VP(), 0.01
    law, learned = line(sde, 0.0, 1.0), line(sde, c, 1.0)
    found = score_divergence(ExactModel(learned), law.score, randn(2000, 1), generator=rng(0))
    assert abs(found.kl.mean - 0.5 * c**2) <= 5 * found.kl.error + 1e-4 * c**2
    assert 0.9 * c < found.M <= c
    stopped = (v.squeeze() for v in law.moments(scalar(sde.t_min)))
    tv = total_variation(*reversed_from(learned, *law.moments(scalar(1.0))), *stopped)
    printed = 2 * float(ou_clock(sde, torch.ones(1).double())) * c**2
    assert printed < 0.2 * tv < tv <= total_variation_bound(0.5 * c**2)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3.0, 1.0), (0.5, 0.2), (0.0, 3.0)])
@pytest.mark.usefixtures("unchecked")
def test_the_discretisation_bound_holds(mean, std):
    """For Euler-Maruyama from the exact law with the exact score, its own law by the recursion."""
    sde = VP()
    law = line(sde, mean, std)
    x, times = mean + std * randn(2000, 1), torch.logspace(-5, 0, 30, dtype=torch.float64)
    found = smoothness(ExactModel(law), x, times, generator=rng(0))
    assert math.isclose(found.K, max(1 / float(law.moments(t)[1]) for t in times), rel_tol=1e-9)
    for num_steps in (20, 100, 500):
        ts = uniform_times(sde, num_steps)
        found_law, stopped = em_moments(law, law.moments(ts[0]), ts), law.moments(ts[-1])
        assert total_variation(*(v.squeeze() for v in (*found_law, *stopped))) <= found.bound(sde, ts)


def test_the_constants_of_a_known_score():
    """score = -[c/2 exp(-2 tau) + d/9 exp(-9 tau)] u has the rate c exp(-2 tau) + d exp(-9 tau), L exp(-alpha tau) at most."""
    sde, x, ts = VP(), randn(500, 2), torch.logspace(-4, 0, 40, dtype=torch.float64)
    model = ExactModel(Gaussian(sde=sde, mean=0 * MEAN, cov=torch.eye(2).double()))
    still = smoothness(model, x, ts, generator=rng(0))
    assert still.L < 1e-12
    assert math.isclose(still.K, math.sqrt(2), rel_tol=1e-9)  # -I in two dimensions
    assert math.isclose(still.moment, float(x.square().sum(1).square().mean()) ** 0.25, rel_tol=1e-9)
    once, e = smoothness(ExactModel(gaussian(sde)), x, ts[20:21], generator=rng(0)), float(ou_clock(sde, ts)[20])
    best = min(math.exp(a * e) * (1 + 1 / math.sqrt(2 * a)) for a in torch.logspace(-2, 2, 9001).tolist())
    assert math.isclose(
        1 + 1 / math.sqrt(2 * once.alpha), math.exp(-once.alpha * e) * best, rel_tol=1e-4
    )  # of one rate
    tau, c, d = ou_clock(sde, ts), 3.0, 2.0

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        log_psi = sde.log_det_psi0(t)
        return -(c / 2 * torch.exp(2 * log_psi) + d / 9 * torch.exp(9 * log_psi)) * u

    model.score = score
    found = smoothness(model, x, ts, generator=rng(0))
    excess = (c * torch.exp(-2 * tau) + d * torch.exp(-9 * tau)) / (found.L * torch.exp(-found.alpha * tau))
    assert 1 - 1e-9 < excess.max() < 1 + 1e-9
    assert math.isclose(found.alpha, 2.0, rel_tol=0.05)  # what is left at the end decides
    assert math.isclose(found.K, (c / 2 + d / 9) * math.sqrt(2), rel_tol=1e-3)


def test_the_discretisation_term_by_hand_and_where_there_is_none():
    """Two steps on the clock: gamma_1 = tau(1) - tau(1/2), gamma_2 = tau(1/2)."""
    sde, ts = VP(beta_min=0.2, beta_max=1.0), torch.tensor([1.0, 0.5, 1e-5]).double()
    tau = [0.5 * (0.2 * t + 0.4 * t**2) for t in (1.0, 0.5, 1e-5)]
    delta = (tau[0] - tau[1]) ** 2 / (tau[1] - tau[2])
    term = 6 * math.sqrt(delta) * (1 + 2.0) * (1 + 5.0 + 3.0 * (1 + 1 / math.sqrt(1.0)))
    assert math.isclose(Smoothness(K=5.0, L=3.0, alpha=0.5, moment=2.0).bound(sde, ts), term, rel_tol=1e-12)
    for refused in (SubVP(), VE(), CLD(), Coupled()):
        with pytest.raises(ValueError, match="for VP alone"):
            ou_clock(refused, ts)
