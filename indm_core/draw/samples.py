r"""Samples of a model, or of a canvas: its law at t_start, a sampler down to t_min, one decode.

References:
    Kim et al. 2022 (INDM), appendix F.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from indm_core.automatic import settled
from indm_core.collage.conditions import guided
from indm_core.collage.sampling import check_pixelwise
from indm_core.exponential import check_grid, check_method
from indm_core.model.labels import labels_of, null_of
from indm_core.noise import Noise, seeded
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sample import Sampler, Score
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import SDE, LinearSDE
from indm_core.shapes import Float
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times

__all__ = [
    "Drawable",
    "Drawn",
    "check_sampling",
    "conditioned",
    "descend",
    "draw",
    "draw_by",
    "start_times",
    "times_of",
]


@runtime_checkable
class Drawable(Protocol):
    """What samples are drawn of: a `GenerativeModel`, or a `Canvas` that is made of its pieces."""

    @property
    def sde(self) -> SDE: ...

    @property
    def t_start(self) -> float: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def score(self) -> Score: ...

    def state_like(self, num: int, like: Tensor) -> Tensor: ...

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor: ...

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]: ...

    def decode(self, u: Tensor) -> Tensor: ...

    def times(self, num_steps: int, low: float) -> Tensor: ...

    def parameters(self) -> Iterator[Tensor]: ...


class Drawn(NamedTuple):
    """Samples x (n, *shape) and the evaluations of the score that each took on average."""

    x: Tensor
    evaluations: float


def start_times(model: Drawable) -> Float[Tensor, 2]:
    """The two ends of a model's sampling, t_start and t_min: all that an adaptive sampler needs."""
    return torch.tensor([model.t_start, model.sde.t_min], dtype=torch.float64)


@torch.no_grad()
def draw(
    model: Drawable,
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
    label: int | Tensor | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """Samples x of a model: its law at t_start, a sampler down to ts[-1], optionally Tweedie's mean there, one decode.

    Args:
        model: A model, or a canvas.
        sampler: sampler(sde, score, u, ts, generator) -> u, which takes labels as a sixth argument where they are given.
        ts: Decreasing times from the model's t_start; an end above t_min stops early.
        like: Gives dtype and device.
        num: Number of samples.
        generator: One generator per sample makes the samples independent of `num` and of their order.
        denoise: Whether E[u_0 | u at ts[-1]] replaces the state there.
        temperature: Factor of the final latent (as published).
        start_temperature: Factor of the noise that the law at t_start is drawn from; with `start`, of the state there.
        start: Data (num, *shape). Sampling then starts from their diffused latents instead of draws of the model's law at
            t_start, so that the difference between these two laws does not enter the samples.
        label: A class for all samples, one for each (num,), or weights (num, K + 1) over none and the classes; None: the score
            without labels.
        guidance: w of s(u, y) + w (s(u, y) - s(u, none)), not negative.

    Raises:
        ValueError: ts that do not begin at t_start, a label that the model was not trained with, or guidance without one.

    References: Kim et al. 2022, appendix F (temperature, stopping time, z_T^phi).
    """
    check_positive(temperature=temperature, start_temperature=start_temperature)
    score, y = conditioned(model, num, like, label, guidance)
    if start is None:
        if not math.isclose(float(ts[0]), model.t_start, rel_tol=1e-9):
            raise ValueError(
                f"ts[0]={float(ts[0]):g} must be the model's t_start={model.t_start:g}, where its law is drawn"
            )
        u = model.sample_start(model.state_like(num, like), generator, start_temperature)
    else:
        u_0, _ = model.encode(start.to(like), generator)
        u = start_temperature * model.sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), generator)
    return model.decode(temperature * descend(model.sde, sampler, score, u, ts, denoise, generator, y))


def conditioned(
    model: Drawable, num: int, like: Tensor, label: int | Tensor | None, guidance: float
) -> tuple[Score, Tensor | None]:
    """The score, guided where it is to be, and the labels that it takes."""
    check_not_negative(guidance=guidance)
    if label is None:
        if guidance:
            raise ValueError(f"guidance={guidance:g}: it leads towards a class; give a label, or no guidance")
        return model.score, None
    y = labels_of(label, num, model.num_classes).to(like.device)
    return guided(model.score, guidance, null_of(y)), y


def descend(
    sde: SDE,
    sampler: Sampler,
    score: Score,
    u: Tensor,
    ts: Tensor,
    denoise: bool,
    generator: Noise,
    y: Tensor | None = None,
) -> Tensor:
    """From a state at ts[0] down to ts[-1], and optionally Tweedie's mean there."""
    given = () if y is None else (y,)  # a sampler of one's own need not know labels
    u = sampler(sde, score, u, ts, generator, *given)
    return sde.denoise(u, ts[-1], score(u, ts[-1], *given)) if denoise else u


