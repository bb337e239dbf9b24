r"""Paths that are resampled on the way: sequential Monte Carlo with a control as its proposal.

Of the paths x_1, ..., x_i (D, g, u_i, eps_i as in `sampler`) the target at t_i = i D is taken to be: x_i from a guess pi_i, and
what led there from the uncontrolled process pinned to 0 and to x_i, a Brownian bridge run backwards,

    gamma_i(x_1, ..., x_i) = pi_i(x_i) prod_{j<i} b(x_j | x_{j+1}),  b(. | x_{j+1}) = N(t_j/t_{j+1} x_{j+1}, g^2 D t_j/t_{j+1}),
    pi_i(x) = N(x; 0, t_i g^2 I) phi_i(x),   log phi_i = lambda_i L,   L(x) = log mu^(x) - log mu^0(x),   mu^0 = N(0, T g^2 I).

The bridges undo the steps q(x_{j+1} | x_j) = N(x_j, g^2 D I) of the uncontrolled process (Bayes), so that

    gamma_i = phi_i(x_i) prod_{j<i} q(x_{j+1} | x_j),

and with p for the controlled step the weight grows at step i by gamma_{i+1}/(gamma_i p), whose logarithm is

    G_i = -(D/2 |u_i|^2 + sqrt(D) u_i . eps_i) + lambda_{i+1} L(x_{i+1}) - lambda_i L(x_i).

lambda goes from 0 to 1, hence gamma_N is mu^ with its bridges, whose integral is Z, and sum_i G_i is the log w of Eq. 5.18 for
every lambda: without resampling nothing changes. The best phi_t is E[mu^/mu^0(x_T) | x_t = x] of the uncontrolled process; for
lambda_t = t/T, pi_t is, up to a constant, mu^^(t/T) exp(-(1/t - t/T^2) |x|^2 / (2 g^2)): it has an integral if mu^ is bounded.
Of N(m, T g^2 I) with its exact control all paths weigh the same; by this guess, at t = s T, the logarithms of their weights
have the variance s (1 - s)^2 |m|^2 / (T g^2): where that makes the ESS small, resampling is a loss.

Where the ESS of a population of m paths falls below a share, m are drawn in proportion to the weights, systematically, and each
takes the mean weight. So the mean of the last weights of a population is an unbiased estimate of Z for every control, every N
and every lambda. Populations are independent: from their spread comes the standard error.

The code keeps the log weight v without phi: G_i of all steps adds up to v + lambda_i L(x_i), and after resampling v is the
logarithm of the mean weight less lambda_i L(x_i). Where lambda_i = 0 nothing is known of the target, and nothing is resampled.

References:
    Del Moral, Doucet, Jasra 2006, "Sequential Monte Carlo samplers" (backward kernels, incremental weights, unbiasedness);
    Zhang, Chen 2022, "Path integral sampler", Eqs. 5.18-5.20 of the thesis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, one_stream, randn_like
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.estimates import log_mean, log_z, log_z_bound, renewed
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count

__all__ = ["ResampledPaths"]


def in_step_with_time(s: float) -> float:
    """lambda = t/T."""
    return s


@final
@dataclass(frozen=True, kw_only=True)
class ResampledPaths:
    """The method "PIS + resampling": a control's paths, resampled where few of them count (`WeightedPaths`: nowhere).

    Its `log_z` is unbiased for Z before the logarithm; its `bound` is the mean over populations of the log of their estimates
    of Z: at most log Z in the mean. Where nothing is resampled it is tighter than the ELBO, which is that of populations of one
    path. Where the guess pi_i is worse than the control, resampling undoes what the control has done, and the bound may lie
    below the ELBO: compare with `WeightedPaths`.

    Args:
        sampler: The control with its T, g and N; it is trained already, and its training is not counted.
        share: Of the ESS, in [0, 1], below which a population is resampled.
        schedule: lambda as a function of t/T, 0 at 0 and 1 at 1.
        num_groups: Independent populations, at least 2.
        num_steps: 0 takes N.

    Raises:
        ValueError: an argument out of range.
    """

    sampler: PathIntegralSampler
    share: float = 0.5
    schedule: Callable[[float], float] = in_step_with_time
    num_groups: int = 10
    num_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must lie in [0, 1]: it is a share of the paths")
        if (ends := (self.schedule(0.0), self.schedule(1.0))) != (0.0, 1.0):
            raise ValueError(f"schedule: it is {ends[0]} at 0 and {ends[1]} at 1; without 0 and 1 there, Z is biased")
        check_count(num_groups=self.num_groups)
        if self.num_groups < 2:
            raise ValueError(f"num_groups={self.num_groups}: a standard error needs 2 populations or more")

    @torch.no_grad()
    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Weighted ends of `num` paths, a multiple of the number of populations; one stream draws all, or the default one.

        Raises:
            ValueError: another number of paths, or one stream per path, which a population does not have.
        """
        check_count(num=num)
        if num % self.num_groups or num < 2 * self.num_groups:
            raise ValueError(
                f"num={num} paths for {self.num_groups} populations: give a multiple of {self.num_groups}, from "
                f"{2 * self.num_groups}"
            )
        counted, stream = Counted(target), one_stream(generator)
        path = self.sampler.path(counted, self.num_steps)
        x = self.sampler.begin(num)
        v, num_steps = x.new_zeros(num), len(path.scale)
        for i, (scale, rate) in enumerate(zip(path.scale, path.rate, strict=True)):
            u, eps = path.f(i, x), randn_like(x, stream)
            v = v - (0.5 * path.step * u.square() + rate * u * eps).sum(1)
            x = x + scale * (eps + rate * u)
            lam = self.schedule((i + 1) / num_steps)
            if i + 1 < num_steps and lam and self.share:
                x, v = self._resampled(x, v, -lam * path.end(x), stream)
        log_w = v - path.end(x)
        found = log_mean(log_w.double().reshape(self.num_groups, -1))
        evaluations, bound = counted.evaluations, log_z_bound(found)
        return Draws(x=x, log_w=log_w, log_z=log_z(found), bound=bound, evaluations=evaluations)

    def _resampled(self, x: Tensor, v: Tensor, log_phi: Tensor, generator: Noise) -> tuple[Tensor, Tensor]:
        """x and v, renewed in the populations of which too few paths count."""
        log_w = (v + log_phi).reshape(self.num_groups, -1)
        index, poor = renewed(log_w, self.share, generator)
        index, poor = index.flatten(), poor.expand_as(log_w).flatten()
        mean = log_mean(log_w)[:, None].expand_as(log_w).flatten()
        return x[index], torch.where(poor, mean - log_phi[index], v)
