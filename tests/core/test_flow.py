"""Flows: bijections with their log-determinants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from problems import Affine, randn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from indm_core.checks import check_flow
from indm_core.flow import ActNorm, Composed, Flow, Identity


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
    (Composed([Scaled(randn(2)), Scaled(randn(2, seed=1))]), (2, 4, 8)),
    (woken(ActNorm((3,))), (3,)),
    (woken(ActNorm((2, 3, 4))), (2, 3, 4)),
    (woken(ActNorm((2, 3, 4), per_pixel=True)), (2, 3, 4)),
]
NAMES = ["Identity", "nothing", "Affine", "images", "ActNorm", "ActNorm image", "ActNorm pixels"]


@pytest.mark.parametrize(("flow", "event"), FLOWS, ids=NAMES)
def test_every_identity_holds(flow, event):
    check_flow(flow, event, tolerance=1e-10)


@pytest.mark.parametrize(("per_pixel", "size"), [(False, 2), (True, 24)])
def test_actnorm_starts_at_the_identity(per_pixel, size):
    flow, x = ActNorm((2, 3, 4), per_pixel=per_pixel).double(), randn(5, 2, 3, 4)
    assert flow.log_scale.numel() == flow.shift.numel() == size
    torch.testing.assert_close(flow(x)[0], x, rtol=0, atol=0)
    assert not flow(x)[1].any()


@pytest.mark.parametrize(
    ("event", "per_pixel", "axes"),
    [((5,), False, (0,)), ((3, 4, 6), False, (0, 2, 3)), ((3, 4, 6), True, (0,))],
    ids=["vector", "channels", "pixels"],
)
def test_the_first_training_batch_sets_actnorm_once(event, per_pixel, axes):
    """z of the first batch has mean 0 and deviation 1; neither evaluation, a second batch nor a resumed run sets anything."""
    flow = ActNorm(event, per_pixel=per_pixel, data_init=True).double()
    x = 1e3 + 7 * randn(32, *event)
    assert torch.equal(flow.eval()(x)[0], x)
    z, _ = flow.train()(x)
    torch.testing.assert_close(z.mean(axes), torch.zeros_like(z.mean(axes)), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.std(axes, correction=0), torch.ones_like(z.mean(axes)), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow(x)[1], jacobian_log_det(flow, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow.inverse(z), x, rtol=1e-12, atol=0)
    state = {key: value.clone() for key, value in flow.state_dict().items()}
    resumed = ActNorm(event, per_pixel=per_pixel, data_init=True).double()
    resumed.load_state_dict(state)
    for started in (flow, resumed):
        started.train()(randn(8, *event, seed=1))
        assert all(torch.equal(value, state[key]) for key, value in started.state_dict().items())


def test_actnorm_at_the_identity_has_no_more_state():
    """So that checkpoints of it stay readable, and an INDM's flow starts at the identity."""
    assert set(ActNorm((3,)).state_dict()) == {"log_scale", "shift"}
    x = randn(8, 3)
    assert torch.equal(ActNorm((3,)).double().train()(x)[0], x)


def test_actnorm_of_constant_dimensions_is_finite():
    flow, x = ActNorm((2,), data_init=True).double().train(), randn(16, 2)
    x[:, 1] = 0.1
    z, log_det = flow(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(z[:, 1], torch.zeros(16).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.log_scale[1].exp().detach(), torch.tensor(1e3).double())


@pytest.mark.parametrize("x", [torch.full((4, 2), float("nan")), torch.zeros(0, 2)], ids=["nan", "empty"])
def test_a_first_batch_without_moments_is_refused(x):
    flow = ActNorm((2,), data_init=True).train()
    with pytest.raises(ValueError, match=r"x: the first training batch .* data_init"):
        flow(x)
    assert not flow.log_scale.any()
    assert not flow.initialised
    with pytest.raises(ValueError, match="min_std=0"):
        ActNorm((2,), min_std=0.0)


def _first_step(rank: int, rendezvous: str, out: str) -> None:
    """One rank's first training step on its rows of the batch, 3 and 5 of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    flow = ActNorm((2, 3, 3), data_init=True).double().train()
    z, log_det = DistributedDataParallel(flow)(randn(8, 2, 3, 3).split([3, 5])[rank])
    (z.square().sum() - log_det.sum()).backward()
    torch.save({**flow.state_dict(), "z": z.detach()}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_start_from_the_union_of_their_batches(tmp_path: Path):
    torch.multiprocessing.spawn(_first_step, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    alone, x = ActNorm((2, 3, 3), data_init=True).double().train(), randn(8, 2, 3, 3)
    z = alone(x)[0].detach()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key, value in alone.state_dict().items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.cat([rank["z"] for rank in ranks]), z, rtol=1e-12, atol=1e-12)


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
