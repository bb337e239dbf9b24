r"""Stochastic normalizing flows (SNF): layers of a flow, each followed by random steps at an annealed density.

From x ~ N(0, sigma^2 I) layer k = 1, ..., K takes a flow h_k and then S steps at pi_b, b = k/K (see `geometric`), of a size h
that is learned with the rest. A path weighs the ratio of its reverse from x_K to itself,

    log w = log mu^(x_K) - log N(x_0; 0, sigma^2 I) + sum_k log|det dh_k/dx| + sum log q(x | y)/q(y | x),

over all steps x -> y, exactly: E[w] = Z and E[log w] <= log Z for every h_k and h. The steps are either

    Langevin      y = x + h s(x) + sqrt(2 h) eps,   x = y + h s(y) + sqrt(2 h) eps',   s = grad log pi_b,   eps ~ N(0, I),
                  log q(x | y)/q(y | x) = 1/2 (|eps|^2 - |eps'|^2),

where eps' is the noise that leads from y back to x, and pi_b is left invariant only as h -> 0, or

    Metropolis    any `Moves`, reversible at pi_b:   log q(x | y)/q(y | x) = log pi_b(x) - log pi_b(y), refused or not.

Training minimises E[-log w], which is KL of paths up to log Z, through the whole path; a target that gives its score is
differentiated twice. A move is accepted with a probability a that the parameters theta change, so that with the decisions D

    grad E[-log w] = E[-grad log w - (log w - c) grad log P(D)],      P(D) = prod (a or 1 - a),

where the second term is the likelihood ratio of the decisions, whose mean does not depend on c: for each path c is the mean of
the others. Langevin steps decide nothing, P = 1.

References:
    Wu, Koehler, Noe 2020, "Stochastic normalizing flows", Eqs. 8, 12 and 16; Williams 1992, "Simple statistical
    gradient-following algorithms for connectionist reinforcement learning" (the likelihood ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from indm_core.flow import Flow
from indm_core.noise import Noise, one_stream, randn_like
from indm_core.pis.annealing import Bridge, Moves, Points
from indm_core.pis.baselines.flow_training import Build, adam, built, check_training, finite, minimised
from indm_core.pis.baselines.vectors import couplings
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target, like
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float
from indm_core.training import AdamW

__all__ = ["Langevin", "Metropolis", "StochasticNormalizingFlow", "StochasticPath", "Walk", "path_loss"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Walk:
    """Where the steps of a layer lead, and what they add to a path.

    Args:
        at: The points.
        log_ratio: sum log q(x | y)/q(y | x), (n,).
        log_chance: log P(D) of the layer's decisions, (n,).
    """

    at: Points
    log_ratio: Float[Tensor, " n"]
    log_chance: Float[Tensor, " n"]


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

    def forward(self, at: Points, bridge: Bridge, beta: Float[Tensor, " n"], generator: torch.Generator | None) -> Walk:
        h = self.log_step.exp()
        root, log_ratio = (2 * h).sqrt(), torch.zeros_like(beta)
        for _ in range(self.num_moves):
            eps = randn_like(at.x, generator)
            after = bridge.at(finite(at.x + h * bridge.score(at, beta) + root * eps))
            back = (at.x - after.x - h * bridge.score(after, beta)) / root
            log_ratio = log_ratio + 0.5 * (eps.square() - back.square()).sum(1)
            at = after
        return Walk(at=at, log_ratio=log_ratio, log_chance=torch.zeros_like(beta))


@final
class Metropolis(nn.Module):
    """S moves that are accepted or refused.

    Args:
        moves: The kernel.
        step: h before training.
        num_moves: S.
    """

    def __init__(self, moves: Moves, *, step: float, num_moves: int) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))
        self.moves, self.num_moves = moves, num_moves

    def forward(self, at: Points, bridge: Bridge, beta: Float[Tensor, " n"], generator: torch.Generator | None) -> Walk:
        h, begun, log_chance = self.log_step.exp().reshape(1, 1), bridge.log_prob(at, beta), torch.zeros_like(beta)
        for _ in range(self.num_moves):
            after, accept = self.moves(bridge, at, beta, h, generator)
            moved = (after.x != at.x).any(1)
            chance = torch.where(moved, accept, 1 - accept)
            # a proposal that is its start to the last bit looks refused; its decision says nothing
            log_chance = log_chance + chance.clamp(min=torch.finfo(chance.dtype).tiny).log()
            at = after
        ended = bridge.log_prob(at, beta)
        # who ends where the density is 0 began there and was refused
        log_ratio = torch.where(ended > -math.inf, begun - ended, 0)
        return Walk(at=at, log_ratio=log_ratio, log_chance=log_chance)


@final
class StochasticPath(nn.Module):
    """The K layers.

    Args:
        flows: h_1, ..., h_K.
        steps: Of each layer.
    """

    def __init__(self, flows: Sequence[Flow], steps: Sequence[Langevin] | Sequence[Metropolis]) -> None:
        super().__init__()
        self.flows, self.steps = nn.ModuleList(flows), nn.ModuleList(steps)

    def forward(
        self, x_0: Float[Tensor, "n d"], bridge: Bridge, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """x_K, log w and log P(D) of paths from x_0."""
        x, log_w, log_chance = x_0, -bridge.log_start(x_0), x_0.new_zeros(len(x_0))
        log_mu = log_chance
        for k, (flow, steps) in enumerate(zip(self.flows, self.steps, strict=True), start=1):
            x, log_det = flow(x, generator)
            beta = torch.full_like(log_mu, k / len(self.flows))
            walk = steps(bridge.at(finite(x)), bridge, beta, generator)
            x, log_mu, log_w = walk.at.x, walk.at.log_mu, log_w + log_det + walk.log_ratio
            log_chance = log_chance + walk.log_chance
        return x, log_w + log_mu, log_chance


def path_loss(log_w: Float[Tensor, " n"], log_chance: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of -log w over n >= 2 paths, with the gradient that the module's docstring gives."""
    n = len(log_w)
    above = (log_w - log_w.mean()).detach() * (n / (n - 1))  # the mean of the other paths
    return -(log_w + above * (log_chance - log_chance.detach())).mean()


