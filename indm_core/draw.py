r"""What takes a model: samples, and the paths of data and of samples through it.

References:
    Kim et al. 2022 (INDM), Figure 8 and appendix F.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.noise import Noise
from indm_core.sample import Score
from indm_core.sde import SDE
from indm_core.shapes import Float

__all__ = ["draw", "forward_path", "generative_path", "start_times"]

Sampler = Callable[[SDE, Score, Tensor, Tensor, Noise], Tensor]


def start_times(model: GenerativeModel) -> Float[Tensor, 2]:
    """The two ends of a model's sampling, t_start and t_min: all that an adaptive sampler needs."""
    return torch.tensor([model.t_start, model.sde.t_min], dtype=torch.float64)


@torch.no_grad()
def draw(
    model: GenerativeModel,
    sampler: Sampler,
    ts: Tensor,
    like: Tensor,
    num: int,
    *,
    generator: Noise = None,
    denoise: bool = True,
    temperature: float = 1.0,
    start_temperature: float = 1.0,
    start: Tensor | None = None,
) -> Tensor:
    """Samples x of a model: its law at t_start, a sampler down to ts[-1], optionally Tweedie's mean there, one decode.

    Args:
        sampler: sampler(sde, score, u, ts, generator) -> u.
        ts: Decreasing times from the model's t_start; an end above t_min stops early.
        like: Gives dtype and device.
        num: Number of samples.
        generator: One generator per sample makes the samples independent of `num` and of their order.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.
        temperature: Factor of the final latent (as published).
        start_temperature: Factor of the noise that the law at t_start is drawn from; with `start`, of the state there.
        start: Data (num, *shape) whose diffused latents are the states at t_start, instead of draws of the model's law there:
            what is lost between the two laws is then no part of the samples.

    References: Kim et al. 2022, appendix F (temperature, stopping time, z_T^phi).
    """
    if not (temperature > 0 and start_temperature > 0):
        raise ValueError(f"temperature={temperature} and start_temperature={start_temperature} must be positive")
    if start is None:
        u = model.sample_start(model.state_like(num, like), generator, start_temperature)
    else:
        u_0, _ = model.encode(start.to(like), generator)
        u = start_temperature * model.sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), generator)
    u = sampler(model.sde, model.score, u, ts, generator)
    if denoise:
        t = ts[-1]
        u = model.sde.denoise(u, t, model.score(u, t))
    return model.decode(temperature * u)


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
    if ts.ndim != 1 or not bool((ts.diff() > 0).all()) or not 0 <= float(ts[0]) <= float(ts[-1]) <= model.sde.t_max:
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
