r"""INDM: a flow h and a linear diffusion in its latent space, trained together by maximum likelihood.

The diffusion of `diffusion` on [t_min, T], from the latent h(x) to the prior pi at T = t_max. With h = identity this is the
linear diffusion that INDM generalises; seen in data space, x_t = h^-1(z_t) follows an SDE of nonlinear drift and volatility.

A bridge to a second data set y ~ p_2 asks that the flow's law at T be p_2: it adds -log pi(h(y)) - log|det dh/dy|.

References:
    Kim, Na, Kwon, Lee, Kang, Moon 2022, "Maximum likelihood training of implicit nonlinear diffusion models", sections 4
    and 7.3.
"""

from __future__ import annotations

from torch import Tensor, nn

from indm_core.flow import Flow
from indm_core.model.base import Losses
from indm_core.model.diffusion import Diffusion, with_parameters
from indm_core.model.objective import Objective
from indm_core.noise import Noise
from indm_core.sde import LinearSDE, apply, event_sum, gaussian_log_prob, instant, inverse

__all__ = ["INDM", "Bridge"]

ONE_PIECE = (
    "its flow, {flow}, is a bijection at that size only; take a convolutional ResFlow with constraint 'torus' or 'infinity' "
    "and ActNorm per channel (actnorm 'channel') or none, a Glow of images, or no flow"
)


class INDM(Diffusion):
    """Flow, score and linear SDE on all of [t_min, t_max], its prior at the end.

    Args:
        flow: h; `Identity()` gives the linear diffusion.
        backbone, sde, shape, objective, num_classes: See `Diffusion`.
    """

    def __init__(
        self,
        flow: Flow,
        backbone: nn.Module,
        sde: LinearSDE,
        *,
        shape: tuple[int, ...],
        objective: Objective = Objective(),
        num_classes: int = 0,
    ) -> None:
        super().__init__(
            flow, backbone, sde, shape=shape, t_start=sde.t_max, objective=objective, num_classes=num_classes
        )
        self.one_size = "" if flow.size_free else ONE_PIECE.format(flow=type(flow).__name__)

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        return temperature * self.sde.sample_prior(like, generator)

    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        return self.sde.log_prior(u)

    def expected_log_prob_start(self, u_0: Tensor, eps: Tensor, generator: Noise = None) -> Tensor:
        """E[log pi(u_T) | u_0] in closed form: the Gaussian cross-entropy."""
        T = instant(self.t_start, u_0)
        spread = inverse(self.sde.prior_cov_on(u_0)) @ self.sde.cov(T)
        trace = event_sum(spread.diagonal(dim1=-2, dim2=-1).sum(-1), u_0).to(u_0.dtype)
        return self.sde.log_prior(apply(self.sde.psi0(T), u_0)) - 0.5 * trace

    def networks(self) -> dict[str, nn.Module]:
        """`score` and, where it has parameters, `flow`."""
        return with_parameters(score=self.score_model, flow=self.flow)


class Bridge(INDM):
    """An INDM whose flow carries a second data set to the prior: h^-1(z_T) has its law, h^-1(z_0) that of the first.

    `y` of `forward` is a batch of the second data set. Its term of the loss, `partner`, is the flow's negative log-likelihood.

    References: Kim et al. 2022, section 7.3.
    """

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        if y is None:
            raise ValueError("y: a bridge is trained on pairs; give a batch of the second data set")
        losses = super().forward(x, None, generator)
        if self.pretraining:
            return losses
        partner = self.partner_nll(y, generator)
        return Losses(losses.objective + partner, losses.terms | {"partner": partner.detach()})

    def partner_nll(self, y: Tensor, generator: Noise = None) -> Tensor:
        """-log p of the second data set's samples under the flow and pi, nats (b,)."""
        u, log_det = self.encode(y, generator)
        return -gaussian_log_prob(u[..., :1], self.sde.prior_cov_on(u)[..., :1, :1]) - log_det
