"""Where outputs go: --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.storage.paths import local_path

__all__ = ["RULE", "find_run", "only_one", "output_root"]

RULE = "Outputs go to --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from"


def output_root(out: str | None) -> Path:
    """The absolute output directory, made where it is absent.

    Raises:
        ValueError: none is given and the code runs from a temporary or installed copy, or the directory cannot be written.
    """
    given = out or os.environ.get("INDM_RUNS")
    if given:
        root = local_path(given, "--out" if out else "INDM_RUNS").resolve()
    else:
        clone = Path(__file__).resolve().parents[2]
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


def find_run(word: str, root: Path | None = None) -> Path:
    """A run by its directory or by its name under the output directory."""
    path = local_path(word, "run")
    return path.resolve() if (path / "config.json").is_file() else (root or output_root(None)) / path


@contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Keeps a second command from training in the same directory; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run}: another command is training there; wait for it, or give another --name") from None
        yield
