r"""What `sampler="auto"` stands for: the sampler that was measured to be best of so many evaluations, by the kind of diffusion.

On every linear diffusion it is a multistep exponential integrator (`exponential`), polynomials in t, with the corrector that
costs no evaluation and a power grid:

    rho a scalar (VP, sub-VP, VE)   up to 8 steps the posterior mean, degree 1; power 1.5 up to 6 steps, then 0.75 + N/8;
                                    from 9 steps on the velocity, degree 1; power 1.75
    otherwise (CLD, BDM)            the posterior mean, degree 1 up to 8 steps, 2 above; power 2

The rule was chosen on the tables of docs/RESULTS.md. On trained networks (digits, VP, a linear diffusion and an INDM's latents)
degree 1 is below all other degrees from 5 to 20 evaluations: a polynomial of higher degree extrapolates the network's own error
as well. From 10 evaluations on the velocity is nowhere above the posterior mean there, and on exact scores of mixtures up to
three times below it. The less a network is trained, the nearer to uniform is its best grid, which a fitted one finds. For CLD
and BDM there are tables of exact scores alone.
"""

from __future__ import annotations

from dataclasses import replace

from indm_core.sampling import Sampling
from indm_core.sde import SDE

__all__ = ["settled"]

EVALUATIONS = 20
"""Where none are given."""
_DATA = Sampling(sampler="deis", order=1, prediction="data", corrector=True, reevaluate=False)


def settled(sde: SDE, sampling: Sampling) -> Sampling:
    """The sampling itself or, where its sampler is auto, the one that it stands for on a diffusion.

    On a learned SDE, to which the exponential integrators do not apply: Euler-Maruyama with the evaluations that are given, on
    the model's own grid, or without any the adaptive ODE solver.
    """
    if sampling.sampler != "auto":
        return sampling
    kept = {name: getattr(sampling, name) for name in ("denoise", "temperature", "start_temperature", "stop")}
    linear = sde.linear
    if linear is None:
        if sampling.grid == "fitted":
            raise ValueError(
                "grid=fitted needs a linear diffusion, and the drift of this model is learned; leave it out"
            )
        taken = (
            Sampling(sampler="em", nfe=sampling.nfe, grid=sampling.grid) if sampling.nfe else Sampling(sampler="ode")
        )
        return replace(taken, **kept)
    nfe = sampling.nfe or EVALUATIONS
    steps = nfe - sampling.denoise
    taken = _of_scalar(steps) if linear.scalar else _of_matrix(steps)
    taken = replace(taken, nfe=nfe, order=max(0, min(taken.order, steps - 1)), **kept)
    if sampling.grid == "auto":
        return taken
    return replace(taken, grid=sampling.grid, power=0.0, times=sampling.times)


def _of_scalar(steps: int) -> Sampling:
    if steps <= 8:
        return replace(_DATA, grid="power", power=max(1.5, 0.75 + steps / 8))
    return replace(_DATA, prediction="velocity", grid="power", power=1.75)


def _of_matrix(steps: int) -> Sampling:
    return _DATA if steps <= 8 else replace(_DATA, order=2)
