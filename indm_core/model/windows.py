r"""Windows of a piece: what neighbouring pieces of a canvas share, and what the score of a collage is trained on beside pieces.

A window has sides m_a + k s, drawn uniformly over k, and a place that is a multiple of s, drawn uniformly over those that fit:
m_a the smallest side along axis a, s the step. One window is drawn for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.noise import Noise, on_host, rand

__all__ = ["Window", "check_windows", "draw_window"]

Window = tuple[slice, ...]
"""A slice of each axis that windows cut, the last ones of an event."""


def check_windows(shape: Sequence[int], smallest: Sequence[int], step: int) -> None:
    """Refuses windows that do not fit into a piece.

    Args:
        shape: Of a piece.
        smallest: Smallest sides, one for each axis but the channels; of a vector for its one axis.

    Raises:
        ValueError: another number of sides, or one that is longer than the piece's.
    """
    axes = tuple(shape[1:] or shape)
    if len(smallest) != len(axes) or any(m > n for m, n in zip(smallest, axes, strict=True)):
        raise ValueError(
            f"smallest_window={tuple(smallest)}: a window of a piece of shape {tuple(shape)} has {len(axes)} sides, at most "
            f"{axes}; give the smallest of each, as {tuple(max(1, n // 2) for n in axes)}"
        )
    wrong = [n for m, n in zip(smallest, axes, strict=True) if (n - m) % step or m % step]
    if wrong:
        raise ValueError(
            f"window_step={step}: it must divide the sides {axes} and the smallest sides {tuple(smallest)}; give one that does"
        )


def draw_window(
    shape: Sequence[int], smallest: Sequence[int], step: int, like: Tensor, generator: Noise = None
) -> Window:
    """A window of a piece of a shape, one for the batch `like`; the host draws it."""
    generator, like = on_host(generator), torch.empty(len(like), 0)
    cut = []
    for n, m in zip(tuple(shape[1:] or shape), smallest, strict=True):
        side = m + step * _below((n - m) // step + 1, like, generator)
        first = step * _below((n - side) // step + 1, like, generator)
        cut.append(slice(first, first + side))
    return tuple(cut)


def _below(num: int, like: Tensor, generator: Noise) -> int:
    """An integer in 0 .. num - 1."""
    return int(torch.floor(num * rand(len(like), like, generator)[0]))
