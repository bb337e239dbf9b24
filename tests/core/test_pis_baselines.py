"""Baselines of the path integral sampler against closed forms."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from densities import Black, Mixture, Undefined, gaussian, modes
from problems import rng
from torch import Tensor

from benchmarks.memory import LiveBytes
from indm_core.errors import ConvergenceError
from indm_core.pis import Counted, Draws, log_z, targets
from indm_core.pis.baselines import (
    HMC,
    NUTS,
    SMC,
    SVGD,
    AdaptiveTemperatures,
    Fitted,
    GaussianMixture,
    HMCMoves,
    LinearTemperatures,
    ParallelTempering,
    RandomWalkMoves,
    fit,
)
from indm_core.pis.baselines.svgd import stein_direction
from indm_core.pis.baselines.tempering import stepping_stones

F64 = torch.float64


@pytest.mark.parametrize("mass", ["unit", "diagonal"])
@pytest.mark.parametrize("dim", [1, 50])
def test_hmc_gives_the_moments_and_counts_its_evaluations(dim, mass, unchecked):
    target, chains = gaussian(dim), 50
    method = HMC(moves=HMCMoves(num_leapfrog=4), num_chains=chains, num_warm_up=50, thin=2, mass=mass)
    draws = method(target, 490, generator=rng())
    assert draws.x.shape == (490, dim)
    assert draws.evaluations == chains * (1 + (50 + 2 * 10) * 4)
    check_moments(draws, target, chains)


def check_moments(draws: Draws, target: Mixture, chains: int) -> None:
    """Means and variances within 5 standard errors, those of the means of independent chains."""
    x = draws.x[: len(draws.x) // chains * chains].reshape(-1, chains, target.dim)
    mean, var = target.means[0], target.variances[0]
    for found, wanted in ((x.mean(0), mean), ((x - mean).square().mean(0), var)):
        assert ((found.mean(0) - wanted).abs() < 5 * found.std(0) / math.sqrt(chains)).all()


def test_one_chain_of_hmc(unchecked):
    draws = HMC(moves=HMCMoves(num_leapfrog=4), num_chains=1, num_warm_up=60)(gaussian(1), 140, generator=rng())
    assert draws.x.shape == (140, 1)
    assert abs(float(draws.x.mean()) + 1) < 5 * math.sqrt(0.1 / 40)
    assert draws.evaluations == 1 + 200 * 4
    assert math.isnan(draws.log_z.value)


TEMPERING = ParallelTempering(sigma=4.0, num_warm_up=40, num_levels=6, num_replicas=50)
WALKING = ParallelTempering(sigma=4.0, num_warm_up=80, num_levels=6, num_replicas=50, moves=RandomWalkMoves(), thin=4)


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        (SMC(temperatures=LinearTemperatures(num_levels=15), sigma=4.0, num_moves=2, resample_below=0.9), (1, 10, 200)),
        (SMC(temperatures=AdaptiveTemperatures(share=0.7), sigma=4.0, num_moves=2), (1, 10, 200)),
        (SMC(moves=RandomWalkMoves(), sigma=4.0, num_moves=4), (1, 10, 200)),
        (TEMPERING, (40, 50, 1)),
        (WALKING, (40, 50, 1)),
        (Fitted(method=TEMPERING, num_components=3, num_given=400), (1, 2000, 1)),
    ],
    ids=["linear", "adaptive", "walk", "tempering", "tempering-walk", "fitted"],
)
def test_the_constant_and_the_weight_of_each_mode(method, shape, unchecked):
    """The axis of independent draws is the second: runs, replicas, draws."""
    target = modes()
    draws = method(target, 2000, generator=rng())
    assert abs(draws.log_z.value - target.log_z) < 5 * draws.log_z.se
    assert draws.log_z.se < 0.15
    w, first = (v.double().reshape(shape) for v in (draws.log_w.exp(), draws.x[:, 0] > 0))
    share = float((w * first).sum() / w.sum())
    each = (w * (first - share)).sum((0, 2)) / w.sum((0, 2)).mean()
    error = float(each.std()) / math.sqrt(shape[1])
    assert error < 0.06
    assert abs(share - 0.3) < 5 * error


@pytest.mark.parametrize("dim", [1, 50])
@pytest.mark.parametrize(
    "method",
    [
        SMC(sigma=2.0, num_moves=2, moves=HMCMoves(num_leapfrog=5)),
        ParallelTempering(sigma=2.0, num_warm_up=40, num_replicas=50),
        Fitted(
            method=HMC(moves=HMCMoves(num_leapfrog=4), num_warm_up=40),
            num_components=1,
            num_given=8000,
            num_steps=2,
            num_starts=1,
        ),
    ],
    ids=["SMC", "tempering", "fitted"],
)
def test_the_constant_of_a_gaussian(method, dim, unchecked):
    target = gaussian(dim)
    draws = method(target, 500, generator=rng())
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


def test_evaluations_of_smc_and_of_tempering_are_those_counted_by_hand(unchecked):
    moves = HMCMoves(num_leapfrog=3)
    smc = SMC(temperatures=LinearTemperatures(num_levels=7), moves=moves, num_moves=2, num_runs=4)
    draws = smc(gaussian(2), 41, generator=rng())
    assert draws.evaluations == 44 * (1 + 7 * 2 * 3)
    assert draws.x.shape == (41, 2)
    pt = ParallelTempering(moves=moves, num_levels=5, num_replicas=6, num_warm_up=5, thin=2)
    assert pt(gaussian(2), 13, generator=rng()).evaluations == 6 * (5 + (5 + 2 * 3) * (4 * 3 + 1))
    fitted = Fitted(method=pt, num_components=2, num_given=13)
    assert fitted(gaussian(2), 100, generator=rng()).evaluations == 6 * (5 + (5 + 2 * 3) * (4 * 3 + 1)) + 100
    assert SVGD(num_steps=9)(gaussian(2), 10, generator=rng()).evaluations == 90


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
    x = truth.sample(10_000, rng())
    torch.testing.assert_close(truth.log_prob(x), law.log_prob(x))
    found = fit(x, torch.zeros(len(x), dtype=F64), 2, num_steps=30, num_starts=2, generator=rng())
    order = found.log_weights.argsort()
    torch.testing.assert_close(found.log_weights.exp()[order], weights, rtol=0, atol=0.02)
    torch.testing.assert_close(found.means[order], means, rtol=0, atol=0.1)
    covs = (found.roots @ found.roots.mT)[order]
    torch.testing.assert_close(covs, roots @ roots.mT, rtol=0.1, atol=0.01)


def test_a_mixture_draws_in_many_dimensions_without_a_matrix_per_sample():
    k, n, d = 2, 5000, 50
    roots = torch.randn(k, d, d, dtype=F64, generator=rng()).tril()
    roots.diagonal(dim1=1, dim2=2).abs_().add_(1.0)
    means = 10 * torch.randn(k, d, dtype=F64, generator=rng(1))
    fitted = GaussianMixture(log_weights=torch.tensor([0.25, 0.75], dtype=F64).log(), means=means, roots=roots)
    target = targets.GaussianMixture(means, covs=roots @ roots.mT, weights=torch.tensor([1.0, 3.0], dtype=F64))
    for law in (fitted, target):
        with LiveBytes() as count:
            x = law.sample(n, rng(2))
        assert count.peak < 10 * 8 * n * d  # n matrices are 50 times this
        first = x[torch.cdist(x, means).argmin(1) == 0]
        white = torch.linalg.solve_triangular(roots[0], (first - means[0]).mT, upper=False)
        assert white.square().mean() == pytest.approx(1.0, abs=0.05)
        assert len(first) / n == pytest.approx(0.25, abs=0.04)


def test_em_takes_weights_as_repeated_samples(unchecked):
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
    draws = SVGD(num_steps=200)(target, 100, generator=rng())
    torch.testing.assert_close(draws.x.mean(0), target.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(draws.x.var(0), target.variances[0], rtol=0.2, atol=0)
    assert SVGD(num_steps=3)(target, 1, generator=rng()).x.isfinite().all()


METHODS = [HMC(num_warm_up=30), SMC(), ParallelTempering(), SVGD(), NUTS(num_warm_up=10)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_target_that_is_nan_is_refused_by_name(method):
    if isinstance(method, NUTS):
        pytest.importorskip("pyro")
    with pytest.raises(ValueError, match=r"target Undefined: log_prob gave nan.* at x = \["):
        method(Undefined(-100.0), 50, generator=rng())


def test_a_target_without_a_gradient_is_sampled_by_moves_that_ask_for_none():
    with pytest.raises(ValueError, match=r"target Black: log_prob has no gradient in x; .* moves=RandomWalkMoves\(\)"):
        SMC()(Black(), 50, generator=rng())
    draws = SMC(moves=RandomWalkMoves(), num_moves=4)(Black().float(), 1000, generator=rng())
    assert draws.x.dtype == torch.float32
    assert abs(draws.log_z.value - math.log(3)) < 5 * draws.log_z.se


def test_a_density_that_is_zero_on_half_of_the_space(unchecked):
    class Half(Mixture):
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > -1, super().log_prob(x), -math.inf)

    target = Half(gaussian(2).means, gaussian(2).variances, gaussian(2).weights)
    for method in (SMC(sigma=2.0), ParallelTempering(sigma=2.0, num_levels=5, num_warm_up=40, num_replicas=50)):
        draws = method(target, 1000, generator=rng())
        assert (draws.x[:, 0] > -1).all()
        assert abs(draws.log_z.value - math.log(1.5)) < 5 * draws.log_z.se
    # half of the starts are where the density is 0
    assert (HMC(num_warm_up=5)(target, 100, generator=rng()).x[:, 0] > -1).all()


def test_methods_say_what_to_change_where_they_do_not_reach_the_target():
    with pytest.raises(ConvergenceError, match=r"max_levels=2: .* raise max_levels or sigma, or lower share"):
        SMC(temperatures=AdaptiveTemperatures(max_levels=2))(modes(), 50, generator=rng())

    class Away(Mixture):
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > 9, super().log_prob(x), -math.inf)

    away = Away(modes().means, modes().variances, modes().weights)
    for method in (SMC(), HMC()):
        with pytest.raises(ValueError, match=r"sigma=1\.0: the target's density is 0"):
            method(away, 50, generator=rng())


@pytest.mark.parametrize(
    "method", [HMC(num_warm_up=9), SMC(), ParallelTempering(num_warm_up=9, num_levels=3)], ids=["HMC", "SMC", "PT"]
)
def test_a_seed_gives_the_same_draws(method, unchecked):
    first, again = (method(gaussian(2), 100, generator=rng(3)) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.log_w, again.log_w)


def test_nuts_gives_the_moments_leaves_the_global_generator_and_repeats_itself(unchecked):
    pytest.importorskip("pyro")
    target, state = gaussian(2), torch.random.get_rng_state()
    method = NUTS(num_chains=6, num_warm_up=20)
    draws = method(target, 90, generator=rng())
    assert torch.equal(torch.random.get_rng_state(), state)
    x = draws.x.reshape(6, 15, 2).transpose(0, 1).reshape(-1, 2)
    check_moments(Draws(x=x, log_w=draws.log_w, evaluations=draws.evaluations), target, 6)
    assert torch.equal(
        NUTS(num_warm_up=5)(target, 5, generator=rng()).x, NUTS(num_warm_up=5)(target, 5, generator=rng()).x
    )
    counted = Counted(target)
    assert NUTS(num_warm_up=5)(counted, 5, generator=rng()).evaluations == counted.evaluations > 10


def test_without_pyro_nuts_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro.infer.mcmc", None)
    with pytest.raises(ValueError, match=r"pip install --editable '\.\[pis\]'"):
        NUTS()(gaussian(1), 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HMC(num_chains=0), "num_chains=0"),
        (lambda: HMC(mass="dense"), "mass='dense'"),  # pyright: ignore[reportArgumentType]
        (lambda: HMCMoves(jitter=1.0), "jitter=1.0"),
        (lambda: HMCMoves(spread=-1.0), "spread=-1.0"),
        (lambda: fit(torch.ones(8, 2), torch.zeros(8), 1), "all equal"),
        (lambda: RandomWalkMoves(wanted=0.0), r"wanted=0\.0"),
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
