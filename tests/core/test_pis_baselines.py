"""Baselines of the path integral sampler: kernels against identities, methods against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import rng
from scipy import stats
from torch import Tensor

from indm_core.noise import rand, randn_like
from indm_core.pis import Counted, Draws, Target, log_z
from indm_core.pis.baselines import (
    HMC,
    NUTS,
    SMC,
    SVGD,
    AdaptiveTemperatures,
    Bridge,
    Fitted,
    GaussianMixture,
    HMCMoves,
    LinearTemperatures,
    ParallelTempering,
    RandomWalkMoves,
    fit,
)
from indm_core.pis.baselines.dual_averaging import DualAveraging
from indm_core.pis.baselines.hmc import leapfrog
from indm_core.pis.baselines.svgd import stein_direction
from indm_core.pis.baselines.tempering import exchanged, placed, stepping_stones

F64 = torch.float64


class Mixture(Target):
    """3 sum_k w_k N(m_k, diag v_k)."""

    log_z = math.log(3)
    exact = True
    means: Tensor
    variances: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.dim = means.shape[1]
        for name, value in (("means", means), ("variances", variances), ("weights", weights)):
            self.register_buffer(name, value)

    def log_prob(self, x: Tensor) -> Tensor:
        away = (x[:, None] - self.means).square() / self.variances + (2 * math.pi * self.variances).log()
        return torch.logsumexp(self.weights.log() - 0.5 * away.sum(-1), 1) + self.log_z

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        k = torch.searchsorted(self.weights.cumsum(0), rand(num, self.means, generator)).clamp(
            max=len(self.weights) - 1
        )
        return self.means[k] + self.variances[k].sqrt() * randn_like(self.means[k], generator)


class Undefined(Target):
    """N(0, 1) in two dimensions, nan where x_1 is above a number."""

    dim = 2

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > self.above, math.nan, -0.5 * x.square().sum(1))


class Black(Target):
    """N(0.5, 0.5 I) times 3, without a gradient."""

    dim = 2
    log_z = math.log(3)

    def log_prob(self, x: Tensor) -> Tensor:
        away = (x.detach().double() - 0.5).square() / 0.5 + math.log(math.pi)
        return (math.log(3) - 0.5 * away.sum(1)).to(x)


def gaussian(dim: int) -> Mixture:
    """Variances from 0.1 to 2."""
    means, variances = torch.linspace(-1, 1, dim, dtype=F64), torch.linspace(0.1, 2, dim, dtype=F64)
    return Mixture(means[None], variances[None], torch.ones(1, dtype=F64))


def modes() -> Mixture:
    """Two modes in the plane, twelve standard deviations apart."""
    means = torch.tensor([[3.0, 3.0], [-3.0, -3.0]], dtype=F64)
    variances = torch.tensor([[0.5, 0.5], [0.5, 0.2]], dtype=F64)
    return Mixture(means, variances, torch.tensor([0.3, 0.7], dtype=F64))


def bridge(target: Target, sigma: float = 2.0) -> Bridge:
    return Bridge(target=Counted(target), sigma=sigma)


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


@pytest.mark.parametrize("moves", [HMCMoves(num_leapfrog=3), RandomWalkMoves()], ids=["HMC", "walk"])
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
    for seed in range(3):
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


@pytest.mark.parametrize("mass", ["unit", "diagonal"])
@pytest.mark.parametrize("dim", [1, 50])
def test_hmc_gives_the_moments_and_counts_its_evaluations(dim, mass, unchecked):
    target, chains = gaussian(dim), 50
    method = HMC(moves=HMCMoves(num_leapfrog=6), num_chains=chains, num_warm_up=150, thin=2, mass=mass)
    draws = method(target, 990, generator=rng())
    assert draws.x.shape == (990, dim)
    assert draws.evaluations == chains * (1 + (150 + 2 * 20) * 6)
    check_moments(draws, target, chains)


def check_moments(draws: Draws, target: Mixture, chains: int) -> None:
    """Means and variances within 5 standard errors, those of the means of independent chains."""
    x = draws.x[: len(draws.x) // chains * chains].reshape(-1, chains, target.dim)
    mean, var = target.means[0], target.variances[0]
    for found, wanted in ((x.mean(0), mean), ((x - mean).square().mean(0), var)):
        assert ((found.mean(0) - wanted).abs() < 5 * found.std(0) / math.sqrt(chains)).all()


def test_one_chain_of_hmc(unchecked):
    draws = HMC(num_chains=1, num_warm_up=100)(gaussian(1), 300, generator=rng())
    assert draws.x.shape == (300, 1)
    assert abs(float(draws.x.mean()) + 1) < 5 * math.sqrt(0.1 / 100)
    assert draws.evaluations == 1 + 400 * 10
    assert math.isnan(draws.log_z.value)


@pytest.mark.parametrize(
    "method",
    [
        SMC(temperatures=LinearTemperatures(num_levels=20), sigma=4.0, num_moves=2, resample_below=0.9),
        SMC(temperatures=AdaptiveTemperatures(share=0.7), sigma=4.0, num_moves=2),
        SMC(temperatures=AdaptiveTemperatures(), moves=RandomWalkMoves(), sigma=4.0, num_moves=4),
        ParallelTempering(sigma=4.0, num_warm_up=80, num_levels=6),
        ParallelTempering(sigma=4.0, num_warm_up=160, num_levels=6, moves=RandomWalkMoves(), thin=4),
        Fitted(method=ParallelTempering(sigma=4.0, num_warm_up=80, num_levels=6), num_components=3, num_given=400),
    ],
    ids=["linear", "adaptive", "walk", "tempering", "tempering-walk", "fitted"],
)
def test_the_constant_and_the_weight_of_each_mode(method, unchecked):
    target = modes()
    draws = method(target, 2000, generator=rng())
    assert draws.log_z.se < 0.1
    assert abs(draws.log_z.value - target.log_z) < 5 * draws.log_z.se
    first = (draws.x[:, 0] > 0).double()
    # by groups of draws that are independent: runs of SMC, replicas of tempering
    w = draws.log_w.exp().double()
    groups = 10 if not isinstance(method, ParallelTempering) else method.num_replicas
    split = (
        (lambda v: v.reshape(-1, groups).T)
        if isinstance(method, ParallelTempering)
        else (lambda v: v.reshape(groups, -1))
    )
    w, first = split(w), split(first)
    share = (w * first).sum() / w.sum()
    residual = (w * (first - share)).sum(1) / w.sum(1).mean()
    assert abs(float(share) - 0.3) < 5 * float(residual.std()) / math.sqrt(groups)
    assert float(residual.std()) / math.sqrt(groups) < 0.06


@pytest.mark.parametrize("dim", [1, 50])
@pytest.mark.parametrize(
    "method",
    [
        SMC(sigma=2.0, num_moves=2, moves=HMCMoves(num_leapfrog=5)),
        ParallelTempering(sigma=2.0, num_warm_up=80),
        Fitted(method=HMC(num_warm_up=100), num_components=1, num_given=1000),
    ],
    ids=["SMC", "tempering", "fitted"],
)
def test_the_constant_of_a_gaussian(method, dim, unchecked):
    target = gaussian(dim)
    draws = method(target, 1000, generator=rng())
    assert draws.x.shape[1] == dim
    assert abs(draws.log_z.value - target.log_z) < 5 * draws.log_z.se
    if isinstance(method, SMC):
        assert log_z(draws.log_w).value == pytest.approx(draws.log_z.value, abs=1e-10)
    if isinstance(method, Fitted):
        assert draws.bound.value < draws.log_z.value


def test_smc_of_linear_temperatures_is_unbiased_for_few_particles(unchecked):
    """The mean of Z over 1,000 runs of 8 particles, where log Z is biased by far more than the error."""
    target = gaussian(2)
    smc = SMC(temperatures=LinearTemperatures(num_levels=4), num_runs=1000, sigma=2.0, gain=0.0, resample_below=0.7)
    draws = smc(target, 8_000, generator=rng())
    z = (draws.log_w.reshape(1000, 8).logsumexp(1) - math.log(8)).exp()
    error = float(z.std()) / math.sqrt(1000)
    assert abs(float(z.mean()) - 3) < 5 * error
    assert float(z.log().mean()) < target.log_z - 5 * error / 3


def test_evaluations_of_smc_and_of_tempering_are_those_counted_by_hand():
    moves = HMCMoves(num_leapfrog=3)
    smc = SMC(temperatures=LinearTemperatures(num_levels=7), moves=moves, num_moves=2, num_runs=4)
    assert smc(gaussian(2), 41, generator=rng()).evaluations == 44 * (1 + 7 * 2 * 3)
    pt = ParallelTempering(moves=moves, num_levels=5, num_replicas=6, num_warm_up=11, thin=2)
    assert pt(gaussian(2), 13, generator=rng()).evaluations == 6 * (5 + (11 + 2 * 3) * (4 * 3 + 1))
    fitted = Fitted(method=pt, num_components=2, num_given=13)
    assert fitted(gaussian(2), 100, generator=rng()).evaluations == 6 * (5 + (11 + 2 * 3) * (4 * 3 + 1)) + 100
    assert SVGD(num_steps=9)(gaussian(2), 10, generator=rng()).evaluations == 90


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


def test_the_error_of_stepping_stones_is_the_spread_of_repeated_estimates():
    """Of 400 estimates, each from independent draws at three temperatures and 20 replicas."""
    noise = torch.randn(400, 3, 20, dtype=F64, generator=rng())
    found = [stepping_stones(0.3 * e - 0.045) for e in noise]
    values, errors = torch.tensor(found, dtype=F64).T
    assert abs(float(values.mean())) < 5 * 0.12 / math.sqrt(400) + 3 * 0.09 / 40  # and the bias of the logarithm
    assert float(values.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=5 / math.sqrt(800))


def test_a_mixture_has_the_density_it_is_drawn_from_and_em_finds_it():
    roots = torch.tensor([[[1.0, 0.0], [0.8, 0.5]], [[0.4, 0.0], [-0.2, 0.3]]], dtype=F64)
    means, weights = torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=F64), torch.tensor([0.25, 0.75], dtype=F64)
    truth = GaussianMixture(log_weights=weights.log(), means=means, roots=roots)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, scale_tril=roots)
    )
    x = truth.sample(20_000, rng())
    torch.testing.assert_close(truth.log_prob(x), law.log_prob(x))
    found = fit(x, torch.zeros(len(x), dtype=F64), 2, generator=rng())
    order = found.log_weights.argsort()
    torch.testing.assert_close(found.log_weights.exp()[order], weights, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.means[order], means, rtol=0, atol=0.1)
    covs = (found.roots @ found.roots.mT)[order]
    torch.testing.assert_close(covs, roots @ roots.mT, rtol=0.1, atol=0.01)


def test_em_takes_weights_as_repeated_samples():
    x = torch.randn(40, 2, dtype=F64, generator=rng())
    repeats = torch.tensor([1, 3], dtype=torch.long).repeat(20)
    twice = fit(x.repeat_interleave(2, 0), torch.zeros(80, dtype=F64), 1, generator=rng())
    plain = fit(x, torch.zeros(40, dtype=F64), 1, generator=rng())
    torch.testing.assert_close(twice.means, plain.means)
    weighted = fit(x, repeats.double().log(), 1, generator=rng())
    mean = (repeats[:20, None] * x[:20]).sum(0) / repeats[:20].sum()
    torch.testing.assert_close(weighted.means[0], mean)


def test_the_stein_direction_is_the_gradient_of_the_kernel_written_out():
    x, score = torch.randn(2, 7, 3, dtype=F64, generator=rng())
    h = float(torch.pdist(x).square().median()) / math.log(8)
    wanted = torch.zeros_like(x)
    for i in range(7):
        for j in range(7):
            x_j = x[j].clone().requires_grad_()
            k = (-(x_j - x[i]).square().sum() / h).exp()
            wanted[i] += (k.detach() * score[j] + torch.autograd.grad(k, x_j)[0]) / 7
    torch.testing.assert_close(stein_direction(x, score), wanted)


def test_particles_of_svgd_come_to_the_moments(unchecked):
    target = gaussian(2)
    draws = SVGD(num_steps=300)(target, 100, generator=rng())
    torch.testing.assert_close(draws.x.mean(0), target.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(draws.x.var(0), target.variances[0], rtol=0.2, atol=0)
    assert SVGD(num_steps=3)(target, 1, generator=rng()).x.isfinite().all()


METHODS = [HMC(num_warm_up=30), SMC(), ParallelTempering(), SVGD(), NUTS(num_warm_up=10)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_target_that_is_nan_is_refused_by_name(method):
    if isinstance(method, NUTS):
        pytest.importorskip("pyro")
    with pytest.raises(ValueError, match=r"target Undefined: log_prob gave nan .* at x = \["):
        method(Undefined(-100.0), 50, generator=rng())


def test_nan_that_is_met_on_the_way_is_refused_and_on_a_trajectory_that_diverges_is_not():
    with pytest.raises(ValueError, match="target Undefined"):
        HMC(num_warm_up=30, sigma=0.1)(Undefined(1.0), 50, generator=rng())
    at, beta = bridge(Undefined(1e3), 1.0), torch.ones(20)
    points = at.begin(20, rng())
    for step in (1e4, 1e38):  # to nan within two steps, and to infinity
        after, accepted = HMCMoves(num_leapfrog=4)(at, points, beta, torch.full((1, 1), step), rng())
        assert (accepted == 0).all()
        assert torch.equal(after.x, points.x)


def test_a_target_without_a_gradient_is_sampled_by_moves_that_ask_for_none():
    with pytest.raises(
        ValueError, match=r"target Black: log_prob has no gradient in x; give moves=RandomWalkMoves\(\)"
    ):
        SMC()(Black(), 50, generator=rng())
    draws = SMC(moves=RandomWalkMoves(), num_moves=4)(Black(), 1000, generator=rng())
    assert draws.x.dtype == torch.float32
    assert abs(draws.log_z.value - math.log(3)) < 5 * draws.log_z.se


def test_a_density_that_is_zero_on_half_of_the_space(unchecked):
    class Half(Mixture):
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > -1, super().log_prob(x), -math.inf)

    target = Half(gaussian(2).means, gaussian(2).variances, gaussian(2).weights)
    for method in (SMC(sigma=2.0), ParallelTempering(sigma=2.0, num_levels=5, num_warm_up=100)):
        draws = method(target, 1000, generator=rng())
        assert (draws.x[:, 0] > -1).all()
        assert abs(draws.log_z.value - math.log(1.5)) < 5 * draws.log_z.se


@pytest.mark.parametrize(
    "method", [HMC(num_warm_up=9), SMC(), ParallelTempering(num_warm_up=9)], ids=["HMC", "SMC", "PT"]
)
def test_a_seed_gives_the_same_draws(method):
    first, again = (method(gaussian(2), 100, generator=rng(3)) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.log_w, again.log_w)


def test_nuts_gives_the_moments_leaves_the_global_generator_and_repeats_itself(unchecked):
    pytest.importorskip("pyro")
    target, state = gaussian(2), torch.random.get_rng_state()
    method = NUTS(num_chains=8, num_warm_up=50)
    draws = method(target, 320, generator=rng())
    assert torch.equal(torch.random.get_rng_state(), state)
    x = draws.x.reshape(8, 40, 2).transpose(0, 1).reshape(-1, 2)
    check_moments(Draws(x=x, log_w=draws.log_w, evaluations=draws.evaluations), target, 8)
    assert torch.equal(
        NUTS(num_warm_up=5)(target, 5, generator=rng()).x, NUTS(num_warm_up=5)(target, 5, generator=rng()).x
    )
    counted = Counted(target)
    assert NUTS(num_warm_up=5)(counted, 5, generator=rng()).evaluations == counted.evaluations > 10


def test_without_pyro_nuts_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyro.infer.mcmc", None)
    with pytest.raises(ValueError, match=r"pip install --editable '\.\[pis\]'"):
        NUTS()(gaussian(1), 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HMC(num_chains=0), "num_chains=0"),
        (lambda: HMC(mass="dense"), "mass='dense'"),
        (lambda: HMCMoves(jitter=1.0), "jitter=1.0"),
        (lambda: SMC(num_runs=1), "num_runs=1"),
        (lambda: SMC(gain=-1), "gain=-1"),
        (lambda: AdaptiveTemperatures(share=1.0), "share=1.0"),
        (lambda: LinearTemperatures(num_levels=0), "num_levels=0"),
        (lambda: ParallelTempering(num_levels=1), "num_levels=1"),
        (lambda: ParallelTempering(num_replicas=1), "num_replicas=1"),
        (lambda: ParallelTempering(beta_min=0), "beta_min=0"),
        (lambda: Fitted(method=HMC(), num_components=20, num_given=30), "num_components=20"),
        (lambda: SVGD(step=0), "step=0"),
        (lambda: NUTS(wanted=1.0), "wanted=1.0"),
    ],
)
def test_arguments_out_of_range_are_named(make, named, unchecked):
    with pytest.raises(ValueError, match=named):
        make()
