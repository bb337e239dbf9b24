r"""The two linear splittings of the probability-flow ODE: what is exact in a step, and what is taken for a polynomial.

    eps    du/dt = F u + 1/2 GG^T B^-T eps,    score = -B^-T eps,
           u_s = psi(s, t) u_t + int_t^s 1/2 psi(s, tau) GG^T B^-T eps dtau,
           for B = R and a constant eps the integral is R_s - psi(s, t) R_t;

    data   with x = E[u_0 | u] = psi(t, 0)^-1 (u - R_t eps), hence score = -Sigma^-1 (u - psi(t, 0) x),

           du/dt = (F + 1/2 GG^T Sigma^-1) u - 1/2 GG^T Sigma^-1 psi(t, 0) x.

           The transition of the first term is R_s R_t^-1, which is how R is defined, and GG^T Sigma^-1 = R M R^-1:

           u_s = R_s R_t^-1 u_t - int_t^s 1/2 R_s M_tau R_tau^-1 psi(tau, 0) x dtau,

           and for a constant x the integral is psi(s, 0) - R_s R_t^-1 psi(t, 0), because 1/2 M R^-1 psi(tau, 0) is
           -d/dtau [R_tau^-1 psi(tau, 0)].

So in the variables u/psi and u/R the two are each other's mirror: d(psi^-1 u) = d(psi^-1 R) eps and d(R^-1 u) = d(R^-1 psi) x.
Both are defined for every linear SDE where psi and R are invertible: on (0, t_max] for VP, sub-VP, VE, CLD and BDM. A step of
degree 0 is one and the same in both, u_s = psi(s, 0) x + R_s eps; from degree 1 on they differ. On CLD x has the velocity
E[v_0 | u], which is 0 for an exact score.

References:
    Zhang, Chen 2023 (DEIS), Eq. 11; Zhang, Tao, Chen 2023 (gDDIM), Eq. 18; Lu et al. 2022, "DPM-Solver++", Eq. 8 (the form in
    data, for scalar SDEs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from indm_core.exponential.options import Basis, Multistep
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse

__all__ = ["DataForm", "EpsForm", "Form", "basis_at", "form_of"]


def basis_at(sde: LinearSDE, t: Tensor, basis: Basis) -> Tensor:
    """B_t of eps = -B_t^T score, (*te, K, K): R, the Cholesky factor L of Sigma, or I, in which eps is -score."""
    if basis == "R":
        return sde.R(t)
    if basis == "score":
        return torch.eye(sde.prior_cov().shape[-1]).to(t)
    cov = sde.cov(t)
    return cov.sqrt() if cov.shape[-1] == 1 else torch.linalg.cholesky(cov)


@dataclass(frozen=True)
class Form(ABC):
    """u_s = transfer u_t + int_t^s integrand(s, tau) value dtau."""

    @property
    @abstractmethod
    def num_nodes(self) -> int:
        """Nodes of the quadrature over a step."""

    @abstractmethod
    def value(self, sde: LinearSDE, score: Score, u: Tensor, t: Tensor) -> Tensor:
        """What is taken for a polynomial, at one evaluation of the score; like u."""

    @abstractmethod
    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        """The transition of the exact part to s from t."""

    @abstractmethod
    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor) -> Tensor:
        """The factor of the value at tau."""

    @abstractmethod
    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        """The integral to s from t for a constant value in closed form; None where there is none."""


@final
@dataclass(frozen=True)
class EpsForm(Form):
    """eps = -B^T score.

    Args:
        basis: B.
    """

    basis: Basis

    @property
    def num_nodes(self) -> int:
        # without a closed sum, a pole of BDM's just beyond t_max takes more
        return 40 if self.basis == "R" else 160

    def value(self, sde: LinearSDE, score: Score, u: Tensor, t: Tensor) -> Tensor:
        return -apply(basis_at(sde, t, self.basis).mT, score(u, t))

    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        return sde.psi(s, t)

    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor) -> Tensor:
        return 0.5 * sde.psi(s, tau) @ sde.GG(tau) @ inverse(basis_at(sde, tau, self.basis)).mT

    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        return sde.R(s) - transfer @ sde.R(t) if self.basis == "R" else None


@final
@dataclass(frozen=True)
class DataForm(Form):
    """x = E[u_0 | u], by Tweedie."""

    @property
    def num_nodes(self) -> int:
        return 40

    def value(self, sde: LinearSDE, score: Score, u: Tensor, t: Tensor) -> Tensor:
        return sde.denoise(u, t, score(u, t))

    def transfer(self, sde: LinearSDE, s: Tensor, t: Tensor) -> Tensor:
        return sde.R(s) @ inverse(sde.R(t))

    def integrand(self, sde: LinearSDE, s: Tensor, tau: Tensor) -> Tensor:
        return -0.5 * sde.R(s) @ sde.M(tau) @ inverse(sde.R(tau)) @ sde.psi0(tau)

    def whole(self, sde: LinearSDE, s: Tensor, t: Tensor, transfer: Tensor) -> Tensor | None:
        return sde.psi0(s) - transfer @ sde.psi0(t)


def form_of(options: Multistep) -> Form:
    """The splitting that the options name."""
    return DataForm() if options.prediction == "data" else EpsForm(options.basis)
