"""Flows: bijections with their log-determinants."""

from __future__ import annotations

import pytest
import torch
from problems import Affine, randn
from torch import Tensor, nn

from indm_core.flow import ActNorm, Composed, Flow, Identity, Squeezed


def woken(flow: ActNorm) -> ActNorm:
    flow = flow.double()
    for i, p in enumerate(flow.parameters()):
        p.data += randn(*p.shape, seed=i)
    return flow


class Scaled(Flow):
    """z = exp(a) x with its own a for each channel: the simplest flow that a squeeze shows."""

    def __init__(self, log_scale: Tensor) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(log_scale)

    def forward(self, x, generator=None):
        a = self.log_scale.reshape(-1, *[1] * (x.ndim - 2))
        return a.exp() * x, a.expand(x.shape[1:]).sum().expand(len(x))

    def inverse(self, z):
        return z * torch.exp(-self.log_scale.reshape(-1, *[1] * (z.ndim - 2)))


def jacobian_log_det(flow: Flow, x: Tensor) -> Tensor:
    """log|det dz/dx| of each row from the full Jacobian."""
    rows = []
    for row in x.unsqueeze(1):
        J = torch.autograd.functional.jacobian(lambda v: flow(v)[0].flatten(), row)
        rows.append(torch.linalg.slogdet(J.reshape(row.numel(), row.numel())).logabsdet)
    return torch.stack(rows)


FLOWS = [
    (Identity(), (3,)),
    (Composed([]), (3,)),
    (Composed([Affine(randn(3, 3), randn(3, seed=1)), Affine(randn(3, 3, seed=2), randn(3, seed=3))]), (3,)),
    (Squeezed(Scaled(randn(8))), (2, 4, 6)),
    (Composed([Scaled(randn(2)), Squeezed(Squeezed(Scaled(randn(32))))]), (2, 4, 8)),
    (woken(ActNorm((3,))), (3,)),
    (woken(ActNorm((2, 3, 4))), (2, 3, 4)),
    (woken(ActNorm((2, 3, 4), per_pixel=True)), (2, 3, 4)),
]
NAMES = ["Identity", "nothing", "Affine", "Squeezed", "two scales", "ActNorm", "ActNorm image", "ActNorm pixels"]


@pytest.mark.parametrize(("flow", "event"), FLOWS, ids=NAMES)
def test_log_det_and_inverse(flow, event):
    x = randn(4, *event)
    z, log_det = flow(x)
    assert z.shape == x.shape
    torch.testing.assert_close(log_det, jacobian_log_det(flow, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.inverse(z), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("per_pixel", "size"), [(False, 2), (True, 24)])
def test_actnorm_starts_at_the_identity(per_pixel, size):
    flow, x = ActNorm((2, 3, 4), per_pixel=per_pixel).double(), randn(5, 2, 3, 4)
    assert flow.log_scale.numel() == flow.shift.numel() == size
    torch.testing.assert_close(flow(x)[0], x, rtol=0, atol=0)
    assert not flow(x)[1].any()


def test_composition_is_in_order():
    first, second = Affine(randn(2, 2), randn(2, seed=1)), Affine(randn(2, 2, seed=2), randn(2, seed=3))
    x = randn(5, 2, seed=4)
    z, _ = Composed([first, second])(x)
    torch.testing.assert_close(z, (x @ first.A.T + first.b) @ second.A.T + second.b)


def test_a_density_pulled_back_integrates_to_one():
    """log p(x) = log N(h(x)) + log_det, summed over a fine grid."""
    flow = Composed([Affine(torch.tensor([[1.4, 0.5], [-0.3, 0.8]]).double(), torch.tensor([0.2, -0.1]).double())])
    axis = torch.linspace(-9, 9, 401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    z, log_det = (part.detach() for part in flow(x))
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
    assert float(log_p.exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("event", [(3, 5, 4), (3, 4, 5), (12,)])
def test_what_cannot_be_squeezed_is_refused(event):
    with pytest.raises(ValueError, match="cannot be squeezed"):
        Squeezed(Identity())(randn(2, *event))
