r"""Likelihoods of a diffusion model, in nats per sample.

NLL. The probability-flow ODE  du/dt = v(u, t) = drift - 1/2 GG^T score  transports densities:

    log p_t(u_t) = log p_{t_start}(u_{t_start}) + int_t^{t_start} div v dt,

with div v estimated by Hutchinson's v^T (dv/du) v (unbiased, Rademacher probes held along a trajectory) or exact. The score is
unusable below t_min, so data enter at t_min through q(u | x) and the residual (`LinearSDE.residual`):

    -log p(x) <= -log_det + E_q[-log p_{t_min}(u) + log q(u | x) - log p(x | u)],        both densities at the same draw.

NELBO. The bound on the generative SDE's likelihood (`indm`), whose integral over t and eps is taken over nodes
(t_j, eps_j, weight_j) with  sum_j weight_j f(t_j, eps_j) = int_{t_min}^{t_start} E[f(t, eps)] dt: drawn here by the importance
law of t, or given.

The sign of NELBO - NLL is no theorem: the NLL is the ODE's, the NELBO bounds the SDE's likelihood.

Variance. At small t the noise cannot be predicted and |d|^2 fluctuates as |eps|^2 does, so c(t) (|eps|_M^2 - tr M)/2, of mean
zero, is subtracted, c fitted on the draws of the neighbouring strata of t (so that the estimate stays unbiased); times are
stratified over draws and images, and draws come in antithetic pairs (eps, -eps).

References:
    Theis et al. 2016 (dequantisation); Chen et al. 2018 (FFJORD); Song et al. 2021, Eq. 39; Kim et al. 2022 (INDM),
    section 7.1 and appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from indm_core.indm import entropy_production
from indm_core.model import GenerativeModel
from indm_core.noise import Noise, branch, rademacher_like, rand_like, randn_like
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.score import importance_times, likelihood_error, stratified
from indm_core.sde import SDE, event_sum
from indm_core.shapes import Float

__all__ = ["Node", "bits_per_dim", "dequantise", "log_prob_u", "nelbo", "nll", "quantise"]

Node = tuple[Tensor, Tensor, float | Tensor]
"""t (0-d or (b, 1, ..., 1)), eps like u, and the weight, a number or (b,)."""

End = tuple[Tensor, float | Tensor]
"""A noise and its share in an expectation over eps."""


def bits_per_dim(nats: Tensor, num_dims: int, levels: int, low: float, high: float) -> Tensor:
    """nats / (D ln 2) + log2(levels / (high - low)): bits/dim of the discrete data behind dequantised, scaled values.

    Args:
        nats: Negative log-likelihood of x in [low, high].
        num_dims: D.
        levels: Number of levels the data had: k became low + (high - low) (k + u)/levels.
    """
    if levels < 2 or high <= low:
        raise ValueError(f"levels={levels} must be at least 2 and high={high} above low={low}")
    return nats / (num_dims * math.log(2)) + math.log2(levels / (high - low))


def dequantise(k: Tensor, levels: int, low: float, high: float, generator: Noise = None) -> Tensor:
    """x = low + (high - low) (k + u)/levels with u uniform on [0, 1): continuous data whose density integrates over a cell
    to the probability of a level (Theis et al. 2016).

    Args:
        k: Levels 0, ..., levels - 1, (b, *event), any dtype.
        levels: L; 0 says that the data are continuous already, and they are returned as float32.
        low, high: Range of x.
    """
    x = k.float()
    if levels == 0:
        return x
    return low + (high - low) * (x + rand_like(x, generator)) / levels


def quantise(x: Tensor, levels: int, low: float, high: float) -> Tensor:
    """The level of each x, the inverse of `dequantise`; x outside [low, high) goes to the nearest level. int64."""
    return ((x - low) / (high - low) * levels).floor().clamp(0, levels - 1).long()


def nll(
    model: GenerativeModel,
    x: Float[Tensor, " b *event"],
    *,
    residual: bool = True,
    num_probes: int = 1,
    exact_divergence: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """-log p(x) by the probability-flow ODE.

    Args:
        residual: True ("after correction"): an upper bound in expectation over one draw at t_min. False ("before"): x is
            fed at t_min as it is, without the term; not comparable with the bound.
        num_probes: Hutchinson probes per trajectory.
        exact_divergence: One vector-Jacobian product per dimension instead of probes.
        rtol, atol: Tolerances of the solver, per sample.
        y: Labels, for a conditional score.

    Returns:
        Nats per sample; unbiased for the bound given exact arithmetic in t.
    """
    options = {"num_probes": num_probes, "exact_divergence": exact_divergence, "rtol": rtol, "atol": atol}
    with torch.no_grad():
        u, log_det = model.encode(x, branch(generator))
        t_min = torch.tensor(model.sde.t_min, dtype=torch.float64, device=x.device)
        correction = x.new_zeros(x.shape[0])
        if residual:
            eps = randn_like(u, generator)
            u = model.sde.perturb(u, t_min, eps)
            eps_hat = model.sde.eps_from_score(model.score(u, t_min, y), t_min)
            correction = model.sde.residual(t_min, eps, eps_hat)
    log_prob = log_prob_u(model, u, model.sde.t_min, generator=generator, y=y, **options)
    return -log_det - log_prob + correction


def log_prob_u(
    model: GenerativeModel,
    u: Float[Tensor, "b *event k"],
    t: float,
    *,
    num_probes: int = 1,
    exact_divergence: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """log p_t(u) of the probability-flow ODE that starts from the model's law at t_start, nats.

    Raises:
        ValueError: t outside [t_min, t_max], or no probe.
        ConvergenceError: the ODE does not reach its tolerance.
    """
    model.sde.check_time("t", float(t))
    if num_probes < 1:
        raise ValueError(f"num_probes={num_probes} must be at least 1")
    if exact_divergence:
        eye = torch.eye(math.prod(u.shape[1:]), dtype=u.dtype, device=u.device)
        probes = eye.reshape(-1, 1, *u.shape[1:]).expand(-1, *u.shape)
    else:
        probes = torch.stack([rademacher_like(u, generator) for _ in range(num_probes)])
    average = 1.0 if exact_divergence else 1 / num_probes

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        labels = None if y is None else y[rows]
        v, divergence = _velocity_and_divergence(model, state[0], t, probes[:, rows], labels)
        return v, average * divergence

    start = (u, u.new_zeros(u.shape[0]))
    ends = math.sqrt(t), math.sqrt(model.t_start)
    (u_T, integral), _ = rk45(in_sqrt_time(field), start, *ends, rtol=rtol, atol=atol)
    with torch.no_grad():
        return model.log_prob_start(u_T) + integral


def _velocity_and_divergence(
    model: GenerativeModel, u: Tensor, t: Tensor, probes: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """v(u, t) and sum over the probes of p^T (dv/du) p, from one evaluation of the score."""
    sde: SDE = model.sde
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        v = sde.reverse_drift(u, t, model.score(u, t, y), lam=0.0)
        divergence = u.new_zeros(u.shape[0])
        for i, p in enumerate(probes):
            (pulled,) = torch.autograd.grad(v, u, p, retain_graph=i + 1 < len(probes))
            divergence = divergence + (pulled * p).flatten(1).sum(1)
    return v.detach(), divergence.detach()


@torch.no_grad()
def nelbo(
    model: GenerativeModel,
    x: Float[Tensor, " b *event"],
    *,
    residual: bool = True,
    num_draws: int = 1,
    nodes: Sequence[Node] | None = None,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """The variational bound on -log p(x) of the generative SDE.

    Args:
        residual: Whether the bound is carried from t_min to the data; without it, it is the bound at t_min.
        num_draws: Draws of (t, eps) per sample; an even number is taken as antithetic pairs, and from 8 on a control
            variate is fitted.
        nodes: Explicit quadrature nodes instead of draws.
        y: Labels, for a conditional score.

    Returns:
        Nats per sample, unbiased over the draws.
    """
    u_0, log_det = model.encode(x, branch(generator))
    if nodes is None:
        integral, ends = _sampled_integral(model, u_0, num_draws, generator, y)
    else:
        integral = x.new_zeros(x.shape[0])
        for t, eps, weight in nodes:
            integral = integral + weight * likelihood_error(model.sde, _error(model, u_0, t, eps, y), t)
        mass = model.t_start - model.sde.t_min
        ends = [(eps, weight / mass) for _, eps, weight in nodes]
    bound = integral - entropy_production(model.sde, u_0, model.sde.t_min, model.t_start) - log_det
    for eps, share in ends:
        bound = bound - share * model.expected_log_prob_start(u_0, eps)
    return bound + _residual(model, u_0, ends, y) if residual else bound


def _error(model: GenerativeModel, u_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None) -> Tensor:
    """d = eps_hat - eps at u_t = psi(t, 0) u_0 + R_t eps."""
    score = model.score(model.sde.perturb(u_0, t, eps), t, y)
    return model.sde.eps_from_score(score, t) - eps


def _residual(model: GenerativeModel, u_0: Tensor, ends: Sequence[End], y: Tensor | None) -> Tensor:
    """E[log q(u | x) - log p(x | u)] at t_min over the given noises, (b,)."""
    t_min = torch.tensor(model.sde.t_min, dtype=torch.float64, device=u_0.device)
    total = u_0.new_zeros(u_0.shape[0])
    for eps, share in ends:
        eps_hat = _error(model, u_0, t_min, eps, y) + eps
        total = total + share * model.sde.residual(t_min, eps, eps_hat)
    return total


def _sampled_integral(
    model: GenerativeModel, u_0: Tensor, num_draws: int, generator: Noise, y: Tensor | None
) -> tuple[Tensor, list[End]]:
    """The NELBO's integral by `num_draws` stratified draws, and the first draws' noise with equal shares."""
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
        ends = ends or [(sign * eps, 1 / len(signs)) for sign in signs]
    a, b = torch.stack(errors), torch.stack(controls)
    return (a - _coefficients(a, b) * b).mean(0), ends


def _coefficients(a: Tensor, b: Tensor) -> Tensor:
    """c for each stratum of t, regressed on its neighbours' draws and so independent of its own: (strata, 1)."""
    if len(a) < 4:
        return a.new_zeros(len(a), 1)
    ab, bb = ((a - a.mean(1, keepdim=True)) * b).sum(1), b.square().sum(1)
    ab_near, bb_near = (functional.pad(v, (1, 1)).unfold(0, 3, 1)[:, ::2].sum(1) for v in (ab, bb))
    return (ab_near / bb_near).unsqueeze(1)
