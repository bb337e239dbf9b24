"""The residual block's Jacobian written out: slopes, products with J and J^T, and the log-det's estimate against autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from problems import randn, rng
from torch import Tensor, nn

from indm_core.flow import LipSwish, ResFlow, Sine
from indm_core.flow.activations import Activation, NoActivation
from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.flow.log_det import Roulette, Series, Stop, explicit_step, residual_step, series_log_det
from indm_core.flow.residual_block import ResidualBlock

CASES: dict[str, tuple[tuple[int, ...], type[Activation], bool]] = {
    "vector": ((6,), Sine, True),
    "sequence": ((2, 7), Sine, True),
    "one channel": ((1, 5, 4), Sine, False),
    "three channels": ((3, 4, 6), Sine, True),
    "LipSwish": ((2, 4, 4), LipSwish, False),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def block_of(case: tuple[tuple[int, ...], type[Activation], bool]) -> ResidualBlock:
    """float64; weights away from 0, so that all layers count."""
    event, activation, first = case
    settings = {"width": 9, "kernels": (3, 1, 3), "coefficient": 0.9, "constraint": "infinity"}
    block = ResidualBlock(event, activation=activation, first_activation=first, **settings).double()
    with torch.no_grad():
        for seed, p in enumerate(block.parameters()):
            p += 0.5 * randn(p.numel(), seed=seed).reshape(p.shape)
    return block


@pytest.mark.parametrize("activation", [NoActivation, Sine, LipSwish])
def test_a_slope_is_the_derivative(activation):
    """Value, slope and the gradients of both, in x and in the parameters."""
    phi, x = activation().double(), randn(40).requires_grad_()
    value, slope = phi.with_slope(x)
    torch.testing.assert_close(value, phi(x), rtol=1e-14, atol=1e-14)
    (expected,) = torch.autograd.grad(phi(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, expected, rtol=1e-13, atol=1e-13)
    over, (a, b) = [x, *phi.parameters()], randn(2, 40, seed=1)
    found = torch.autograd.grad((a * value + b * slope).sum(), over)
    oracle = torch.autograd.grad((a * phi(x) + b * expected).sum(), over)
    for ours, theirs in zip(found, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_slope_is_differentiated_twice():
    assert torch.autograd.gradgradcheck(Sine().with_slope, randn(6).requires_grad_())


@EVERY
def test_the_products_are_those_of_the_jacobian(case):
    g, x = block_of(case).bound(torch.float64), randn(1, *case[0])
    num_dims = x.numel()
    J = torch.autograd.functional.jacobian(lambda x: g(x).flatten(), x).reshape(num_dims, num_dims)
    g_x, slopes = g.with_slopes(x)
    torch.testing.assert_close(g_x, g(x), rtol=1e-13, atol=1e-13)
    v = randn(*x.shape, seed=1)
    for found, matrix in ((g.tangent(v, slopes), J), (g.cotangent(v, slopes), J.mT)):
        torch.testing.assert_close(found.flatten(), matrix @ v.flatten(), rtol=1e-12, atol=1e-12)


def gradients(block: ResidualBlock, x: Tensor, series: Series, explicit: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """z, log_det, and the gradient of a loss of both in x and in all parameters."""
    g, x = block.bound(x.dtype), x.clone().requires_grad_()
    z, log_det = explicit_step(g, x, series) if explicit else residual_step(g, x, series_log_det(series))
    loss = 0.5 * z.square().sum() - (log_det * torch.arange(1, len(x) + 1)).sum()  # a weight of its own for each sample
    return z.detach(), log_det.detach(), list(torch.autograd.grad(loss, [x, *block.parameters()]))


@EVERY
@pytest.mark.parametrize("stop", [None, Stop(lipschitz=0.9, norm="infinity", tolerance=0.3)], ids=["all terms", "stop"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=["double", "single"]
)
def test_the_explicit_series_is_autograds(case, stop, dtype, tolerance):
    """The same draws: z, the estimate and the gradient, relative to its norm; also where no graph is kept."""
    block, x, roulette = (
        block_of(case).to(dtype),
        randn(3, *case[0]).to(dtype),
        Roulette(law="geometric", parameter=0.7),
    )

    def series() -> Series:
        return Series(roulette=roulette, num_extra=[0, 3, 5], generator=rng(2), stop=stop)

    z, log_det, found = gradients(block, x, series(), explicit=True)
    z_oracle, log_det_oracle, oracle = gradients(block, x, series(), explicit=False)
    torch.testing.assert_close(z, z_oracle, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det, log_det_oracle, rtol=3 * tolerance, atol=3 * tolerance)
    assert float(log_det.abs().min()) > 1e-3
    ours, theirs = (torch.cat([part.flatten() for part in gradient]) for gradient in (found, oracle))
    assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())
    with torch.no_grad():
        _, without_graph = explicit_step(block.bound(dtype), x, series())
    torch.testing.assert_close(without_graph, log_det, rtol=tolerance, atol=tolerance)


def test_an_activation_that_does_not_tell_its_slope_leaves_it_to_autograd():
    """nn.Tanh, and a tanh that does tell: one flow, one estimate, one gradient."""

    class Tanh(Activation):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

        def with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tanh(x), 1 - torch.tanh(x).square()

    ends = []
    for activation, explicit in ((nn.Tanh, False), (Tanh, True)):
        torch.manual_seed(0)
        options = {"blocks": (1, 1), "width": 5, "constraint": "infinity", "activation": activation}
        flow = ResFlow((1, 4, 4), **options).double()
        blocks = [block for block in flow.modules() if isinstance(block, ResidualBlock)]
        assert [block.explicit for block in blocks] == [explicit, explicit]
        for seed, p in enumerate(flow.parameters()):
            p.data += 0.5 * randn(p.numel(), seed=seed).reshape(p.shape)
        z, log_det = flow(randn(3, 1, 4, 4), rng(1))
        ends.append((z, log_det, *torch.autograd.grad(log_det.sum() + z.sum(), list(flow.parameters()))))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("event", [(4,), (2, 6), (1, 4, 5)], ids=["vector", "sequence", "image"])
def test_a_layer_and_its_transpose_are_adjoint(event, kernel):
    """<y, W x> = <W^T y, x>, and both are without the shift."""
    layer = LipschitzLayer(event, 3, coefficient=0.9, kernel=kernel).double()
    nn.init.ones_(layer.bias)
    x, y = randn(2, *event), randn(2, 3, *event[1:], seed=1)
    left, right = y * layer.times(x, layer.weight), layer.transposed_times(y, layer.weight) * x
    assert math.isclose(float(left.detach().sum()), float(right.detach().sum()), rel_tol=1e-12)
