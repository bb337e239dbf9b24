"""The progress of a command that writes a page."""

from __future__ import annotations

import time
from typing import final

__all__ = ["Stages"]


@final
class Stages:
    """Says what is worked at as it begins, with the seconds since the command's beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def say(self, what: str) -> None:
        print(f"{self.seconds:5.0f} s  {what} ...", flush=True)
