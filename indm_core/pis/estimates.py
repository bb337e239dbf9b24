r"""What weighted paths say of log Z and of the sampler, in nats and in log space.

With n weights w_k = exp(log_w_k), E[w] = Z:

    log_z         log (1/n) sum_k w_k. Z is unbiased; its logarithm lies below log Z by about Var[w]/(2 n Z^2) in the mean.
    log_z_bound   (1/n) sum_k log w_k, whose mean is at most log Z (5.19); the evidence lower bound (ELBO).
    ess           (sum w)^2 / (n sum w^2), in (0, 1]: the share of the paths that count.

With the weights of paths that the optimal process drew (`bridge`), whose density is w/Z times that of the controlled one,

    eubo          (1/n) sum_k log w_k, whose mean is log Z + KL(optimal || controlled): at least log Z.
    forward_ess   1/(E[w] E[1/w]) = Z^2 / E_controlled[w^2], for E[1/w] = 1/Z. It sees the modes that the control leaves out,
                  of which no path of the control tells.

Weights of resampled paths are not independent, and `ess` of the last of them leaves out what was lost before. What they are
worth is told by the standard error s of log Z: n independent weights have n s^2 = n/(n - 1) (1/ess - 1), so that

    effective_count   n / (1 + (n - 1) s^2): n ess for independent weights, exactly; for others, the number of equal weights
                      of independent paths that would know Z as well, to O(s^2).

References:
    Zhang, Chen 2022, "Path integral sampler", Eqs. 5.17-5.20 of the thesis; Kong 1992 (ESS); Blessing et al. 2024, "Beyond
    ELBOs: a large-scale evaluation of variational methods for sampling" (EUBO and forward ESS).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from indm_core.noise import Noise, rand
from indm_core.shapes import Bool, Float, Int

__all__ = [
    "Estimate",
    "effective_count",
    "ess",
    "eubo",
    "forward_ess",
    "log_ess",
    "log_mean",
    "log_z",
    "log_z_bound",
    "renewed",
    "resampled",
]


class Estimate(NamedTuple):
    """A number and its standard error, both in nats."""

    value: float
    se: float


def log_mean(log_w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The logarithm of the mean weight of each row."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def log_z(log_w: Float[Tensor, " n"]) -> Estimate:
    """The logarithm of the mean weight; the error is that of the mean, by the delta method: sd(w) / (mean(w) sqrt(n))."""
    log_w = log_w.double()
    value = log_mean(log_w)
    return Estimate(float(value), _se((log_w - value).exp()))


def log_z_bound(log_w: Float[Tensor, " n"]) -> Estimate:
    """The mean of log w: a lower bound on log Z in the mean."""
    log_w = log_w.double()
    return Estimate(float(log_w.mean()), _se(log_w))


def _se(values: Float[Tensor, " n"]) -> float:
    """Of their mean; nan of a single value."""
    n = len(values)
    return float(values.std()) / math.sqrt(n) if n > 1 else math.nan


def log_ess(log_w: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The logarithm of the effective share of n weighted samples, of each row."""
    log_w = log_w.double()
    return 2 * torch.logsumexp(log_w, -1) - torch.logsumexp(2 * log_w, -1) - math.log(log_w.shape[-1])


def ess(log_w: Float[Tensor, " n"]) -> float:
    """The effective share of n weighted samples, in (0, 1]."""
    return math.exp(log_ess(log_w))


def eubo(log_w: Float[Tensor, " n"]) -> Estimate:
    """The mean of log w over paths of the optimal process: an upper bound on log Z in the mean."""
    return log_z_bound(log_w)


def forward_ess(log_w: Float[Tensor, " n"]) -> float:
    """The effective share of the control's paths, in (0, 1], from paths of the optimal process."""
    log_w = log_w.double()
    return math.exp(2 * math.log(len(log_w)) - torch.logsumexp(log_w, 0) - torch.logsumexp(-log_w, 0))


def effective_count(log_z: Estimate, num: int) -> float:
    """How many independent samples of equal weights the n = `num` weighted ones behind an estimate of log Z are worth."""
    return num / (1 + (num - 1) * log_z.se**2)


def resampled(log_w: Float[Tensor, "*batch n"], num: int, generator: Noise = None) -> Int[Tensor, "*batch num"]:
    """Indices of `num` samples of each row, drawn in proportion to the weights, systematically: by one uniform number."""
    *batch, n = log_w.shape
    share = (log_w.double() - log_w.amax(-1, keepdim=True)).exp().cumsum(-1).reshape(-1, n)
    places = (torch.arange(num, device=log_w.device) + rand(len(share), log_w, generator)[:, None]) / num
    return torch.searchsorted(share / share[:, -1:], places).clamp(max=n - 1).reshape(*batch, num)


def renewed(
    log_w: Float[Tensor, "r n"], share: float, generator: Noise = None
) -> tuple[Int[Tensor, "r n"], Bool[Tensor, "r 1"]]:
    """Resamples the rows whose ESS is below a share; a row of no weight has none, and stays.

    What is resampled takes the mean weight of its row, so that the mean stays.

    Returns:
        Which of all r n samples, counted row by row, each becomes; and whether its row was resampled.
    """
    num_rows, n = log_w.shape
    index = torch.arange(num_rows * n, device=log_w.device).reshape(num_rows, n)
    poor = log_ess(log_w).exp() < share
    if poor.any():
        index[poor] = index[poor, :1] + resampled(log_w[poor], n, generator)
    return index, poor[:, None]
