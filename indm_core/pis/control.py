r"""Controls u_t(x) of the path integral sampler that are learned.

    PIS-NN:    u = NN_1(t, x)
    PIS-Grad:  u = NN_1(t, x) + NN_2(t) grad log mu^(x)                                          (Eq. 5.16)

The gradient of the target is detached: no second derivative is taken. NN_1 ends in a layer of zeros, and so does NN_2 but for
its bias, so that training begins with u = 0 or with a little of the target's gradient. Both see t/T, and NN_1 sees x in units
of sqrt(T) g, the standard deviation of the uncontrolled process at T.

References:
    Zhang, Chen 2022, "Path integral sampler", Eq. 16 (5.16 of the thesis).
"""

from __future__ import annotations

import math
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.nn.embedding import FourierEmbedding, initialised
from indm_core.pis.targets.base import Density, observed, score
from indm_core.shapes import Float

__all__ = ["Control", "GradControl", "NetworkControl"]


class Control(Protocol):
    """u_t(x), in the units of dx = g u dt + g dw."""

    def __call__(
        self, t: Float[Tensor, " n"], x: Float[Tensor, "n d"], *, target: Density, t_max: float, g: float
    ) -> Float[Tensor, "n d"]: ...


class TimeMLP(nn.Module):
    """t/T in [0, 1] -> (n, num_out): Fourier features and a two-layer network.

    Args:
        width: Of the features and of the hidden layer.
        num_out: Numbers per time.
    """

    def __init__(self, width: int, num_out: int) -> None:
        super().__init__()
        self.waves = FourierEmbedding(2 * width, scale=4.0)
        self.dense_in = initialised(nn.Linear(2 * width, width))
        self.dense_out = initialised(nn.Linear(width, num_out))

    def forward(self, s: Float[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n k"]:
        return self.dense_out(F.gelu(self.dense_in(self.waves(s.double()).to(dtype))))


@final
class NetworkControl(nn.Module):
    """PIS-NN.

    Args:
        dim: d.
        width, depth: Of the hidden layers and their number; published: 64 and 2.
        dim_y: Numbers of the observation that targets are given (`amortised`), which it sees as well; 0: none.
    """

    def __init__(self, dim: int, *, width: int = 64, depth: int = 2, dim_y: int = 0) -> None:
        super().__init__()
        self.time = TimeMLP(width, width)
        self.dense_in = initialised(nn.Linear(dim, width))
        self.dense_y = initialised(nn.Linear(dim_y, width)) if dim_y else None
        self.layers = nn.ModuleList(initialised(nn.Linear(width, width)) for _ in range(depth))
        self.dense_out = _zero(nn.Linear(width, dim))

    def forward(self, t: Tensor, x: Tensor, *, target: Density, t_max: float, g: float) -> Tensor:
        h = self.dense_in(x / (math.sqrt(t_max) * g)) + self.time(t / t_max, x.dtype)
        if self.dense_y is not None:
            h = h + self.dense_y(observed(target).to(x.dtype))
        for layer in self.layers:
            h = layer(F.gelu(h))
        return self.dense_out(F.gelu(h))


@final
class GradControl(nn.Module):
    """PIS-Grad.

    Args:
        dim: d.
        width, depth: As of `NetworkControl`.
        clip: Largest component of the target's gradient; infinity leaves it as it is.
        begin: NN_2 before training.
        dim_y: As of `NetworkControl`.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 64,
        depth: int = 2,
        clip: float = math.inf,
        begin: float = 0.0,
        dim_y: int = 0,
    ) -> None:
        super().__init__()
        self.network = NetworkControl(dim, width=width, depth=depth, dim_y=dim_y)
        self.scale = TimeMLP(width, 1)
        _zero(self.scale.dense_out)
        nn.init.constant_(self.scale.dense_out.bias, begin)
        self.clip = clip

    def forward(self, t: Tensor, x: Tensor, *, target: Density, t_max: float, g: float) -> Tensor:
        u = self.network(t, x, target=target, t_max=t_max, g=g)
        return u + self.scale(t / t_max, x.dtype) * score(target, x, self.clip)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
