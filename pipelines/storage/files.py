"""Files and directories that are there whole or not at all.

What is new is written beside its place under a hidden name that ends in `.partial`, flushed to the disk, and renamed.
Renaming a file is one step: whoever reads it, and at whatever moment the process is killed or the machine loses its
power, finds the old content or the new one. Putting a directory in the place of another takes two renames; between them
there is none, never half of one. A block that raises leaves nothing behind. A kill leaves the `.partial`, which nobody
reads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["flush", "new_directory", "replaced", "write_tensors", "write_text"]


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; when the block ends, what was written there takes the file's place.

    Args:
        file: In a directory that exists. Where the block raises, it stays as it was.
    """
    partial = _beside(file)
    try:
        yield partial
        flush(partial)
        partial.replace(file)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    flush(file.parent)


def write_text(file: Path, text: str) -> None:
    """Puts a text in a file, whole or not at all."""
    with replaced(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Puts tensors in a safetensors file, whole or not at all, with the permissions that any new file gets."""
    from safetensors.torch import save_file  # data sets are prepared without torch

    with replaced(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        partial.chmod(mode)  # it makes a file that only its owner can read


@contextmanager
def new_directory(directory: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A new directory beside `directory` to build in; when the block ends, it takes that place, and what was there goes.

    Args:
        directory: Its parents are made where they are absent. Where the block raises, it stays as it was.
        keep: Asked when the block has ended, by one process at a time: whether what is there by now is to stay. Then what was
            built goes, so that of two processes with the same work the later one discards its own.
    """
    building = _beside(directory)
    building.mkdir(parents=True)
    try:
        yield building
        for path in [*building.rglob("*"), building]:
            flush(path)
        with _locked(directory.parent):
            if not keep():
                _place(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file's content, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system does this for directories
            raise
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _place(building: Path, directory: Path) -> None:
    """Renames a finished directory to its place; what was there is moved out of the way first."""
    stale = _beside(directory)
    with suppress(FileNotFoundError):
        directory.rename(stale)
    building.rename(directory)
    flush(directory.parent)
    shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; where the file system has no locks, renaming alone has to do."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
