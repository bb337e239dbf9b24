r"""The variational bound of a model whose diffusion is linear, in nats per sample.

    NELBO(x) = -log_det - E[log p(u_{t_start})] + int E[1/2 d^T M_t d] dt - [log det R],    t from t_min to t_start,

with d = eps_hat - eps (see `diffusion`). The integral over t and eps is taken over nodes (t_j, eps_j, weight_j) with
sum_j weight_j f(t_j, eps_j) = int E[f(t, eps)] dt: drawn by the importance law of t, or given.

Variance. Times are stratified over draws and images, and draws come in antithetic pairs (eps, -eps). What is left is that
|d|^2 fluctuates as the noise does that the network cannot predict. With q = R^-1 p (`LinearSDE.signal`) the exact score has

    d = -q (x_hat - x),   and for data of variance v with no relation to others   d = q (x - v q^T eps)/(1 + v |q|^2):

its part that is odd in eps lies along q_1 = q/|q|, whatever the block, and 1/2 d^T M d fluctuates with eps as

    b_t(eps) = 1/2 sum over positions of w_t ((q_1^T eps)^2 - 1),      w_t = (|q|^2/(1 + |q|^2))^2 q_1^T M q_1       (v = 1),

whose mean is zero. kappa b_t is subtracted: kappa = 1 below eight draws; from there on it is what the network does with the
noise in the neighbouring strata of t of the same sample, so that it does not know the noise that it multiplies (the estimate
stays unbiased) and a sample is estimated as well alone as in a batch. The odd part of d is (d(eps) - d(-eps))/2 of an
antithetic pair, and kappa the regression of its 1/2 d^T M d on w/2 (q_1^T eps)^2, position by position, weighted by w; a
twentieth of a position of kappa = 1 is added, because few squares may all be small.

The start's term is averaged over all draws. The residual asks the network once more and is averaged over the first pair, with
|eps|^2 of log q(u | x) at its mean and the noise along q_1 controlled in the same way.

References:
    Song et al. 2021, "Maximum likelihood training of score-based diffusion models", Theorem 3; Kim et al. 2022 (INDM),
    Theorem 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.model.base import LinearModel, Node
from indm_core.model.score import importance_times, likelihood_error, stratified
from indm_core.noise import Noise, branch, randn_like
from indm_core.sde import LinearSDE, apply, event_sum, instant, log_abs_det

__all__ = ["entropy_production", "linear_nelbo"]

PRIOR = 0.05
"""Positions of kappa = 1 that a fit begins with."""

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


def entropy_production(sde: LinearSDE, u: Tensor, t_low: float | Tensor, t_high: float) -> Tensor:
    """[log det R] at t_high minus that at t_low, summed over the event of u: the NELBO's constant, nats (b,)."""
    low, high = (event_sum(log_abs_det(sde.R(instant(t, u))), u) for t in (t_low, t_high))
    return (high - low).to(u.dtype)


def _error(model: LinearModel, u_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None) -> Tensor:
    """d = eps_hat - eps at u_t = psi(t, 0) u_0 + R_t eps."""
    score = model.score(model.sde.perturb(u_0, t, eps), t, y)
    return model.sde.eps_from_score(score, t) - eps


def _residual(model: LinearModel, u_0: Tensor, ends: Sequence[End], y: Tensor | None) -> Tensor:
    """E[log q(u | x) - log p(x | u)] at t_min over the given noises, (b,).

    1/2 eps^T (I - c q_1 q_1^T) eps minus its mean is added: |eps|^2 of log q has a closed mean, and c, the share of the noise
    along q_1 that cannot be predicted (v = 1), comes back with the other density.
    """
    t_min = torch.tensor(model.sde.t_min, dtype=torch.float64, device=u_0.device)
    size, direction = model.sde.signal(t_min)
    c = _share(size)
    total = u_0.new_zeros(u_0.shape[0])
    for eps, share in ends:
        eps_hat = _error(model, u_0, t_min, eps, y) + eps
        along = apply(direction.mT, eps)[..., 0]
        control = 0.5 * (eps.square().sum(-1) - eps.shape[-1] - c * (along.square() - 1)).flatten(1).sum(1)
        total = total + share * (model.sde.residual(t_min, eps, eps_hat) + control.to(eps.dtype))
    return total


def _sampled_integral(
    model: LinearModel, u_0: Tensor, num_draws: int, generator: Noise, y: Tensor | None
) -> tuple[Tensor, list[End]]:
    """The NELBO's integral by `num_draws` stratified draws, and their noise with equal shares."""
    if num_draws < 1 or (num_draws > 1 and num_draws % 2):
        raise ValueError(f"num_draws={num_draws} must be 1 or an even number")
    signs = (1.0,) if num_draws == 1 else (1.0, -1.0)
    num_times = num_draws // len(signs)
    errors, controls, fits, levels, ends = [], [], [], [], []
    for k in range(num_times):
        q = (k + stratified(u_0.shape[0], u_0, generator)) / num_times
        t, density = importance_times(model.sde, q, model.sde.t_min, model.t_start)
        t, weight = t.reshape(-1, *[1] * (u_0.ndim - 2)), density.reciprocal().to(u_0.dtype)
        eps = randn_like(u_0, generator)
        ds = [_error(model, u_0, t, sign * eps, y) for sign in signs]
        errors.append(weight * sum(likelihood_error(model.sde, d, t) for d in ds) / len(signs))
        control, fit = _control(model.sde, t, eps, 0.5 * (ds[0] - ds[-1]))
        controls.append(weight * control.to(eps.dtype))
        fits.append(fit)
        levels.append(q)
        ends += [(sign * eps, 1 / num_draws) for sign in signs]
    a, b = torch.stack(errors), torch.stack(controls)
    return (a - _kappa(torch.stack(fits), torch.stack(levels)).to(a.dtype) * b).mean(0), ends


def _share(size: Tensor) -> Tensor:
    """(|q|^2/(1 + |q|^2))^2: the share of the noise's square along q_1 that cannot be predicted from data of variance 1."""
    square = size.square()
    return (square / (1 + square)).square()


def _control(sde: LinearSDE, t: Tensor, eps: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """b_t(eps), (b,), and the two sums (2, b) whose ratio is kappa: what d does with the noise, and b; float64."""
    size, direction = sde.signal(t)
    M = sde.M(t)
    w = _share(size) * (direction.mT @ M @ direction)[..., 0, 0]
    square = apply(direction.mT, eps)[..., 0].square().double()
    control = 0.5 * (w * (square - 1)).flatten(1).sum(1)
    w_e = w.expand(eps.shape[:-1]).flatten(1)
    reaction, action = (odd * apply(M, odd)).sum(-1).flatten(1).double(), w_e * square.flatten(1)
    one = PRIOR * w_e.square().mean(1)
    return control, torch.stack([(w_e * reaction).sum(1) + one, (w_e * action).sum(1) + one])


def _kappa(fits: Tensor, levels: Tensor) -> Tensor:
    """kappa of each stratum and sample, (strata, b), from the sums (strata, 2, b) of the two neighbouring strata, interpolated
    to the stratum's own level of t (strata, b); at the ends from those of one neighbour."""
    if len(fits) < 4:
        return torch.ones_like(levels)
    share = ((levels[2:] - levels[1:-1]) / (levels[2:] - levels[:-2])).unsqueeze(1)
    inner = share * fits[:-2] + (1 - share) * fits[2:]
    near = torch.cat([fits[1:2], inner, fits[-2:-1]])
    return near[:, 0] / near[:, 1].clamp(min=torch.finfo(near.dtype).tiny)
