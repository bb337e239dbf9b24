r"""The linear splittings of the probability-flow ODE: what is exact in a step, and what is taken for a polynomial.

    eps       du/dt = F u + 1/2 GG^T B^-T eps,    score = -B^-T eps,
              u_s = psi(s, t) u_t + int_t^s 1/2 psi(s, tau) GG^T B^-T eps dtau,
              for B = R and a constant eps the integral is R_s - psi(s, t) R_t;

    data      with x = E[u_0 | u] = psi(t, 0)^-1 (u - R_t eps), hence score = -Sigma^-1 (u - psi(t, 0) x),

              du/dt = (F + 1/2 GG^T Sigma^-1) u - 1/2 GG^T Sigma^-1 psi(t, 0) x.

              The transition of the first term is R_s R_t^-1, which is how R is defined, and GG^T Sigma^-1 = R M R^-1:

              u_s = R_s R_t^-1 u_t - int_t^s 1/2 R_s M_tau R_tau^-1 psi(tau, 0) x dtau,

              and for a constant x the integral is psi(s, 0) - R_s R_t^-1 psi(t, 0), because 1/2 M R^-1 psi(tau, 0) is
              -d/dtau [R_tau^-1 psi(tau, 0)];

    velocity  u = psi x + R eps is a component of the pair (x, eps). The component across it, at the start t of the step, is

              v = eps - rho_t^T x,    rho = psi(t, 0)^-1 R,    held fixed as a combination while tau goes from t to s.

              With S_tau = psi(tau, 0) + R_tau rho_t^T one has u = S x + R v, and along the ODE psi dx + R deps = 0, so that

              d(S^-1 u) = d(S^-1 R) v,    d(S^-1 R)/dtau = 1/2 S^-1 GG^T R^-T (I + rho_t^T rho_tau)^-1,
              u_s = S_s S_t^-1 u_t + int_t^s S_s d(S_tau^-1 R_tau),    for a constant v: R_s - S_s S_t^-1 R_t.

              VP: alpha = cos phi, sigma = sin phi, alpha_t v = alpha_t eps - sigma_t x, the velocity du/dphi at t, and with
              d = phi_s - phi_t the step of a constant v is the rotation u_s = cos(d) u_t + sin(d) alpha_t v.

So in the variables u/psi and u/R the first two are each other's mirror, d(psi^-1 u) = d(psi^-1 R) eps and
d(R^-1 u) = d(R^-1 psi) x, and the third stands between them: where the noise is small v is eps, where it is large -rho_t^T x.
A step of degree 0 is one and the same in all, u_s = psi(s, 0) x + R_s eps; from degree 1 on they differ. v of a step is another
combination than v of the step before; so the values that are kept are the pairs (x, eps).

eps and data are defined for every linear SDE where psi and R are invertible: on (0, t_max] for VP, sub-VP, VE, CLD and BDM. On
CLD x has the velocity E[v_0 | u], which is 0 for an exact score. The velocity needs an invertible I + rho_t^T rho_tau along the
step. It is above I where K = 1. In blocks of two, R turns: on CLD the determinant passes 0 between t = 0.15 and tau = 0.02, a
step of ordinary length, and so the velocity is for K = 1 alone.

With noise, lam > 0, the process of the same marginals that a step follows is

    du = [F u + (1 + lam^2)/2 GG^T R^-T eps] dt + lam G dw,

    eps       transition psi(s, t), (1 + lam^2) times the integrals above, and noise of covariance
              lam^2 (psi(s, t) Sigma_t psi(s, t)^T - Sigma_s);
    data      transition Psi_hat(s, t) = R_s W(s, t) R_t^-1 (`noise_factor`),

              u_s = Psi_hat u_t - int_t^s (1 + lam^2)/2 R_s W(s, tau) M R_tau^-1 psi(tau, 0) x dtau + noise,

              for a constant x the integral is psi(s, 0) - Psi_hat psi(t, 0); noise of covariance R_s (I - W W^T) R_s^T.

Data in one point have their exact law in every step in data, of any degree. In eps they have not: eps then moves with the noise
of the step. Degree 0 in data is gDDIM, and so is degree 0 alone, uncorrected, in eps: `stochastic`.

References:
    Zhang, Chen 2023 (DEIS), Eq. 11; Zhang, Tao, Chen 2023 (gDDIM), Eq. 18; Lu et al. 2022, "DPM-Solver++", Eq. 8 (the form in
    data, for scalar SDEs); Salimans, Ho 2022, "Progressive distillation", appendix D (v); Xue et al. 2023, "SA-Solver" (with
    noise, for scalar SDEs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.exponential.noise_factor import noise_factor
from indm_core.exponential.options import Basis, Multistep
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse, sqrt_psd

__all__ = ["DataForm", "EpsForm", "Form", "VelocityForm", "basis_at", "form_of"]


def basis_at(sde: LinearSDE, t: Tensor, basis: Basis) -> Tensor:
    """B_t of eps = -B_t^T score, (*te, K, K): R, the Cholesky factor L of Sigma, or I, in which eps is -score."""
    if basis == "R":
        return sde.R(t)
    if basis == "score":
        k = sde.prior_cov().shape[-1]
        return torch.eye(k).to(t).expand(*t.shape, k, k)
    cov = sde.cov(t)
    return cov.sqrt() if cov.shape[-1] == 1 else torch.linalg.cholesky(cov)


@dataclass(frozen=True)
class Form(ABC):
    """u_s = transfer u_t + int_t^s integrand(s, tau) value dtau + spread z, z standard normal."""

    @property
    @abstractmethod
    def num_nodes(self) -> int:
        """Nodes of the quadrature over a step."""

    @abstractmethod
    def parts(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, ...]:
        """The coefficients at t that make the value of a state and its score."""

    @abstractmethod
    def combined(self, parts: Sequence[Tensor], u: Tensor, score: Tensor) -> Tensor:
        """The value, what is taken for a polynomial: like u, or with more in each block."""

    def value(self, sde: LinearSDE, score: Score, u: Tensor, t: Tensor) -> Tensor:
        """The value at a state, at one evaluation of the score."""
        return self.combined(self.parts(sde, t), u, score(u, t))

    @abstractmethod
    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        """The transition of the exact part to s from t."""

    @abstractmethod
    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor, t: Tensor) -> Tensor:
        """The factor of the value at tau, in a step to s from t."""

    @abstractmethod
    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        """The integral to s from t for a constant value in closed form; None where there is none."""

    @abstractmethod
    def spread(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor:
        """A square root of the covariance of the noise that a step to s from t adds; 0 for the ODE."""


@final
@dataclass(frozen=True)
class EpsForm(Form):
    """eps = -B^T score.

    Args:
        basis: B.
        lam: Stochasticity, in the basis R.
    """

    basis: Basis
    lam: float = 0.0

    @property
    def num_nodes(self) -> int:
        # without a closed sum, a pole of BDM's just beyond t_max takes more
        return 40 if self.basis == "R" else 160

    def parts(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, ...]:
        return (basis_at(sde, t, self.basis).mT,)

    def combined(self, parts: Sequence[Tensor], u: Tensor, score: Tensor) -> Tensor:
        return -apply(parts[0], score)

    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        return sde.psi(s, t)

    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor, t: Tensor) -> Tensor:
        rate = 0.5 * (1 + self.lam**2)
        return rate * sde.psi(s, tau) @ sde.GG(tau) @ inverse(basis_at(sde, tau, self.basis)).mT

    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        return (1 + self.lam**2) * (sde.R(s) - transfer @ sde.R(t)) if self.basis == "R" else None

    def spread(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor:
        return self.lam * sqrt_psd(transfer @ sde.cov(t) @ transfer.mT - sde.cov(s))


@final
@dataclass(frozen=True)
class DataForm(Form):
    """x = E[u_0 | u], by Tweedie.

    Args:
        lam: Stochasticity.
    """

    lam: float = 0.0

    @property
    def num_nodes(self) -> int:
        return 40

    def parts(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, ...]:
        return sde.cov(t), inverse(sde.psi0(t))

    def combined(self, parts: Sequence[Tensor], u: Tensor, score: Tensor) -> Tensor:
        return apply(parts[1], u + apply(parts[0], score))  # as `LinearSDE.denoise`

    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        return self._kept(sde, s, t) @ inverse(sde.R(t))

    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor, t: Tensor) -> Tensor:
        return -0.5 * (1 + self.lam**2) * self._kept(sde, s, tau) @ sde.M(tau) @ inverse(sde.R(tau)) @ sde.psi0(tau)

    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        return sde.psi0(s) - transfer @ sde.psi0(t)

    def spread(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor:
        W = noise_factor(sde, t.flatten(), s.flatten(), self.lam)
        return sde.R(s) @ sqrt_psd(torch.eye(W.shape[-1]).to(W) - W @ W.mT)

    def _kept(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        """R_s W(s, t)."""
        return sde.R(s) @ noise_factor(sde, t.flatten(), s.flatten(), self.lam) if self.lam else sde.R(s)


@final
@dataclass(frozen=True)
class VelocityForm(Form):
    """v = eps - rho_t^T x, t the start of the step; the values are the pairs (x, eps), (b, *event, 2). K = 1."""

    @property
    def num_nodes(self) -> int:
        return 40

    def parts(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, ...]:
        return sde.cov(t), inverse(sde.psi0(t)), sde.R(t).mT

    def combined(self, parts: Sequence[Tensor], u: Tensor, score: Tensor) -> Tensor:
        return torch.cat([apply(parts[1], u + apply(parts[0], score)), -apply(parts[2], score)], -1)

    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        rho = _rho(sde, t)
        return (sde.psi0(s) + sde.R(s) * rho) / (sde.psi0(t) + sde.R(t) * rho)

    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor, t: Tensor) -> Tensor:
        rho = _rho(sde, t)
        S_s, S_tau = (sde.psi0(at) + sde.R(at) * rho for at in (s, tau))
        return _of_pair(0.5 * S_s / S_tau * sde.GG(tau) / sde.R(tau) / (1 + rho * _rho(sde, tau)), rho)

    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        return _of_pair(sde.R(s) - transfer * sde.R(t), _rho(sde, t))

    def spread(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor:
        return torch.zeros_like(transfer)


def _rho(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.R(t) / sde.psi0(t)


def _of_pair(factor: Tensor, rho: Tensor) -> Tensor:
    """A factor of v = eps - rho x as one of (x, eps), (..., 1, 2)."""
    return torch.cat([-factor * rho, factor], -1)


def form_of(options: Multistep) -> Form:
    """The splitting that the options name."""
    if options.prediction == "velocity":
        return VelocityForm()
    if options.prediction == "data":
        return DataForm(options.lam)
    return EpsForm(options.basis, options.lam)
