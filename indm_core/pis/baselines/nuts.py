r"""The No-U-turn sampler of Pyro: HMC whose trajectories end where they would turn back.

Pyro adapts the step and a diagonal mass in the warm-up and runs one chain at a time. Its potential is -log mu^, a plain
function; nothing of its language is used. nan on a trajectory counts as one that has diverged, as in HMC.

References:
    Hoffman, Gelman 2014, "The No-U-turn sampler"; Bingham et al. 2019, "Pyro: deep universal probabilistic programming".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand
from indm_core.pis.annealing import Bridge
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive

__all__ = ["NUTS"]


@final
@dataclass(frozen=True, kw_only=True)
class NUTS:
    """Chains from N(0, sigma^2 I), one after the other. Samples come chain after chain.

    Args:
        num_chains: Chains.
        num_warm_up: Moves of each chain before the first sample.
        max_depth: A trajectory has at most 2^max_depth - 1 steps.
        wanted: Average acceptance that the step is adapted to.
        sigma: Of the start.

    Raises:
        ValueError: an argument out of range, or Pyro is not installed.
    """

    num_chains: int = 1
    num_warm_up: int = 500
    max_depth: int = 10
    wanted: float = 0.8
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_count(num_chains=self.num_chains, num_warm_up=self.num_warm_up, max_depth=self.max_depth)
        check_positive(sigma=self.sigma)
        if not 0 < self.wanted < 1:
            raise ValueError(f"wanted={self.wanted} must lie between 0 and 1")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        run = _pyro()
        counted = Counted(target)
        begin = Bridge(target=counted, sigma=self.sigma).begin_inside(self.num_chains, generator).x

        def potential(sites: dict[str, Tensor]) -> Tensor:
            x = sites["x"]
            if not x.isfinite().all():  # a trajectory that has diverged: Pyro refuses nan
                return math.nan * x.sum()
            return -counted.log_prob(x[None])[0]

        each = -(-num // self.num_chains)
        # Pyro draws from torch's global generator: it is seeded for it, and put back.
        with torch.random.fork_rng([begin.device] if begin.is_cuda else []):
            torch.manual_seed(int(rand(1, torch.zeros(()), generator) * 2**53))
            x = torch.cat([run(self, potential, x_0, each) for x_0 in begin])[:num]
        return Draws(x=x, log_w=torch.zeros_like(x[:, 0]), evaluations=counted.evaluations)


def _pyro() -> Callable[[NUTS, Callable[[dict[str, Tensor]], Tensor], Tensor, int], Tensor]:
    """What runs one chain from a point and gives its samples.

    Raises:
        ValueError: Pyro is not installed.
    """
    try:
        from pyro.infer.mcmc import MCMC  # pyright: ignore[reportMissingImports]
        from pyro.infer.mcmc import NUTS as Kernel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "NUTS: Pyro is not installed; `pip install --editable '.[pis]'` installs it, HMC needs none"
        ) from error

    def run(settings: NUTS, potential: Callable[[dict[str, Tensor]], Tensor], x_0: Tensor, num: int) -> Tensor:
        kernel = Kernel(potential_fn=potential, max_tree_depth=settings.max_depth, target_accept_prob=settings.wanted)
        chain = MCMC(
            kernel,
            num_samples=num,
            warmup_steps=settings.num_warm_up,
            initial_params={"x": x_0},
            disable_progbar=True,
        )
        chain.run()
        return chain.get_samples()["x"]

    return run
