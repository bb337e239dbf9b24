"""The search for spectral norms against explicit matrices, and of many maps against each alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import randn
from torch import Tensor
from torch.nn import functional

from indm_core.flow import ResFlow
from indm_core.flow.lipschitz import LipschitzLayer, look_for_norms
from indm_core.flow.spectral_norm import Maps

SIDES = pytest.mark.parametrize(
    ("kernel", "side"),
    [
        ((7, 5), (5,)),
        ((8, 2, 3), (2, 6)),
        ((7, 2, 3, 3), (2, 5, 4)),
        ((2, 3, 3, 3), (3, 4, 4)),
        ((4, 1, 5, 5), (1, 6, 3)),
    ],
    ids=["matrix", "sequence", "image", "few wide channels", "5 x 5"],
)
"""The kernels K (wide, narrow, *window) with their narrow sides; of the fourth one K^T K is no smaller than K."""


def dense(kernel: Tensor, side: tuple[int, ...]) -> Tensor:
    """The map of K as a matrix."""
    basis = torch.eye(math.prod(side), dtype=kernel.dtype).reshape(-1, *side)
    convolution = (functional.linear, functional.conv1d, functional.conv2d)[len(side) - 1]
    options = {"padding": kernel.shape[-1] // 2} if len(side) > 1 else {}
    return convolution(basis, kernel, **options).flatten(1).mT


def units(v: Tensor) -> Tensor:
    return v / v.flatten(2).norm(dim=2).reshape(*v.shape[:2], *[1] * (v.ndim - 2))


def krylov(A: Tensor, V: Tensor, num_powers: int) -> Tensor:
    """Ritz values of A (n, n) in span{V, A V, ..., A^p V}, V (k, n), by one QR of all powers: the plain form."""
    powers = [V]
    for _ in range(num_powers):
        powers.append(functional.normalize(powers[-1] @ A, dim=1))
    Q = torch.linalg.qr(torch.cat(powers).mT).Q
    return torch.linalg.eigvalsh(Q.mT @ A @ Q).flip(0)


@SIDES
def test_the_square_of_a_map(kernel, side):
    """A v = K^T K v, and the form P: <K, P> = |K v|, with the gradient of that."""
    K = torch.stack([randn(*kernel, seed=seed) for seed in range(3)])
    maps, v = Maps(K, side), units(randn(3, 4, *side, seed=9))
    for i, (one, found) in enumerate(zip(K, maps.square(v.flatten(2)), strict=True)):
        matrix = dense(one, side) / one.abs().max()
        torch.testing.assert_close(found, v[i].flatten(1) @ matrix.mT @ matrix, rtol=1e-12, atol=1e-12)
    K.requires_grad_()
    norms = torch.stack([(dense(one, side) @ v[i, 0].flatten()).norm() for i, one in enumerate(K)])
    (gradient,) = torch.autograd.grad(norms.sum(), K)
    P = maps.steepest(v[:, 0])
    torch.testing.assert_close(P, gradient, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((K * P).flatten(1).sum(1), norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_powers", [1, 2, 8])
@SIDES
def test_the_search_finds_the_ritz_values_of_its_krylov_space(kernel, side, num_powers):
    """And so none above the largest singular value. Of 8 powers the space is all of most of these sides."""
    K = torch.stack([randn(*kernel, seed=seed) for seed in range(3)])
    start = units(randn(3, 3, *side, seed=9))
    found, rest = Maps(K, side).search(start[:, :2], start[:, 2:], num_powers)
    for i, one in enumerate(K):
        matrix = dense(one / one.abs().max(), side)
        A = matrix.mT @ matrix
        expected = krylov(A, start[i].flatten(1), num_powers)
        num = min(2, len(expected))
        v = found[i, :num].flatten(1)
        torch.testing.assert_close(v @ v.mT, torch.eye(num, dtype=v.dtype), rtol=0, atol=1e-10)
        torch.testing.assert_close((v @ A * v).sum(1), expected[:num], rtol=1e-10, atol=0)
        assert (v[0] @ A @ v[0]) <= torch.linalg.eigvalsh(A)[-1] * (1 + 1e-12)
        remainder = (A @ v[0] - expected[0] * v[0]).norm() / expected[0]
        torch.testing.assert_close(rest[i], remainder, rtol=1e-6, atol=1e-10)


def test_maps_of_rank_0_and_1():
    """A power that comes to nothing leaves unit vectors, and the norm is that of what there is."""
    K = torch.zeros(2, 5, 40, dtype=torch.float64)
    K[1] = randn(5, 1) @ randn(1, 40, seed=1)
    start = units(randn(2, 3, 40, seed=2))
    found, _ = Maps(K, (40,)).search(start[:, :2], start[:, 2:], 8)
    assert found.isfinite().all()
    norms = [float((of @ v[0]).norm()) for of, v in zip(K, found, strict=True)]
    assert norms == pytest.approx([0, float(torch.linalg.matrix_norm(K[1], 2))], rel=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_layers_of_a_flow_are_searched_together_as_each_alone(training, monkeypatch):
    """Kernels of 3 and 1 on both sides of a block, at two scales: five searches of twelve layers."""
    flow = ResFlow((1, 8, 8), blocks=(2, 2), width=8).double().train(training)
    layers = [layer for layer in flow.modules() if isinstance(layer, LipschitzLayer)]
    with torch.no_grad():
        for seed, layer in enumerate(layers):
            layer.weight += randn(layer.weight.numel(), seed=seed).reshape(layer.weight.shape)
    alone = copy.deepcopy(layers)
    for layer in alone:
        look_for_norms([layer])
    counts, search = [], Maps.search
    monkeypatch.setattr(Maps, "search", lambda self, *given: counts.append(len(given[0])) or search(self, *given))
    look_for_norms(layers)
    look_for_norms(layers)
    if training:
        assert sorted(counts) == [4, 4, 4]
    for one, other in zip(layers, alone, strict=True):
        torch.testing.assert_close(one.bounded_weight(), other.bounded_weight(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.form, other.form, rtol=1e-5, atol=1e-6)


def test_the_norm_in_float32_is_that_of_float64():
    """Of convolutions whose largest singular values lie close together; the first search begins at random vectors."""
    layers = [LipschitzLayer((3, 16, 16), 32, coefficient=0.9, kernel=3).train() for _ in range(3)]
    doubles = copy.deepcopy(layers)
    for step in range(4):
        for i, layer in enumerate(layers):
            with torch.no_grad():
                layer.weight += 0.05 * randn(*layer.weight.shape, seed=10 * step + i).float()
                doubles[i].double().weight.copy_(layer.weight)
        look_for_norms(layers)
        look_for_norms(doubles)
        for one, other in zip(layers, doubles, strict=True):
            assert float((one.weight * one.form).sum().detach()) == pytest.approx(
                float((other.weight * other.form).sum().detach()), rel=2e-6
            )
