r"""DiNof: a linear diffusion on [0, T_m] that starts from a normalizing flow at T_m.

A diffusion that ends at T_m < T has not forgotten the data: the law of u_{T_m} is no Gaussian, but a smooth law that a flow k
can hold. With S = pi^{1/2} the prior's standard deviation and v = to_network(S^-1 u),

    log p_{T_m}(u) = log N(k(v); 0, I) + log|det dk/dv| - log det S,

so that at T_m = T and k = identity this is the prior, and the model the plain diffusion. Score and flow prior are trained
together on one noise: the same eps gives u_t, and u_{T_m} for -E[log p_{T_m}(u_{T_m})], which is the term of the NELBO that a
Gaussian prior has in closed form. All terms are sums over dimensions, in nats; score and flow prior have optimisers and
gradient clips of their own, so that neither scales the other's step.

Sampling draws v = k^-1(z) and runs any sampler from T_m: steps as long as another model's are T_m / T as many. The likelihood
is the ODE's up to T_m plus log p_{T_m} there. A flow of the latent, as in INDM, may come with it.

References:
    Zand, Etemad, Greenspan 2024, "Diffusion models with deterministic normalizing flow priors", section 3.2 and Eqs. 7-11.
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from indm_core.flow import Flow
from indm_core.model.diffusion import Diffusion, with_parameters
from indm_core.model.objective import Objective
from indm_core.noise import Noise, randn_like
from indm_core.sde import LinearSDE, apply, event_sum, instant, inverse, log_abs_det, sqrt_psd

__all__ = ["DiNof"]


@final
class DiNof(Diffusion):
    """Flow of the latent, score and linear SDE on [t_min, t_m t_max], and a flow prior there.

    Args:
        prior: k, a flow of events of the shape that a backbone sees.
        flow: Of the latent; `Identity()` as published.
        t_m: Where the flow prior sits, as a share of t_max, in (0, 1]; published: 0.5 to 0.6.
        backbone, sde, shape, objective, num_classes: See `Diffusion`. Published: mode 'fid'.

    Raises:
        ValueError: t_m outside (0, 1], or so small that nothing is left above t_min.
    """

    one_size = "it starts at T_m from a flow's law of one piece; train an INDM or a linear diffusion"

    def __init__(
        self,
        prior: Flow,
        flow: Flow,
        backbone: nn.Module,
        sde: LinearSDE,
        *,
        shape: tuple[int, ...],
        t_m: float = 0.6,
        objective: Objective = Objective(mode="fid"),
        num_classes: int = 0,
    ) -> None:
        if not sde.t_min / sde.t_max < t_m <= 1:
            raise ValueError(
                f"t_m={t_m} must lie in (0, 1], a share of t_max={sde.t_max:g}, and above t_min={sde.t_min:g}"
            )
        super().__init__(
            flow, backbone, sde, shape=shape, t_start=t_m * sde.t_max, objective=objective, num_classes=num_classes
        )
        self.prior = prior

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        z = temperature * self.sde.to_network(randn_like(like, generator))
        return apply(self._scale(like), self.sde.from_network(self.prior.inverse(z)))

    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        scale = self._scale(u)
        z, log_det = self.prior(self.sde.to_network(apply(inverse(scale), u)), generator)
        log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return log_normal + log_det - event_sum(log_abs_det(scale), u).to(u.dtype)

    def expected_log_prob_start(self, u_0: Tensor, eps: Tensor, generator: Noise = None) -> Tensor:
        """log p(u_{T_m}) at the noise eps: unbiased."""
        return self.log_prob_start(self.sde.perturb(u_0, instant(self.t_start, u_0), eps), generator)

    def _scale(self, like: Tensor) -> Tensor:
        """S, the prior's standard deviation."""
        return sqrt_psd(self.sde.prior_cov_on(like))

    def networks(self) -> dict[str, nn.Module]:
        """`score` and, where they have parameters, `flow` and `prior`."""
        return with_parameters(score=self.score_model, flow=self.flow, prior=self.prior)
