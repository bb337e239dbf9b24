"""Losses and gradients in bfloat16 by autocast beside those in float32."""

from __future__ import annotations

import pytest
import torch
from problems import randn, rng
from torch import Tensor, nn

from indm_core.flow import Glow, LipSwish, ResFlow
from indm_core.model import INDM, Losses
from indm_core.nn import UNet
from indm_core.precision import computes_in_bfloat16
from indm_core.sde import VP

FLOWS = {
    "explicit series": lambda: ResFlow((1, 8, 8), blocks=(1, 1), width=8),
    "series by autograd": lambda: ResFlow((1, 8, 8), blocks=(1,), width=8, activation=nn.Tanh),
    "exact": lambda: ResFlow((1, 8, 8), blocks=(1,), width=8, activation=LipSwish, exact_train=64),
    "Glow": lambda: Glow((1, 8, 8), levels=1, steps=2, hidden=8, start="identity"),
}


def indm(flow: str) -> INDM:
    """float32, away from the start at the identity."""
    torch.manual_seed(0)
    unet = UNet(
        (1, 8, 8), time_feature=lambda t: t, nf=8, ch_mult=(1, 2), num_res_blocks=1, attention=(4,), dropout=0.0
    )
    model = INDM(FLOWS[flow](), unet, VP(t_min=1e-3), shape=(1, 8, 8))
    for seed, p in enumerate(model.parameters()):
        p.data += 0.1 * randn(max(1, p.numel()), seed=seed).reshape(p.shape).float()
    return model


def losses_and_gradient(model: INDM, *, bfloat16: bool) -> tuple[Losses, Tensor, Tensor]:
    """Of one batch and one draw; the gradients of the score and of the flow, each as one vector."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        losses = model(0.5 * randn(16, 1, 8, 8).float(), None, rng(1))
    losses.objective.mean().backward()
    parameters = model.score_model.parameters(), model.flow.parameters()
    score, flow = (torch.cat([p.grad.flatten() for p in of if p.grad is not None]) for of in parameters)
    return losses, score, flow


@pytest.mark.parametrize("flow", FLOWS)
def test_losses_and_gradients_in_bfloat16_are_near_those_in_float32(flow):
    """8 bits of mantissa: terms to half a percent, gradients to a few percent; the log-det, whose series is computed in
    float32, to less."""
    model = indm(flow).train()
    exact, rounded = (losses_and_gradient(model, bfloat16=on) for on in (False, True))
    for name, term in exact[0].terms.items():
        found = rounded[0].terms[name]
        assert found.dtype == torch.float32
        assert float((found - term).norm() / term.norm()) < (3e-3 if name == "log_det" else 6e-3)
    assert any(not torch.equal(rounded[0].terms[name], term) for name, term in exact[0].terms.items())
    for ours, theirs in zip(rounded[1:], exact[1:], strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


@pytest.mark.parametrize("flow", ["explicit series", "series by autograd", "exact"])
def test_no_product_of_a_log_det_is_in_bfloat16(flow):
    """The log-det alone, at points that bfloat16 has not touched: to the last bit that of float32 where g is not rounded."""
    layer = indm(flow).flow.train()
    x, ends = 0.5 * randn(4, 1, 8, 8).float(), []
    layer.scales = layer.scales[:1]
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            ends.append(layer(x, rng(1))[1].detach())
    apart = float((ends[0] - ends[1]).norm() / ends[0].norm())
    assert apart < (2e-3 if flow == "explicit series" else 1e-6)


@pytest.mark.parametrize("supported", [True, False])
def test_a_processor_tells_whether_it_has_the_instructions(supported, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": supported})
    assert computes_in_bfloat16(torch.device("cpu")) is supported
