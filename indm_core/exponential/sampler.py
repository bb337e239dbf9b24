"""One function for the family: `sample_deis`."""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.exponential.coefficients import basis_at
from indm_core.exponential.multistep import multistep
from indm_core.exponential.options import Basis, Method, Multistep, Warmup, check_method, check_options
from indm_core.exponential.runge_kutta import runge_kutta
from indm_core.exponential.stochastic import stochastic
from indm_core.noise import Noise
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply
from indm_core.times import check_times

__all__ = ["sample_deis"]


@torch.no_grad()
def sample_deis(
    sde: LinearSDE,
    score: Score,
    u: Tensor,
    ts: Tensor,
    *,
    generator: Noise = None,
    order: int = 3,
    method: Method = "t-AB",
    lam: float = 0.0,
    warmup: Warmup = "low-order",
    denoise: bool = False,
    corrector: bool = False,
    basis: Basis = "R",
) -> Tensor:
    """From ts[0] down to ts[-1] by an exponential integrator.

    Args:
        sde: Any linear SDE; rho-AB and rho-RK need a scalar one.
        u: State at ts[0], (b, *event, K).
        ts: Decreasing times in [t_min, t_max], float64.
        generator: Of the noise, where lam > 0.
        order: Degree r of the polynomial, 0 to 3; `guaranteed_order` says how the error falls with the steps.
        lam: Stochasticity in [0, 1]; above 0 needs order 0.
        warmup: The first r steps: of lower order, as published, which guarantees order 2 for r > 1, or by parabolas within
            the step that keep order r + 1, at 3 more evaluations each.
        denoise: Whether E[u_0 | u] replaces the last state, at one more evaluation.
        corrector: Whether each t-AB step is corrected, at one more evaluation.
        basis: B in score = -B^-T eps: R; L, the Cholesky factor; or 'score', which is I. L and 'score' are t-AB's alone.

    Returns:
        The state at ts[-1] (or the mean at time 0); `evaluations` counts the evaluations of the score.

    Raises:
        ValueError: an option out of range, or one that the SDE does not allow.
    """
    check_times(sde, ts)
    check_options(order=order, method=method, lam=lam, warmup=warmup, corrector=corrector, basis=basis)
    check_method(sde, method)
    sde.check_state(u)
    ts = ts.to(device=u.device, dtype=torch.float64)

    def eps(u: Tensor, t: Tensor) -> Tensor:
        return -apply(basis_at(sde, t, basis).mT, score(u, t))

    if lam > 0:
        u = stochastic(sde, eps, u, ts, lam, generator)
    elif method == "rho-RK":
        u = runge_kutta(sde, eps, u, ts, order)
    else:
        options = Multistep(order=order, method=method, warmup=warmup, corrector=corrector, basis=basis)
        u = multistep(sde, eps, u, ts, options)
    return sde.denoise(u, ts[-1], score(u, ts[-1])) if denoise else u
