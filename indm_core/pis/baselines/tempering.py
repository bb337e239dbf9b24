r"""Parallel tempering: chains at K temperatures that exchange their states.

At the inverse temperatures 0 = beta_0 < ... < beta_{K-1} = 1 of the geometric bridge, each sweep moves every chain by a
kernel that leaves its pi_beta as it is (at beta_0 it draws anew), and then exchanges the neighbours k, k + 1, of even k
and of odd k by turns, with probability

    min(1, exp((beta_k - beta_{k+1}) (L(x_{k+1}) - L(x_k)))).

In the warm-up steps are adapted by dual averaging, and the ladder to the rejected shares r_k: with
Lambda(beta_k) = sum_{j<k} r_j, linear in between, temperatures are placed at equal distances of Lambda, so that all
neighbours exchange equally often.

Constant, by stepping stones. With T sweeps of each of C independent replicas,

    log Z = sum_k log s_k,      s_k = mean over t, c of v_{k,c,t},      v_{k,c,t} = exp((beta_{k+1} - beta_k) L(x_{k,c,t})),

consistent as T C grows. Its standard error is the one between replicas, by the delta method: the standard deviation over c of
sum_k mean_t v_{k,c,t} / s_k, over sqrt(C).

References:
    Swendsen, Wang 1986; Geyer 1991; Xie et al. 2011 (stepping stones); Syed et al. 2022, "Non-reversible parallel tempering".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand_like
from indm_core.pis.annealing import Bridge, HMCMoves, Moves, Points
from indm_core.pis.annealing.dual_averaging import DualAveraging
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.estimates import Estimate, log_mean
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Bool, Float

__all__ = ["ParallelTempering", "exchanged", "placed", "stepping_stones"]

ROUNDS = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the warm-up after which the ladder and the steps begin anew; the last round leaves the ladder as it is."""


def exchanged(
    beta: Float[Tensor, " k"], gain: Float[Tensor, "k c"], odd: bool, generator: Noise
) -> tuple[Bool[Tensor, "k-1 c"], Float[Tensor, "k-1 c"]]:
    """Which neighbours exchange their states, of even or odd k, and the probabilities of all."""
    log_ratio = (beta[:-1] - beta[1:])[:, None] * (gain[1:] - gain[:-1])
    accept = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    turn = torch.arange(len(accept), device=accept.device)[:, None] % 2 == int(odd)
    return turn & (rand_like(accept, generator) < accept), accept


def placed(beta: Float[Tensor, " k"], rejected: Float[Tensor, " k-1"]) -> Float[Tensor, " k"]:
    """The ladder whose steps all have the same share of Lambda."""
    barrier = torch.cat([beta.new_zeros(1), (rejected + 1e-3).cumsum(0).to(beta)])
    wanted = barrier[-1] * torch.arange(len(beta), device=beta.device) / (len(beta) - 1)
    k = torch.searchsorted(barrier, wanted).clamp(1, len(beta) - 1)
    share = (wanted - barrier[k - 1]) / (barrier[k] - barrier[k - 1])
    found = beta[k - 1] + share * (beta[k] - beta[k - 1])
    found[0], found[-1] = 0, 1
    return found


def stepping_stones(log_v: Float[Tensor, "k c"]) -> Estimate:
    """log Z and its error from log mean_t v_{k,c,t}."""
    log_v = log_v.double()
    stones = log_mean(log_v)
    spread = (log_v - stones[:, None]).exp().sum(0).std()
    return Estimate(float(stones.sum()), float(spread) / math.sqrt(log_v.shape[1]))


