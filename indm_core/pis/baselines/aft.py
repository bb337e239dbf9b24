r"""Annealed flow transport (AFT): particles that a flow carries from each annealed density to the next.

Particles begin at N(0, sigma^2 I) = gamma_0. For k = 1, ..., K, with gamma_k for pi_b at b = k/K (see `geometric`),

    transport   y = h_k(x),     log w <- log w + log gamma_k(y) + log|det dh_k/dx| - log gamma_{k-1}(x),
    resample    where the effective share of the weights is below a limit,
    move        by a kernel that leaves gamma_k invariant.

h_k begins at the identity and goes down KL(h_k gamma_{k-1} | gamma_k), up to a constant, on particles of its own,

    - sum_i W_i (log gamma_k(h(x_i)) + log|det dh/dx (x_i)|),               W_i their normalised weights,

taken over one half of them; of all steps the flow is kept that is best on the other half. Without that choice a flow stretches
the space between the few particles that it has seen.

Two sets of particles. The flows and the size of the moves are functions of the first, the training set, alone. The second,
which is returned, finds them fixed: E[mean w] = Z, however badly the flows are trained. Resampling keeps that mean, because a
particle then weighs what its group weighs in the mean.

Groups. The returned particles are m groups that resample each within itself. Given the flows, their mean weights are
independent and of mean Z: `log_z` is the logarithm of their mean, with its standard error, and `bound` the mean of their
logarithms. To first order this costs no accuracy; a group should have tens of particles.

References:
    Arbel, Matthews, Doucet 2021, "Annealed flow transport Monte Carlo", Algorithms 1 and 2.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from indm_core.errors import NonFiniteLossError
from indm_core.flow import Flow
from indm_core.noise import Noise, one_stream
from indm_core.pis.annealing import Bridge, HMCMoves, Moves, evaluated
from indm_core.pis.baselines.flow_training import Build, adam, built, check_training, finite, minimised
from indm_core.pis.baselines.vectors import couplings
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.estimates import log_mean, log_z, log_z_bound, renewed
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float
from indm_core.training import AdamW

__all__ = ["AnnealedFlowTransport"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Particles:
    """Particles at gamma_k.

    Args:
        x: (n, d).
        log_w: Their log weights, (n,), whose mean weight is an estimate of the constant of gamma_k.
        log_density: log gamma_k(x), (n,).
        groups: Indices of each group.
    """

    x: Float[Tensor, "n d"]
    log_w: Float[Tensor, " n"]
    log_density: Float[Tensor, " n"]
    groups: tuple[Tensor, ...]

    def means(self) -> Float[Tensor, " groups"]:
        """The log of each group's mean weight."""
        return torch.stack([log_mean(self.log_w[rows]) for rows in self.groups])


