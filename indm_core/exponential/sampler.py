"""One function for the family: `sample_deis`."""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.exponential.multistep import multistep
from indm_core.exponential.options import (
    SINGLE_STEP,
    Basis,
    Final,
    Method,
    Multistep,
    Prediction,
    Warmup,
    check_method,
    check_options,
)
from indm_core.exponential.runge_kutta import runge_kutta
from indm_core.exponential.stochastic import stochastic
from indm_core.noise import Noise
from indm_core.sample import Score
from indm_core.sde import LinearSDE
from indm_core.times import check_times, on_device

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
    reevaluate: bool = True,
    basis: Basis = "R",
    prediction: Prediction = "eps",
    final: Final = "full",
    churn: float = 0.0,
    churn_noise: float = 1.0,
    churn_from: float = 0.0,
    churn_to: float = 1.0,
) -> Tensor:
    """From ts[0] down to ts[-1] by an exponential integrator.

    Args:
        sde: Any linear SDE; rho-AB and rho-RK need a scalar one, log-rho-AB and churn a rho that grows with t.
        u: State at ts[0], (b, *event, K).
        ts: Decreasing times in [t_min, t_max], float64.
        generator: Of the noise, where lam or churn is above 0.
        order: Degree r of the polynomial, 0 to 3; `guaranteed_order` says how the error falls with the steps.
        lam: Stochasticity in [0, 1] of the AB methods: 0 is the ODE, 1 the reverse SDE, whose linear part and noise are exact.
        warmup: The first r steps: of lower order, as published, which guarantees order 2 for r > 1, or by parabolas within
            the step that keep order r + 1, at 3 more evaluations each.
        denoise: Whether E[u_0 | u] replaces the last state, at one more evaluation.
        corrector: Whether each step of an AB method is corrected.
        reevaluate: Whether the score is evaluated again at each corrected state (PECE: one more evaluation a step), or the
            value at the predicted one is kept (PEC: the corrector costs nothing, and its degree is r + 1).
        basis: B in score = -B^-T eps: R; L, the Cholesky factor; or 'score', which is I. L and 'score' are t-AB's alone.
        prediction: What the polynomial is of: eps; data, the posterior mean E[u_0 | u]; or velocity, where blocks have one
            coordinate. With lam > 0 take data; order 0 in eps is then the same step (gDDIM).
        final: Degree of the last steps: full, or low-order, down to 0 in the last one. For the coarsest grids, whose last steps
            are extrapolated far: 5 evaluations of sharp data.
        churn: Noise that is added before the steps of t-RK, rho-RK or order 0, summed over the steps, as a share of that which
            is there (EDM's S_churn); 0: none.
        churn_noise: Factor of its standard deviation (S_noise).
        churn_from, churn_to: The times between which it is added, as shares of t_max.

    Returns:
        The state at ts[-1] (or the mean at time 0); `evaluations` counts the evaluations of the score.

    Raises:
        ValueError: an option out of range, or one that the SDE does not allow.
    """
    check_times(sde, ts)
    options = Multistep(
        order=order,
        method=method,
        lam=lam,
        warmup=warmup,
        corrector=corrector,
        reevaluate=reevaluate,
        basis=basis,
        prediction=prediction,
        final=final,
        churn=churn,
        churn_noise=churn_noise,
        churn_from=churn_from,
        churn_to=churn_to,
    )
    check_options(options)
    check_method(sde, method, prediction)
    sde.check_state(u)
    if lam > 0 and order == 0 and prediction == "eps" and not corrector:
        u = stochastic(sde, score, u, ts, lam, generator)
    elif method in SINGLE_STEP or churn > 0:
        u = runge_kutta(sde, score, u, ts, options, generator)
    else:
        u = multistep(sde, score, u, ts, options, generator)
    end = on_device(ts, u.device)[-1]
    return sde.denoise(u, end, score(u, end)) if denoise else u
