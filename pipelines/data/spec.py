"""What a model needs to know of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from indm_core.likelihood import bits_per_dim
from pipelines.data.card import Card

__all__ = ["DataSpec"]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model needs to know of its data.

    Args:
        name: Of the data set.
        shape: (c, h, w) or (d,).
        levels: Levels per dimension; 0 for continuous data.
        low, high: Range that dequantised data are scaled to.
        num_classes: Labels, 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    low: float
    high: float
    num_classes: int

    @staticmethod
    def of(card: Card) -> DataSpec:
        """The specification of a prepared data set."""
        return DataSpec(
            name=card.name,
            shape=card.shape,
            levels=card.levels,
            low=card.low,
            high=card.high,
            num_classes=card.num_classes,
        )

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)

    @property
    def unit(self) -> str:
        """Of likelihoods: bits/dim of the discrete data, or nats/dim for continuous data."""
        return "bits/dim" if self.levels else "nats/dim"

    def in_unit(self, nats: Tensor) -> Tensor:
        """Negative log-likelihoods of a sample, nats, in `unit`."""
        if self.levels:
            return bits_per_dim(nats, self.num_dims, self.levels, self.low, self.high)
        return nats / self.num_dims
