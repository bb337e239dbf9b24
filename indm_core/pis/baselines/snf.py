r"""Stochastic normalizing flows (SNF): layers of a flow, each followed by Langevin steps at an annealed density.

From x ~ N(0, sigma^2 I) layer k = 1, ..., K takes a flow h_k and then S unadjusted Langevin steps at pi_b, b = k/K (see
`geometric`), of a size h that is learned with the rest,

    y = x + h s(x) + sqrt(2 h) eps,     x = y + h s(y) + sqrt(2 h) eps',     s = grad log pi_b,    eps ~ N(0, I):

eps' is the noise that leads from y back to x. A path weighs the ratio of its reverse from x_K to itself,

    log w = log mu^(x_K) - log N(x_0; 0, sigma^2 I) + sum_k log|det dh_k/dx| + sum 1/2 (|eps|^2 - |eps'|^2),

exactly, though the steps leave no density invariant: E[w] = Z and E[log w] <= log Z for every h_k and h. Training minimises
E[-log w], which is KL of paths up to log Z, through the whole path; the target is differentiated twice.

References:
    Wu, Koehler, Noe 2020, "Stochastic normalizing flows", Eqs. 8, 12 and 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from indm_core.flow import Flow
from indm_core.noise import Noise, one_stream, randn_like
from indm_core.pis.annealing import Bridge, Points
from indm_core.pis.baselines.flow_training import Build, adam, built, check_training, finite, minimised
from indm_core.pis.baselines.vectors import couplings
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target, like
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float
from indm_core.training import AdamW

__all__ = ["Langevin", "StochasticNormalizingFlow", "StochasticPath"]


@final
class Langevin(nn.Module):
    """S unadjusted Langevin steps, each of one evaluation.

    Args:
        step: h before training.
        num_moves: S.
    """

    def __init__(self, *, step: float, num_moves: int) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))
        self.num_moves = num_moves

    def forward(
        self, at: Points, bridge: Bridge, beta: Float[Tensor, " n"], generator: torch.Generator | None
    ) -> tuple[Points, Float[Tensor, " n"]]:
        """Where the steps lead, and sum 1/2 (|eps|^2 - |eps'|^2)."""
        h = self.log_step.exp()
        root, log_ratio = (2 * h).sqrt(), torch.zeros_like(beta)
        for _ in range(self.num_moves):
            eps = randn_like(at.x, generator)
            after = bridge.at(finite(at.x + h * bridge.score(at, beta) + root * eps))
            back = (at.x - after.x - h * bridge.score(after, beta)) / root
            log_ratio = log_ratio + 0.5 * (eps.square() - back.square()).sum(1)
            at = after
        return at, log_ratio


@final
class StochasticPath(nn.Module):
    """The K layers.

    Args:
        flows: h_1, ..., h_K.
        moves: Of each layer.
    """

    def __init__(self, flows: list[Flow], moves: list[Langevin]) -> None:
        super().__init__()
        self.flows, self.moves = nn.ModuleList(flows), nn.ModuleList(moves)

    def forward(
        self, x_0: Float[Tensor, "n d"], bridge: Bridge, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """x_K and log w of paths from x_0."""
        x, log_w, log_mu = x_0, -bridge.log_start(x_0), x_0.new_zeros(len(x_0))
        for k, (flow, move) in enumerate(zip(self.flows, self.moves, strict=True), start=1):
            x, log_det = flow(x, generator)
            beta = torch.full_like(log_mu, k / len(self.flows))
            at, log_ratio = move(bridge.at(finite(x)), bridge, beta, generator)
            x, log_mu, log_w = at.x, at.log_mu, log_w + log_det + log_ratio
        return x, log_w + log_mu


@final
@dataclass(frozen=True, kw_only=True)
class StochasticNormalizingFlow:
    """SNF, trained anew for each call; K (S + 1) (`num_steps` x `batch` + num) evaluations.

    Args:
        flow: d -> h_k, one for each layer; its log_det must be exact in evaluation mode (see `vectors`).
        num_layers: K.
        num_moves: S.
        step: h before training.
        sigma: Standard deviation of x_0.
        num_steps: Of the optimiser; 0 leaves the layers as they begin.
        batch: Paths of a step.
        optimiser: Settings.

    Raises:
        ValueError: an argument out of range.
    """

    flow: Build = couplings
    num_layers: int = 5
    num_moves: int = 3
    step: float = 0.01
    sigma: float = 1.0
    num_steps: int = 500
    batch: int = 128
    optimiser: AdamW = field(default_factory=lambda: adam(lr=5e-3))

    def __post_init__(self) -> None:
        check_count(num_layers=self.num_layers, num_moves=self.num_moves, batch=self.batch)
        check_positive(step=self.step, sigma=self.sigma)
        check_training(self.optimiser, self.num_steps)

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Raises: ValueError: a target without gradient or with nan; generators of single samples."""
        check_count(num=num)
        counted, stream, wanted = Counted(target), one_stream(generator), like(target)
        bridge = Bridge(target=counted, sigma=self.sigma)
        flows = [built(self.flow, target.dim, wanted, stream) for _ in range(self.num_layers)]
        moves = [Langevin(step=self.step, num_moves=self.num_moves) for _ in range(self.num_layers)]
        path = StochasticPath(flows, moves).to(wanted)

        def weighted(num: int) -> tuple[Tensor, Tensor]:
            """x_K and log w of paths."""
            return path(bridge.drawn(num, stream), bridge, stream)

        path.train()
        minimised(lambda: -weighted(self.batch)[1].mean(), [*path.parameters()], self.optimiser, self.num_steps)
        path.eval()
        with torch.no_grad():
            x, log_w = weighted(num)
        return Draws.independent(x, log_w, counted.evaluations)
