r"""Annealed sequential Monte Carlo.

R independent runs of N particles go from pi_0 = N(0, sigma^2 I) to pi_1 = mu^/Z along the geometric bridge,
0 = beta_0 < ... < beta_K = 1. At each level, with the weights W of the particles of a run and their increments
v = exp((beta_k - beta_{k-1}) L(x)),

    1. W <- W v, and where the effective share (sum W)^2 / (N sum W^2) falls below a threshold, the particles are
       resampled in proportion to W and take the mean weight of their run;
    2. they are moved by kernels that leave pi_{beta_k} as it is.

The mean weight at the end, Z_r = sum_i W_i/N, is unbiased for Z, whenever resampling takes place: the mean of W stays.
With adaptive temperatures the next one is where the conditional effective share of the increments,

    (sum_i W_i v_i)^2 / (sum_i W_i  sum_i W_i v_i^2),

has fallen to a given value, by bisection. Temperatures or steps that are adapted to the particles bias Z by O(1/N); linear
temperatures with gain 0 do not. log Z is the logarithm of the mean of the R runs, and its standard error that between
the runs, by the delta method, so that what all particles of a run share is in it. (A mode that no run finds is not.)

References:
    Del Moral, Doucet, Jasra 2006, "Sequential Monte Carlo samplers"; Zhou, Johansen, Aston 2016, "Toward automatic model
    comparison" (conditional ESS); Beskos et al. 2016, "On the convergence of adaptive sequential Monte Carlo methods".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.noise import Noise
from indm_core.pis.annealing import Bridge, HMCMoves, Moves, Points
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.estimates import log_mean, log_z, renewed
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count, check_not_negative, check_positive
from indm_core.shapes import Float

__all__ = ["SMC", "AdaptiveTemperatures", "LinearTemperatures", "Temperatures"]

BISECTIONS = 40


@runtime_checkable
class Temperatures(Protocol):
    """A rule for the temperatures."""

    def rise(
        self, level: int, left: Float[Tensor, " r"], log_w: Float[Tensor, "r n"], gain: Float[Tensor, "r n"]
    ) -> Float[Tensor, " r"]:
        """beta_{level+1} - beta_level of each run.

        Args:
            level: Levels that are done.
            left: 1 - beta_level.
            log_w, gain: Log weights and L of the particles.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class LinearTemperatures:
    """beta_k = k/K.

    Args:
        num_levels: K; published: 10.
    """

    num_levels: int = 10

    def __post_init__(self) -> None:
        check_count(num_levels=self.num_levels)

    def rise(self, level: int, left: Tensor, log_w: Tensor, gain: Tensor) -> Tensor:
        return left / (self.num_levels - level)


@final
@dataclass(frozen=True, kw_only=True)
class AdaptiveTemperatures:
    """The next temperature by the conditional effective share, in each run for itself.

    Args:
        share: That is kept, in (0, 1).
        max_levels: Levels after which the target is given up.
    """

    share: float = 0.8
    max_levels: int = 1000

    def __post_init__(self) -> None:
        check_count(max_levels=self.max_levels)
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} must lie between 0 and 1; 0.5 to 0.9 are usual")

    def rise(self, level: int, left: Tensor, log_w: Tensor, gain: Tensor) -> Tensor:
        if level == self.max_levels:
            raise ConvergenceError(
                f"max_levels={level}: the inverse temperature has come to {1 - float(left.max()):.3g} of 1; "
                "raise max_levels or sigma, or lower share"
            )
        low, high = torch.zeros_like(left), left
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            enough = _conditional_share(log_w, _increment(middle, gain)) >= self.share
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        # The upper end is above 0, so that every level is a step; where all that is left keeps the share, it is taken.
        return torch.where(_conditional_share(log_w, _increment(left, gain)) >= self.share, left, high)


