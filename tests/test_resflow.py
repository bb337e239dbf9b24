"""Residual flows: Lipschitz bounds, log-determinants against the full Jacobian, the estimator's law, the inverse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import randn, rng
from test_flow import jacobian_log_det
from torch import Tensor, nn

from indm_core import resflow
from indm_core.errors import ConvergenceError
from indm_core.resflow import LipschitzLayer, LipSwish, ResFlow, ResidualBlock, Roulette, Sine, fixed_point

CONSTRAINTS = pytest.mark.parametrize("constraint", ["spectral", "infinity"])


def awake(module: nn.Module, scale: float = 0.5, seed: int = 0) -> nn.Module:
    """float64, evaluation mode, weights away from their start at the identity."""
    generator = rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator)
    return module.double().eval()


def dense_matrix(layer: LipschitzLayer, event: tuple[int, ...]) -> Tensor:
    """The explicit matrix of a layer's linear part."""
    basis = torch.eye(math.prod(event), dtype=torch.float64).reshape(-1, *event)
    weight = layer.bounded_weight().detach()
    zero = torch.zeros_like(basis[:1])
    return (layer(basis, weight) - layer(zero, weight)).flatten(1).T.detach()


@CONSTRAINTS
@pytest.mark.parametrize(("event", "kernel"), [((12,), 1), ((3, 5, 4), 3), ((2, 4, 4), 1)], ids=["dense", "3x3", "1x1"])
@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["small weights", "large weights"])
def test_the_operator_norm_is_bounded(constraint, event, kernel, scale):
    """True norms by SVD and by row sums of the explicit matrix: at most 0.9, and reached where the weight is large.

    The spectral norm is known to a hundred power iterations, which come from below: 0.08 % short for this convolution.
    """
    layer = LipschitzLayer(event, 6, coefficient=0.9, constraint=constraint, kernel=kernel)
    layer.weight.data.mul_(0)
    awake(layer, scale)
    matrix = dense_matrix(layer, event)
    norm = float(torch.linalg.matrix_norm(matrix, 2 if constraint == "spectral" else math.inf))
    assert norm < 0.9 * (1 + (1e-3 if constraint == "spectral" else 1e-12))
    if scale == 3.0:
        assert norm > 0.85  # the scaling takes no more than it must (an edge of the image may fall short of a row sum)
    else:
        torch.testing.assert_close(layer.bounded_weight(), layer.weight.detach())


def test_one_power_iteration_a_step_keeps_up_with_training():
    layer = LipschitzLayer((16,), 16, coefficient=0.9).double().train()
    layer.weight.data.mul_(10)
    generator = rng(0)
    norms = []
    for _ in range(200):
        layer.weight.data += 0.01 * torch.randn(16, 16, dtype=torch.float64, generator=generator)
        norms.append(float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)))
    assert max(norms[50:]) < 0.98


@pytest.mark.parametrize("activation", [Sine, LipSwish])
def test_activations_are_one_lipschitz(activation):
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64).requires_grad_()
    module = activation().double()
    for raw in (-3.0, 0.5, 6.0):
        for p in module.parameters():
            p.data.fill_(raw)
        (slope,) = torch.autograd.grad(module(x).sum(), x)
        assert float(slope.abs().max()) <= 1


@CONSTRAINTS
@pytest.mark.parametrize(
    ("event", "options"),
    [((5,), {}), ((2, 4, 4), {}), ((2, 4, 4), {"activation": LipSwish})],
    ids=["vector", "image", "LipSwish"],
)
def test_a_block_is_a_contraction(constraint, event, options):
    """|g(a) - g(b)| <= c |a - b| in the constraint's norm, for far and near pairs."""
    settings = {"width": 16, "kernels": (3, 1, 3), "coefficient": 0.8, "activation": Sine, **options}
    block = awake(ResidualBlock(event, constraint=constraint, **settings), 2.0)
    order, g = (2 if constraint == "spectral" else math.inf), block.bound()
    for spread in (1e-3, 0.1, 3.0):
        a = randn(2000, *event)
        b = a + spread * randn(2000, *event, seed=1)
        ratio = (g(a) - g(b)).detach().flatten(1).norm(order, dim=1) / (a - b).flatten(1).norm(order, dim=1)
        assert float(ratio.max()) <= 0.8 * (1 + 1e-4)
    J = torch.autograd.functional.jacobian(lambda v: g(v).flatten(), torch.zeros(1, *event).double()).detach()
    assert float(torch.linalg.matrix_norm(J.reshape(math.prod(event), -1), order)) <= 0.8 * (1 + 1e-4)


