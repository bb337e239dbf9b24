"""The norm of a convolution at every size: against matrices, against a fine grid of frequencies, and its gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import randn
from torch import Tensor
from torch.nn import functional

from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.flow.torus import steepest_form

KERNELS = [(3, 2, 3), (2, 3, 3), (1, 6, 3), (4, 4, 3), (2, 2, 5)]
EVERY = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k[1]} to {k[0]}, {k[2]}x{k[2]}")


def weight_of(kernel: tuple[int, int, int], seed: int = 0) -> Tensor:
    num_out, num_in, side = kernel
    return randn(num_out, num_in, side, side, seed=seed)


def bound(weight: Tensor) -> float:
    return float((weight * steepest_form(weight)).sum())


def norm_at(weight: Tensor, height: int, width: int) -> float:
    """The spectral norm of the matrix of the zero-padded convolution, or of its transpose, which has fewer rows."""
    if weight.shape[0] < weight.shape[1]:
        weight = weight.transpose(0, 1).flip(2, 3)
    basis = torch.eye(weight.shape[1] * height * width, dtype=weight.dtype).unflatten(1, (-1, height, width))
    matrix = functional.conv2d(basis, weight, padding=weight.shape[-1] // 2).flatten(1)
    return math.sqrt(float(torch.linalg.eigvalsh(matrix @ matrix.mT)[-1]))


def supremum(weight: Tensor, num: int = 512) -> float:
    """max |K(w)| over a fine grid, by the discrete Fourier transform."""
    K = torch.fft.rfft2(weight, s=(num, num)).permute(2, 3, 0, 1)
    gram = K.mH @ K if K.shape[-2] >= K.shape[-1] else K @ K.mH
    return math.sqrt(float(torch.linalg.eigvalsh(gram)[..., -1].max()))


@EVERY
def test_the_bound_holds_at_every_size_and_is_tight(kernel):
    weight = weight_of(kernel)
    limit, highest = bound(weight), supremum(weight)
    norms = [norm_at(weight, *size) for size in ((4, 4), (8, 8), (9, 13), (16, 16))]
    assert max(norms) <= highest * (1 + 1e-12)
    assert highest <= limit <= 1.0098 * highest  # 1 / cos(pi / 32)^2 = 1.0097
    assert norms == sorted(norms)  # it is attained as the image grows
    assert highest - norms[3] < 0.4 * (highest - norms[1])


def test_no_kernel_has_a_norm_above_the_bound():
    """Two hundred kernels, whose peaks lie anywhere between the points of the grid."""
    ratios = []
    for seed in range(200):
        weight = randn(2, 1, 3, 3, seed=seed)
        ratios.append(bound(weight) / supremum(weight, 256))
    assert 1 <= min(ratios) < 1.008  # a peak in the middle of a cell: the factor is needed
    assert 1.009 < max(ratios) <= 1.0098


@EVERY
def test_the_form_is_the_gradient_of_the_bound(kernel):
    """Against central differences; and <V, P(W)> <= bound(V) for every V, for the bound is a norm."""
    weight = weight_of(kernel)
    P = steepest_form(weight)
    for seed in range(1, 4):
        V = weight_of(kernel, seed)
        slope = (bound(weight + 1e-6 * V) - bound(weight - 1e-6 * V)) / 2e-6
        assert slope == pytest.approx(float((V * P).sum()), abs=1e-5)
        assert float((V * P).sum()) <= bound(V)


@pytest.mark.parametrize("kernel", [(3, 2, 3), (1, 4, 5)], ids=str)
def test_sequences(kernel):
    """One axis: the bound is too high by half as much, and it holds for every length."""
    weight = randn(*kernel)
    limit = bound(weight)
    rows = weight.unsqueeze(2)
    K = torch.fft.rfft(weight, n=4096).permute(2, 0, 1)
    highest = float(torch.linalg.matrix_norm(K, 2).max())
    assert highest <= limit <= 1.0049 * highest
    padded = functional.pad(rows, (0, 0, kernel[2] // 2, kernel[2] // 2))  # a kernel of one row on an image of one row
    norms = [norm_at(padded, 1, length) for length in (4, 16, 64)]
    assert norms == sorted(norms)
    assert 0.99 * highest < norms[-1] <= highest


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e18])
def test_it_scales_with_the_weight_in_float32(scale):
    weight = weight_of((3, 2, 3))
    single = (scale * weight).float()
    assert float((single.double() * steepest_form(single)).sum()) == pytest.approx(scale * bound(weight), rel=1e-6)


def layer_of(**options) -> LipschitzLayer:
    layer = LipschitzLayer((2, 8, 8), 6, coefficient=0.9, constraint="torus", kernel=3, **options).double()
    with torch.no_grad():
        layer.weight.mul_(10)
    return layer


def test_a_layer_is_below_its_coefficient_at_every_size():
    """The spectral norm of 8 x 8 is not: the reason for the torus."""
    norms = {}
    for constraint in ("torus", "spectral"):
        layer = layer_of()
        if constraint == "spectral":
            layer = LipschitzLayer((2, 8, 8), 6, coefficient=0.9, kernel=3).double().eval()
            layer.weight.data.copy_(layer_of().weight.data)
        weight = layer.bounded_weight().detach()
        norms[constraint] = [norm_at(weight, *size) for size in ((8, 8), (8, 48))]
    assert norms["torus"][0] < norms["torus"][1] < 0.9
    assert norms["spectral"][0] == pytest.approx(0.9, rel=1e-6)
    assert norms["spectral"][1] > 0.9 * 1.005


def test_the_gradient_of_a_bounded_weight():
    layer, probe = layer_of(), randn(6, 2, 3, 3, seed=2)
    (gradient,) = torch.autograd.grad((layer.bounded_weight() * probe).sum(), layer.weight)
    V, ends = randn(6, 2, 3, 3, seed=3), []
    for sign in (1, -2, 1):
        with torch.no_grad():
            layer.weight.add_(V, alpha=sign * 1e-6)
            ends.append(float((layer.bounded_weight() * probe).sum()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * V).sum()), rel=1e-6)


def test_training_and_evaluation_are_one_map_and_micro_batches_share_it(monkeypatch):
    layer, calls = layer_of(), []
    monkeypatch.setattr(
        "indm_core.flow.lipschitz.steepest_form", lambda weight: calls.append(1) or steepest_form(weight)
    )
    first = layer.train().bounded_weight()
    assert torch.equal(layer.eval().bounded_weight(), first)
    assert len(calls) == 1
    with torch.no_grad():
        layer.weight.add_(0.1)
    layer.bounded_weight()
    assert len(calls) == 2


def test_autocast_and_weights_that_are_no_numbers():
    layer = layer_of().float()
    expected = copy.deepcopy(layer).bounded_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.bounded_weight(), expected)
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = math.nan
        assert not layer.bounded_weight().isfinite().any()
        layer.weight.copy_(kept)
    assert torch.equal(layer.bounded_weight(), expected)


def test_a_kernel_of_one_point_has_the_norm_of_its_matrix():
    layer = LipschitzLayer((5, 4, 4), 7, coefficient=0.9, constraint="torus").double().eval()
    with torch.no_grad():
        layer.weight.copy_(randn(7, 5, 1, 1))
    norm = float(torch.linalg.matrix_norm(layer.bounded_weight().detach()[:, :, 0, 0], 2))
    assert norm == pytest.approx(0.9, rel=1e-9)
