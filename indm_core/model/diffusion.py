r"""A trained score between a flow's latent and a law at t_start: what INDM and DiNof share.

    z_0 = h(x),  u_t = psi(t, 0) embed(z_0) + R_t eps,  d = eps_hat(u_t, t) - eps,

    NELBO(x) = -log|det dh/dx| - E[log p(u_{t_start})] + int E[1/2 d^T M_t d] dt - [log det R],    t from t_min to t_start,

in nats bounds -log p at t_min of the generative SDE (the last term is the part of E|G^T grad log p_0t|^2 / 2 and of div F that
does not depend on the networks); `LinearSDE.residual` carries the bound to discrete or continuous data at time 0. A subclass
says what the law at t_start is.

NLL mode minimises the NELBO in all networks. FID mode trains the flow by the NELBO and the score by the variance-weighted
loss 1/2 |d|^2, with one flow pass and one score evaluation: the variance-weighted loss is back-propagated, and the gradient
is turned into that of the NELBO at u_t, before u_t enters the score network. Where M is a multiple of I that is a factor
M_t per sample, exactly; otherwise a second vector-Jacobian product through the same evaluation.

The likelihood's weight may not see every direction of eps (CLD: M has rank one), which samplers that work with eps need all
the same. In NLL mode the score is therefore trained on 1/2 |Pi d|^2 as well, Pi the projector onto those directions, at u_t
held constant: the flow's gradient and the NELBO are untouched.

Soft Truncation draws the smallest time anew for each batch, tau ~ p(tau) ~ tau^-k on [t_min, t_start], and bounds -log p
at tau.

References:
    Kim, Na, Kwon, Lee, Kang, Moon 2022, "Maximum likelihood training of implicit nonlinear diffusion models", Theorem 1, Eq. 2
    and Algorithm 1; Song et al. 2021, "Maximum likelihood training of score-based diffusion models", Theorem 3; Kim, Shin,
    Song, Kang, Moon 2022, "Soft truncation" (the law of tau).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from indm_core.collage.sampling import check_pixelwise
from indm_core.flow import Flow
from indm_core.model.base import LinearModel, Losses, Node
from indm_core.model.elbo import entropy_production, linear_nelbo
from indm_core.model.labels import dropped
from indm_core.model.objective import Objective
from indm_core.model.score import ScoreModel, importance_times, likelihood_error, stratified
from indm_core.model.windows import check_windows, draw_window
from indm_core.noise import Noise, rand, randn_like
from indm_core.sde import LinearSDE, apply
from indm_core.times import uniform_times

__all__ = ["Diffusion", "truncation_time", "with_parameters"]


class Diffusion(LinearModel):
    """Flow, score and linear SDE; abstract in the law at t_start.

    Args:
        flow: h.
        backbone: Predicts eps in the basis R: backbone(x, t, y) -> like x.
        sde: The latent diffusion.
        shape: Event of the data.
        t_start: Time at which sampling starts, in (t_min, t_max].
        objective: What the networks are trained on.
        num_classes: Of the labels that the backbone takes; 0 for none.

    References: Kim et al. 2022, Algorithm 1 and section 7.2 (pre-training).
    """

    sde: LinearSDE

    def __init__(
        self,
        flow: Flow,
        backbone: nn.Module,
        sde: LinearSDE,
        *,
        shape: tuple[int, ...],
        t_start: float,
        objective: Objective = Objective(),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.flow, self.score_model, self.sde = flow, ScoreModel(backbone, sde, objective.data_var), sde
        self.shape, self.t_start, self.objective = tuple(shape), t_start, objective
        self.num_classes = num_classes
        self.smallest_window, self.window_step = objective.smallest_window, objective.window_step
        if self.smallest_window:
            check_windows(self.shape, self.smallest_window, self.window_step)
            check_pixelwise(sde)
        self.pretraining = False

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """One draw of (t, eps) per sample: the loss of `objective`, and the terms of the NELBO in nats; with Soft Truncation
        those of the bound at tau."""
        if self.pretraining:
            u_0, log_det = self.sde.embed(x), x.new_zeros(x.shape[0])
        else:
            u_0, log_det = self.encode(x, generator)
        t_low: float | Tensor = self.sde.t_min
        k = self.objective.soft_truncation
        if k:
            t_low = truncation_time(k, rand(len(x), x, generator)[0], t_low, self.t_start)
        q = stratified(x.shape[0], x, generator)
        t, density = importance_times(self.sde, q, t_low, self.t_start)
        t, weight = t.reshape(-1, *[1] * (x.ndim - 1)), density.reciprocal().to(x.dtype)
        eps = randn_like(u_0, generator)
        u_t = self.sde.perturb(u_0, t, eps)
        prior = -self.expected_log_prob_start(u_0, eps, generator)
        # drawn last, so that all other draws are those of a model without labels
        y = None if y is None else dropped(y, self.objective.label_dropout, generator)
        loss, denoising = self._denoising(u_t, t, eps, weight, y)
        loss = loss + prior - log_det
        constant = entropy_production(self.sde, u_0, t_low, self.t_start)
        nelbo = denoising.detach() + prior.detach() - log_det.detach() - constant
        terms = {"nelbo": nelbo, "denoising": denoising - constant, "prior": prior, "log_det": log_det}
        if self.smallest_window:
            of_window, windows = self._of_window(u_t.detach(), t, eps, weight, y, generator)
            loss, terms["windows"] = loss + of_window, windows - constant
        return Losses(loss, {name: term.detach() for name, term in terms.items()})

    def _of_window(
        self, u_t: Tensor, t: Tensor, eps: Tensor, weight: Tensor, y: Tensor | None, generator: Noise
    ) -> tuple[Tensor, Tensor]:
        """`_denoising` of a window of u_t and eps, times the piece's dimensions over the window's."""
        cut = (..., *draw_window(self.shape, self.smallest_window, self.window_step, u_t, generator), slice(None))
        scale = u_t.numel() / u_t[cut].numel()
        loss, likelihood = self._denoising(u_t[cut], t, eps[cut], weight, y)
        return scale * loss, scale * likelihood

    def _denoising(
        self, u_t: Tensor, t: Tensor, eps: Tensor, weight: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The score's loss, whose gradient at u_t is that of the likelihood-weighted one, and the latter's value."""
        M, unseen = self.sde.M(t), self.sde.unseen(t)
        if self.objective.mode == "nll" and unseen is None:
            d = self.score_model.eps(u_t, t, y) - eps
            likelihood = weight * likelihood_error(self.sde, d, t)
            return likelihood, likelihood
        if M.shape == (*t.shape, 1, 1):
            d = self.score_model.eps(_scale_gradient(u_t, M[..., 0].to(u_t.dtype)), t, y) - eps
            return weight * _half_square(d), weight * likelihood_error(self.sde, d, t)
        u_leaf = u_t.detach().requires_grad_()
        d = self.score_model.eps(u_leaf, t, y) - eps
        likelihood = weight * likelihood_error(self.sde, d, t)
        if self.objective.mode == "fid" or unseen is None:
            loss = weight * _half_square(d)
        else:
            loss = likelihood + weight * _half_square(apply(unseen, d))
        if u_t.requires_grad:
            (gradient,) = torch.autograd.grad(likelihood.sum(), u_leaf, retain_graph=True)
            loss = loss + ((u_t - u_t.detach()) * gradient).flatten(1).sum(1)  # zero, with the NELBO's gradient at u_t
        return loss, likelihood

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(x, generator)
        return self.sde.embed(z), log_det

    def decode(self, u: Tensor) -> Tensor:
        return self.flow.inverse(self.sde.project(u))

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.score_model(u, t, y)

    @torch.no_grad()
    def nelbo(
        self,
        x: Tensor,
        *,
        residual: bool = True,
        num_draws: int = 1,
        nodes: Sequence[Node] | None = None,
        generator: Noise = None,
        y: Tensor | None = None,
    ) -> Tensor:
        self.check_data(x)
        self.check_label(y, len(x))
        options = {"residual": residual, "num_draws": num_draws, "nodes": nodes, "generator": generator, "y": y}
        return linear_nelbo(self, x, **options)

    def times(self, num_steps: int, low: float) -> Tensor:
        """Equally spaced."""
        return uniform_times(self.sde, num_steps, low=low, high=self.t_start)

    def evaluations(self) -> dict[str, int]:
        return dict.fromkeys(self.networks(), 1) | ({"score": 2} if self.smallest_window else {})

    def phase(self, step: int) -> str:
        """'pretraining' (the flow rests at the identity) for the objective's `pretrain_steps`, then 'joint'; or 'linear'."""
        networks = self.networks()
        if "flow" in networks and step < self.objective.pretrain_steps:
            return "pretraining"
        return "joint" if len(networks) > 1 else "linear"

    def begin_phase(self, phase: str) -> None:
        self.pretraining = phase == "pretraining"
        self.flow.requires_grad_(not self.pretraining)


def truncation_time(k: float, u: Tensor, t_low: float, t_high: float) -> Tensor:
    """The quantile u (0-d, float64) of the density ~ tau^-k on [t_low, t_high], k >= 1 (Soft Truncation), like u."""
    share = t_low / t_high
    tau = t_low * (share**-u if k == 1 else (1 - u * (1 - share ** (k - 1))) ** (-1 / (k - 1)))
    return tau.clamp(max=t_high * (1 - 1e-6))


def _half_square(d: Tensor) -> Tensor:
    """1/2 |d|^2 of each sample."""
    return 0.5 * d.square().flatten(1).sum(1)


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return u.view_as(u)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        (factor,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return gradient * factor, None


def _scale_gradient(u: Tensor, factor: Tensor) -> Tensor:
    return _ScaleGradient.apply(u, factor)  # pyright: ignore[reportReturnType]


def with_parameters(**networks: nn.Module) -> dict[str, nn.Module]:
    """Those of the networks that there is something to train in."""
    return {name: network for name, network in networks.items() if any(True for _ in network.parameters())}
