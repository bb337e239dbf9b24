"""Networks compiled block by block."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import rng
from torch import nn

from indm_core.compiled import Repeated, cannot_compile, compile_blocks
from indm_core.nn import UNet


def network() -> UNet:
    torch.manual_seed(0)
    return UNet((1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1, 2), num_res_blocks=1, dropout=0.3)


def loss_and_gradients(net: nn.Module) -> list[torch.Tensor]:
    x, t = torch.randn(3, 1, 8, 8, generator=rng()), torch.tensor([0.1, 0.5, 0.9])
    torch.manual_seed(1)  # dropout
    loss = (net(x, t) - x).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_network_of_compiled_blocks_is_the_same_function_with_the_same_dropout(backend):
    if backend == "inductor" and (why := cannot_compile(torch.device("cpu"))):
        pytest.skip(why)
    plain, compiled = network(), network()
    assert compile_blocks(compiled, backend) == sum(isinstance(block, Repeated) for block in plain.modules()) > 4
    torch.testing.assert_close(loss_and_gradients(compiled), loss_and_gradients(plain), rtol=1e-4, atol=1e-6)
    copied = copy.deepcopy(compiled)
    torch.testing.assert_close(loss_and_gradients(copied), loss_and_gradients(plain), rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_network_without_repeated_blocks_stays_as_it_is():
    assert compile_blocks(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), "eager") == 0


def test_why_a_machine_does_not_compile_is_one_line(monkeypatch):
    def no_compiler(*args, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert cannot_compile(torch.device("cpu")) == "InvalidCxxCompiler: No working C++ compiler found"