FLOWS = {
    "2-D": ((2,), {"blocks": (3,), "width": 16}),
    "8-D": ((8,), {"blocks": (2,), "width": 16, "activation": LipSwish}),
    "image": ((1, 4, 4), {"blocks": (2,), "width": 8}),
    "two scales": ((1, 4, 4), {"blocks": (1, 2), "width": 8, "constraint": "infinity"}),
    "dense image": ((1, 4, 4), {"blocks": (2,), "width": 8, "dense": True}),
}
EVERY = pytest.mark.parametrize("name", FLOWS)


def make(name: str, seed: int = 0, **more) -> ResFlow:
    event, options = FLOWS[name]
    return awake(ResFlow(event, **{**options, **more}), seed=seed)


@EVERY
def test_starts_at_the_identity(name):
    event, options = FLOWS[name]
    flow = ResFlow(event, **options).double()
    x = randn(3, *event)
    for mode in (True, False):
        z, log_det = flow.train(mode)(x, rng(0))
        torch.testing.assert_close(z, x, rtol=0, atol=0)
        torch.testing.assert_close(log_det, torch.zeros(3).double(), rtol=0, atol=1e-15)


@EVERY
def test_exact_log_det_is_that_of_the_jacobian(name):
    flow = make(name)
    x = randn(3, *FLOWS[name][0])
    z, log_det = flow(x)
    assert z.shape == x.shape
    assert log_det.abs().max() > 0.005
    torch.testing.assert_close(log_det, jacobian_log_det(flow, x), rtol=1e-9, atol=1e-10)


@EVERY
def test_inverse(name):
    flow = make(name)
    x = randn(5, *FLOWS[name][0])
    z, _ = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow.inverse(z, tolerance=1e-10), x, rtol=0, atol=1e-8)
    single = copy.deepcopy(flow).float()
    z, _ = single(x.float())
    torch.testing.assert_close(single.inverse(z), x.float(), rtol=0, atol=1e-4)


def test_the_inverse_at_the_default_coefficient():
    """Large weights at c = 0.98, where a step of the fixed point may shrink the error by only 2 %."""
    flow = awake(ResFlow((8,), blocks=(2,), width=32), 3.0)
    x = randn(16, 8)
    torch.testing.assert_close(flow.inverse(flow(x)[0].detach()), x, rtol=0, atol=5e-5)  # |dx| Lip / (1 - Lip)


def test_an_inverse_that_does_not_converge_raises():
    with pytest.raises(ConvergenceError, match=r"after 30 iterations, tolerance=1e-06"):
        fixed_point(lambda x: 1.5 * x, randn(3, 2), tolerance=1e-6, max_iterations=30)
    flow, z = make("2-D"), randn(2, 2)
    with pytest.raises(ConvergenceError):
        flow.inverse(z, max_iterations=2)
    with pytest.raises(ConvergenceError):
        flow.inverse(torch.full((1, 2), math.nan, dtype=torch.float64), max_iterations=5)


