"""The U-Net of DDPM as a backbone; that it computes what diffusers' class does is in tests/pipelines/test_pretrained.py."""

from __future__ import annotations

import pytest
import torch

from indm_core.nn import DDPMUNet
from indm_core.nn.ddpm import discrete_log_snr, level_of
from indm_core.sde import VE, VP

SMALL = {"channels": (8, 16), "num_res_blocks": 1, "groups": 4}


def network(**options) -> DDPMUNet:
    sde = VP()
    table = discrete_log_snr(1000, 1e-4, 0.02, "linear")
    level = lambda t: level_of(-2 * sde.log_rho(t), table)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    return DDPMUNet((2, 8, 6), level=level, scale=torch.ones_like, generator=generator, **SMALL | options).eval()


def test_it_begins_at_nothing_and_treats_rows_apart():
    net, t = network(), torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    x = torch.randn(3, 2, 8, 6)
    assert net(x, t).abs().max() < 1e-3
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        whole, alone = net(x, t), net(x[1:2], t[1:2])
    assert whole.std() > 1e-2
    torch.testing.assert_close(whole[1:2], alone)


def test_the_levels_of_a_variance_preserving_diffusion_are_nearly_its_times():
    """beta = 0.1 .. 20 in continuous time is 1e-4 .. 0.02 in a thousand steps; the last log-SNR differ by 1 %."""
    table, t = discrete_log_snr(1000, 1e-4, 0.02, "linear"), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(level_of(-2 * VP().log_rho(t), table), 1000 * t - 1, rtol=0, atol=3.0)
    high = level_of(-2 * VE().log_rho(torch.tensor([1.0], dtype=torch.float64)), table)
    assert 700 < high < 1000  # sigma = 50: log-SNR -7.8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": (8, 18)}, r"channels=\(8, 18\) must be multiples of groups=4"),
        ({"channels": (8, 8, 8)}, "3 levels need images"),
        ({"head_dim": 3}, "head_dim=3 does not divide the 16 channels"),
        ({"padding": 2}, "padding=2 must be 0 or 1"),
    ],
)
def test_what_it_cannot_be_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        network(**options)


def test_labels_and_other_shapes_are_refused():
    net, t = network(), torch.zeros(1)
    with pytest.raises(ValueError, match="this network knows no labels"):
        net(torch.zeros(1, 2, 8, 6), t, torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x must have shape \(b, 2, 8, 6\)"):
        net(torch.zeros(1, 2, 8, 8), t)
