r"""The variational bound of a model whose diffusion is linear, in nats per sample.

    NELBO(x) = -log_det - E[log p(u_{t_start})] + int E[1/2 d^T M_t d] dt - [log det R],    t from t_min to t_start,

with d = eps_hat - eps (see `diffusion`). The integral over t and eps is taken over nodes (t_j, eps_j, weight_j) with
sum_j weight_j f(t_j, eps_j) = int E[f(t, eps)] dt: drawn by the importance law of t, or given.

Variance. At small t the noise cannot be predicted and |d|^2 fluctuates as |eps|^2 does, so c(t) (|eps|_M^2 - tr M)/2, of mean
zero, is subtracted, c fitted on the draws of the neighbouring strata of t (so that the estimate stays unbiased); times are
stratified over draws and images, and draws come in antithetic pairs (eps, -eps). The start's term is averaged over all draws,
the residual, which asks the network once more, over the first pair.

References:
    Song et al. 2021, "Maximum likelihood training of score-based diffusion models", Theorem 3; Kim et al. 2022 (INDM),
    Theorem 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from indm_core.model.base import LinearModel, Node
from indm_core.model.score import importance_times, likelihood_error, stratified
from indm_core.noise import Noise, branch, randn_like
from indm_core.sde import LinearSDE, event_sum, log_abs_det

__all__ = ["entropy_production", "linear_nelbo"]

End = tuple[Tensor, float | Tensor]
"""A noise and its share in an expectation over eps."""


def linear_nelbo(
    model: LinearModel,
    x: Tensor,
    *,
    residual: bool,
    num_draws: int,
    nodes: Sequence[Node] | None,
    generator: Noise,
    y: Tensor | None,
) -> Tensor:
    """`likelihood.nelbo` of a model with a linear SDE."""
    u_0, log_det = model.encode(x, branch(generator))
    if nodes is None:
        integral, ends = _sampled_integral(model, u_0, num_draws, generator, y)
        at_t_min = ends[: 1 if num_draws == 1 else 2]
        at_t_min = [(eps, 1 / len(at_t_min)) for eps, _ in at_t_min]
    else:
        integral = x.new_zeros(x.shape[0])
        for t, eps, weight in nodes:
            integral = integral + weight * likelihood_error(model.sde, _error(model, u_0, t, eps, y), t)
        mass = model.t_start - model.sde.t_min
        at_t_min = ends = [(eps, weight / mass) for _, eps, weight in nodes]
    bound = integral - entropy_production(model.sde, u_0, model.sde.t_min, model.t_start) - log_det
    for eps, share in ends:
        bound = bound - share * model.expected_log_prob_start(u_0, eps, generator)
    return bound + _residual(model, u_0, at_t_min, y) if residual else bound


def entropy_production(sde: LinearSDE, u: Tensor, t_low: float, t_high: float) -> Tensor:
    """[log det R] at t_high minus that at t_low, summed over the event of u: the NELBO's constant, nats (b,)."""
    ends = [torch.tensor(t, dtype=torch.float64, device=u.device) for t in (t_low, t_high)]
    low, high = (event_sum(log_abs_det(sde.R(t)), u) for t in ends)
    return (high - low).to(u.dtype)


def _error(model: LinearModel, u_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None) -> Tensor:
    """d = eps_hat - eps at u_t = psi(t, 0) u_0 + R_t eps."""
    score = model.score(model.sde.perturb(u_0, t, eps), t, y)
    return model.sde.eps_from_score(score, t) - eps


def _residual(model: LinearModel, u_0: Tensor, ends: Sequence[End], y: Tensor | None) -> Tensor:
    """E[log q(u | x) - log p(x | u)] at t_min over the given noises, (b,)."""
    t_min = torch.tensor(model.sde.t_min, dtype=torch.float64, device=u_0.device)
    total = u_0.new_zeros(u_0.shape[0])
    for eps, share in ends:
        eps_hat = _error(model, u_0, t_min, eps, y) + eps
        total = total + share * model.sde.residual(t_min, eps, eps_hat)
    return total


def _sampled_integral(
    model: LinearModel, u_0: Tensor, num_draws: int, generator: Noise, y: Tensor | None
) -> tuple[Tensor, list[End]]:
    """The NELBO's integral by `num_draws` stratified draws, and their noise with equal shares."""
    if num_draws < 1 or (num_draws > 1 and num_draws % 2):
        raise ValueError(f"num_draws={num_draws} must be 1 or an even number")
    signs = (1.0,) if num_draws == 1 else (1.0, -1.0)
    num_times = num_draws // len(signs)
    errors, controls, ends = [], [], []
    for k in range(num_times):
        q = (k + stratified(u_0.shape[0], u_0, generator)) / num_times
        t, density = importance_times(model.sde, q, model.sde.t_min, model.t_start)
        t, weight = t.reshape(-1, *[1] * (u_0.ndim - 2)), density.reciprocal().to(u_0.dtype)
        eps = randn_like(u_0, generator)
        terms = [likelihood_error(model.sde, _error(model, u_0, t, sign * eps, y), t) for sign in signs]
        trace = event_sum(model.sde.M(t).diagonal(dim1=-2, dim2=-1).sum(-1), eps).to(eps.dtype)
        errors.append(weight * sum(terms) / len(signs))
        controls.append(weight * (likelihood_error(model.sde, eps, t) - 0.5 * trace))
        ends += [(sign * eps, 1 / num_draws) for sign in signs]
    a, b = torch.stack(errors), torch.stack(controls)
    return (a - _coefficients(a, b) * b).mean(0), ends


def _coefficients(a: Tensor, b: Tensor) -> Tensor:
    """c for each stratum of t, regressed on its neighbours' draws and so independent of its own: (strata, 1)."""
    if len(a) < 4:
        return a.new_zeros(len(a), 1)
    ab, bb = ((a - a.mean(1, keepdim=True)) * b).sum(1), b.square().sum(1)
    ab_near, bb_near = (functional.pad(v, (1, 1)).unfold(0, 3, 1)[:, ::2].sum(1) for v in (ab, bb))
    return (ab_near / bb_near).unsqueeze(1)
