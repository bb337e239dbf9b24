r"""Exponential integrators: one family of fast samplers for every linear SDE.

With score = -B_t^-T eps, B_t invertible, the probability-flow ODE has the exact solution

    u_s = psi(s, t) u_t + int_t^s 1/2 psi(s, tau) GG^T_tau B_tau^-T eps(u_tau, tau) dtau,

in which only eps is approximated. B is one of

    R      the integral of a constant eps is R_s - psi(s, t) R_t, because d/dtau [psi(s, tau) R_tau] is the integrand: a step
           is exact for data in one point (gDDIM), for every linear SDE
    L      the Cholesky factor of Sigma: R where K = 1, and for CLD what shows the need of R
    score  B = I: eps is -score, and a step is exact for a score that is constant, which that of data is not as t goes to 0,

               u_s = psi(s, t) u_t - [int_t^s 1/2 psi(s, tau) GG^T_tau dtau] score(u_t, t)       (r = 0; thesis, Eq. 6.8).

The same ODE has a second exact solution, in which the posterior mean x = E[u_0 | u] is approximated and, where K = 1, a third,
in which a velocity v is, a combination of x and eps (`forms`; `prediction`). For x

    u_s = R_s R_t^-1 u_t - int_t^s 1/2 R_s M_tau R_tau^-1 psi(tau, 0) x(u_tau, tau) dtau,    M = R^-1 GG^T R^-T,

with psi(s, 0) - R_s R_t^-1 psi(t, 0) for a constant x. In degree 0 the three are one.

    t-AB r        eps, x or v is the polynomial of degree r in t through its last r + 1 values (DEIS; r = 0: DDIM, gDDIM)
    rho-AB r      the same in rho = R/psi(t, 0), the variable in which the ODE of y = u/psi(t, 0) is dy/drho = eps
    log-rho-AB r  the same in log rho (in x: DPM-Solver++ with its integrals exact); rho of one coordinate, or the mean of all,
                  where coefficients are matrices
    rho-RK r      a Runge-Kutta method of order r + 1 in rho: Euler, Heun, Kutta's third-order and the classical method
    t-RK r        the same for every linear SDE, with polynomials in sqrt t and exact integrals (`runge_kutta`)
    iPNDM r       DDIM steps of fixed Adams-Bashforth combinations of the last r + 1 values

rho is a scalar for VP, sub-VP and VE only. A corrector (`multistep`) repeats a step of an AB method with the polynomial through
the predicted value as well (Adams-Moulton): PECE evaluates again at the corrected state, PEC keeps the value at the predicted
one and so costs nothing (UniPC).

Order of convergence (`guaranteed_order`), in every basis, in eps, x and v, on grids that are a smooth function of i/N; a test
reads each back: r + 1 for t-RK and rho-RK, and for the AB methods with the exact warm-up, with PEC r + 2 and at most the 4 that
the warm-up guarantees. The low-order warm-up begins with a step of degree 0, whose error is O(h^2), with PEC O(h^3): for r > 1
order 2, with PEC order 3, is then all that is guaranteed (t-AB 3: slopes of 1.6 to 4.0 measured, by problem and N). iPNDM,
whose coefficients are those of equal steps in rho, has order min(r + 1, 2) on general grids. PECE makes r = 0 as good as r = 1
and leaves the order of the others. log rho of BDM has a pole just beyond t_max: from there on log-rho-AB 3 shows slopes of 3.0
to 3.8 up to 1,280 steps, and 3.9 away from it.

With noise, lam in [0, 1], an AB method follows the SDE of the same marginals instead of the ODE (`forms`). For r = 0 this is
stochastic gDDIM: with F_hat = F + (1 + lam^2)/2 GG^T Sigma^-1 and its transition Psi_hat,

    u_s ~ N(psi(s, t) (u_t - R_t eps) + Psi_hat(s, t) R_t eps, P),    P = Sigma_s - Psi_hat Sigma_t Psi_hat^T.

In the basis R this is simple: Psi_hat(s, t) = R_s W R_t^-1 with dW/ds = lam^2/2 M_s W, W(t, t) = I;
P = R_s (I - W W^T) R_s^T. For K = 1, W = exp(lam^2/2 int_t^s M) = (Sigma_s psi(t, 0)^2 / (Sigma_t psi(s, 0)^2))^{lam^2/2}.
The law then has order min(r + 1, 2) (`multistep`). Single steps can be taken from states that are noised first (`churn`).

Likelihoods: `density` carries the log-density upwards along the same ODE, at one evaluation a step and with an error estimate.

References:
    Zhang, Chen 2023, "Fast sampling of diffusion models with exponential integrator" (DEIS), Eqs. 14-17; Zhang, Tao, Chen 2023,
    "gDDIM", Eqs. 18-22 and Proposition 6; Liu et al. 2022 (iPNDM's coefficients); Zhang 2023 (thesis), chapters 6 and 7; Lu et
    al. 2022, "DPM-Solver++"; Zhao et al. 2023, "UniPC"; Xue et al. 2023, "SA-Solver"; Karras et al. 2022 (EDM), Algorithm 2.
"""

from __future__ import annotations

from indm_core.exponential.coefficients import lagrange
from indm_core.exponential.density import Carried, Local, carry_density
from indm_core.exponential.forms import basis_at
from indm_core.exponential.noise_factor import noise_factor
from indm_core.exponential.options import (
    Basis,
    Final,
    Method,
    Multistep,
    Prediction,
    Warmup,
    check_grid,
    check_method,
    check_options,
    evaluations,
    guaranteed_order,
    steps_for,
)
from indm_core.exponential.sampler import sample_deis

__all__ = [
    "Basis",
    "Carried",
    "Final",
    "Local",
    "Method",
    "Multistep",
    "Prediction",
    "Warmup",
    "basis_at",
    "carry_density",
    "check_grid",
    "check_method",
    "check_options",
    "evaluations",
    "guaranteed_order",
    "lagrange",
    "noise_factor",
    "sample_deis",
    "steps_for",
]
