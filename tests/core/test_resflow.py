"""Residual flows: Lipschitz bounds, log-determinants against the full Jacobian, the estimator's law, the inverse."""

from __future__ import annotations

import copy
import math
from itertools import cycle

import pytest
import torch
from problems import randn, rng
from torch import Tensor, nn

from benchmarks.residual_flow import (
    BLOCKS,
    evaluated_log_det,
    evaluations,
    lipschitz,
    norms_in_training,
    peak_bytes,
    trained,
)
from indm_core.checks import check_flow
from indm_core.errors import ConvergenceError
from indm_core.flow import (
    LipSwish,
    ResFlow,
    Roulette,
    Sine,
    anderson,
    estimate_log_det,
)
from indm_core.flow.activations import NoActivation
from indm_core.flow.anderson import invert_block
from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.flow.residual_block import ResidualBlock
from indm_core.flow.spectral_norm import Maps

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
    basis = torch.eye(math.prod(event), dtype=layer.weight.dtype).reshape(-1, *event)
    weight = layer.bounded_weight().detach()
    zero = torch.zeros_like(basis[:1])
    return (layer(basis, weight) - layer(zero, weight)).flatten(1).T.detach()


@CONSTRAINTS
@pytest.mark.parametrize(
    ("event", "kernel"), [((12,), 1), ((3, 5, 4), 3), ((2, 4, 4), 1), ((3, 9), 3)], ids=["dense", "3x3", "1x1", "3"]
)
@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["small weights", "large weights"])
def test_the_operator_norm_is_bounded(constraint, event, kernel, scale):
    """True norms by SVD and by row sums of the explicit matrix: at most 0.9, and reached where the weight is large."""
    layer = LipschitzLayer(event, 6, coefficient=0.9, constraint=constraint, kernel=kernel)
    layer.weight.data.mul_(0)
    awake(layer, scale)
    matrix = dense_matrix(layer, event)
    norm = float(torch.linalg.matrix_norm(matrix, 2 if constraint == "spectral" else math.inf))
    assert norm < 0.9 * (1 + 1e-9)
    if scale == 3.0:
        least = 0.9 * (1 - 1e-9) if constraint == "spectral" else 0.85  # the edge of an image falls short of a row sum
        assert norm > least
    else:
        torch.testing.assert_close(layer.bounded_weight(), layer.weight.detach())


def test_the_norm_keeps_up_with_training():
    layer = LipschitzLayer((16,), 16, coefficient=0.9).double().train()
    layer.weight.data.mul_(10)
    generator = rng(0)
    norms = []
    for _ in range(200):
        with torch.no_grad():
            layer.weight += 0.01 * torch.randn(16, 16, dtype=torch.float64, generator=generator)
        norms.append(float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)))
    assert max(norms) < 0.9 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("event", "lr"),
    [((16,), 2e-3), ((2,), 2e-3), pytest.param((1, 8, 8), 2e-3, marks=pytest.mark.slow), ((3, 6, 6), 5e-3)],
    ids=str,
)
def test_the_product_of_the_true_norms_stays_below_the_bound_in_training(event, lr):
    """LipSwish at a large rate, where one power iteration per step lets it reach 1.2 to 1.9; the first steps are the worst,
    as the spectrum of a random convolution is crowded at its top. In evaluation it is the bound; both are one map."""
    product, evaluated, apart = norms_in_training(event, lr)
    assert product <= 0.98 * 1.02
    assert evaluated <= 0.98 * (1 + 1e-5)
    assert apart < 3e-3


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_singular_value_that_overtakes_is_seen(training):
    """Exactly orthogonal to what was tracked, so that a power iteration that goes on from there never turns."""
    layer = LipschitzLayer((40,), 40, coefficient=0.9).double().train(training)
    Q, P = (torch.linalg.qr(randn(40, 40, seed=seed)).Q for seed in (0, 1))
    for top in (0, 17, 39, 3):
        values = torch.linspace(2.0, 1.0, 40, dtype=torch.float64)
        values[top] = 3.0
        with torch.no_grad():
            layer.weight.copy_(Q * values @ P)
        for _ in range(20 if top == 0 else 1):
            layer.found = None
            norm = float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2))
        assert norm == pytest.approx(0.9, rel=1e-3 if training else 1e-9)


