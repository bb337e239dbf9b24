r"""What changes a score, so that its samples agree with what is known: maps score -> score, for canvases of any size.

Observed is y = A x, with A A^T = I up to a factor per row, so that P = A^+ A is an orthogonal projection of positions: some
pixels (inpainting), means of blocks (super-resolution), the mean of the channels (colourisation). With x_hat = E[x | u_t],

    guided            s(u, y) + w (s(u, y) - s(u, none))                                       (classifier-free guidance)
    replacement       (I - P) s(u) + P s_known(u),      s_known = -Sigma^-1 (u - psi(t, 0) embed(A^+ y))
    reconstruction    s(u) - w grad_u 1/2 |q|^2 |A^+ (y - A x_hat(u))|^2,   1/|q|^2 the variance of the noise in units of x

s_known is the score of a point that is noised: what is observed then follows its own law and ends in A^+ y whatever the sampler
is; the rest sees it noised, and so too little of it: samples of the rest follow its law given y in the limit of many Langevin
steps at each level. No state is written over, so that any sampler and any number of Langevin steps may be used.
Reconstruction asks x_hat to agree; w = 1 takes the posterior's spread of x for that of the noise, so that A x has the
covariance A A^T/|q|^2 and y the log-density above. It needs a gradient through the score.

To start from a picture instead (SDEdit) is no change of the score: noise it to a time and sample from there.

References:
    Ho, Salimans 2022, "Classifier-free diffusion guidance", Eq. 6. Song et al. 2021, appendix I (replacement).
    Ho et al. 2022, "Video diffusion models", Eq. 7; Chung et al. 2023, "Diffusion posterior sampling" (reconstruction).
    Meng et al. 2022, "SDEdit". Zhang 2023 (thesis), sections 4.5.1 and 4.5.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from indm_core.collage.sampling import check_pixelwise
from indm_core.ranges import check_count, check_not_negative
from indm_core.sample import Score
from indm_core.sde import LinearSDE, apply, inverse
from indm_core.shapes import Bool, Float

__all__ = [
    "BlockMeans",
    "Grey",
    "Observation",
    "Pixels",
    "guided",
    "posterior_mean",
    "reconstruction",
    "replacement",
]


class Observation(ABC):
    """y = A x of which A^+ A is an orthogonal projection."""

    @abstractmethod
    def measure(self, x: Float[Tensor, " b *event"]) -> Float[Tensor, " b *observed"]:
        """A x."""

    @abstractmethod
    def lift(self, y: Float[Tensor, " b *observed"]) -> Float[Tensor, " b *event"]:
        """A^+ y: the smallest x with A x = y."""


@final
@dataclass(frozen=True, eq=False)
class Pixels(Observation):
    """Some positions (inpainting).

    Args:
        known: Which, broadcasts over the event: (h, w) for all channels.
    """

    known: Bool[Tensor, "*event"]

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool:
            raise ValueError(f"known: is {self.known.dtype}; give a mask of bool, True where a position is known")

    def measure(self, x: Tensor) -> Tensor:
        """x, with 0 where it is not observed."""
        return x * self.known.to(x)

    def lift(self, y: Tensor) -> Tensor:
        return self.measure(y)


@final
@dataclass(frozen=True)
class BlockMeans(Observation):
    """Means of square blocks of the last two axes (super-resolution).

    Args:
        factor: The side of a block; it divides the canvas's sides.
    """

    factor: int

    def __post_init__(self) -> None:
        check_count(factor=self.factor)

    def measure(self, x: Float[Tensor, " b *c h w"]) -> Float[Tensor, " b *c h2 w2"]:
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"factor={self.factor} does not divide the sides {height} x {width}")
        return F.avg_pool2d(x.reshape(-1, 1, height, width), self.factor).reshape(
            *x.shape[:-2], height // self.factor, width // self.factor
        )

    def lift(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@final
@dataclass(frozen=True)
class Grey(Observation):
    """The mean of the channels, the first axis of the event (colourisation)."""

    num_channels: int

    def __post_init__(self) -> None:
        check_count(num_channels=self.num_channels)

    def measure(self, x: Float[Tensor, " b c *rest"]) -> Float[Tensor, " b 1 *rest"]:
        if x.shape[1] != self.num_channels:
            raise ValueError(f"num_channels={self.num_channels}: an image of shape {tuple(x.shape)} has {x.shape[1]}")
        return x.mean(1, keepdim=True)

    def lift(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.num_channels, *y.shape[2:])


def guided(score: Score, weight: float, null: Tensor) -> Score:
    """s(u, y) + w (s(u, y) - s(u, none)), one batch for both.

    Args:
        score: Takes labels, and `null` among them.
        weight: w, not negative; 0 is the score of y itself.
        null: The label of no class, 0-d, as the network was trained with it.
    """
    check_not_negative(weight=weight)

    def guided_score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError(
                "y: guidance needs a label for each sample; score what has none, as a collage's variables, without guidance"
            )
        if len(y) != len(u):
            raise ValueError(f"y: has {len(y)} labels for {len(u)} samples")
        if weight == 0:
            return score(u, t, y)
        both_t = t if t.ndim == 0 else torch.cat([t, t])
        with_y, without = score(torch.cat([u, u]), both_t, torch.cat([y, null.to(y).expand_as(y)])).chunk(2)
        return with_y + weight * (with_y - without)

    return guided_score


def replacement(score: Score, sde: LinearSDE, observation: Observation, observed: Tensor) -> Score:
    """The score under which what is observed is a point that was noised, and the rest is as before.

    Args:
        sde: Its noise is independent per position.
        observed: y of the equations: one for all, or (b, *observed), one for each, with a sampler that keeps its batch whole
            (`sample_ode` leaves out samples that have arrived, and takes one for all).
    """

    check_pixelwise(sde)

    def replaced(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        s = score(u, t, y)
        known = sde.embed(observation.lift(_for_each(observation, observed.to(u), u[..., 0])))
        pull = -apply(inverse(sde.cov(t)), u - apply(sde.psi0(t), known)) - s
        return s + _observed_part(observation, pull)

    return replaced


def reconstruction(
    score: Score, sde: LinearSDE, observation: Observation, observed: Tensor, weight: float = 1.0
) -> Score:
    """The score with the gradient of how well E[x | u] agrees with what is observed.

    Args:
        observed: As of `replacement`.
        weight: w, not negative.
    """
    check_pixelwise(sde)
    check_not_negative(weight=weight)

    def pulled(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            s = score(at, t, y)
            x_hat = posterior_mean(sde, at, t, s)
            error = observation.lift(observation.measure(x_hat) - _for_each(observation, observed.to(u), x_hat))
            precision = sde.signal(t)[0].square().to(u)
            (grad,) = torch.autograd.grad((0.5 * precision * error.square()).sum(), at)
        return s.detach() - weight * grad

    return pulled


def posterior_mean(sde: LinearSDE, u: Tensor, t: Tensor, score: Tensor) -> Float[Tensor, " b *event"]:
    """E[x | u_t] = q^T (R^-1 u - eps_hat)/|q|^2, q of `LinearSDE.signal`; x is the first coordinate of a block."""
    size, direction = sde.signal(t)
    white = apply(inverse(sde.R(t)), u) - sde.eps_from_score(score, t)
    return (apply(direction.mT, white) / size.to(u).unsqueeze(-1)).squeeze(-1)


def _for_each(
    observation: Observation, observed: Tensor, x: Float[Tensor, " b *event"]
) -> Float[Tensor, " b *observed"]:
    """What is observed of each x.

    Raises:
        ValueError: it has another shape than the observation of x.
    """
    wanted = observation.measure(x).shape
    if observed.shape not in (wanted, wanted[1:], (1, *wanted[1:])):
        raise ValueError(
            f"observed: has shape {tuple(observed.shape)}, where {type(observation).__name__} of {tuple(x.shape)} gives "
            f"{tuple(wanted)}; give one for each, or one for all"
        )
    return observed.expand(wanted)


def _observed_part(observation: Observation, u: Tensor) -> Tensor:
    """P u: the projection of each of a state's K coordinates."""
    return torch.stack([observation.lift(observation.measure(part)) for part in u.unbind(-1)], -1)
