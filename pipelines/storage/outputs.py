"""Where outputs go: --out, else $INDM_RUNS, else runs/ in the clone that the package is installed from."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["RULE", "check_writable", "find_run", "only_one", "output_root"]

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
        clone = Path(__file__).resolve().parents[2]
        if not (clone / "pyproject.toml").is_file() or "working_dir_files" in clone.parts:
            raise ValueError(f"{RULE}; {clone} is a temporary or installed copy: give --out DIR or set INDM_RUNS")
        root = clone / "runs"
    check_writable(root, "give another --out DIR")
    return root


def check_writable(directory: Path, remedy: str = "allow it, or copy the run to a place of your own") -> None:
    """Makes a directory where it is absent and tries to write there, before the work whose results it is for.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:  # it has no name that a kill could leave behind
            probe.write(bytes(4096))  # an empty file can be made on a full disk
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written ({error.strerror}); {remedy}") from None


def find_run(word: str, root: Path | None = None) -> Path:
    """A run by its directory or by its name under the output directory."""
    return Path(word).resolve() if (Path(word) / "config.json").is_file() else (root or output_root(None)) / word


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