def estimates(flow: ResFlow, x: Tensor, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """`num` independent estimates of log_det of one point, and of its gradient in one weight, all in training mode."""
    generator, values, gradients = rng(seed), [], []
    weight = flow.scales[0][0].layers[0].weight
    for _ in range(num):
        _, log_det = flow(x, generator)
        (gradient,) = torch.autograd.grad(log_det.sum(), weight)
        values.append(log_det.detach().sum())
        gradients.append(gradient.flatten())
    return torch.stack(values), torch.stack(gradients)


ROULETTES = {
    "geometric": Roulette(law="geometric", parameter=0.6, exact=2),
    "poisson": Roulette(law="poisson", parameter=2.0, exact=2),
    "one exact term": Roulette(law="geometric", parameter=0.7, exact=1),
}


@pytest.mark.parametrize("law", ROULETTES)
@pytest.mark.parametrize("dims", [2, 8])
@pytest.mark.usefixtures("unchecked")
def test_the_series_is_unbiased_in_value_and_gradient(law, dims):
    """5 standard errors over 600 estimates; the continuation probability exceeds Lip(g)^2, so that they exist.

    One layer near 0.6 I at small x, so that all terms of the series count; the infinity norm's constraint has no state.
    """
    options = {"blocks": (1,), "kernels": (1,), "coefficient": 0.75, "constraint": "infinity", "exact_train": 0}
    flow = ResFlow((dims,), roulette=ROULETTES[law], **options).double().train()
    flow.scales[0][0].layers[0].weight.data = 0.6 * torch.eye(dims).double() + 0.1 * randn(dims, dims)
    x = 0.05 * randn(4, dims, seed=1)
    values, gradients = estimates(flow, x, 600, seed=3)
    exact = copy.deepcopy(flow)
    exact.exact_train = dims
    _, log_det = exact(x)
    (gradient,) = torch.autograd.grad(log_det.sum(), exact.scales[0][0].layers[0].weight)
    root = math.sqrt(len(values))
    assert float(values.std()) > 1e-3
    assert abs(float(values.mean() - log_det.detach().sum())) < 5 * float(values.std()) / root
    error = (gradients.mean(0) - gradient.flatten()).abs()
    assert (error < 5 * gradients.std(0) / root + 1e-12).all()
    assert float(gradient.abs().max()) > 20 * float((gradients.std(0) / root).min())


@pytest.mark.usefixtures("unchecked")
def test_the_series_of_an_image_and_its_gradient_in_x():
    """Two scales, convolutions, every block's own count: value and d log_det/dx against the exact branch."""
    roulette = Roulette(law="geometric", parameter=0.6, exact=2)
    flow = make("two scales", coefficient=0.7, roulette=roulette, exact_train=0).train()
    x, generator, values, gradients = randn(2, 1, 4, 4).requires_grad_(), rng(1), [], []
    for _ in range(400):
        _, log_det = flow(x, generator)
        values.append(log_det.detach())
        gradients.append(torch.autograd.grad(log_det.sum(), x)[0].flatten())
    values, gradients = torch.stack(values), torch.stack(gradients)
    flow.exact_train = 16
    _, exact = flow(x)
    (gradient,) = torch.autograd.grad(exact.sum(), x)
    root = math.sqrt(400)
    assert ((values.mean(0) - exact).abs() < 5 * values.std(0) / root).all()
    assert ((gradients.mean(0) - gradient.flatten()).abs() < 5 * gradients.std(0) / root + 1e-12).all()


@pytest.mark.usefixtures("unchecked")
def test_evaluation_takes_twenty_exact_terms():
    """Above `exact_eval` dimensions: the estimate's spread is the probe's alone, its mean the exact value."""
    flow = make("8-D", exact_eval=0)
    x = randn(1, 8)
    with torch.no_grad():
        values = torch.stack([flow(x.expand(64, 8), rng(seed))[1] for seed in range(20)]).flatten()
        exact = jacobian_log_det(flow, x)
    assert abs(float(values.mean() - exact)) < 5 * float(values.std()) / math.sqrt(len(values))
    assert flow.eval_roulette.exact == 20


@pytest.mark.parametrize("roulette", list(ROULETTES.values()), ids=list(ROULETTES))
def test_the_weights_are_one_over_the_chance_of_a_term(roulette):
    counts = torch.tensor(roulette.draw(200_000, torch.zeros(1), rng(0)))
    weights = roulette.weights(8)
    assert weights[: roulette.exact] == [1.0] * roulette.exact
    for k in range(1, 9):
        share = float((counts >= k).double().mean())
        chance = 1 / weights[roulette.exact + k - 1]
        assert share == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / 200_000))


