r"""Stochastic differential equations and their closed forms.

The forward diffusion of a state u is

    du = drift(u, t) dt + G_t dw,                 t in [0, t_max],

and a score s(u, t) = grad log p_t(u) gives every process with the same marginals,

    du = [drift - (1 + lam^2)/2 GG^T s] dt + lam G dw    run from t down to s < t:

lam = 1 is the reverse SDE, lam = 0 the probability-flow ODE. `SDE` asks for `drift` and `GG` only, because Euler-Maruyama,
Runge-Kutta and the likelihood need no more. A `LinearSDE` has drift = F_t u, hence Gaussian transitions

    u_t | x  ~  N(psi(t, 0) embed(x), Sigma_t),        d psi(t, s)/dt = F_t psi(t, s),  psi(s, s) = I,
                                                       dSigma/dt = F Sigma + Sigma F^T + GG^T,
    u_t = psi(t, 0) embed(x) + R_t eps,                R R^T = Sigma,  dR/dt = (F + 1/2 GG^T Sigma^-1) R,
    score = -R^-T eps_hat(u, t)                        where eps_hat = E[eps | u_t].

Every coefficient is one tensor (*e, K, K): K is the block in which coordinates are coupled (1 for VP, sub-VP and VE; position
and velocity would be 2) and *e broadcasts against the event. The state has shape (b, *event, K). A time is a 0-d tensor or
(b, 1, ..., 1) with the event's rank; a coefficient has shape broadcast(t, *e) + (K, K) and the dtype of t. Functions that give
one number for a time (log_importance, log_rho, ...) take times (n,) and give (n,). Give times in
float64: the coefficients are cast once, in `apply`.

Two identities serve everywhere. With M = R^-1 GG^T R^-T and D coordinates,

    d/dt log det R = tr F + 1/2 tr M,                                                     (NELBO's constant)
    d/dt [log det Sigma - 2 log det psi(t, 0)] = tr(GG^T Sigma^-1) = tr M,                (the importance law of t)

so that the integral of tr M over any interval is a difference of closed forms for every linear SDE.

References:
    Song et al. 2021, "Score-based generative modeling through SDEs".
    Zhang, Tao, Chen 2023, "gDDIM", Eqs. 13-17 (R and the matrix form).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real

import torch
from torch import Tensor

from indm_core.noise import Noise, randn_like
from indm_core.sde.algebra import apply, event_sum, gaussian_log_prob, inverse, log_abs_det, over_event, sqrt_psd
from indm_core.shapes import Float

__all__ = ["SDE", "LinearSDE"]


class SDE(ABC):
    """du = drift(u, t) dt + G_t dw on [0, t_max]; samplers and likelihoods stay in [t_min, t_max]."""

    t_min: float
    t_max: float

    @property
    @abstractmethod
    def linear(self) -> LinearSDE | None:
        """Itself where the drift is F_t u; None where it is learned."""

    @abstractmethod
    def drift(self, u: Float[Tensor, "b *event k"], t: Float[Tensor, "*t"]) -> Float[Tensor, "b *event k"]:
        """The forward drift."""

    @abstractmethod
    def GG(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*te k k"]:
        """The squared diffusion coefficient G_t G_t^T."""

    @abstractmethod
    def check_state(self, u: Tensor) -> None:
        """Refuses a state whose blocks or positions are not the SDE's."""

    @abstractmethod
    def embed(self, x: Float[Tensor, " b *event"]) -> Float[Tensor, "b *event k"]:
        """The state's mean at time 0, deterministic."""

    @abstractmethod
    def project(self, u: Float[Tensor, "b *event k"]) -> Float[Tensor, " b *event"]:
        """project(embed(x)) = x."""

    @abstractmethod
    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """A draw of u_t given u_s = u; at s = 0, given data with embed(x) = u."""

    @abstractmethod
    def enter(
        self, u_0: Tensor, t: Tensor, eps: Tensor, score: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """u at a small time t by the noise eps, and log q(u | x) - log p(x | u) in nats (b,): what turns -log p_t(u) into a
        bound on -log p(x)."""

    @abstractmethod
    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """E[u_0 | u_t]."""

    def reverse_drift(self, u: Tensor, t: Tensor, score: Tensor, lam: float = 1.0) -> Tensor:
        """drift - (1 + lam^2)/2 GG^T score: the reverse SDE at lam = 1, the probability-flow ODE at lam = 0."""
        return self.drift(u, t) - apply(0.5 * (1 + lam**2) * self.GG(t), score)

    def check_time(self, name: str, t: float) -> None:
        """Refuses a time outside [t_min, t_max], where scores are untrained and coefficients may be singular."""
        if not self.t_min * (1 - 1e-9) <= t <= self.t_max * (1 + 1e-9):
            raise ValueError(f"{name}={t:g} lies outside [t_min, t_max] = [{self.t_min:g}, {self.t_max:g}]")


@dataclass(frozen=True, kw_only=True)
class LinearSDE(SDE):
    """drift = F_t u. Everything below the abstract methods is derived from them, once, for every linear SDE.

    Args:
        t_min: Smallest time at which scores are trained and evaluated, 0 < t_min < t_max.
        t_max: Largest time.
    """

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        for name, value in ((own.name, getattr(self, own.name)) for own in fields(self)):
            if isinstance(value, Real) and not math.isfinite(value):
                raise ValueError(f"{name}={value} must be finite")
        if not 0 < self.t_min < self.t_max:
            raise ValueError(f"t_min={self.t_min} must lie strictly between 0 and t_max={self.t_max}")

    @property
    def linear(self) -> LinearSDE:
        return self

    @property
    def scalar(self) -> bool:
        """Whether one number is the coefficient of every coordinate: K = 1 and no *e."""
        t = torch.tensor(0.5 * self.t_max, dtype=torch.float64)
        return self.psi0(t).numel() == self.R(t).numel() == 1

    @property
    @abstractmethod
    def pixelwise(self) -> bool:
        """Whether the noise of different positions of the event is independent."""

    @abstractmethod
    def F(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*te k k"]:
        """Drift matrix."""

    @abstractmethod
    def psi(self, t: Float[Tensor, "*t"], s: Float[Tensor, "*t"]) -> Float[Tensor, "*te k k"]:
        """Transition to t from s: d psi/dt = F_t psi, psi(s, s) = I."""

    @abstractmethod
    def cov(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*te k k"]:
        """Sigma_t, the covariance of u_t given x."""

    @abstractmethod
    def R(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*te k k"]:
        """The noise basis: R R^T = Sigma and dR/dt = (F + 1/2 GG^T Sigma^-1) R."""

    @abstractmethod
    def prior_cov(self) -> Float[Tensor, "*e k k"]:
        """Covariance of the law pi at t_max from which sampling starts, float64."""

    @abstractmethod
    def to_network(self, u: Float[Tensor, "b *event k"]) -> Float[Tensor, " b *shape"]:
        """What a backbone sees, (b, c, h, w) or (b, d): an orthogonal map, so that its log-det is 0."""

    @abstractmethod
    def from_network(self, out: Float[Tensor, " b *shape"]) -> Float[Tensor, "b *event k"]:
        """The inverse of `to_network`: a backbone's output as eps, like u."""

    def check_state(self, u: Tensor) -> None:
        """Raises: ValueError: blocks of another size than K, or positions that the coefficients' *e is not made for."""
        *e, k, _ = self.psi0(torch.tensor(0.5 * self.t_max, dtype=torch.float64)).shape
        if u.shape[-1] != k:
            raise ValueError(f"u: its blocks have size {u.shape[-1]}, those of {type(self).__name__} {k}")
        if e and list(u.shape[-1 - len(e) : -1]) != e:
            raise ValueError(f"u: a state of shape {tuple(u.shape)}, and {self} is made for positions {tuple(e)}")

    def drift(self, u: Tensor, t: Tensor) -> Tensor:
        """F_t u."""
        return apply(self.F(t), u)

    def drift_divergence(self, u: Tensor, t: Tensor) -> Float[Tensor, " b"]:
        """tr F_t over all coordinates of u."""
        return event_sum(self.F(t).diagonal(dim1=-2, dim2=-1).sum(-1), u).to(u.dtype)

    def driven(self, u: Tensor) -> Tensor:
        """Which coordinates of a state noise acts on, (1, *event, k) of u's dtype: 1 where the diagonal of GG^T is positive, at
        all times alike, else 0. GG^T is positive semi-definite: where its diagonal vanishes, so do the row and the column."""
        t = torch.tensor(0.5 * self.t_max, dtype=torch.float64, device=u.device)
        return (self.GG(t).diagonal(dim1=-2, dim2=-1) > 0).to(u).expand(1, *u.shape[1:])

    def psi0(self, t: Tensor) -> Tensor:
        """psi(t, 0)."""
        return self.psi(t, torch.zeros_like(t))

    def log_det_psi0(self, t: Tensor) -> Tensor:
        """log det psi(t, 0) = int_0^t tr F of each block."""
        return log_abs_det(self.psi0(t))

    def M(self, t: Tensor) -> Tensor:
        """R^-1 GG^T R^-T, symmetric: what the likelihood weights an error of eps with; tr M = tr(GG^T Sigma^-1)."""
        R_inv = inverse(self.R(t))
        return R_inv @ self.GG(t) @ R_inv.mT

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """|q| (*te,) and q_1 = q/|q| (*te, k, 1) of q = R^-1 p, p the first column of psi(t, 0), which carries x.

        R^-1 u_t = q x + eps: data beside white noise. |q|^2 = p^T Sigma^-1 p is the precision with which the block tells x, and
        of its noise only the component along q_1 cannot be told from x.
        """
        q = inverse(self.R(t)) @ self.psi0(t)[..., :1]
        size = q.norm(dim=-2, keepdim=True)
        return size[..., 0, 0], q / size.clamp(min=torch.finfo(q.dtype).tiny)

    def unseen(self, t: Tensor) -> Tensor | None:
        """The projector onto the directions of eps that M does not weight, (*te, k, k); None where there are none."""
        return None

    def perturb(self, u_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """psi(t, 0) u_0 + R_t eps."""
        return apply(self.psi0(t), u_0) + apply(self.R(t), eps)

    def transition(self, u: Tensor, t: Tensor, s: Tensor, generator: Noise = None) -> Tensor:
        """N(psi(t, s) u, Sigma_t - psi Sigma_s psi^T); at s = 0, N(psi(t, 0) u, Sigma_t)."""
        psi, cov = self.psi(t, s), self.cov(t)
        if s > 0:
            cov = cov - psi @ self.cov(s) @ psi.mT
        return apply(psi, u) + apply(sqrt_psd(cov), randn_like(u, generator))

    def enter(
        self, u_0: Tensor, t: Tensor, eps: Tensor, score: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`perturb`, and `residual` there."""
        u = self.perturb(u_0, t, eps)
        return u, self.residual(t, eps, self.eps_from_score(score(u, t), t))

    def score_from_eps(self, eps: Tensor, t: Tensor) -> Tensor:
        """-R^-T eps."""
        return -apply(inverse(self.R(t)).mT, eps)

    def eps_from_score(self, score: Tensor, t: Tensor) -> Tensor:
        """-R^T score, the inverse of `score_from_eps`."""
        return -apply(self.R(t).mT, score)

    def denoise(self, u: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """E[u_0 | u_t] = psi(t, 0)^-1 (u + Sigma score) (Tweedie)."""
        return apply(inverse(self.psi0(t)), u + apply(self.cov(t), score))

    def prior_cov_on(self, u: Tensor) -> Tensor:
        """`prior_cov` on the device of u; nobody waits for the copy."""
        return self.prior_cov().to(u.device, non_blocking=True)

    def log_prior(self, u: Tensor) -> Tensor:
        """log pi(u), nats per sample."""
        return gaussian_log_prob(u, self.prior_cov_on(u))

    def sample_prior(self, u: Tensor, generator: Noise = None) -> Tensor:
        """A draw from pi, like u."""
        return apply(sqrt_psd(self.prior_cov_on(u)), randn_like(u, generator))

    def log_importance(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log det Sigma_t - 2 log det psi(t, 0), averaged over *e: a primitive of tr M."""
        t_e = over_event(t)
        return _mean_over_event(log_abs_det(self.cov(t_e)) - 2 * self.log_det_psi0(t_e))

    def trace_M(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """tr(GG^T Sigma^-1) averaged over *e: the derivative of `log_importance`."""
        return _mean_over_event(self.M(over_event(t)).diagonal(dim1=-2, dim2=-1).sum(-1))

    def log_sigma(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The logarithm of the noise's standard deviation, the geometric mean over all coordinates."""
        R = self.R(over_event(t))
        return _mean_over_event(log_abs_det(R)) / R.shape[-1]

    def log_rho(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The logarithm of the noise in units of the signal, a scalar that increases with t.

        Here the geometric mean over all coordinates; an SDE whose coordinates differ names one of them.
        """
        return 0.5 * self.log_importance(t)

    def time_at(self, importance: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The times at which `log_importance` (increasing in t) takes the given values: a table, then Newton in a bracket.

        Args:
            importance: Values between those at t_min and t_max, float64.
        """
        steps = torch.linspace(0, 1, 257, dtype=torch.float64, device=importance.device)
        early = self.t_min * (self.t_max / self.t_min) ** steps
        nodes = torch.cat([early, self.t_min + (self.t_max - self.t_min) * steps[1:-1]]).sort().values
        values = self.log_importance(nodes)
        right = torch.searchsorted(values, importance).clamp(1, len(nodes) - 1)
        low, high = nodes[right - 1], nodes[right]
        share = (importance - values[right - 1]) / (values[right] - values[right - 1])
        t = low + share.clamp(0, 1) * (high - low)
        for _ in range(6):
            excess = self.log_importance(t) - importance
            low, high = torch.where(excess <= 0, t, low), torch.where(excess >= 0, t, high)
            t = (t - excess / self.trace_M(t)).clamp(low, high)
        return t

    def residual(self, t: Tensor, eps: Tensor, eps_hat: Tensor) -> Float[Tensor, " b"]:
        """log q(u_t | x) - log p(x | u_t) at u_t = psi(t, 0) embed(x) + R_t eps, nats: what turns -log p(u_t) into a bound
        on -log p(x).

        p(x | u) is the Gaussian of all that the block says of x, the velocity's part included: with q of `signal`,

            p(x | u) = N(x; q^T (R^-1 u - eps_hat)/|q|^2, 1/|q|^2),        x minus its mean = q^T (eps_hat - eps)/|q|^2.

        It is a density of x whatever the score. Under the exact score it is the posterior, as long as the data are wide against
        1/|q|. The residual is then, summed over the positions,

            1/2 (q_1^T (eps_hat - eps))^2 - 1/2 |eps|^2 - log det R - log|q| - (K - 1)/2 log 2 pi,

        and for K = 1: 1/2 |eps_hat - eps|^2 - 1/2 |eps|^2 - log psi(t, 0).

        References: Kim et al. 2022 (INDM), Eq. 3.
        """
        size, direction = self.signal(t)
        error = apply(direction.mT, eps_hat - eps)
        log_norm = log_abs_det(self.R(t)) + size.log() + 0.5 * (eps.shape[-1] - 1) * math.log(2 * math.pi)
        squares = 0.5 * (error.square().flatten(1).sum(1) - eps.square().flatten(1).sum(1))
        return squares - event_sum(log_norm, eps).to(eps.dtype)


def _mean_over_event(value: Float[Tensor, " n *e"]) -> Float[Tensor, " n"]:
    """The mean over *e."""
    return value.flatten(1).mean(1)
