r"""What the INDM paper's Table 2 and Figures 1, 2, 4, 6 and 7 measure.

Induced data SDE (Figures 1 and 2). With du = drift dt + G dw in the latent and P the map `project` of a state to z, the data
process x_t = h^-1(z_t) satisfies h(x_t) = P u_t. Ito's formula on both sides gives dx = f_x dt + G_x dw with

    J G_x = P G,        J f_x = P drift - 1/2 sum_k D^2 h(x)[g_k, g_k],        J = dh/dx, g_k the columns of G_x,

from derivatives of h alone (an inverse found by iteration has none). For K = 1 this is an SDE in x; for K > 1 its coefficients
depend on the whole state u.

Norm ratio (Figure 4). What a step of size dt owes to the nonlinear drift a(u, t), over what it owes to noise,

    |a dt| / (E |G dw|^2)^(1/2) = |a| sqrt(dt) / (tr GG^T)^(1/2).

The root mean square stands for the paper's drawn |G dw|, which scatters about it by a share 1/sqrt(2 D) in D dimensions: the
reciprocal of a drawn norm has no mean in one dimension and no variance in two.

Discretisation (Figure 6). Under h(x) = a x Gaussian data have the latent law N(m*_t, C*_t) with m*_t = psi(t, 0) a mean and
C*_t = psi a^2 cov psi^T + Sigma_t, the score is linear, and Euler-Maruyama from the exact law at ts[0] has moments m, C by the
recursion to s from t,

    B = (1 + lam^2)/2 GG^T C*_t^-1,         A = I - (t - s) (F + B),
    m_s = A m_t + (t - s) B m*_t,           C_s = A C_t A^T + lam^2 (t - s) GG^T,

so that the error in data space is known without sampling.

Smoothness (Figure 7a, b; K, L and alpha of Theorem 4). |grad^2 log p_t| in the Frobenius norm, and |d/dt grad log p_t| / |u|.

Geometry (Figure 7c). The cosine between the velocity of the probability-flow ODE's path and the chord u(t_end) - u(t_first).

All are per sample; `mean_and_error` averages them.

References:
    Kim, Na, Kwon, Lee, Kang, Moon 2022, "Maximum likelihood training of implicit nonlinear diffusion models", sections 3, 4.1,
    5 (SBP) and 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from indm_core.model import GenerativeModel
from indm_core.noise import Noise, branch, rademacher_like
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sample import Score
from indm_core.sde import SDE, LinearSDE, apply, inverse, sqrt_psd
from indm_core.shapes import Float
from indm_core.times import check_times

__all__ = [
    "DiscretisationError",
    "InducedSDE",
    "MeanAndError",
    "SquaredNorms",
    "along_times",
    "discretisation_error",
    "hessian_norm",
    "induced_norm_ratio",
    "induced_sde",
    "mean_and_error",
    "path_cosine",
    "score_rate",
    "squared_norms",
]

Measure = Callable[[Score, Tensor, Tensor], Tensor]
"""measure(score, u, t) -> (b,), as `hessian_norm` and `score_rate`."""


class MeanAndError(NamedTuple):
    """A mean over samples and its standard error, shape (*n) each."""

    mean: Tensor
    error: Tensor


class SquaredNorms(NamedTuple):
    """|x|^2, |h(x)|^2 and |z_T|^2 for draws of the data and of the prior, (b,) each."""

    data: Tensor
    latent: Tensor
    prior: Tensor


class InducedSDE(NamedTuple):
    """dx = drift dt + volatility dw at the data points x: drift (b, d), volatility (b, d, m), m = d K sources of noise.

    volatility @ volatility.mT is the covariance, per unit time, whose ellipses Figure 2c shows.
    """

    x: Tensor
    drift: Tensor
    volatility: Tensor


class DiscretisationError(NamedTuple):
    """The 2-Wasserstein distance (units of x) and KL(sampler || exact) (nats), both of the law of x; 0-d."""

    w2: Tensor
    kl: Tensor


def mean_and_error(values: Float[Tensor, "*n b"]) -> MeanAndError:
    """Mean over the last axis, b >= 2 independent samples, and its standard error std/sqrt(b)."""
    b = values.shape[-1]
    if b < 2:
        raise ValueError(f"values: a standard error needs at least 2 samples, got shape {tuple(values.shape)}")
    return MeanAndError(values.mean(-1), values.std(-1) / math.sqrt(b))


def along_times(
    model: GenerativeModel, x: Tensor, ts: Float[Tensor, " n"], measure: Measure, *, generator: Noise = None
) -> Float[Tensor, "n b"]:
    """measure(score, u_t, t) at a draw of u_t given x, new for each time: a curve of Figure 7a or b.

    Args:
        x: Data (b, *shape).
        ts: Times in [t_min, t_start], float64.
        measure: `score_rate`, or `hessian_norm` with its options bound.
        generator: Two models with the same SDE are compared on the same noise.
    """
    with torch.no_grad():
        u_0, _ = model.encode(x, branch(generator))
    rows = []
    for i, t in enumerate(ts):
        model.sde.check_time(f"ts[{i}]", float(t))
        with torch.no_grad():
            u_t = model.sde.transition(u_0, t, torch.zeros_like(t), generator)
        rows.append(measure(model.score, u_t, t))
    return torch.stack(rows)


@torch.no_grad()
def squared_norms(model: GenerativeModel, x: Float[Tensor, " b *event"], *, generator: Noise = None) -> SquaredNorms:
    """|x|^2, |z|^2 with z = h(x), and |z_T|^2 for as many draws from the law at t_start; positions only where K > 1.

    The mean of the first on CIFAR-10 in [-1, 1] is the 776 of Table 2, whose "norm" is therefore squared; that of the last is D
    for VP. The factor E[|z|^4]^(1/4) of Theorem 4 is latent.square().mean() ** 0.25.

    References: Kim et al. 2022, Table 2.
    """
    u, _ = model.encode(x, branch(generator))
    prior = model.sde.project(model.sample_start(u, generator))
    return SquaredNorms(*(v.flatten(1).square().sum(1) for v in (x, model.sde.project(u), prior)))


def induced_sde(model: GenerativeModel, u: Float[Tensor, "b *event k"], t: Float[Tensor, ""]) -> InducedSDE:
    """Drift and volatility, at time t, of the data process x = decode(u) that the latent diffusion induces.

    Exact Jacobians and second derivatives of h, d^2 K + d backward passes: for small d. Where K = 1 the coefficients at data
    points x are those at u = encode(x)[0].

    Args:
        u: States, with the position h(x) in each.
        t: Time in [0, t_max], float64.

    References: Kim et al. 2022, Figures 1 and 2 and appendix A.2.
    """
    sde, num_sources = model.sde, math.prod(u.shape[1:])
    with torch.no_grad():
        x = model.decode(u)
        unit = torch.eye(num_sources, dtype=u.dtype, device=u.device).reshape(num_sources, *u.shape[1:])
        noise = sde.project(apply(sqrt_psd(sde.GG(t)), unit)).flatten(1).T
        drift_z = sde.project(sde.drift(u, t)).flatten(1)
    with torch.enable_grad():
        x_in = x.detach().requires_grad_()
        z = sde.project(model.encode(x_in)[0]).flatten(1)
        J = torch.stack([_gradient(z_i, x_in) for z_i in z.unbind(1)], 1)
        noise = noise.expand(len(J), -1, -1)  # else `solve` may take a matrix for a batch of vectors
        volatility = torch.linalg.solve(J.detach(), noise)
        curvature = torch.stack([_trace_along(row, x_in, volatility) for row in J.unbind(1)], 1)
    drift = torch.linalg.solve(J.detach(), (drift_z - 0.5 * curvature).unsqueeze(-1)).squeeze(-1)
    return InducedSDE(x, drift, volatility)


def _gradient(value: Float[Tensor, " b"], x: Float[Tensor, " b *event"]) -> Float[Tensor, "b d"]:
    """d value/dx of each sample, with a graph."""
    reaches_x = 0 * x.sum()  # an affine flow's Jacobian has no graph to x
    (gradient,) = torch.autograd.grad(value.sum() + reaches_x, x, create_graph=True)
    return gradient.flatten(1)


def _trace_along(
    row: Float[Tensor, "b d"], x: Float[Tensor, " b *event"], columns: Float[Tensor, "b d m"]
) -> Float[Tensor, " b"]:
    """sum_k D^2 h_i[g_k, g_k] from the row dh_i/dx of the Jacobian and the columns g_k."""
    terms = [(_gradient((row * g).sum(1), x).detach() * g).sum(1) for g in columns.unbind(2)]
    return torch.stack(terms).sum(0)


def induced_norm_ratio(
    model: GenerativeModel, u: Float[Tensor, "b *event k"], t: Float[Tensor, ""], dt: float
) -> Float[Tensor, " b"]:
    """The norm ratio of the induced data SDE, |f_x - F x| sqrt(dt) / |G_x|_F: 0 for a linear flow; small d only.

    F x is the drift that the SDE has without a flow, at x in place of z.

    Raises:
        ValueError: a dt that is not positive; K > 1, where x alone follows no SDE (nor does CLD's noise reach it).
    """
    if u.shape[-1] > 1:
        raise ValueError(
            f"u: its blocks have size {u.shape[-1]}; a norm ratio of the data needs an SDE in x alone, K = 1"
        )
    check_positive(dt=dt)
    x, drift, volatility = induced_sde(model, u, t)
    without_flow = model.sde.project(model.sde.drift(model.sde.embed(x), t)).flatten(1)
    return math.sqrt(dt) * (drift - without_flow).norm(dim=1) / volatility.flatten(1).norm(dim=1)


def hessian_norm(
    score: Score,
    u: Float[Tensor, "b *event k"],
    t: Float[Tensor, "*t"],
    *,
    num_probes: int = 1,
    generator: Noise = None,
) -> Float[Tensor, " b"]:
    """|S|_F with S = d score/du, the Hessian of log p_t, as the root of the mean of |S^T v|^2 over Rademacher probes v.

    The square is unbiased; the root lies below |S|_F on average (Jensen), by about 1/8 of the square's relative variance. Both
    are exact where S S^T is diagonal.

    Args:
        num_probes: Probes per sample; one vector-Jacobian product each, through a single evaluation of the score.

    References: Kim et al. 2022, Figure 7a (K of Theorem 4); Hutchinson 1989.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes={num_probes} must be at least 1")
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        s = score(u, t)
        squares = []
        for i in range(num_probes):
            (pulled,) = torch.autograd.grad(s, u, rademacher_like(u, generator), retain_graph=i + 1 < num_probes)
            squares.append(pulled.flatten(1).square().sum(1))
    return torch.stack(squares).mean(0).sqrt()


def score_rate(score: Score, u: Float[Tensor, "b *event k"], t: Float[Tensor, "*t"]) -> Float[Tensor, " b"]:
    """|d score(u, t)/dt| / |u| at fixed u.

    The derivative is exact: w^T d score/dt by reverse mode is linear in w, and its gradient in w is d score/dt.

    References: Kim et al. 2022, Figure 7b (L and alpha of Theorem 4: at most L exp(-alpha t)).
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        t = t.detach().requires_grad_()
        s = score(u.detach(), t) + 0 * t.sum()  # a score may be the same at all times
        w = torch.zeros_like(s, requires_grad=True)
        (along_w,) = torch.autograd.grad(s, t, w, create_graph=True)
        (rate,) = torch.autograd.grad(along_w.sum(), w)
    return rate.flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)


@torch.no_grad()
def path_cosine(
    sde: SDE,
    score: Score,
    u: Float[Tensor, "b *event k"],
    ts: Float[Tensor, " n"],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Float[Tensor, "n b"]:
    """cos(du/dt at ts[i], u(ts[-1]) - u(ts[0])) along the probability-flow ODE's path from u: 1 throughout on a straight line,
    negative where the path runs back.

    Args:
        u: States at ts[0]: draws at t_min, for forward trajectories.
        ts: Increasing times in [t_min, t_max], float64.
        rtol, atol: Tolerances of RK45, per sample.

    References: Kim et al. 2022, Figure 7c.
    """
    check_times(sde, ts.flip(0))

    def velocity(u: Tensor, t: Tensor) -> Tensor:
        return sde.reverse_drift(u, t, score(u, t), lam=0.0)

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        return (velocity(state[0], t.reshape(-1, *[1] * (u.ndim - 2))),)

    u_t, velocities = u, [velocity(u, ts[0])]
    for s, t in pairwise(ts):
        (u_t,), _ = rk45(in_sqrt_time(field), (u_t,), math.sqrt(s), math.sqrt(t), rtol=rtol, atol=atol)
        velocities.append(velocity(u_t, t))
    v, chord = torch.stack(velocities).flatten(2), (u_t - u).flatten(1)
    return (v * chord).sum(2) / (v.norm(dim=2) * chord.norm(dim=1))


def discretisation_error(
    sde: LinearSDE,
    a: float,
    ts: Float[Tensor, " n"],
    mean: Float[Tensor, "*e k"],
    cov: Float[Tensor, "*e k k"],
    *,
    lam: float = 1.0,
) -> DiscretisationError:
    """Error of `sample_em` with the flow h(x) = a x and the exact score, on Gaussian data, in closed form.

    The start is the exact law at ts[0] and the target the exact law at ts[-1]: neither the prior's error nor the score's
    enters, only E_dis of Theorem 4. The paper states E_dis ~ 1/a and shows the FID of RK45 samples; this is the measured curve
    of a fixed-step sampler. Blocks are independent; data of any covariance are so in their principal axes, where the SDE is
    the same in all directions.

    Args:
        a: Scale of the flow, positive.
        ts: Decreasing times in [t_min, t_max].
        mean, cov: Moments of embed(x), the state before scaling, block by block, float64. K = 1: the data's means (d, 1) and
            variances (d, 1, 1), in the SDE's basis. Summed over *e.
        lam: Stochasticity; 0 is Euler's method for the ODE.

    Returns:
        w2 and kl of the law of x; where K > 1 that of the first coordinate of a block.

    References: Kim et al. 2022, Figure 6 and Theorem 4.
    """
    check_times(sde, ts)
    check_positive(a=a)
    check_not_negative(lam=lam)

    def exact(t: Tensor) -> tuple[Tensor, Tensor]:
        psi = sde.psi0(t)
        return psi @ (a * mean).unsqueeze(-1), psi @ (a**2 * cov) @ psi.mT + sde.cov(t)

    m, C = exact(ts[0])
    for t, s in pairwise(ts):
        step, (m_t, C_t), GG = t - s, exact(t), sde.GG(t)
        B = 0.5 * (1 + lam**2) * GG @ inverse(C_t)
        A = torch.eye(C_t.shape[-1]).to(C_t) - step * (sde.F(t) + B)
        m, C = A @ m + step * B @ m_t, A @ C @ A.mT + lam**2 * step * GG
    m_exact, C_exact = exact(ts[-1])
    shift, var, var_exact = (m - m_exact)[..., 0, 0], C[..., 0, 0], C_exact[..., 0, 0]
    w2 = (shift.square() + (var.sqrt() - var_exact.sqrt()).square()).sum().sqrt() / a
    excess = (var - var_exact) / var_exact
    kl = 0.5 * (excess - torch.log1p(excess) + shift.square() / var_exact).sum()
    return DiscretisationError(w2, kl)