def test_gradients_of_the_exact_log_det_reach_weights_and_x():
    flow, x = make("2-D").train(), randn(1, 2)
    flow = copy.deepcopy(flow)
    for layer in (layer for block in flow.scales[0] for layer in block.layers):
        layer.constraint = "infinity"  # no state, so that differences are those of one function

    def total(weight: Tensor) -> float:
        with torch.no_grad():
            flow.scales[0][0].layers[1].weight.copy_(weight)
            return float(flow(x)[1])

    weight = flow.scales[0][0].layers[1].weight.detach().clone()
    (gradient,) = torch.autograd.grad(flow(x)[1].sum(), flow.scales[0][0].layers[1].weight)
    for i, j in ((0, 0), (3, 5)):
        step = torch.zeros_like(weight)
        step[i, j] = 1e-5
        slope = (total(weight + step) - total(weight - step)) / 2e-5
        assert slope == pytest.approx(float(gradient[i, j]), rel=1e-5, abs=1e-9)


def test_evaluation_keeps_gradients():
    """Bounded weights are kept between calls only where no gradient is asked for."""
    flow, x = make("2-D"), randn(3, 2)
    z, log_det = flow(x)
    gradients = torch.autograd.grad(z.sum() + log_det.sum(), [layer.weight for layer in flow.scales[0][0].layers])
    assert all(g.any() for g in gradients)
    with torch.no_grad():
        kept, _ = flow(x)
    torch.testing.assert_close(kept, z.detach(), rtol=1e-13, atol=1e-13)


def test_evaluation_follows_the_weights():
    """What is kept is made anew after a step, after loading, and in a copy."""
    flow, x = make("2-D"), randn(3, 2)
    other = make("2-D", seed=9)
    with torch.no_grad():
        first, expected = flow(x)[0], other(x)[0]
        twin = copy.deepcopy(flow)
        flow.load_state_dict(other.state_dict())
        torch.testing.assert_close(flow(x)[0], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(twin(x)[0], first, rtol=1e-6, atol=1e-6)  # power iterations begin elsewhere
        before = flow(x)[0]
        torch._foreach_lerp_([p.detach() for p in flow.parameters()], list(twin.parameters()), 0.5)
        assert float((flow(x)[0] - before).abs().max()) > 1e-3


def test_a_generator_decides_the_estimate():
    flow = make("8-D", exact_train=0).train()
    x = randn(4, 8)
    for layer in (layer for block in flow.scales[0] for layer in block.layers):
        layer.constraint = "infinity"
    first, again, other = (flow(x, rng(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rows = flow(x, [rng(seed) for seed in range(4)])[1]
    assert rows.shape == (4,)


def test_no_graph_is_kept_without_gradients():
    flow, x = make("8-D", exact_eval=0), randn(4, 8)
    with torch.no_grad():
        z, log_det = flow(x, rng(0))
    assert not z.requires_grad
    assert not log_det.requires_grad
    with torch.enable_grad():
        z, log_det = flow(x, rng(0))
    assert z.requires_grad
    assert log_det.requires_grad


def test_the_published_settings_build():
    flow = ResFlow((3, 8, 8), blocks=(2, 1), width=8)
    assert [len(scale) for scale in flow.scales] == [2, 1]
    assert tuple(flow.scales[1][0].layers[0].weight.shape) == (8, 12, 3, 3)
    assert [layer.padding for layer in flow.scales[0][0].layers] == [1, 0, 1]
    z, log_det = flow(torch.randn(2, 3, 8, 8, generator=rng(0)), rng(1))
    assert z.shape == (2, 3, 8, 8)
    assert log_det.shape == (2,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResFlow((2,), coefficient=1.0), "coefficient=1.0"),
        (lambda: ResFlow((2,), blocks=(1, 1)), "one scale"),
        (lambda: ResFlow((1, 6, 7), blocks=(1, 1)), "divisible by 2"),
        (lambda: ResFlow((1, 4, 4), blocks=(1,), kernels=(2,)), "kernel=2"),
        (lambda: ResFlow((2,), blocks=(1,), constraint="frobenius"), "constraint='frobenius'"),
        (lambda: Roulette(law="uniform"), "law='uniform'"),
        (lambda: Roulette(law="geometric", parameter=1.0), "parameter=1.0"),
        (lambda: Roulette(parameter=0.0), "parameter=0.0"),
        (lambda: Roulette(exact=0), "exact=0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_module_names_its_public_parts():
    assert all(hasattr(resflow, name) for name in resflow.__all__)