def draw_by(
    model: Drawable,
    seeds: Sequence[int],
    sampling: Sampling,
    start: Tensor | None = None,
    label: int | Tensor | None = None,
    guidance: float = 0.0,
    strength: float = 1.0,
    through: Callable[[Sampler], Sampler] = lambda sampler: sampler,
    num_overlapping: int = 1,
) -> Drawn:
    """One sample per seed, in the model's dtype and on its device: a sample depends on its seed alone, not on its neighbours.

    Args:
        start: Data (n, *shape) whose diffused latents sampling starts from; None starts from the model's own law.
        label, guidance: See `draw`. A guided evaluation counts as the two of the network that it is.
        strength: The share of t_start up to which `start` is noised, in (0, 1]: the less, the more of it stays (SDEdit).
        through: Changes the sampler.
        num_overlapping: Of a canvas, the most pieces that cover a position (`Sampling.led`).

    References: Meng et al. 2022, "SDEdit".
    """
    if strength != 1 and start is None:
        raise ValueError(f"strength={strength:g}: it is of samples that start from data; give start, or strength=1")
    if not seeds:
        raise ValueError("seeds: there are none; give one for each sample")
    evaluated, each = 0, 2 if guidance and label is not None else 1
    check_sampling(model, sampling, strength)
    sampling = settled(model.sde, sampling)
    chosen = through(sampler_of(sampling.led(guidance, num_overlapping)))

    def sampler(sde: SDE, score: Score, u: Tensor, ts: Tensor, generator: Noise, *y: Tensor) -> Tensor:
        def counted(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            nonlocal evaluated
            evaluated += each * len(u)
            return score(u, t, y)

        return chosen(sde, counted, u, ts, generator, *y)

    x = draw(
        model,
        sampler,
        times_of(model, sampling, strength),
        next(model.parameters(), torch.zeros(())).new_zeros(()),
        len(seeds),
        generator=seeded(seeds),
        denoise=sampling.denoise,
        temperature=sampling.temperature,
        start_temperature=sampling.start_temperature,
        start=start,
        label=label,
        guidance=guidance,
    )
    return Drawn(x, evaluated / len(seeds) + each * sampling.denoise)


def times_of(model: Drawable, sampling: Sampling, strength: float = 1.0) -> Tensor:
    """The decreasing times that a sampling asks for, from where the model starts, or a share `strength` of it; of a model's own
    grid, those that are below.

    Raises:
        ValueError: a strength outside of (0, 1], or so small that sampling would begin at or below its end; a grid that is yet
            to be fitted, or was fitted between other ends.
    """
    sampling = settled(model.sde, sampling)
    sde, steps, low, high = model.sde, sampling.num_steps, sampling.stop or model.sde.t_min, model.t_start * strength
    if not low / model.t_start < strength <= 1:
        raise ValueError(
            f"strength={strength:g} must lie above {low / model.t_start:g}, where sampling ends, and at most at 1"
        )
    if sampling.sampler == "ode":
        return uniform_times(sde, 1, low=low, high=high)
    grids: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform_times(sde, steps, low=low, high=high),
        "power": lambda: power_times(sde, steps, sampling.exponent, low=low, high=high),
        "log-rho": lambda: log_rho_times(_linear(sde, "grid=log-rho"), steps, low=low, high=high),
        "edm": lambda: edm_times(_linear(sde, "grid=edm"), steps, sampling.exponent, low=low, high=high),
        "fitted": lambda: _fitted(sampling, low, high),
        "trained": lambda: _below(model.times(steps, low), high) if strength < 1 else model.times(steps, low),
    }
    return grids[sampling.spacing]()


def _fitted(sampling: Sampling, low: float, high: float) -> Tensor:
    """The times of a fitted grid."""
    if sampling.unfitted:
        raise ValueError("grid=fitted: it has yet to be fitted; take the sampling that fit_times(model, nfe) gives")
    if not (math.isclose(sampling.times[0], high) and math.isclose(sampling.times[-1], low)):
        ends = f"{sampling.times[0]:g} to {sampling.times[-1]:g}"
        raise ValueError(
            f"times: fitted from {ends}, and samples go from {high:g} to {low:g}; fit them with the same stop, from where the "
            "model starts"
        )
    return torch.tensor(sampling.times, dtype=torch.float64)


def _below(ts: Tensor, high: float) -> Tensor:
    """The times of a grid from `high` on, which is one of them."""
    return torch.cat([ts.new_tensor([high]), ts[ts < high]])


def check_sampling(model: Drawable, sampling: Sampling, strength: float = 1.0) -> None:
    """Refuses a sampler that the model does not allow, before any work. A grid may have yet to be fitted.

    Args:
        strength: See `times_of`.

    Raises:
        ValueError: what needs a linear diffusion on a learned one, a method or grid that its SDE has not, too few evaluations.
    """
    sampling = settled(model.sde, sampling)
    if sampling.sampler in ("deis", "collage", "resampled"):
        linear = _linear(model.sde, f"sampler={sampling.sampler}")
        if sampling.sampler == "deis":
            check_method(linear, sampling.method, sampling.prediction)
        else:
            check_pixelwise(linear)
    if sampling.grid == "fitted" and strength < 1:
        raise ValueError(f"strength={strength:g}: a fitted grid begins where the model starts; take another grid")
    ts = times_of(model, replace(sampling, grid="auto") if sampling.unfitted else sampling, strength)
    if sampling.sampler == "deis":
        check_grid(_linear(model.sde, "sampler=deis"), ts, sampling.multistep)


def _linear(sde: SDE, what: str) -> LinearSDE:
    """The SDE, if it is linear."""
    linear = sde.linear
    if linear is None:
        raise ValueError(f"{what} needs a linear diffusion, and the drift of this model is learned; take em, pc or ode")
    return linear