@final
@dataclass(frozen=True, kw_only=True)
class ParallelTempering:
    """Samples of the cold chains, all replicas of a sweep, sweep after sweep, and log Z by stepping stones.

    Args:
        moves: The kernel.
        num_levels: K, at least 2.
        num_replicas: C, at least 2.
        num_warm_up: Sweeps before the first sample.
        thin: Sweeps from one sample of a replica to the next.
        sigma: Of pi_0.
        beta_min: beta_1 of the ladder that the warm-up begins with, geometric above 0.
        step: The first step, in units of sigma.
        adapt_ladder: Whether the warm-up moves the temperatures.

    Raises:
        ValueError: an argument out of range.
    """

    moves: Moves = field(default_factory=lambda: HMCMoves(num_leapfrog=5))
    num_levels: int = 10
    num_replicas: int = 20
    num_warm_up: int = 400
    thin: int = 1
    sigma: float = 1.0
    beta_min: float = 0.01
    step: float = 0.1
    adapt_ladder: bool = True

    def __post_init__(self) -> None:
        check_count(num_levels=self.num_levels, num_replicas=self.num_replicas, thin=self.thin)
        check_count(num_warm_up=self.num_warm_up)
        check_positive(sigma=self.sigma, step=self.step)
        if self.num_levels < 2:
            raise ValueError(f"num_levels={self.num_levels} must be at least 2: the Gaussian and the target")
        if self.num_replicas < 2:
            raise ValueError(f"num_replicas={self.num_replicas} must be at least 2: the error of log Z is between them")
        if not 0 < self.beta_min < 1:
            raise ValueError(f"beta_min={self.beta_min} must lie between 0 and 1")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        counted = Counted(target)
        bridge = Bridge(target=counted, sigma=self.sigma, gradient=self.moves.gradient)
        points = bridge.begin(self.num_levels * self.num_replicas, generator)
        points, beta, step = self._warm(bridge, points, generator)
        num_sweeps = self.thin * -(-num // self.num_replicas)
        log_sum = points.log_mu.new_full((self.num_levels - 1, self.num_replicas), -math.inf)
        kept = list[Tensor]()
        for t in range(num_sweeps):
            points, _ = self._moved(bridge, points, beta, step, generator)
            gain = bridge.gain(points).reshape(self.num_levels, -1)
            log_sum = torch.logaddexp(log_sum, beta.diff()[:, None] * gain[:-1])
            points, _ = self._exchanged(points, beta, gain, t, generator)
            if (t + 1) % self.thin == 0:
                kept.append(points.x[-self.num_replicas :])
        x = torch.cat(kept)[:num]
        constant = stepping_stones(log_sum - math.log(num_sweeps))
        return Draws(x=x, log_w=torch.zeros_like(x[:, 0]), log_z=constant, evaluations=counted.evaluations)

    def _ladder(self, like: Tensor) -> Tensor:
        above = torch.linspace(math.log(self.beta_min), 0, self.num_levels - 1, dtype=torch.float64).exp()
        above[-1] = 1
        return torch.cat([above.new_zeros(1), above]).to(like)

    def _warm(self, bridge: Bridge, points: Points, generator: Noise) -> tuple[Points, Tensor, Tensor]:
        """The points after the warm-up, the ladder (k,), and the steps above the lowest temperature (k-1,)."""
        beta = self._ladder(points.x)
        step = torch.full_like(beta[1:], self.step * self.sigma)
        t = 0
        for share in ROUNDS:
            steps, rejected, begun = DualAveraging(step, self.moves.wanted), torch.zeros_like(step), t
            while t < round(share * self.num_warm_up):
                points, accepted = self._moved(bridge, points, beta, steps.step, generator)
                steps.update(accepted)
                gain = bridge.gain(points).reshape(self.num_levels, -1)
                points, refused = self._exchanged(points, beta, gain, t, generator)
                rejected, t = rejected + refused, t + 1
            step = steps.settled
            if self.adapt_ladder and share < 1 and t > begun:
                beta = placed(beta, rejected / (t - begun))
        return points, beta, step

    def _moved(
        self, bridge: Bridge, points: Points, beta: Tensor, step: Tensor, generator: Noise
    ) -> tuple[Points, Tensor]:
        """Every chain moved once, and the accepted share of each temperature above the lowest."""
        num = self.num_replicas
        each = beta[1:].repeat_interleave(num), step.repeat_interleave(num)[:, None]
        moved, accepted = self.moves(bridge, points[num:], *each, generator)
        return bridge.begin(num, generator).joined(moved), accepted.reshape(-1, num).mean(1)

    def _exchanged(self, points: Points, beta: Tensor, gain: Tensor, t: int, generator: Noise) -> tuple[Points, Tensor]:
        """The points after the exchanges of sweep t, and the refused share of each pair of neighbours."""
        swap, accept = exchanged(beta, gain, t % 2 == 1, generator)
        none = swap.new_zeros(1, self.num_replicas)
        up, down = torch.cat([swap, none]).long(), torch.cat([none, swap]).long()
        index = torch.arange(len(points), device=beta.device).reshape(gain.shape)
        return points[(index + self.num_replicas * (up - down)).flatten()], 1 - accept.mean(1)
