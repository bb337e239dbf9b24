"""Convolutions between few channels and many, against the library's, with their gradients."""

from __future__ import annotations

import pytest
import torch
from problems import randn, rng
from torch import Tensor
from torch.nn import functional

from indm_core.flow import ResFlow
from indm_core.flow.few_channels import narrowed, pays, widened
from indm_core.flow.lipschitz import LipschitzLayer

KERNELS = pytest.mark.parametrize("kernel", [(18, 1, 3, 3), (60, 3, 3, 3), (50, 1, 5, 5)], ids=str)


def with_gradients(f, *inputs: Tensor) -> tuple[Tensor, ...]:
    out = f(*inputs)
    probe = randn(out.numel(), seed=7).reshape(out.shape)
    return out, *torch.autograd.grad((out * probe).sum(), inputs)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@KERNELS
def test_both_are_the_convolution_and_its_transpose(kernel, order):
    wide, few, k, _ = kernel
    K = randn(*kernel).requires_grad_()
    for ours, theirs, num_in, num_out in (
        (widened, functional.conv2d, few, wide),
        (narrowed, functional.conv_transpose2d, wide, few),
    ):
        x = randn(2, num_in, 5, 6, seed=1).contiguous(memory_format=order).requires_grad_()
        bias = randn(num_out, seed=2).requires_grad_()
        expected = with_gradients(lambda x, K, b, f=theirs: f(x, K, b, padding=k // 2), x, K, bias)
        for one, other in zip(with_gradients(ours, x, K, bias), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours(x, K), theirs(x, K, None, padding=k // 2), rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused():
    """Instead of being wrong."""
    K, y = randn(18, 1, 3, 3).requires_grad_(), randn(2, 18, 4, 4)
    (gradient,) = torch.autograd.grad(narrowed(y, K).square().sum(), K, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 18), (18, 1)])
def test_a_layer_takes_them_where_they_pay(num_in, num_out, monkeypatch):
    """In products without gradients of gradients; its map itself is the library's where there may be some."""
    calls = []
    for name, f in (("widened", widened), ("narrowed", narrowed)):
        monkeypatch.setattr(
            f"indm_core.flow.lipschitz.{name}", lambda *given, f=f, name=name: calls.append(name) or f(*given)
        )
    layer = LipschitzLayer((num_in, 4, 5), num_out, coefficient=0.9, kernel=3).double()
    x, y, W = randn(2, num_in, 4, 5), randn(2, num_out, 4, 5, seed=1), layer.weight
    expected = functional.conv2d(x, W, layer.bias, padding=1)
    torch.testing.assert_close(layer(x, W), expected, rtol=1e-12, atol=1e-12)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(layer(x, W), expected, rtol=1e-12, atol=1e-12)
    layer.times(x, W)
    torch.testing.assert_close(
        layer.transposed_times(y, W), functional.conv_transpose2d(y, W, padding=1), rtol=1e-12, atol=1e-12
    )
    there, back = ("widened", "narrowed") if num_in == 1 else ("narrowed", "widened")
    assert calls == [there, there, back]


def test_where_they_pay():
    x = torch.zeros(1, 1, 4, 4)
    assert pays((18, 1, 3, 3), x)
    assert not pays((17, 1, 3, 3), x)
    assert not pays((18, 1, 3), x)
    assert not pays((18, 1), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays((18, 1, 3, 3), x)


def test_the_log_det_of_a_flow_of_few_channels():
    """Explicit products with the functions here, against the series by autograd through the library's convolutions."""
    ends = []
    for explicit in (True, False):
        torch.manual_seed(0)
        flow = ResFlow((1, 4, 4), blocks=(2,), width=18).double().train()
        for seed, p in enumerate(flow.parameters()):
            p.data += 0.3 * randn(p.numel(), seed=seed).reshape(p.shape)
        for block in flow.scales[0]:
            block.explicit = explicit
        z, log_det = flow(randn(3, 1, 4, 4), rng(1))
        ends.append((z, log_det, *torch.autograd.grad(log_det.sum() + z.square().sum(), list(flow.parameters()))))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
