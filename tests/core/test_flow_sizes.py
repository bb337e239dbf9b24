"""Flows on events of another size than they were built for: bijections with the right log-det, and the same map inside."""

from __future__ import annotations

import math

import pytest
import torch
from problems import ExactModel, Gaussian, SmallBackbone, randn
from test_flow import jacobian_log_det
from test_torus import norm_at
from torch import Tensor

from indm_core.checks import check_flow
from indm_core.flow import ActNorm, Composed, Flow, Glow, Identity, ResFlow, estimate_log_det
from indm_core.flow.glow import AffineCoupling, InvertibleConv
from indm_core.flow.lipschitz import Constraint, LipschitzLayer
from indm_core.flow.log_det import Stop
from indm_core.flow.resflow import squeeze, unsqueeze
from indm_core.model import FFJORD, INDM, Bridge, DiffFlow, DiNof
from indm_core.sde import VP

FREE = pytest.mark.parametrize("constraint", ["torus", "infinity"])


def resflow(constraint: Constraint, *, blocks: tuple[int, ...] = (2,), scale: float = 5.0, **options) -> ResFlow:
    """On 1 x 8 x 8, float64, evaluation mode; weights `scale` times a random start's, so that every bound is active."""
    torch.manual_seed(0)
    flow = ResFlow((1, 8, 8), blocks=blocks, width=8, constraint=constraint, **options)
    with torch.no_grad():
        for seed, (name, p) in enumerate(flow.named_parameters()):
            noise = randn(*p.shape, seed=seed).float()
            p.copy_(0.1 * noise if name.endswith("bias") else scale * noise / math.sqrt(p[0].numel()))
    return flow.double().eval()


def products(flow: ResFlow, width: int) -> list[float]:
    """Of each block of the first scale: the product of the spectral norms of its layers' matrices, on 8 x width images."""

    def norm(layer: LipschitzLayer) -> float:
        return norm_at(layer.bounded_weight().detach(), *((8, width) if layer.padding else (1, 1)))

    return [math.prod(norm(layer) for layer in block.layers) for block in flow.scales[0]]  # pyright: ignore


def test_only_the_torus_bounds_the_product_of_norms_at_the_larger_size():
    assert max(products(resflow("torus"), 8)) < max(products(resflow("torus"), 64)) < 0.98
    spectral = resflow("spectral")
    assert max(products(spectral, 8)) == pytest.approx(0.98, rel=1e-6)
    assert min(products(spectral, 64)) > 0.98 * 1.01


@FREE
@pytest.mark.parametrize("blocks", [(2,), (0, 3), (1, 1)], ids=str)
def test_the_inverse_on_a_canvas_eight_times_as_wide(constraint, blocks):
    flow = resflow(constraint, blocks=blocks)
    assert flow.size_free
    z = randn(2, 1, 8, 64)
    x = flow.inverse(z, tolerance=1e-8)
    assert float((x - z).abs().max()) > 0.03
    with torch.no_grad():
        assert float((flow(x)[0] - z).abs().max()) < 1e-5


@FREE
def test_many_blocks_at_the_second_scale_in_float32(constraint):
    flow = resflow(constraint, blocks=(0, 4)).float()
    z = randn(2, 1, 16, 64).float()
    with torch.no_grad():
        assert float((flow(flow.inverse(z))[0] - z).abs().max()) < 1e-4


@FREE
@pytest.mark.parametrize("event", [(1, 4, 8), (1, 2, 12), (1, 2, 2)], ids=str)
def test_the_log_det_is_that_of_the_jacobian_there(constraint, event):
    flow = resflow(constraint, blocks=(1, 1))
    x = 0.3 * randn(2, *event)
    torch.testing.assert_close(flow(x)[1], jacobian_log_det(flow, x), rtol=1e-9, atol=1e-9)


def test_the_exact_log_det_follows_the_size_of_x():
    """Up to 64 dimensions it is exact, and above them an estimate, whatever the flow was built for."""
    flow = resflow("torus")
    for event, exact in (((1, 8, 8), True), ((1, 4, 4), True), ((1, 8, 16), False)):
        x = 0.3 * randn(1, *event)
        first, second = (flow(x, torch.Generator().manual_seed(seed))[1] for seed in (0, 1))
        assert torch.equal(first, second) == exact
    flow = flow.train()
    x = 0.3 * randn(1, 1, 2, 2)
    torch.testing.assert_close(flow(x)[1], jacobian_log_det(flow, x), rtol=1e-9, atol=1e-9)


