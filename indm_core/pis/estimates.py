r"""What weighted paths say of log Z and of the sampler, in nats and in log space.

With n weights w_k = exp(log_w_k), E[w] = Z:

    log_z         log (1/n) sum_k w_k. Z is unbiased; its logarithm lies below log Z by about Var[w]/(2 n Z^2) in the mean.
    log_z_bound   (1/n) sum_k log w_k, whose mean is at most log Z (5.19); the evidence lower bound (ELBO).
    eubo          the mean of log w over paths of the optimal process: at least log Z.
    ess           (sum w)^2 / (n sum w^2), in (0, 1]: the share of the paths that count.

References:
    Zhang, Chen 2022, "Path integral sampler", Eqs. 5.17-5.20 of the thesis; Kong 1992 (ESS).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.noise import Noise, rand
from indm_core.shapes import Float, Int

__all__ = ["Estimate", "ess", "log_z", "log_z_bound", "resampled"]


class Estimate(NamedTuple):
    """A number and its standard error, both in nats."""

    value: float
    se: float


def log_z(log_w: Float[Tensor, " n"]) -> Estimate:
    """The logarithm of the mean weight; the error is that of the mean, by the delta method: sd(w) / (mean(w) sqrt(n))."""
    log_w = log_w.double()
    value = torch.logsumexp(log_w, 0) - math.log(len(log_w))
    return Estimate(float(value), float((log_w - value).exp().std()) / math.sqrt(len(log_w)))


def log_z_bound(log_w: Float[Tensor, " n"]) -> Estimate:
    """The mean of log w: a lower bound on log Z in the mean."""
    log_w = log_w.double()
    return Estimate(float(log_w.mean()), float(log_w.std()) / math.sqrt(len(log_w)))


def ess(log_w: Float[Tensor, " n"]) -> float:
    """The effective share of n weighted samples, in (0, 1]."""
    log_w = log_w.double()
    return math.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)) / len(log_w)


def resampled(log_w: Float[Tensor, " n"], num: int, generator: Noise = None) -> Int[Tensor, " num"]:
    """Indices of `num` samples drawn in proportion to the weights, systematically: one uniform number places all of them."""
    share = (log_w.double() - log_w.max()).exp().cumsum(0)
    places = (torch.arange(num, device=log_w.device) + rand(1, log_w, generator)) / num
    return torch.searchsorted(share / share[-1], places).clamp(max=len(log_w) - 1)
