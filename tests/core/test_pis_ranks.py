"""Several ranks that train one path integral sampler have the gradients of one rank with all particles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from problems import rng
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from indm_core.noise import seeded
from indm_core.pis import GradControl, PathIntegralSampler, Target

PARTICLES = 6
Loss = Literal["kl", "log-variance"]


class Wave(Target):
    """exp(sum cos x - x^2/2)."""

    dim = 2

    def log_prob(self, x: Tensor) -> Tensor:
        return (x.cos() - 0.5 * x.square()).sum(1)


def sampler(loss: Loss) -> PathIntegralSampler:
    torch.manual_seed(0)  # of the frequencies that see the time
    control = GradControl(2, width=8).double()
    for p in control.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=rng())
    return PathIntegralSampler(control, 2, target=Wave(), num_steps=5, loss=loss)


def gradients(model: torch.nn.Module, particles: range) -> dict[str, Tensor]:
    """Of the mean over some of the particles, each with noise of its own."""
    model(len(particles), None, seeded(particles)).objective.mean().backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _rank(rank: int, rendezvous: str, out: str, losses: list[Loss]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    share = PARTICLES // 2
    for loss in losses:
        found = gradients(DistributedDataParallel(sampler(loss)), range(rank * share, (rank + 1) * share))
        torch.save(found, f"{out}/{loss}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_gradients_of_one_with_all_particles(tmp_path: Path):
    losses: list[Loss] = ["kl", "log-variance"]
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path), losses)
    torch.multiprocessing.spawn(_rank, args=arguments, nprocs=2)
    for loss in losses:
        alone = gradients(sampler(loss), range(PARTICLES))
        assert len(alone) == len(list(sampler(loss).parameters()))
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{loss}-{rank}.pt")
            assert found.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_mean_of_one_rank_alone_would_give_other_gradients():
    """What the exchange of the mean is for: the mean of the ranks' own variances has another gradient."""
    alone = gradients(sampler("log-variance"), range(PARTICLES))
    halves = [gradients(sampler("log-variance"), range(first, first + 3)) for first in (0, 3)]
    name = "network.dense_out.bias"
    own = next(key for key in alone if key.endswith(name))
    assert not torch.allclose((halves[0][own] + halves[1][own]) / 2, alone[own], rtol=1e-3)