def test_the_series_of_a_canvas_stops_by_the_torus_norm():
    """The mean of draws in evaluation is the exact log-det within what its stop leaves out, 1e-3 nats for each block."""
    flow, x = resflow("torus", exact_eval=0), 0.3 * randn(1, 1, 4, 12)
    mean, standard_error = estimate_log_det(flow, x, num_draws=20, generator=torch.Generator().manual_seed(0))
    assert abs(float(mean - jacobian_log_det(flow, x))) < 5 * float(standard_error) + 2e-3
    v, w = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1)
    bounds = [Stop(lipschitz=0.9, norm=norm).remainder(v, w, 3) for norm in ("torus", "spectral", "infinity")]
    torch.testing.assert_close(bounds[0], bounds[1], rtol=0, atol=0)
    assert (bounds[2] != bounds[0]).all()


def test_far_from_the_edges_the_size_is_not_seen():
    """Two blocks of two 3 x 3 convolutions reach 4 pixels in both directions; at half the side 8."""
    canvas = randn(1, 1, 24, 64)
    for blocks, reach in (((2,), 4), ((0, 2), 8)):
        flow = resflow("torus", blocks=blocks)
        with torch.no_grad():
            whole, part = flow(canvas)[0], flow(canvas[..., 16:48])[0]
        inside = slice(reach, 32 - reach)
        torch.testing.assert_close(part[..., inside], whole[..., 16:48][..., inside], rtol=0, atol=1e-12)
        assert float((part - whole[..., 16:48]).abs().max()) > 1e-3


def test_the_inverse_forgets_the_edges():
    """The inverse reaches everywhere; what an edge changes falls off geometrically."""
    flow, z = resflow("torus"), randn(1, 1, 8, 64)
    whole, part = flow.inverse(z, tolerance=1e-10), flow.inverse(z[..., :32], tolerance=1e-10)
    error = (whole[..., :32] - part).abs().amax((0, 1, 2))
    assert float(error[:4].max()) < 0.05 * float(error[-4:].max())


@FREE
def test_sequences(constraint):
    """Events (c, l): every identity of a flow, at two lengths."""
    torch.manual_seed(0)
    flow = ResFlow((2, 4), blocks=(1, 1), width=6, constraint=constraint, exact_train=16)
    assert flow.size_free
    check_flow(flow, (2, 4))


