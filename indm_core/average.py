r"""The exponential moving average of a model's weights.

    ema <- d ema + (1 - d) theta,

for all parameters in one call where there is one for many tensors; buffers are the model's own. Neither asks a device for a
number, so that the host does not wait.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """A copy of a module that follows it.

    Args:
        module: What is averaged; the average begins at its weights.
    """

    def __init__(self, module: M) -> None:
        self.module = copy.deepcopy(module)
        self._parameters: tuple[list[Tensor], list[Tensor]] = [*self.module.parameters()], [*module.parameters()]
        self._buffers = [*self.module.buffers()], [*module.buffers()]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """One step towards the module's weights.

        Args:
            decay: d in [0, 1).
        """
        own, given = self._parameters
        torch._foreach_lerp_(own, given, 1 - decay)
        own, given = self._buffers
        if own:
            torch._foreach_copy_(own, given)
