"""Glow: inverse, log-det, density and what it starts from."""

from __future__ import annotations

import pytest
import torch
from problems import randn, rng
from torch import Tensor

from indm_core.checks import check_flow
from indm_core.flow import ActNorm, Flow, Glow
from indm_core.flow.glow import AffineCoupling, InvertibleConv


def woken(flow: Flow, scale: float = 0.05) -> Flow:
    """A flow in float64, after its data-dependent start, with every parameter moved."""
    flow = flow.double()
    for i, p in enumerate(flow.parameters()):
        p.data += scale * randn(*p.shape, seed=i)
    return flow.eval()


def trained_on(flow: Flow, x: Tensor) -> Flow:
    flow.train()(x)
    return flow


CASES = [
    (InvertibleConv(5), (5, 2, 3)),
    (InvertibleConv(4), (4,)),
    (AffineCoupling((3, 2, 4), hidden=6), (3, 2, 4)),
    (AffineCoupling((3, 2, 4), hidden=6, flip=True), (3, 2, 4)),
    (AffineCoupling((5,), hidden=8, flip=True), (5,)),
    (AffineCoupling((4, 2, 2), hidden=0), (4, 2, 2)),
    (Glow((3,), levels=1, steps=3, hidden=8), (3,)),
    (Glow((1, 4, 8), levels=2, steps=2, hidden=5), (1, 4, 8)),
    (Glow((3, 8, 4), levels=2, steps=1, hidden=4, start="identity"), (3, 8, 4)),
    (Glow((1, 8, 8), levels=3, steps=2, hidden=4), (1, 8, 8)),
]


@pytest.mark.parametrize(("flow", "shape"), CASES, ids=lambda v: type(v).__name__ if isinstance(v, Flow) else str(v))
def test_every_identity_holds(flow, shape):
    check_flow(flow, shape, tolerance=1e-10)


def test_inverse_in_float32_of_the_published_depth():
    torch.manual_seed(0)
    flow = Glow((3, 32, 32), levels=3, steps=16, hidden=16)
    x = torch.rand(4, 3, 32, 32, generator=rng()) * 2 - 1
    trained_on(flow, x).eval()
    for i, p in enumerate(flow.parameters()):
        p.data += 0.01 * torch.randn(p.shape, generator=rng(i))
    with torch.no_grad():
        z, _ = flow(x)
        assert (z - x).abs().max() > 0.5  # the flow does something
        assert float((flow.inverse(z) - x).abs().max()) < 1e-5


def test_density_in_two_dimensions_integrates_to_one():
    torch.manual_seed(0)
    flow = woken(Glow((2,), levels=1, steps=4, hidden=16), 0.1)
    side = torch.linspace(-30, 30, 1201, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    with torch.no_grad():
        z, log_det = flow(x)
        density = (-0.5 * z.square().sum(1) + log_det).exp() / (2 * torch.pi)
    assert abs(float(density.sum() * (side[1] - side[0]) ** 2) - 1) < 1e-3


def test_a_start_at_the_identity_is_the_identity():
    x = randn(3, 2, 8, 4)
    z, log_det = Glow((2, 8, 4), levels=2, steps=3, hidden=4, start="identity").double()(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-14)
    assert (log_det == 0).all()


def test_gradients_reach_every_parameter_from_the_identity():
    flow = Glow((2, 4, 4), levels=1, steps=2, hidden=4, start="identity").double()
    z, log_det = flow(randn(5, 2, 4, 4))
    (0.5 * z.square().flatten(1).sum(1) - log_det).sum().backward()
    still = {name for name, p in flow.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert all("network.0" in name or "network.2" in name for name in still)  # behind layers that start at zero


def test_gradients_reach_every_parameter_in_training():
    torch.manual_seed(0)
    flow = woken(Glow((2, 8, 8), levels=2, steps=2, hidden=4))
    z, log_det = flow(randn(5, 2, 8, 8))
    (0.5 * z.square().flatten(1).sum(1) - log_det).sum().backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_couplings_take_turns():
    flow = Glow((2, 8, 8), levels=2, steps=3, hidden=4)
    turns = [[step.flip for step in level if isinstance(step, AffineCoupling)] for level in flow.levels]
    assert turns == [[False, True, False]] * 2


def test_actnorms_start_from_the_first_training_batch():
    torch.manual_seed(0)
    flow = Glow((2, 4, 4), levels=1, steps=1, hidden=4)
    x = 5 + 3 * torch.randn(64, 2, 4, 4, generator=rng())
    z = trained_on(flow, x)(x)[0].detach()
    assert abs(float(z.mean())) < 1e-3
    assert abs(float(z.std()) - 1) < 0.02
    assert all(bool(m.initialised) for m in flow.modules() if isinstance(m, ActNorm) and m.initialised is not None)


def test_the_weight_of_a_convolution_starts_as_a_rotation():
    torch.manual_seed(1)
    W = InvertibleConv(6).weight()
    torch.testing.assert_close(W @ W.mT, torch.eye(6), rtol=0, atol=1e-5)


def test_bfloat16_keeps_flow_and_log_det_in_the_data_type_of_x():
    torch.manual_seed(0)
    flow = woken(Glow((1, 4, 4), levels=1, steps=2, hidden=4)).float()
    x = torch.randn(2, 1, 4, 4, generator=rng())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
        back = flow.inverse(z)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 28, 28), {"levels": 3}, r"2\^3 does not divide the side 28 of \(1, 28, 28\); at most 2 fit"),
        ((3, 32, 20), {"levels": 4}, "at most 2 fit"),
        ((4,), {"levels": 2}, r"levels=2: a vector \(4,\) takes one level"),
        ((1,), {"levels": 1}, "at least two channels or coordinates"),
        ((2,), {"levels": 1, "steps": 0}, "steps=0 must be at least 1"),
    ],
)
def test_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        Glow(shape, **options)


@pytest.mark.parametrize(
    ("event", "message"),
    [((2, 4, 4), "of as many axes and channels"), ((1, 6, 4), "multiples of 4"), ((4,), "of as many axes")],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_another_event_is_refused(event, message):
    flow = Glow((1, 4, 4), levels=2, steps=1, hidden=4)
    for run in (flow, flow.inverse):
        with pytest.raises(
            ValueError, match=rf"events \({event[0]},.* given to a flow made for \(1, 4, 4\).*{message}"
        ):
            run(torch.zeros(1, *event))
    with pytest.raises(ValueError, match=r"events \(4,\) given to a flow made for \(3,\) alone"):
        Glow((3,), levels=1, steps=1, hidden=4)(torch.zeros(1, 4))


def test_images_of_every_size():
    """One set of parameters, on 4 x 8 as built, and wider, higher and smaller: every identity of `check_flow`."""
    flow = woken(Glow((1, 4, 8), levels=2, steps=2, hidden=5))
    assert flow.size_free
    assert not Glow((3,), levels=1, steps=1, hidden=4).size_free
    for event in ((1, 4, 4), (1, 12, 4), (1, 4, 16)):
        check_flow(flow, event, tolerance=1e-10)
