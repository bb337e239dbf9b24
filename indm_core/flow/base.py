r"""Normalizing flows: bijections x -> z with log|det dz/dx|.

    log p(x) = log p_z(h(x)) + log|det dh/dx|

A flow keeps the event shape of its input; composition is a fold that adds the log-dets. Some flows are bijections of events of
every size with the parameters that they have: a latent may then be larger than what was trained on, and h^-1 runs on it once.

References:
    Rezende and Mohamed 2015, "Variational inference with normalizing flows".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.shapes import Float

__all__ = ["Composed", "Flow", "Identity", "check_event", "estimate_log_det"]


class Flow(nn.Module, ABC):
    """A bijection of (b, *event) with its log-determinant.

    `size_free` says whether the same parameters give an invertible map of events of every size of the trailing axes (all but
    the channels) that its squeezes divide. A flow that does not say so is of one size.
    """

    size_free: bool = False

    @abstractmethod
    def forward(
        self, x: Float[Tensor, " b *event"], generator: Noise = None
    ) -> tuple[Float[Tensor, " b *event"], Float[Tensor, " b"]]:
        """z = h(x) and log|det dz/dx| in nats; the generator drives the log-det's estimator where it has one."""

    @abstractmethod
    def inverse(self, z: Float[Tensor, " b *event"]) -> Float[Tensor, " b *event"]:
        """x = h^-1(z)."""


@final
class Identity(Flow):
    """h(x) = x: turns an INDM into the linear diffusion it generalises."""

    size_free = True

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor) -> Tensor:
        return z


@final
class Composed(Flow):
    """h = h_n o ... o h_1."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.size_free = all(flow.size_free for flow in flows)

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for flow in self.flows:
            x, term = flow(x, generator)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for flow in reversed(self.flows):
            z = flow.inverse(z)  # pyright: ignore[reportCallIssue]
        return z


def check_event(x: Tensor, shape: tuple[int, ...], *, size_free: bool, fold: int) -> None:
    """Refuses events that a flow has not been made for.

    Args:
        x: (b, *event).
        shape: The event that the flow was built with.
        size_free: Of the flow.
        fold: What the sides must be multiples of.

    Raises:
        ValueError: another shape, of a flow of one size; other channels or axes, or sides that the squeezes do not divide.
    """
    event = tuple(x.shape[1:])
    if event == shape:
        return
    said = f"x: events {event} given to a flow made for {shape}"
    if not size_free:
        raise ValueError(
            f"{said} alone; for every size take a convolutional ResFlow with constraint 'torus' or 'infinity', and ActNorm per "
            "channel (actnorm 'channel')"
        )
    if len(event) != len(shape) or event[0] != shape[0]:
        raise ValueError(f"{said}: of other sizes, but of as many axes and channels")
    if any(side < 1 or side % fold for side in event[1:]):
        raise ValueError(f"{said}: the sides must be multiples of {fold}")


@torch.no_grad()
def estimate_log_det(
    flow: Flow, x: Float[Tensor, " b *event"], *, num_draws: int, generator: Noise = None
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The mean of independent draws of a flow's log_det at x, and its standard error, in nats.

    Unbiased where the flow's own log_det is (`ResFlow`: always in value); where that is exact the error is 0. Every draw is a
    forward pass of its own, because the samples of one pass share the lengths of their series.

    Args:
        flow: In evaluation mode for evaluation's estimator.
        num_draws: Draws, at least 2.

    Raises:
        ValueError: fewer than two draws.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws={num_draws} must be at least 2 for a standard error")
    draws = torch.stack([flow(x, generator)[1] for _ in range(num_draws)])
    return draws.mean(0), draws.std(0) / num_draws**0.5
