r"""The latent of a model, given an observation of its output.

    mu^(z) = p(z) p(y | z),    Z = p(y):

the latent of a variational autoencoder given a picture (5.22), or that of an exact-likelihood model given a part of one.

References:
    Zhang, Chen 2022, "Path integral sampler", Eq. 5.22 of the thesis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

from torch import Tensor

from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["Posterior"]


@final
class Posterior(Target):
    """The posterior density of a latent.

    Args:
        dim: Of the latent.
        log_prior: z (n, d) -> log p(z), nats (n,).
        log_likelihood: z (n, d) -> log p(y | z), nats (n,). A module given as a callable moves with the target.
        log_z: log p(y), where it is known.

    Raises:
        ValueError: a module whose parameters would be trained with the sampler.
    """

    def __init__(
        self,
        dim: int,
        log_prior: Callable[[Tensor], Tensor],
        log_likelihood: Callable[[Tensor], Tensor],
        *,
        log_z: float = math.nan,
    ) -> None:
        super().__init__()
        check_count(dim=dim)
        self.dim, self.log_z = dim, log_z
        self.log_prior, self.log_likelihood = log_prior, log_likelihood
        trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"{trained[0]} asks for a gradient and would be trained; call requires_grad_(False) on the module"
            )

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        log_prior, log_likelihood = self.log_prior(x), self.log_likelihood(x)
        for name, found in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
            if found.shape != (len(x),):
                raise ValueError(
                    f"{name} gave the shape {tuple(found.shape)} for z of {tuple(x.shape)}; it gives ({len(x)},)"
                )
        return log_prior + log_likelihood
