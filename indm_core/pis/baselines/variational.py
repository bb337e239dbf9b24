r"""Variational inference with a normalizing flow (VI-NF).

    x = h(x_0),   x_0 ~ N(0, sigma^2 I),        log q(x) = log N(x_0; 0, sigma^2 I) - log|det dh/dx_0|,

h trained to minimise the reverse Kullback-Leibler divergence up to log Z,

    KL(q | mu) - log Z = E[log q(x) - log mu^(x)],                              log w = log mu^(x) - log q(x).

E[w] = Z for every h whose image holds the support of mu, and E[log w] <= log Z (ELBO). Reverse KL seeks modes: a mode that no
sample meets is not missed, and the estimates then agree with each other on a Z that lacks it.

References:
    Rezende, Mohamed 2015, "Variational inference with normalizing flows", Eq. 15.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, one_stream
from indm_core.pis.annealing import Bridge
from indm_core.pis.baselines.flow_training import Build, adam, built, check_training, finite, minimised
from indm_core.pis.baselines.vectors import couplings
from indm_core.pis.draws import Counted, Draws
from indm_core.pis.targets.base import Target, like
from indm_core.ranges import check_count, check_positive
from indm_core.training import AdamW

__all__ = ["VariationalFlow"]


@final
@dataclass(frozen=True, kw_only=True)
class VariationalFlow:
    """VI-NF, trained anew for each call; `num_steps` x `batch` + num evaluations.

    Args:
        flow: d -> h; its log_det must be exact in evaluation mode (see `vectors`).
        sigma: Standard deviation of x_0.
        num_steps: Of the optimiser; 0 leaves h as it begins.
        batch: Samples of a step.
        optimiser: Settings.

    Raises:
        ValueError: an argument out of range.
    """

    flow: Build = couplings
    sigma: float = 1.0
    num_steps: int = 2000
    batch: int = 256
    optimiser: AdamW = field(default_factory=lambda: adam(lr=5e-3))

    def __post_init__(self) -> None:
        check_count(batch=self.batch)
        check_positive(sigma=self.sigma)
        check_training(self.optimiser, self.num_steps)

    def __call__(self, target: Target, num: int, *, generator: Noise = None) -> Draws:
        """Raises: ValueError: a target without gradient or with nan; generators of single samples."""
        check_count(num=num)
        counted, stream = Counted(target), one_stream(generator)
        bridge = Bridge(target=counted, sigma=self.sigma, gradient=False)
        flow = built(self.flow, target.dim, like(target), stream)

        def weighted(num: int) -> tuple[Tensor, Tensor]:
            """x and log w of draws of q."""
            x_0 = bridge.drawn(num, stream)
            x, log_det = flow(x_0, stream)
            return x, bridge.at(finite(x)).log_mu - bridge.log_start(x_0) + log_det

        flow.train()
        minimised(lambda: -weighted(self.batch)[1].mean(), [*flow.parameters()], self.optimiser, self.num_steps)
        flow.eval()
        with torch.no_grad():
            x, log_w = weighted(num)
        return Draws.independent(x, log_w, counted.evaluations)