def test_a_squeeze_puts_neighbours_in_channels():
    x = torch.arange(12.0).reshape(1, 2, 6)
    assert squeeze(x).tolist() == [[[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]]
    for event in ((2, 6), (2, 6, 4)):
        torch.testing.assert_close(unsqueeze(squeeze(randn(3, *event))), randn(3, *event), rtol=0, atol=0)


FLOWS = [
    (Identity(), True),
    (ActNorm((2, 4, 4)), True),
    (ActNorm((2, 4, 4), per_pixel=True), False),
    (ActNorm((4,)), False),
    (InvertibleConv(4), True),
    (AffineCoupling((4, 2, 2), hidden=4), True),
    (AffineCoupling((4,), hidden=4), False),
    (Glow((1, 4, 4), levels=1, steps=1, hidden=4), True),
    (Glow((2,), levels=1, steps=1, hidden=4), False),
    (ResFlow((1, 4, 4), blocks=(1,), width=4, constraint="torus"), True),
    (ResFlow((1, 4, 4), blocks=(1,), width=4, constraint="infinity"), True),
    (ResFlow((1, 4, 4), blocks=(1,), width=4, constraint="spectral"), False),
    (ResFlow((1, 4, 4), blocks=(1,), width=4, constraint="torus", dense=True), False),
    (ResFlow((4,), blocks=(1,), width=4, constraint="infinity"), False),
    (ResFlow((2, 4), blocks=(1,), width=4, constraint="torus"), True),
    (Composed([]), True),
    (Composed([ActNorm((1, 4, 4)), Identity()]), True),
    (Composed([ActNorm((1, 4, 4), per_pixel=True), Identity()]), False),
]


@pytest.mark.parametrize(("flow", "free"), FLOWS, ids=lambda v: type(v).__name__ if isinstance(v, Flow) else str(v))
def test_every_flow_says_whether_it_takes_every_size(flow, free):
    assert flow.size_free is free


class Widths(Flow):
    """z = x / w with a log-det that forgets the width that it was not built for, or a flow that says nothing."""

    def __init__(self, *, size_free: bool | None) -> None:
        super().__init__()
        if size_free is not None:
            self.size_free = size_free

    def forward(self, x: Tensor, generator=None) -> tuple[Tensor, Tensor]:
        return x * math.e, x.new_full((len(x),), 4.0)

    def inverse(self, z: Tensor) -> Tensor:
        return z / math.e


def test_check_flow_tries_a_second_size_where_a_flow_says_that_it_takes_one():
    check_flow(Widths(size_free=None), (1, 2, 2))
    check_flow(Widths(size_free=False), (1, 2, 2))
    with pytest.raises(AssertionError, match=r"Widths as given, on events \(1, 2, 4\): log_det = log\|det dz/dx\|"):
        check_flow(Widths(size_free=True), (1, 2, 2))


@pytest.mark.parametrize(
    ("flow", "event", "message"),
    [
        (
            resflow("spectral"),
            (1, 8, 16),
            r"events \(1, 8, 16\) given to a flow made for \(1, 8, 8\) alone.*'torus'.*channel",
        ),
        (resflow("torus", dense=True), (1, 8, 16), r"made for \(1, 8, 8\) alone"),
        (resflow("torus", blocks=(1, 1)), (1, 8, 15), r"events \(1, 8, 15\) .* multiples of 2"),
        (resflow("torus"), (2, 8, 8), r"events \(2, 8, 8\) .* as many axes and channels"),
        (resflow("torus"), (8, 8), r"events \(8, 8\) .* as many axes and channels"),
        (ResFlow((3,), blocks=(1,), width=4), (4,), r"events \(4,\) given to a flow made for \(3,\) alone"),
    ],
    ids=["spectral", "dense", "odd", "channels", "axes", "vector"],
)
@pytest.mark.usefixtures("unchecked")
def test_another_shape_is_refused(flow, event, message):
    for run in (flow, flow.inverse):
        with pytest.raises(ValueError, match=message):
            run(torch.zeros(1, *event, dtype=torch.float64))


def indm(flow: Flow, model: type[INDM] = INDM) -> INDM:
    return model(flow, SmallBackbone(64), VP(), shape=(1, 8, 8))


def test_an_indm_decodes_canvases():
    """encode(decode(z)) = z and log_det on 1 x 8 x 32, one flow of ActNorm and residual blocks."""
    model = indm(Composed([ActNorm((1, 8, 8)), resflow("torus", blocks=(0, 2))])).double().eval()
    model.check_any_size()
    u = model.sde.embed(randn(2, 1, 8, 32))
    with torch.no_grad():
        again, log_det = model.encode(model.decode(u))
    torch.testing.assert_close(again, u, rtol=0, atol=1e-5)
    assert log_det.shape == (2,)


def test_what_makes_samples_of_one_size_says_why():
    for flow in (Identity(), resflow("infinity"), Glow((1, 8, 8), levels=1, steps=1, hidden=4)):
        indm(flow).check_any_size()
        indm(flow, Bridge).check_any_size()
    with pytest.raises(ValueError, match=r"INDM makes samples of one size, \(1, 8, 8\): its flow, ResFlow, .*'torus'"):
        indm(resflow("spectral")).check_any_size()
    pixels = Composed([ActNorm((1, 8, 8), per_pixel=True), resflow("torus")])
    with pytest.raises(ValueError, match=r"Bridge .* its flow, Composed, .*actnorm 'channel'"):
        indm(pixels, Bridge).check_any_size()
    dinof = DiNof(Identity(), Identity(), SmallBackbone(2), VP(), shape=(2,))
    with pytest.raises(ValueError, match=r"DiNof .*: it starts at T_m from a flow's law of one piece"):
        dinof.check_any_size()
    for model in (
        DiffFlow(SmallBackbone(2, seed=1), SmallBackbone(2, seed=2), shape=(2,)),
        FFJORD(SmallBackbone(2), shape=(2,)),
    ):
        with pytest.raises(ValueError, match="no linear SDE"):
            model.check_any_size()
    with pytest.raises(ValueError, match=r"ExactModel .* its class does not say"):
        ExactModel(Gaussian(sde=VP(), mean=randn(2), cov=torch.eye(2, dtype=torch.float64))).check_any_size()
