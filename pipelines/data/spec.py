"""What a model needs to know of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from indm_core.likelihood import bits_per_dim, dequantise, quantise
from indm_core.noise import Noise
from pipelines.data.card import Card

__all__ = ["DataSpec"]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model needs to know of its data.

    Args:
        name: Of the data set.
        shape: (c, h, w), (c, l) or (d,).
        levels: Levels per dimension; 0 for continuous data.
        low, high: Range that dequantised data are scaled to.
        num_classes: Labels, 0 for none.
        mean, std: Of the columns of vectors, or of the channels of sequences, that are standardised; () where they are not.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    low: float
    high: float
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

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
            mean=card.mean,
            std=card.std,
        )

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)

    @property
    def unit(self) -> str:
        """Of likelihoods: bits/dim of the discrete data, or nats/dim for continuous data."""
        return "bits/dim" if self.levels else "nats/dim"

    def in_unit(self, nats: Tensor) -> Tensor:
        """Negative log-likelihoods of what the model sees, nats, as those of the data in `unit`: per level, or with the
        Jacobian of the standardisation, -log p(k) = -log p(x) + sum log std over all dimensions."""
        if self.levels:
            return bits_per_dim(nats, self.num_dims, self.levels, self.low, self.high)
        return (nats + sum(map(math.log, self.std)) * math.prod(self.shape[1:])) / self.num_dims

    def to_model(self, k: Tensor, generator: Noise = None) -> Tensor:
        """What the model sees of stored rows: levels dequantised in [low, high], or values, standardised where they are."""
        if not self.std:
            return dequantise(k, self.levels, self.low, self.high, generator)
        mean, std = self._standard(k)
        return ((k - mean) / std).float()

    def from_model(self, x: Tensor) -> Tensor:
        """The inverse: levels, rounded down, or values as they were stored."""
        if self.levels:
            return quantise(x, self.levels, self.low, self.high)
        if not self.std:
            return x
        mean, std = self._standard(x)
        return (x * std + mean).to(x.dtype)

    def _standard(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation along the first axis of a row, to broadcast over the others."""
        sides = (-1, *[1] * (len(self.shape) - 1))
        mean, std = (like.new_tensor(each, dtype=torch.float64).reshape(sides) for each in (self.mean, self.std))
        return mean, std