@final
@dataclass(frozen=True, kw_only=True)
class StochasticNormalizingFlow:
    """SNF, trained anew for each call; K (S L + 1) (`num_steps` x `batch` + num) evaluations, with moves of L each.

    Args:
        flow: d -> h_k, one for each layer; its log_det must be exact in evaluation mode (see `vectors`).
        num_layers: K.
        moves: The kernel of Metropolis layers; None: Langevin layers, of L = 1.
        num_moves: S.
        step: h before training.
        sigma: Standard deviation of x_0.
        num_steps: Of the optimiser; 0 leaves the layers as they begin.
        batch: Paths of a step, at least 2.
        optimiser: Settings.

    Raises:
        ValueError: an argument out of range.
    """

    flow: Build = couplings
    num_layers: int = 5
    moves: Moves | None = None
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
        if self.batch < 2:
            raise ValueError(f"batch={self.batch} must be at least 2: a path is compared with the others")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Raises: ValueError: a target without gradient or with nan; generators of single samples."""
        check_count(num=num)
        counted, stream, wanted = Counted(target), one_stream(generator), like(target)
        bridge = Bridge(target=counted, sigma=self.sigma, gradient=self.moves is None or self.moves.gradient)
        flows = [built(self.flow, target.dim, wanted, stream) for _ in range(self.num_layers)]
        path = StochasticPath(flows, self._steps()).to(wanted)

        def weighted(num: int) -> tuple[Tensor, Tensor, Tensor]:
            """x_K, log w and log P(D) of paths."""
            return path(bridge.drawn(num, stream), bridge, stream)

        path.train()
        minimised(lambda: path_loss(*weighted(self.batch)[1:]), [*path.parameters()], self.optimiser, self.num_steps)
        path.eval()
        with torch.no_grad():
            x, log_w, _ = weighted(num)
        return Draws.independent(x, log_w, counted.evaluations)

    def _steps(self) -> list[Langevin] | list[Metropolis]:
        """Of each layer."""
        step, num, layers = self.step, self.num_moves, range(self.num_layers)
        if self.moves is None:
            return [Langevin(step=step, num_moves=num) for _ in layers]
        return [Metropolis(self.moves, step=step, num_moves=num) for _ in layers]