@final
@dataclass(frozen=True, kw_only=True)
class SMC:
    """Weighted samples of all runs, run after run, and log Z with the error between them.

    The log weights are those of mu^ itself, so that runs weigh as much as their Z_r.

    Args:
        temperatures: Their rule.
        moves: The kernel.
        num_moves: Of each particle at each level.
        num_runs: R, at least 2; each has N = ceil(num/R) particles.
        resample_below: Effective share below which a run resamples, in [0, 1].
        sigma: Of the start.
        step: Of the first move, in units of sigma.
        gain: After each move log step grows by gain (accepted share - wanted share), in each run for itself.

    Raises:
        ValueError: an argument out of range; the target's density is 0 at all particles of a run.
        ConvergenceError: adaptive temperatures took too many levels.
    """

    temperatures: Temperatures = AdaptiveTemperatures()
    moves: Moves = field(default_factory=HMCMoves)
    num_moves: int = 1
    num_runs: int = 10
    resample_below: float = 0.5
    sigma: float = 1.0
    step: float = 0.2
    gain: float = 2.0

    def __post_init__(self) -> None:
        check_count(num_moves=self.num_moves, num_runs=self.num_runs)
        check_positive(sigma=self.sigma, step=self.step)
        check_not_negative(gain=self.gain)
        if self.num_runs < 2:
            raise ValueError(f"num_runs={self.num_runs} must be at least 2: the error of log Z is that between runs")
        if not 0 <= self.resample_below <= 1:
            raise ValueError(f"resample_below={self.resample_below} must lie in [0, 1]")

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        check_count(num=num)
        counted = Counted(target)
        bridge = Bridge(target=counted, sigma=self.sigma, gradient=self.moves.gradient)
        size = -(-num // self.num_runs)
        points = bridge.begin(self.num_runs * size, generator)
        log_w = points.log_mu.new_zeros(self.num_runs, size)
        left = log_w.new_ones(self.num_runs)  # 1 - beta
        log_step = torch.full_like(left, math.log(self.step * self.sigma))
        level = 0
        while (left > 0).any():
            gain = bridge.gain(points).reshape(self.num_runs, size)
            rise = self.temperatures.rise(level, left, log_w, gain)
            log_w, left, level = log_w + _increment(rise, gain), left - rise, level + 1
            _check_weights(log_w, self.sigma)
            index, poor = renewed(log_w, self.resample_below, generator)
            log_w = torch.where(poor, log_mean(log_w)[:, None], log_w)
            points, log_step = self._moved(bridge, points[index.flatten()], 1 - left, log_step, generator)
        runs = log_mean(log_w)
        x, log_w = points.x[:num], log_w.flatten()[:num]
        return Draws(x=x, log_w=log_w, log_z=log_z(runs), evaluations=counted.evaluations)

    def _moved(
        self, bridge: Bridge, points: Points, beta: Tensor, log_step: Tensor, generator: Noise
    ) -> tuple[Points, Tensor]:
        size = len(points) // self.num_runs
        for _ in range(self.num_moves):
            step = log_step.exp().repeat_interleave(size)[:, None]
            points, accepted = self.moves(bridge, points, beta.repeat_interleave(size), step, generator)
            log_step = log_step + self.gain * (accepted.reshape(-1, size).mean(1) - self.moves.wanted)
        return points, log_step


def _increment(rise: Tensor, gain: Tensor) -> Tensor:
    """log v; 0 where the temperature stays, whatever the gain."""
    return torch.where(rise[:, None] > 0, rise[:, None] * gain, 0)


def _conditional_share(log_w: Tensor, log_v: Tensor) -> Tensor:
    total = torch.logsumexp(log_w, 1) + torch.logsumexp(log_w + 2 * log_v, 1)
    return (2 * torch.logsumexp(log_w + log_v, 1) - total).exp()


def _check_weights(log_w: Tensor, sigma: float) -> None:
    if (log_w.max(1).values == -math.inf).any():
        raise ValueError(
            f"sigma={sigma}: the target's density is 0 at every particle of a run; give a sigma that reaches the target, "
            "or more particles"
        )