@final
@dataclass(frozen=True, kw_only=True)
class AnnealedFlowTransport:
    """AFT, trained anew for each call; K (J n + (1 + S L) (n + num)) evaluations, with moves of L each.

    Args:
        flow: d -> h_k; its log_det must be exact in evaluation mode (see `vectors`), and it should begin at the identity.
        num_temperatures: K.
        num_train: n, at least 2: one half is trained on, one decides.
        num_steps: J, of the optimiser at each temperature; 0 makes it annealed SMC.
        optimiser: Settings.
        share: Groups whose effective share of weights is below it are resampled, in [0, 1].
        num_groups: m; fewer where fewer particles are asked for.
        moves: The kernel.
        num_moves: S, of each particle at each temperature.
        step: Of the first move; then adapted on the training set.
        sigma: Standard deviation of gamma_0.

    Raises:
        ValueError: an argument out of range.
    """

    flow: Build = couplings
    num_temperatures: int = 10
    num_train: int = 500
    num_steps: int = 100
    optimiser: AdamW = field(default_factory=lambda: adam(lr=1e-3))
    share: float = 0.3
    num_groups: int = 16
    moves: Moves = field(default_factory=lambda: HMCMoves(jitter=0.0))
    num_moves: int = 1
    step: float = 0.2
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_count(num_temperatures=self.num_temperatures, num_train=self.num_train, num_groups=self.num_groups)
        check_count(num_moves=self.num_moves)
        check_positive(step=self.step, sigma=self.sigma)
        check_training(self.optimiser, self.num_steps)
        if self.num_train < 2:
            raise ValueError(
                f"num_train={self.num_train} must be at least 2: one half is trained on, the other decides"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must lie in [0, 1]; 0 resamples nowhere")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Raises: ValueError: a target without gradient or with nan; generators of single samples."""
        check_count(num=num)
        counted, stream, step = Counted(target), one_stream(generator), self.step
        bridge = Bridge(target=counted, sigma=self.sigma, gradient=self.moves.gradient)
        train = self._begin(bridge, self.num_train, 2, stream)
        test = self._begin(bridge, num, min(self.num_groups, num), stream)
        for k in range(1, self.num_temperatures + 1):
            beta = k / self.num_temperatures
            flow = self._fitted(train, bridge, beta, stream)
            train, accepted = self._advanced(train, flow, bridge, beta, step, stream)
            step = step * math.exp(accepted - self.moves.wanted)
            test, _ = self._advanced(test, flow, bridge, beta, step, stream)
        means = test.means()
        return Draws(
            x=test.x, log_w=test.log_w, log_z=log_z(means), bound=log_z_bound(means), evaluations=counted.evaluations
        )

    def _begin(self, bridge: Bridge, num: int, num_groups: int, generator: torch.Generator | None) -> _Particles:
        x = bridge.drawn(num, generator)
        groups = torch.arange(num, device=x.device).tensor_split(num_groups)
        return _Particles(x=x, log_w=x.new_zeros(num), log_density=bridge.log_start(x), groups=groups)

    def _fitted(self, train: _Particles, bridge: Bridge, beta: float, generator: torch.Generator | None) -> Flow:
        """h_k, in evaluation mode: of all steps the flow that the other half of the particles likes best. A training that runs
        away is over, and leaves the best one before."""
        flow = built(self.flow, bridge.target.dim, train.x, generator)
        best, kept = math.inf, copy.deepcopy(flow.state_dict())

        def kl() -> Tensor:
            nonlocal best, kept
            y, log_det = flow(train.x, generator)
            at = evaluated(bridge.target, finite(y), gradient=False)
            gain = bridge.log_prob(at, torch.full_like(log_det, beta)) + log_det
            trained_on, held_out = (-(train.log_w[rows].softmax(0) * gain[rows]).sum() for rows in train.groups)
            if held_out < best:
                best, kept = float(held_out.detach()), copy.deepcopy(flow.state_dict())
            return trained_on

        try:
            minimised(kl, [*flow.train().parameters()], self.optimiser, self.num_steps)
        except NonFiniteLossError:
            if best == math.inf:
                raise
        flow.load_state_dict(kept)
        return flow.eval()

    @torch.no_grad()
    def _advanced(
        self,
        before: _Particles,
        flow: Flow,
        bridge: Bridge,
        beta: float,
        step: float,
        generator: torch.Generator | None,
    ) -> tuple[_Particles, float]:
        """The particles after transport, resampling and moves at the next density, and the share of accepted moves."""
        y, log_det = flow(before.x, generator)
        at, accepted, betas = bridge.at(finite(y)), 0.0, torch.full_like(log_det, beta)
        gain = bridge.log_prob(at, betas) + log_det - before.log_density
        log_w = torch.where(before.log_w > -math.inf, before.log_w + gain, -math.inf)
        kept, log_w = self._resampled(log_w, before.groups, generator)
        at = at[kept]
        for _ in range(self.num_moves):
            at, shares = self.moves(bridge, at, betas, at.x.new_full((1, 1), step), generator)
            accepted += float(shares.mean()) / self.num_moves
        log_density = bridge.log_prob(at, betas)
        return _Particles(x=at.x, log_w=log_w, log_density=log_density, groups=before.groups), accepted

    def _resampled(
        self, log_w: Tensor, groups: tuple[Tensor, ...], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Which particles go on, (n,), and their log weights."""
        kept, weights = [], []
        for rows in groups:  # of sizes that differ by one
            own = log_w[rows]
            index, poor = renewed(own[None], self.share, generator)
            kept.append(rows[index[0]])
            weights.append(torch.where(poor[0], log_mean(own), own))
        return torch.cat(kept), torch.cat(weights)
