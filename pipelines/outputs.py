"""Where outputs go: --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["RULE", "output_root"]

RULE = "Outputs go to --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from"


def output_root(out: str | None) -> Path:
    """The absolute output directory, made where it is absent.

    Raises:
        ValueError: none is given and the code runs from a temporary or installed copy, or the directory cannot be written.
    """
    given = out or os.environ.get("INDM_RUNS")
    if given:
        root = Path(given).expanduser().resolve()
    else:
        clone = Path(__file__).resolve().parents[1]
        if not (clone / "pyproject.toml").is_file() or "working_dir_files" in clone.parts:
            raise ValueError(f"{RULE}; {clone} is a temporary or installed copy: give --out DIR or set INDM_RUNS")
        root = clone / "runs"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{root}: cannot be written ({error.strerror}); give another --out DIR") from None
    return root
