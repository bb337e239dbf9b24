r"""Paths of the optimal process, where exact samples of the target exist: Brownian bridges from 0 to x_T ~ mu.

From x_N = x_T back to x_0 = 0 on the grid t_i = i D (symbols of `sampler`), exactly,

    x_i | x_{i+1} ~ N(t_i/t_{i+1} x_{i+1}, g^2 D t_i/t_{i+1} I).

On the grid, too, the optimal law is the uncontrolled one weighted by mu/mu^0(x_N), and so the paths weigh

    log w = -sum_i (sqrt(D) u_i . z_i - D/2 |u_i|^2) - Psi(x_N),    z_i = (x_{i+1} - x_i) / (g sqrt(D)),

which is Eq. 5.18 with z_i = eps_i + sqrt(D) u_i. See `estimates` for what these weights tell.

References:
    Zhang, Chen 2022, "Path integral sampler", Eq. 5.18 of the thesis; Blessing et al. 2024, "Beyond ELBOs: a large-scale
    evaluation of variational methods for sampling" (EUBO).
"""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["optimal_paths"]


@torch.no_grad()
def optimal_paths(
    sampler: PathIntegralSampler, target: Target, num: int, *, generator: Noise = None, num_steps: int = 0
) -> tuple[Float[Tensor, "num d"], Float[Tensor, " num"]]:
    """x_T, exact samples of the target, and log w of optimal paths to them under the sampler's control.

    Args:
        num: Paths.
        generator: See `noise`.
        num_steps: 0 takes N.

    Raises:
        ValueError: the target has no exact samples.
    """
    check_count(num=num)
    if not target.exact:
        raise ValueError(
            f"target {target.name} has no exact samples, from which optimal paths begin; the ELBO needs none"
        )
    path = sampler.path(target, num_steps)
    x_T = target.sample(num, generator).to(sampler.begin(1))
    x, log_w = x_T, -path.end(x_T)
    for i in reversed(range(len(path.scale))):
        kept = i / (i + 1)
        x_i = kept * x + path.scale[i] * kept**0.5 * randn_like(x, generator)
        log_ratio, _ = path.log_ratio(path.f(i, x_i), (x - x_i) / path.scale[i])
        x, log_w = x_i, log_w - log_ratio
    return x_T, log_w
