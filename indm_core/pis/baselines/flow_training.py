"""How the flows of a method are built and trained: as functions of one stream of random numbers, by Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from indm_core.errors import NonFiniteLossError
from indm_core.flow import Flow
from indm_core.noise import branch
from indm_core.shapes import Float
from indm_core.training import AdamW

__all__ = ["Build", "adam", "built", "check_training", "finite", "minimised"]

Build = Callable[[int], Flow]
"""d -> a flow of vectors (d,)."""
MOST_SKIPPED = 10


def adam(lr: float) -> AdamW:
    """Adam with gradients clipped at 10 nats, its rate decaying to 0: the last steps no longer shake the weights."""
    return AdamW(lr=lr, beta_2=0.999, weight_decay=0.0, clip=10.0, decay="cosine")


def check_training(optimiser: AdamW, num_steps: int) -> None:
    """Refuses a number of steps that is no integer from 0 on, or that the rate cannot decay in.

    Raises:
        ValueError: such a number.
    """
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps={num_steps!r} must be an integer of at least 0; 0 leaves flows as they begin")
    if num_steps:
        optimiser.check_steps(num_steps)


def finite(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Points that a flow or a step of it gave.

    Raises:
        NonFiniteLossError: they are not finite, which is no fault of the target.
    """
    if not x.isfinite().all():
        raise NonFiniteLossError(
            "a flow gave points that are not finite; lower lr or clip, or begin with a smaller step"
        )
    return x


def built(build: Build, dim: int, like: Tensor, generator: torch.Generator | None) -> Flow:
    """A flow whose initial weights are drawn from a branch of the generator, of the dtype and on the device of `like`."""
    if not isinstance(stream := branch(generator), torch.Generator):
        return build(dim).to(like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.initial_seed())
        return build(dim).to(like)


def minimised(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], optimiser: AdamW, num_steps: int) -> None:
    """Takes steps of Adam down a loss; a step whose gradient is not finite is left out. Without parameters nothing is asked.

    Raises:
        NonFiniteLossError: ten such steps in a row.
    """
    if not parameters:
        return
    betas, skipped = (optimiser.beta_1, optimiser.beta_2), 0
    steps = torch.optim.AdamW(parameters, lr=optimiser.lr, betas=betas, weight_decay=optimiser.weight_decay)
    for step in range(num_steps):
        steps.param_groups[0]["lr"] = optimiser.rate(step, num_steps)
        steps.zero_grad()
        loss().backward()
        finite = bool(nn.utils.clip_grad_norm_(parameters, optimiser.clip).isfinite())
        skipped = 0 if finite else skipped + 1
        if skipped == MOST_SKIPPED:
            raise NonFiniteLossError(
                f"the gradient was not finite {skipped} steps in a row (the last is {step}); lower lr={optimiser.lr:g}, or "
                "begin with a sigma at which the target's density is not 0"
            )
        if finite:
            steps.step()
