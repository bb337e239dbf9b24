"""A score that remembers its values: runs of one sampler from one start share what they do before their grids part.

The state at the k-th call of a deterministic sampler follows from the start and the times up to that call's, so that the times
of all calls so far name the value. Differences of a sampler's result, each with one time moved, then take half the evaluations.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from indm_core.sample import Score

__all__ = ["Remembered"]


class Remembered:
    """A score for runs of one sampler from one start.

    Args:
        score: The score itself.
        most: Values that are kept; of those above, the ones that were not used for longest go.
    """

    def __init__(self, score: Score, most: int) -> None:
        self.score, self.most, self.evaluations = score, most, 0
        self.values: OrderedDict[tuple[float, ...], Tensor] = OrderedDict()
        self.times: tuple[float, ...] = ()

    def begin(self) -> None:
        """A run begins at the start."""
        self.times = ()

    def __call__(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The score at a state; labels are those of the starts, which the score has already."""
        self.times = (*self.times, float(t))
        value = self.values.get(self.times)
        if value is None:
            value = self.score(u, t)
            self.evaluations += 1
            while len(self.values) >= self.most:
                self.values.popitem(last=False)
        self.values[self.times] = value
        self.values.move_to_end(self.times)
        return value
