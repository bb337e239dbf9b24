"""Configurations: what a run is (`run`, `models`), as JSON (`codec`), in a directory (`store`), on a command line (`cli`); and
what others have trained (`hub`).
"""

from __future__ import annotations

from pipelines.config.hub import from_pretrained
from pipelines.config.store import load

__all__ = ["from_pretrained", "load"]
