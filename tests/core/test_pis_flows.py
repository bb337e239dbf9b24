"""VI-NF, SNF and AFT: path weights written out by hand, unbiased constants, exact laws reached, evaluations counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import ids, randn, rng
from torch import Tensor

from indm_core.checks.flow import move
from indm_core.errors import NonFiniteLossError
from indm_core.flow import ActNorm, Composed, Flow
from indm_core.flow.glow import InvertibleConv
from indm_core.pis import Counted, Method, Target, log_z, score
from indm_core.pis.annealing import Bridge, HMCMoves, RandomWalkMoves, evaluated
from indm_core.pis.baselines import (
    AnnealedFlowTransport,
    StochasticNormalizingFlow,
    VariationalFlow,
    couplings,
    residual,
)
from indm_core.pis.baselines.flow_training import adam, minimised
from indm_core.pis.baselines.snf import Langevin, Metropolis, StochasticPath, path_loss

F64 = torch.float64


class Mixture(Target):
    """2 sum_k w_k N(m_k, C_k), which counts for itself how often it is asked."""

    log_z = math.log(2)
    means: Tensor
    precisions: Tensor
    weights: Tensor
    log_norms: Tensor

    def __init__(self, means: Tensor, covs: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.dim, self.asked = means.shape[1], 0
        log_norms = weights.log() - 0.5 * torch.logdet(2 * math.pi * covs) + self.log_z
        buffers = {"means": means, "precisions": torch.linalg.inv(covs), "weights": weights, "log_norms": log_norms}
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def log_prob(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        off = x[:, None] - self.means
        return torch.logsumexp(
            self.log_norms - 0.5 * ((off[..., None, :] @ self.precisions)[..., 0, :] * off).sum(-1), 1
        )

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means


class Broken(Target):
    """Whose log_prob is what it is given."""

    dim = 2

    def __init__(self, log_prob: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.found = log_prob

    def log_prob(self, x: Tensor) -> Tensor:
        return self.found(x)


def gaussian(dim: int = 2) -> Mixture:
    root = torch.eye(dim, dtype=F64) + 0.2 * randn(dim, dim, seed=3)
    return Mixture(0.5 * randn(1, dim, seed=4), (0.6 * root @ root.mT)[None], torch.ones(1, dtype=F64))


def two_modes(dim: int = 2) -> Mixture:
    means = torch.tensor([[1.5], [-1.0]], dtype=F64) * torch.ones(dim, dtype=F64)
    covs = torch.stack([0.3 * torch.eye(dim, dtype=F64), 0.15 * torch.eye(dim, dtype=F64)])
    return Mixture(means, covs, torch.tensor([0.3, 0.7], dtype=F64))


def affine(dim: int) -> Flow:
    """W x, scaled and shifted: every Gaussian is the image of every other."""
    return Composed([InvertibleConv(dim, rotation=False), ActNorm((dim,))])


def stirred(build: Callable[[int], Flow], dim: int) -> Flow:
    """A flow that is far from the identity, and from any law that is asked for."""
    flow = build(dim)
    move(flow.parameters())
    return flow


def leaps(num: int) -> HMCMoves:
    """Of steps that are not jittered."""
    return HMCMoves(num_leapfrog=num, jitter=0.0)


SMALL_COUPLINGS = partial(couplings, steps=2, hidden=8)
SMALL_RESIDUAL = partial(residual, blocks=2, width=8)
SHORT = (
    VariationalFlow(flow=SMALL_COUPLINGS, num_steps=3, batch=5),
    StochasticNormalizingFlow(flow=SMALL_COUPLINGS, num_steps=3, batch=5, num_layers=2, num_moves=4),
    StochasticNormalizingFlow(flow=SMALL_COUPLINGS, num_steps=3, batch=5, num_layers=2, num_moves=2, moves=leaps(3)),
    AnnealedFlowTransport(
        flow=SMALL_COUPLINGS,
        num_steps=3,
        num_train=5,
        num_temperatures=2,
        num_moves=2,
        moves=leaps(3),
        num_groups=3,
    ),
)
"""Methods that take no time."""
EVERY = pytest.mark.parametrize("method", SHORT, ids=ids)


def within(found: tuple[float, float], expected: float) -> bool:
    return abs(found[0] - expected) < 5 * found[1]


def test_an_affine_flow_reaches_the_constant_weights_of_a_gaussian(unchecked):
    target = gaussian()
    method = VariationalFlow(flow=affine, sigma=1.5, num_steps=200, batch=2000, optimiser=adam(lr=0.05))
    draws = method(target, 500, generator=rng())
    assert float(draws.log_w.std()) < 0.01
    assert draws.bound.value == pytest.approx(target.log_z, abs=1e-3)


@pytest.mark.parametrize(("build", "dim"), [(SMALL_COUPLINGS, 3), (SMALL_RESIDUAL, 6), (SMALL_COUPLINGS, 1)])
def test_the_mean_weight_of_an_untrained_flow_is_unbiased(build, dim):
    """In six dimensions the residual flow would train with an estimated log-det; its weights are exact."""
    target = gaussian(dim)
    draws = VariationalFlow(flow=partial(stirred, build), sigma=1.4, num_steps=0)(target, 20_000, generator=rng())
    assert draws.log_z.se < 0.05
    assert within(draws.log_z, target.log_z)
    assert draws.bound.value < target.log_z - 5 * draws.bound.se
    w = draws.log_w.softmax(0)
    error = (w @ draws.x - target.mean).abs()
    assert (error < 5 * (w[:, None] * (draws.x - target.mean)).square().sum(0).sqrt()).all()


def test_the_path_weights_of_a_stochastic_flow_are_the_densities_written_out():
    """Two layers of two Langevin steps, and the gradient of the loss, with the score of a Gaussian in closed form."""
    target, sigma, generator = gaussian(), 1.3, rng(1)
    flows = [stirred(SMALL_COUPLINGS, 2).double() for _ in range(2)]
    layers = [Langevin(step=0.05, num_moves=2), Langevin(step=0.02, num_moves=2)]
    path = StochasticPath([*flows], layers).double()
    x_0 = sigma * randn(7, 2)
    x, log_w, _ = path(x_0, Bridge(target=Counted(target), sigma=sigma), rng(1))
    log_w.mean().backward()
    found = [p.grad for p in path.parameters()]
    path.zero_grad()
    normal = torch.distributions.Normal
    y, by_hand = x_0, -normal(torch.zeros(2, dtype=F64), sigma).log_prob(x_0).sum(1)
    for flow, layer, beta in zip(flows, layers, (0.5, 1.0), strict=True):
        h = layer.log_step.exp()
        y, log_det = flow(y)
        by_hand = by_hand + log_det
        for _ in range(2):

            def ahead(y: Tensor, beta: float = beta, h: Tensor = h) -> Tensor:
                slope = -(y - target.means) @ target.precisions[0]
                return y + h * (beta * slope - (1 - beta) * y / sigma**2)

            eps = torch.randn(7, 2, dtype=F64, generator=generator)
            z = ahead(y) + (2 * h).sqrt() * eps
            step = (2 * h).sqrt()
            by_hand = by_hand + (normal(ahead(z), step).log_prob(y) - normal(ahead(y), step).log_prob(z)).sum(1)
            y = z
    by_hand = by_hand + target.log_prob(y)
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_w, by_hand, rtol=1e-12, atol=1e-12)
    by_hand.mean().backward()
    for ours, p in zip(found, path.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("dim", "moves", "step"),
    [(1, None, 0.05), (3, None, 0.05), (1, RandomWalkMoves(), 0.8), (3, HMCMoves(num_leapfrog=3, jitter=0.5), 0.3)],
)
def test_the_mean_weight_of_an_untrained_stochastic_flow_is_unbiased(dim, moves, step):
    target = two_modes(dim)
    method = StochasticNormalizingFlow(
        flow=partial(stirred, SMALL_COUPLINGS),
        num_layers=3,
        moves=moves,
        num_moves=2,
        step=step,
        sigma=1.5,
        num_steps=0,
    )
    draws = method(target, 10_000, generator=rng())
    assert draws.log_z.se < 0.1
    assert within(draws.log_z, target.log_z)
    assert draws.bound.value < target.log_z - 5 * draws.bound.se


def test_the_gradient_of_metropolis_layers_is_that_of_the_mean_over_their_decisions():
    """One coordinate, two layers: the mean of -log w by quadrature over the start, the proposal and the decision.

    Without the likelihood ratio of the decisions the gradient is off by 20 standard errors.
    """
    target, sigma, num, blocks = two_modes(1), 1.5, 1000, 40
    flows = [ActNorm((1,)).double() for _ in range(2)]
    path = StochasticPath(flows, [Metropolis(RandomWalkMoves(), step=1.0, num_moves=1) for _ in range(2)]).double()
    for flow, shift in zip(flows, (-1.0, 1.0), strict=True):
        torch.nn.init.constant_(flow.shift, shift)
    weights = [*flows[0].parameters(), *flows[1].parameters(), path.get_parameter("steps.0.log_step")]
    bridge = Bridge(target=Counted(target), sigma=sigma, gradient=False)
    z = torch.linspace(-7, 7, 401, dtype=F64)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob
    chance = (normal(z)[:, None] + normal(z)).exp() * (z[1] - z[0]) ** 2

    def log_pi(x: Tensor) -> Tensor:
        return 0.5 * (target.log_prob(x[:, None]) + bridge.log_start(x[:, None]))

    def gain(y: Tensor) -> Tensor:
        """What the second layer adds after y: its moves at beta = 1 leave the weight as it is."""
        x, log_det = flows[1](y[:, None])
        return log_det + target.log_prob(x) - log_pi(y)

    x, log_det = (v.reshape(-1) for v in flows[0](sigma * z[:, None]))
    before = log_det + log_pi(x) - bridge.log_start(sigma * z[:, None])
    proposed = (x[:, None] + path.get_parameter("steps.0.log_step").exp() * z).reshape(-1)
    accept = (log_pi(proposed).reshape(401, 401) - log_pi(x)[:, None]).clamp(max=0).exp()
    mean = accept * gain(proposed).reshape(401, 401) + (1 - accept) * gain(x)[:, None] + before[:, None]
    expected = torch.autograd.grad(-(chance * mean).sum(), weights)
    generator, found = rng(), []
    for _ in range(blocks):
        _, log_w, log_chance = path(bridge.drawn(num, generator), bridge, generator)
        grads = torch.autograd.grad(path_loss(log_w, log_chance), weights)
        found.append(torch.cat([g.reshape(-1) for g in grads]))
    error = torch.stack(found).mean(0) - torch.cat([g.reshape(-1) for g in expected])
    assert (error.abs() < 5 * torch.stack(found).std(0) / math.sqrt(blocks)).all()


@pytest.mark.parametrize("moves", [None, leaps(2)])
def test_training_lifts_the_bound_of_a_stochastic_flow(moves, unchecked):
    target, bounds = gaussian(), []
    for num_steps in (0, 50):
        method = StochasticNormalizingFlow(
            flow=affine, num_layers=2, moves=moves, num_moves=1, num_steps=num_steps, batch=64, optimiser=adam(lr=0.05)
        )
        bounds.append(method(target, 1000, generator=rng()).bound)
    assert bounds[0].value + 0.3 < bounds[1].value < target.log_z + 5 * bounds[1].se
    assert bounds[1].value > target.log_z - 0.1


@pytest.mark.parametrize(("dim", "num_steps"), [(1, 3), (2, 15), (2, 0)])
def test_annealed_flow_transport_has_the_constant_and_the_weight_of_each_mode(dim, num_steps, unchecked):
    target = two_modes(dim)
    method = AnnealedFlowTransport(
        flow=SMALL_COUPLINGS,
        num_temperatures=5,
        num_train=200,
        num_steps=num_steps,
        moves=leaps(5),
        share=0.7,
        sigma=1.5,
    )
    draws = method(target, 2000, generator=rng())
    assert draws.log_z.se < 0.1
    assert within(draws.log_z, target.log_z)
    assert log_z(draws.log_w).value == pytest.approx(draws.log_z.value, abs=1e-9)
    share = float(draws.log_w.softmax(0) @ (draws.x.mean(1) > 0.2).to(F64))
    assert share == pytest.approx(0.3, abs=0.1)


def test_annealed_flow_transport_is_unbiased_in_groups_of_few_particles_and_with_flows_of_a_few(unchecked):
    """Five particles resample and move at once where only four trained the flows; the mean of 600 such groups is Z."""
    target = two_modes()
    method = AnnealedFlowTransport(
        flow=affine,
        num_temperatures=3,
        num_train=4,
        num_steps=5,
        moves=leaps(2),
        share=1.0,
        sigma=1.5,
        step=0.7,
        num_groups=600,
    )
    draws = method(target, 3000, generator=rng())
    assert draws.log_z.se < 0.07
    assert within(draws.log_z, target.log_z)
    assert not draws.log_w.reshape(600, 5).std(1).any()  # all of a group that has just resampled weigh the same
    assert draws.bound.value < target.log_z - 5 * draws.bound.se


def test_the_flows_of_annealed_flow_transport_lead_from_each_density_to_the_next(unchecked):
    """From Gaussian to Gaussian affine flows do so exactly, and the weights become constant."""
    target, spread = gaussian(), []
    for num_steps in (0, 60):
        method = AnnealedFlowTransport(
            flow=affine,
            num_temperatures=2,
            num_train=2000,
            num_steps=num_steps,
            moves=leaps(3),
            share=0.0,
            optimiser=adam(lr=0.1),
        )
        spread.append(float(method(target, 300, generator=rng()).log_w.std()))
    assert spread[1] < 0.15 * spread[0]


def test_flows_that_fit_a_few_particles_too_closely_are_not_kept(unchecked):
    target, bounds = two_modes(3), []
    for num_steps in (0, 40):
        method = AnnealedFlowTransport(
            flow=couplings,
            num_temperatures=3,
            num_train=8,
            num_steps=num_steps,
            moves=leaps(3),
            optimiser=adam(lr=0.05),
        )
        bounds.append(method(target, 400, generator=rng()).bound.value)
    assert bounds[1] > bounds[0] - 1


def test_hamiltonian_moves_leave_a_law_as_it_is(unchecked):
    """A target that is the law of the start: the weights are exact, and large steps change no moment."""
    sigma, num = 1.5, 6000
    zero, cov = torch.zeros(1, 2, dtype=F64), sigma**2 * torch.eye(2, dtype=F64)[None]
    method = AnnealedFlowTransport(
        flow=affine,
        num_temperatures=2,
        num_steps=0,
        num_train=50,
        num_moves=10,
        moves=leaps(3),
        step=1.0,
        sigma=sigma,
    )
    draws = method(Mixture(zero, cov, torch.ones(1, dtype=F64)), num, generator=rng())
    torch.testing.assert_close(draws.log_w, torch.full_like(draws.log_w, math.log(2)), rtol=0, atol=1e-10)
    squares = draws.x.square() / sigma**2
    assert ((squares.mean(0) - 1).abs() < 5 * math.sqrt(2 / num)).all()
    assert ((squares.square().mean(0) - 3).abs() < 5 * math.sqrt(96 / num)).all()


def test_a_hamiltonian_step_that_is_far_too_large_is_refused_move_by_move(unchecked):
    target = two_modes()
    method = AnnealedFlowTransport(flow=affine, num_temperatures=4, num_steps=0, step=1e3, num_train=10, sigma=1.5)
    draws = method(target, 2000, generator=rng())
    assert draws.x.isfinite().all()
    assert within(draws.log_z, target.log_z)


@pytest.mark.parametrize(("flow", "lr"), [(affine, 1e4), (couplings, 50.0)])
def test_a_transport_whose_training_runs_away_is_the_best_one_before(flow, lr, unchecked):
    """Such steps throw the particles where no number of float64 is; what is drawn is weighted right all the same."""
    target = two_modes()
    method = AnnealedFlowTransport(
        flow=flow, num_temperatures=4, num_train=50, num_steps=40, optimiser=adam(lr=lr), sigma=1.5
    )
    draws = method(target, 2000, generator=rng())
    assert draws.x.isfinite().all()
    assert within(draws.log_z, target.log_z)


@EVERY
@pytest.mark.parametrize(("dim", "num"), [(1, 1), (1, 7)])
def test_one_dimension_and_one_sample(method, dim, num, unchecked):
    target = two_modes(dim)
    draws = method(target, num, generator=rng())
    assert draws.x.shape == (num, dim)
    assert draws.log_w.shape == (num,)
    assert draws.x.dtype == F64
    assert draws.log_w.isfinite().all()
    assert math.isnan(draws.log_z.se) == (num == 1)
    assert draws.evaluations == target.asked


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SHORT[0], 3 * 5 + 11),
        (SHORT[1], 2 * (4 + 1) * (3 * 5 + 11)),
        (SHORT[2], 2 * (2 * 3 + 1) * (3 * 5 + 11)),
        (SHORT[3], 2 * (3 * 5 + (1 + 2 * 3) * (5 + 11))),
    ],
    ids=ids,
)
def test_evaluations_are_counted(method: Method, expected: int):
    target = two_modes()
    assert method(target, 11, generator=rng()).evaluations == target.asked == expected


@EVERY
def test_draws_are_a_function_of_the_generator(method, unchecked):
    torch.manual_seed(1)
    first = method(two_modes(), 6, generator=rng(5))
    torch.manual_seed(2)
    again = method(two_modes(), 6, generator=rng(5))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.log_w, again.log_w)
    assert not torch.equal(method(two_modes(), 6, generator=rng(6)).x, first.x)


@EVERY
@pytest.mark.parametrize(
    ("log_prob", "said"),
    [
        (lambda x: torch.full_like(x[:, 0], math.nan) * x[:, 0], r"target Broken: log_prob gave nan .*at x = \["),
        (lambda x: math.inf + x[:, 0], r"target Broken: log_prob gave inf .*at x = \["),
        (lambda x: -x.square(), r"target Broken: log_prob gave the shape \(5, 2\)"),
        (lambda x: -x.detach().square().sum(1), "target Broken: log_prob has no gradient"),
    ],
    ids=["nan", "inf", "shape", "no gradient"],
)
def test_targets_that_cannot_be_sampled_are_refused_by_name(method, log_prob, said, unchecked):
    with pytest.raises(ValueError, match=said):
        method(Broken(log_prob), 4, generator=rng())


@EVERY
def test_a_generator_for_each_sample_is_refused(method):
    with pytest.raises(ValueError, match="generator: 4 generators"):
        method(two_modes(), 4, generator=[rng(i) for i in range(4)])


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (VariationalFlow, {"sigma": 0.0}),
        (VariationalFlow, {"num_steps": -1}),
        (VariationalFlow, {"batch": 0}),
        (StochasticNormalizingFlow, {"step": math.nan}),
        (StochasticNormalizingFlow, {"num_layers": 0}),
        (StochasticNormalizingFlow, {"batch": 1}),
        (AnnealedFlowTransport, {"num_train": 1}),
        (AnnealedFlowTransport, {"share": 1.5}),
        (AnnealedFlowTransport, {"num_temperatures": 0}),
    ],
)
def test_settings_out_of_range_are_refused(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


def test_a_density_of_zero_weighs_nothing():
    """Half of the space is empty, and a flow that begins there is not led astray."""

    def half(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, -0.5 * x.square().sum(1), -math.inf)

    for method in (
        VariationalFlow(num_steps=0),
        AnnealedFlowTransport(num_steps=0, num_temperatures=3, num_train=50),
        StochasticNormalizingFlow(num_steps=0, moves=RandomWalkMoves(), step=0.5),
    ):
        draws = method(Broken(half), 4000, generator=rng())
        assert within(draws.log_z, math.log(math.pi))


@EVERY
def test_a_flow_whose_points_are_not_finite_is_told_from_a_target_that_is_nan(method, unchecked):
    def thrown(dim: int) -> Flow:
        flow = ActNorm((dim,))
        torch.nn.init.constant_(next(flow.parameters()), math.nan)
        return flow

    with pytest.raises(NonFiniteLossError, match="a flow gave points that are not finite"):
        replace(method, flow=thrown)(two_modes(), 4, generator=rng())


def test_a_training_without_finite_gradients_stops():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(NonFiniteLossError, match="10 steps in a row"):
        minimised(lambda: (p * math.nan).sum(), [p], adam(lr=0.1), 20)
    assert p == 1


def test_the_score_of_a_path_is_that_of_the_target():
    """`evaluated` keeps the graph; its score is the one that `score` detaches."""
    target, x = two_modes(), randn(4, 2).requires_grad_()
    torch.testing.assert_close(evaluated(Counted(target), x).score, score(target, x))
