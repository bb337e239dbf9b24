"""Densities that are known up to a constant."""

from __future__ import annotations

from indm_core.pis.targets.base import Target, score

__all__ = ["Target", "score"]