def test_a_step_looks_for_the_norm_once_however_many_its_batches(monkeypatch):
    """Later micro-batches have the first one's weights to the last bit, and a gradient of their own."""
    counts, search = [], Maps.search
    monkeypatch.setattr(Maps, "search", lambda self, *given: counts.append(len(given[0])) or search(self, *given))
    flow = make("2-D").train()
    layers = [layer for block in flow.scales[0] for layer in block.layers]
    optimiser, x = torch.optim.SGD(flow.parameters(), lr=0.1), randn(3, 2)
    for step in range(1, 4):
        gradients = []
        for _ in range(3):
            z, log_det = flow(x)
            loss = (z.square().sum(1) - log_det).sum()
            gradients.append(torch.autograd.grad(loss, [layer.weight for layer in layers], retain_graph=True))
            loss.backward()
        assert sum(counts) == step * len(layers)
        assert all(torch.equal(a, b) for later in gradients[1:] for a, b in zip(gradients[0], later, strict=True))
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("scale", [1e-18, 1e12, 1e18])
def test_the_norm_of_weights_of_any_size(scale):
    """In float32, the first time in training, where squares would overflow."""
    layer = LipschitzLayer((1, 5, 7), 1, coefficient=0.9, kernel=3).train()
    with torch.no_grad():
        layer.weight.mul_(scale)
    matrix = dense_matrix(layer.double(), (1, 5, 7)) if scale < 1 else dense_matrix(layer, (1, 5, 7))
    norm = float(torch.linalg.matrix_norm(matrix.double(), 2))
    assert norm <= 0.9 * (1 + 1e-3)
    assert norm > 0.9 * (1 - 1e-3) or scale < 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_give_none_and_leave_no_trace(bad):
    """The training skips such a step: nothing is raised here, and the norm is found again with the weights put back."""
    flow, x = ResFlow((3,), blocks=(1,), width=6, kernels=(1, 1)).train(), torch.randn(4, 3, generator=rng(0))
    weight = flow.scales[0][0].layers[0].weight
    kept, expected = weight.detach().clone(), flow(x)[0]
    with torch.no_grad():
        weight[0, 0] = bad
        assert not flow(x)[1].isfinite().all() or not flow(x)[0].isfinite().all()
        weight.copy_(kept)
    torch.testing.assert_close(flow(x)[0], expected, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_with_generators():
    z, log_det = ResFlow((1, 10, 10), blocks=(1,), width=4).eval()(torch.zeros(0, 1, 10, 10), [])
    assert z.shape == (0, 1, 10, 10)
    assert log_det.shape == (0,)


def test_the_state_of_a_layer_that_tracked_one_vector_is_read():
    layer = awake(LipschitzLayer((3, 5, 4), 6, coefficient=0.9, kernel=3), 3.0)
    expected, state = layer.bounded_weight(), {f"a.{key}": value for key, value in layer.state_dict().items()}
    state["a.left"] = torch.ones(1, 6, 5, 4)
    del state["a.vectors"]
    fresh = LipschitzLayer((3, 5, 4), 6, coefficient=0.9, kernel=3).double().eval()
    fresh.of_today(state, "a.")
    fresh.load_state_dict({key.removeprefix("a."): value for key, value in state.items()})
    torch.testing.assert_close(fresh.bounded_weight(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("event", [(6,), (2, 4, 4)], ids=["dense", "conv"])
def test_the_kept_norm_has_the_gradient_of_the_norm(event):
    """Against autograd through the SVD of the explicit matrix, at a weight whose vectors a training step has kept."""
    layer = awake(LipschitzLayer(event, 5, coefficient=0.9, kernel=3), 3.0)
    layer.bounded_weight()  # converges in evaluation
    layer.train().bounded_weight()
    probe = randn(*layer.weight.shape, seed=2)
    (gradient,) = torch.autograd.grad((layer.bounded_weight() * probe).sum(), layer.weight)
    basis = torch.eye(math.prod(event), dtype=torch.float64).reshape(-1, *event)
    matrix = layer._map(basis, layer.weight, None).flatten(1).T
    bounded = layer.weight * 0.9 / torch.linalg.matrix_norm(matrix, 2)
    (expected,) = torch.autograd.grad((bounded * probe).sum(), layer.weight)
    torch.testing.assert_close(layer.bounded_weight(), bounded, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("event", [(64,), (12, 8, 8)], ids=["dense", "conv"])
def test_the_norm_is_not_rounded_under_autocast(event):
    layer = LipschitzLayer(event, 32, coefficient=0.9, kernel=3)
    with torch.no_grad():
        layer.weight *= 10
    expected = copy.deepcopy(layer).bounded_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.bounded_weight(), expected)


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
    order, g = (2 if constraint == "spectral" else math.inf), block.bound(torch.float64)
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
def test_every_identity_holds(name):
    """The log-det exact in evaluation, and where it is estimated in training its mean."""
    flow, (event, _) = make(name), FLOWS[name]
    assert flow(randn(3, *event))[1].abs().max() > 0.005
    check_flow(flow, event)


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
    message = r"\|dx\| = \S+ and \|x \+ g\(x\) - z\| = \S+ after 30 iterations, tolerance=1e-06, for 3 of 3 samples"
    with pytest.raises(ConvergenceError, match=message):
        invert_block(lambda x: 1.5 * x, randn(3, 2), tolerance=1e-6, max_iterations=30, window=0)
    flow, z = make("2-D"), randn(2, 2)
    with pytest.raises(ConvergenceError):
        flow.inverse(z, max_iterations=2)
    with pytest.raises(ConvergenceError):
        flow.inverse(torch.full((1, 2), math.nan, dtype=torch.float64), max_iterations=5)


def test_samples_that_rounding_stalls_are_solved_in_float64():
    """In float32 the second sample's g jitters by 1e-4 of it, as rounding beside a large coordinate does."""
    signs = cycle((1.0, -1.0))

    def g(x: torch.Tensor) -> torch.Tensor:
        jitter = 1e-4 * next(signs) if x.dtype == torch.float32 else 0.0
        return x / 2 + jitter * (x.abs() > 2)

    z = torch.tensor([[1.0, 0.5], [60.0, 6.0]])
    with pytest.raises(ConvergenceError, match="1 of 2 samples"):
        invert_block(g, z, tolerance=1e-7, max_iterations=50)
    x = invert_block(g, z, tolerance=1e-7, max_iterations=50, g_double=g)
    torch.testing.assert_close(x, z / 1.5, rtol=1e-6, atol=0)


def test_the_residual_that_is_left_is_told():
    """One step of x <- z - x/2 from z = 1: x = 1/2, so x + x/2 - z = -1/4 where the second evaluation is made."""
    with pytest.raises(ConvergenceError, match=r"\|dx\| = 2.50e-01 and \|x \+ g\(x\) - z\| = 2.50e-01"):
        invert_block(lambda x: x / 2, torch.ones(1, 1), tolerance=1e-6, max_iterations=2, window=0)


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=list(BLOCKS))
def test_anderson_takes_at_most_half_the_evaluations(settings):
    """On trained blocks whose measured Lipschitz constant is at least 0.9, to |dx| = 1e-6."""
    block, x = trained(*settings)
    assert 0.9 <= lipschitz(block, x, settings[1]) <= 0.99
    block, x = block.double(), x.double()
    plain, plain_error = evaluations(block, x, window=0)
    accelerated, error = evaluations(block, x, window=5)
    assert accelerated <= plain / 2
    assert max(error, plain_error) < 1e-4  # |dx| Lip / (1 - Lip)


def test_an_affine_block_takes_as_many_differences_as_dimensions():
    """Type II in n dimensions finds the solution from n differences: n + 2 evaluations, the last of which confirms it."""
    A = torch.diag(torch.tensor([0.9, -0.9, 0.5], dtype=torch.float64)) + 0.05 * randn(3, 3)
    z, calls = randn(4, 3), []
    x = invert_block(lambda x: calls.append(len(x)) or x @ A.T, z, tolerance=1e-8, max_iterations=50)
    torch.testing.assert_close(x + x @ A.T, z, rtol=0, atol=1e-7)
    assert len(calls) <= 5


@pytest.mark.parametrize("worth", [2, 8])
def test_a_quick_contraction_takes_the_steps_of_the_fixed_point(worth):
    """The same bits at the same evaluations; where more plain steps are left than acceleration is worth, it takes fewer."""
    z, rows = randn(5, 6), []

    def solved(rate: float, window: int) -> Tensor:
        rows.append(0)

        def g(x: Tensor) -> Tensor:
            rows[-1] += len(x)
            return rate * torch.sin(x)

        return invert_block(g, z, tolerance=1e-6, max_iterations=999, window=window, worth=worth)

    assert torch.equal(solved(0.02, 5), solved(0.02, 0))
    assert rows[0] == rows[1]
    torch.testing.assert_close(solved(0.9, 5), solved(0.9, 0), rtol=0, atol=2e-5)
    assert rows[2] < rows[3] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_directions_stay_orthonormal(dtype):
    """Q^T Q = I but for directions that the others span, which are 0; and S is the same combination of the differences of y."""
    x, A = randn(3, 8).to(dtype), (0.3 * randn(8, 8)).to(dtype)
    points = [torch.cat([v @ A, v], 1) for v in (x, x.roll(1), x.roll(2), x + x.roll(1), x.square())]
    acceleration = anderson._Acceleration(points, 5)
    Q, S = acceleration.basis[..., :8], acceleration.basis[..., 8:]
    gram = (Q @ Q.mT).double()
    expected = torch.diag_embed((gram.diagonal(dim1=1, dim2=2) > 0.5).double())
    torch.testing.assert_close(gram, expected, rtol=0, atol=100 * torch.finfo(dtype).eps ** 0.5)
    torch.testing.assert_close(S @ A, Q, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gamma", [30.0, 1.0, math.nan])
def test_where_acceleration_fails_the_fixed_point_arrives(monkeypatch, gamma):
    """Nonsense for the coefficients of the directions: diverges, stalls, or is no number."""
    g, z, rows = lambda x: 0.9 * torch.sin(x), randn(6, 3), []
    expected = invert_block(lambda x: rows.append(len(x)) or g(x), z, tolerance=1e-9, max_iterations=1000, window=0)
    plain = len(rows)
    monkeypatch.setattr(anderson._Acceleration, "_correction", lambda self: gamma * self.basis[:, :, 3:].sum(1))
    x = invert_block(lambda x: rows.append(len(x)) or g(x), z, tolerance=1e-9, max_iterations=1000)
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-8)
    assert len(rows) - plain < 3 * plain


def test_a_sample_does_not_depend_on_its_neighbours():
    """Those that have arrived leave the batch; each row is what it is alone, at the same number of evaluations."""
    flow = awake(ResFlow((8,), blocks=(1,), width=32, first_activation=True), 3.0)
    (block,) = flow.scales[0]
    g = block.bound(torch.float64)
    z = torch.cat([randn(6, 8), torch.zeros(1, 8).double(), 1e-3 * randn(1, 8, seed=1)])
    sizes, alone = [], []
    together = invert_block(lambda x: sizes.append(len(x)) or g(x), z, tolerance=1e-9, max_iterations=1000)
    for row, expected in zip(z, together, strict=True):
        calls = []
        x = invert_block(lambda x, calls=calls: calls.append(1) or g(x), row[None], tolerance=1e-9, max_iterations=1000)
        torch.testing.assert_close(x[0], expected, rtol=0, atol=1e-7)
        alone.append(len(calls))
    assert sizes[0] == 8
    assert sizes == sorted(sizes, reverse=True)
    assert abs(sum(sizes) - sum(alone)) <= 4  # rounding may move an arrival by one
    assert min(alone) < max(alone)
    assert invert_block(g, z[:0], tolerance=1e-9, max_iterations=3).shape == (0, 8)


def test_the_inverse_in_float64_of_a_float32_flow():
    """double=True reaches what float32 cannot resolve, and gives float32 back."""
    flow = awake(ResFlow((8,), blocks=(2,), width=32), 3.0).float()
    x = randn(16, 8)
    z, log_det = (part.detach() for part in flow(x))  # a float64 x is mapped in float64
    assert z.dtype == log_det.dtype == torch.float64
    torch.testing.assert_close(flow.inverse(z, tolerance=1e-12), x, rtol=0, atol=1e-10)
    rounded = flow.inverse(z.float(), tolerance=1e-12)  # float32 between the blocks
    torch.testing.assert_close(rounded.double(), x, rtol=0, atol=1e-3)
    found = flow.inverse(z.float(), tolerance=1e-12, double=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(flow(found.double())[0], z, rtol=0, atol=1e-6)


def estimates(flow: ResFlow, x: Tensor, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """`num` independent estimates of log_det, summed over x, and of its gradient in the weights of the first layers."""
    generator, values, gradients = rng(seed), [], []
    weights = [block.layers[0].weight for scale in flow.scales for block in scale]
    for _ in range(num):
        _, log_det = flow(x, generator)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(log_det.sum(), weights)]))
        values.append(log_det.detach().sum())
    return torch.stack(values), torch.stack(gradients)


ROULETTES = {
    "geometric": Roulette(law="geometric", parameter=0.6, exact=2),
    "poisson": Roulette(law="poisson", parameter=2.0, exact=2),
    "one exact term": Roulette(law="geometric", parameter=0.7, exact=1),
}


def near_identity(event: tuple[int, ...], blocks: tuple[int, ...], roulette: Roulette) -> ResFlow:
    """One layer a block, J close to 0.6 I at small x, so that all terms of the series count; training, converged norms."""
    options = {"coefficient": 0.75, "roulette": roulette, "exact_train": 0, "first_activation": True}
    flow = ResFlow(event, blocks=blocks, kernels=(3,), **options).double()
    for seed, block in enumerate(block for scale in flow.scales for block in scale):
        weight = block.layers[0].weight
        noise = randn(*weight.shape, seed=seed) / math.sqrt(weight[0].numel())
        with torch.no_grad():
            weight.copy_(0.1 * noise)
            middle = weight if weight.ndim == 2 else weight[:, :, 1, 1]
            middle += 0.6 * torch.eye(len(weight))
    with torch.no_grad():
        flow.eval()(torch.zeros(1, *event, dtype=torch.float64), rng(0))
    return flow.train()


UNBIASED = [
    ("geometric", (2,), (1,)),
    ("geometric", (64,), (1,)),
    ("geometric", (3, 8, 8), (1, 1)),
    ("poisson", (2,), (1,)),
    ("one exact term", (2,), (1,)),
    ("one exact term", (64,), (1,)),
]


@pytest.mark.parametrize(("law", "event", "blocks"), UNBIASED, ids=[f"{law} {event}" for law, event, _ in UNBIASED])
@pytest.mark.usefixtures("unchecked")
def test_the_series_is_unbiased_in_value_and_gradient(law, event, blocks):
    """5 standard errors over 400 estimates of slogdet and of its gradient by autograd, where p exceeds the measured Lip(g)^2.

    The first terms alone are far from it, so that a missing weight of the tail would show.
    """
    flow = near_identity(event, blocks, ROULETTES[law])
    x = 0.05 * randn(4, *event, seed=1)
    for scale in flow.scales:
        norm = lipschitz(scale[0], x.reshape(4, *_event_at(flow, scale, event)), "spectral")
        assert 0.55 < norm < math.sqrt(0.6)
    values, gradients = estimates(flow, x, 400, seed=3)
    flow.roulette = Roulette(parameter=1e-12, exact=ROULETTES[law].exact)
    truncated, _ = estimates(flow, x, 50, seed=4)
    flow.exact_train = math.prod(event)
    (log_det,), (gradient,) = estimates(flow, x, 1, seed=0)
    root = math.sqrt(len(values))
    assert abs(float(truncated.mean() - log_det)) > 10 * float(values.std()) / root
    assert abs(float(values.mean() - log_det)) < 5 * float(values.std()) / root
    error = (gradients.mean(0) - gradient).abs()
    assert (error < 5 * gradients.std(0) / root + 1e-12).all()
    assert float(gradient.abs().max()) > 20 * float((gradients.std(0) / root).min())


def _event_at(flow: ResFlow, scale: nn.Module, event: tuple[int, ...]) -> tuple[int, ...]:
    """The event of a scale: half the sides and four times the channels at the second."""
    return event if scale is flow.scales[0] else (4 * event[0], event[1] // 2, event[2] // 2)


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
@pytest.mark.parametrize("settings", BLOCKS.values(), ids=list(BLOCKS))
def test_the_log_det_of_evaluation_on_trained_blocks(settings):
    """Stretching and squeezing at the bound, in the mean of 200 probes: what 20 terms and a Poisson tail leave out is seen at
    once on the squeezing ones."""
    value, se, exact = evaluated_log_det(*settings)
    assert abs(value - exact) < 5 * se + 2e-3
    assert se < 0.4


def test_a_block_of_minus_the_identity_has_its_log_det():
    """J = -0.98 I at 0, hundreds of terms before the tail is let go; with a probe of signs v^T J^k v is exact."""
    flow = ResFlow((6,), blocks=(1,), kernels=(1,), coefficient=0.98, exact_eval=0, eval_terms=1000).double().eval()
    with torch.no_grad():
        flow.scales[0][0].layers[0].weight.copy_(-2 * torch.eye(6))
    _, log_det = flow(torch.zeros(4, 6, dtype=torch.float64), rng(0))
    torch.testing.assert_close(log_det, torch.full_like(log_det, 6 * math.log(0.02)).detach(), rtol=0, atol=1e-3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_log_det_of_a_sample_depends_on_its_generator_alone(mode):
    """In another batch, in another order and alone; the lengths of the series as well as the probes."""
    flow = make("8-D", exact_eval=0, exact_train=0, eval_terms=2).train(mode)
    x = randn(6, 8)
    flow(x, rng(0))  # in training the norms are looked for once
    _, together = flow(x, [rng(seed) for seed in range(6)])
    for rows in ([3], [5, 2, 0], [4, 4 - 3]):
        _, apart = flow(x[rows], [rng(seed) for seed in rows])
        torch.testing.assert_close(apart, together[rows], rtol=1e-12, atol=1e-12)


def test_black_grey_and_white_have_a_log_det_each():
    """With an activation before the first layer the sine makes the flow commute with integer shifts of all or one pixel."""
    images = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    for name in ("image", "two scales", "dense image"):
        z, log_det = make(name, first_activation=True)(images)
        torch.testing.assert_close(z[1:] - z[:-1], torch.ones_like(z[1:]), rtol=0, atol=1e-12)
        torch.testing.assert_close(log_det, log_det[:1].expand(3), rtol=0, atol=1e-12)
        flow = make(name)
        z, log_det = (part.detach() for part in flow(images))
        assert float((z[1] - z[0] - 1).abs().max()) > 1e-3
        assert float((log_det[1] - log_det[0]).abs()) > 1e-3
        first = next(block for scale in flow.scales for block in scale)
        assert isinstance(first.activations[0], NoActivation)
        assert sum(isinstance(module, NoActivation) for module in flow.modules()) == 1


@pytest.mark.usefixtures("unchecked")
def test_the_mean_of_draws_and_its_standard_error():
    """The error is that of the mean: right on average over the samples, and 0 where log_det is exact."""
    flow = make("8-D", exact_eval=0, eval_terms=2, roulette=Roulette(law="geometric", parameter=0.7))
    x = randn(16, 8)
    mean, standard_error = estimate_log_det(flow, x, num_draws=150, generator=rng(2))
    flow.exact_eval = 8
    exact, no_error = estimate_log_det(flow, x, num_draws=2)
    assert not no_error.any()
    torch.testing.assert_close(exact, flow(x)[1].detach())
    score = (mean - exact) / standard_error
    assert float(score.abs().max()) < 5
    assert 0.4 < float(score.square().mean()) < 2.5


@pytest.mark.parametrize("roulette", list(ROULETTES.values()), ids=list(ROULETTES))
def test_the_weights_are_one_over_the_chance_of_a_term(roulette):
    counts = torch.tensor(roulette.draw(200_000, rng(0)))
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


def test_memory_does_not_grow_with_the_terms_of_the_series():
    """Peak bytes alive in a training step, counted operation by operation; a graph through all the terms takes 7 times more."""
    assert peak_bytes(20, width=16, num_images=2) <= 1.15 * peak_bytes(2, width=16, num_images=2)


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
        (lambda: Roulette(parameter=math.inf), "parameter=inf"),
        (lambda: Roulette(law="geometric", parameter=math.nan), "parameter=nan"),
        (lambda: Roulette(exact=math.inf), "exact=inf"),
        (lambda: ResFlow((2,), blocks=(1,)).inverse(torch.zeros(1, 2), tolerance=math.inf), "tolerance=inf"),
        (lambda: ResFlow((2,), blocks=(1,)).inverse(torch.zeros(1, 2), max_iterations=-1), "max_iterations=-1"),
        (lambda: Roulette(exact=0), "exact=0"),
        (lambda: estimate_log_det(ResFlow((2,), blocks=(1,)), torch.zeros(1, 2), num_draws=1), "num_draws=1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
