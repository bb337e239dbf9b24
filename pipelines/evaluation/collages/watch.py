"""How far canvases are, while they are drawn: a line every few seconds."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import Tensor

from indm_core.draw import Canvas, times_of
from indm_core.sampling import Sampling

__all__ = ["Watch"]

SECONDS = 5.0


class Watch:
    """Counts what canvases have taken; prints a line every few seconds.

    Args:
        num_canvases: Of all batches together.
    """

    def __init__(self, num_canvases: int) -> None:
        self.num_canvases, self.done = num_canvases, 0
        self.began = self.shown = time.monotonic()
        self.scored = 0

    def over(self, canvas: Canvas, sampling: Sampling, strength: float, each: int) -> Canvas:
        """The canvas, whose evaluations are counted.

        Args:
            each: Factors in a row of an evaluation: all of a canvas, or one where its score is that of a piece.
        """
        ts = times_of(canvas, sampling, strength)

        def watched(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            score = canvas.score(u, t, y)
            self.scored += each * len(u)
            now = float(t.max())
            self._tell(f"level {int((ts > now).sum())}/{len(ts) - 1}" if len(ts) > 2 else f"t = {now:.3f}")
            return score

        return replace(canvas, score=watched)

    def finished(self, num: int) -> None:
        """So many canvases more are done."""
        self.done += num
        self.shown = -SECONDS
        self._tell("")

    def _tell(self, where: str) -> None:
        now = time.monotonic()
        if now - self.shown < SECONDS:
            return
        self.shown = now
        parts = [
            f"{self.done}/{self.num_canvases} canvases",
            where,
            f"{self.scored / (now - self.began):.1f} factors/s",
        ]
        print(", ".join([*filter(None, parts), f"{now - self.began:.1f} s"]), flush=True)
