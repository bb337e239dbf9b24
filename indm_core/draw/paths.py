r"""The paths of data and of samples through a model, and what a bridge carries from set to set.

A bridge's flow h takes a second data set y ~ p_2 to the prior pi, at T, and its diffusion takes the latents h(x) of the
first to pi as well. Hence, u_t the state from t_min to T,

    forward    x ~ p_1,  u_T from h(x) by the diffusion or by its probability-flow ODE,     h^-1(u_T) ~ p_2,
    backward   y ~ p_2,  u_T = h(y),  u_{t_min} by a sampler,                                h^-1(u_{t_min}) ~ p_1.

By the ODE both ways are maps, each the other's inverse: an image keeps its partner. The diffusion forgets x by T.

References:
    Kim et al. 2022 (INDM), section 7.3, Figure 8 and appendix F.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.draw.samples import descend
from indm_core.model import GenerativeModel, LinearModel
from indm_core.noise import Noise
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.sample import Sampler
from indm_core.sde import LinearSDE, apply
from indm_core.shapes import Float

__all__ = ["forward_path", "generative_path", "translate_backward", "translate_forward"]


@torch.no_grad()
def forward_path(model: GenerativeModel, x: Tensor, ts: Tensor, generator: Noise = None) -> Tensor:
    """The data-space path x_t = h^-1(z_t) of one forward diffusion of each x.

    Args:
        x: Data (b, *shape).
        ts: Increasing times, from 0 on; between them the diffusion is drawn by `SDE.transition`, which is exact for a linear
            SDE.

    Returns:
        (len(ts), b, *shape); at t = 0 the data themselves.

    References: Kim et al. 2022, Figure 8 (with a bridge: from one data set to the other).
    """
    inside = bool(ts.numel()) and 0 <= float(ts.min()) <= float(ts.max()) <= model.sde.t_max
    if ts.ndim != 1 or not inside or not bool((ts.diff() > 0).all()):
        raise ValueError(f"ts={ts.tolist()} must increase within [0, {model.sde.t_max:g}]")
    sde, rungs = model.sde, []
    u, _ = model.encode(x, generator)
    s = torch.zeros((), dtype=torch.float64)
    for t in ts:
        u = sde.transition(u, t, s, generator) if t > 0 else u
        s = t
        rungs.append(model.decode(u))
    return torch.stack(rungs)


@torch.no_grad()
def generative_path(
    model: GenerativeModel, sampler: Sampler, u: Tensor, ts: Tensor, rungs: int, generator: Noise = None
) -> Tensor:
    """The data-space path x_t = h^-1(z_t) of a sampler from the states u at ts[0].

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Its decreasing times.
        rungs: Points of the path, ends included; they lie at grid times spread evenly over the grid.

    Returns:
        (rungs, b, *shape), from ts[0] down to ts[-1].
    """
    if not 2 <= rungs <= len(ts):
        raise ValueError(f"rungs={rungs} must lie between 2 and the {len(ts)} times of the grid")
    at = torch.linspace(0, len(ts) - 1, rungs).round().long().tolist()
    path = [model.decode(u)]
    for first, last in pairwise(at):
        u = sampler(model.sde, model.score, u, ts[first : last + 1], generator)
        path.append(model.decode(u))
    return torch.stack(path)


@torch.no_grad()
def translate_forward(
    model: LinearModel,
    x: Float[Tensor, " b *event"],
    *,
    deterministic: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: Noise = None,
) -> Float[Tensor, " b *event"]:
    """Data of a bridge's first set, carried to its second: h^-1(u_T).

    Args:
        x: Of the first set.
        deterministic: Whether u_T comes from h(x) at t_min by the probability-flow ODE, else by the diffusion from time 0.
        rtol, atol: Tolerances of the ODE, per sample.

    Raises:
        ConvergenceError: the ODE does not reach its tolerance, or the flow is not inverted.

    References: Kim et al. 2022, section 7.3.
    """
    sde = model.sde
    u, _ = model.encode(x, generator)
    if not deterministic:
        t = torch.tensor(model.t_start, dtype=torch.float64)
        return model.decode(sde.transition(u, t, torch.zeros_like(t), generator))

    def field(t: Tensor, state: State, rows: Tensor) -> State:
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        return (sde.reverse_drift(state[0], t, model.score(state[0], t), lam=0.0),)

    ends = math.sqrt(sde.t_min), math.sqrt(model.t_start)
    (u_T,), _ = rk45(in_sqrt_time(field), (u,), *ends, rtol=rtol, atol=atol)
    return model.decode(u_T)


@torch.no_grad()
def translate_backward(
    model: LinearModel,
    y: Float[Tensor, " b *event"],
    sampler: Sampler,
    ts: Float[Tensor, " n"],
    *,
    denoise: bool = True,
    generator: Noise = None,
) -> Float[Tensor, " b *event"]:
    """Data of a bridge's second set, carried to its first: a sampler from u_T = h(y).

    Of a state that is more than positions (CLD) h(y) gives the positions alone; the velocities are drawn from pi, given them.

    Args:
        y: Of the second set.
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Decreasing times from T.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.

    References: Kim et al. 2022, section 7.3.
    """
    u, _ = model.encode(y, generator)
    u_T = _prior_given_positions(model.sde, u, generator)
    return model.decode(descend(model.sde, sampler, model.score, u_T, ts, denoise, generator))


def _prior_given_positions(sde: LinearSDE, u: Tensor, generator: Noise) -> Tensor:
    """A draw of pi whose first coordinates are those of u: s + Cov(., first) Var(first)^-1 (u - s)_first with s ~ pi."""
    pi = sde.prior_cov().to(u.device)
    if pi.shape[-1] == 1:
        return u
    s, gain = sde.sample_prior(u, generator), torch.zeros_like(pi)
    gain[..., 0] = pi[..., 0] / pi[..., :1, 0]
    return s + apply(gain, u - s)
