"""Configurations: what a run is (`run`, `models`), as JSON (`codec`), in a directory (`store`), on a command line (`cli`)."""

from __future__ import annotations

from pipelines.config.store import load

__all__ = ["load"]
