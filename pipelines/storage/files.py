"""Files and directories that are there whole or not at all.

What is new is written in a hidden directory beside its place, `.NAME.ID.partial`, flushed to the disk, and renamed. Renaming a
file is one step: whoever reads it, and at whatever moment the process is killed or the machine loses its power, finds the old
content or the new one. A link in the file's place is replaced, never followed. Putting a directory in the place of another
takes two renames; between them there is none, never half of one. A block that raises leaves nothing behind. A kill leaves the
hidden directory, which nobody reads; its process held a lock in it, so that `sweep` knows whose process has ended: it puts back
what lay between two renames, and removes the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipelines.storage.locks import open_lock, take
from pipelines.storage.reading import open_regular

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "append_text",
    "flush",
    "new_directory",
    "opened",
    "replaced",
    "sha256_of",
    "sweep",
    "write_tensors",
    "write_text",
]

LOCK, STALE = ".lock", ".stale"
UNLOCKED_SECONDS = 3600.0
"""Age at which what has no lock, as earlier versions left it, counts as that of a process that has ended."""


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path to write to; when the block ends, what was written there takes the file's place.

    Args:
        file: In a directory that exists. Where the block raises, it stays as it was.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    with _scratch(file) as scratch:
        partial = scratch / file.name
        try:
            yield partial
            flush(partial)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(partial)
            raise
        partial.replace(file)
    flush(file.parent)


def write_text(file: Path, text: str) -> None:
    """Puts a text in a file, whole or not at all."""
    with replaced(file) as partial:
        partial.write_text(text, encoding="utf-8")


def append_text(file: Path, text: str) -> None:
    """Adds a text to a file's end; a link in the file's place is not followed."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "a", encoding="utf-8") as stream:
        stream.write(text)


def opened(file: Path) -> IO[bytes]:
    """A file opened to be written from its beginning, for many small ones that need not be whole; a link is not followed."""
    return open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), "wb")


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> str:
    """Puts tensors in a safetensors file, whole or not at all, with the permissions that any new file gets.

    Returns:
        SHA-256 of the file.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # data sets are prepared without torch

    with replaced(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        except SafetensorError as error:
            raise _system_error(str(error)) from None
        partial.chmod(mode)  # it makes a file that only its owner can read
        return sha256_of(partial)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; ValueError for what is no regular file."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _system_error(said: str) -> OSError:
    """The error of the system that another library tells of in words: its number is in the text."""
    number = re.search(r"os error (\d+)", said)
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(said)


@contextmanager
def new_directory(directory: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A new directory to build in; when the block ends, it takes the place of `directory`, and what was there goes.

    Args:
        directory: Its parents are made where they are absent. Where the block raises, it stays as it was.
        keep: Asked when the block has ended, by one process at a time: whether what is there by now is to stay. Then what was
            built goes, so that of two processes with the same work the later one discards its own.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(directory) as scratch:
        building = scratch / directory.name
        building.mkdir()
        yield building
        for path in [*building.rglob("*"), building]:
            flush(path)
        with _locked(directory.parent):
            if not keep():
                _place(building, directory)


def sweep(directory: Path) -> None:
    """Removes what processes that have ended had not finished in a directory; those that live hold a lock."""
    for scratch in directory.glob(".*.partial"):
        with suppress(OSError):  # another process removes it at the same time, or it is not ours to remove
            _sweep(scratch)


def _sweep(scratch: Path) -> None:
    if not (scratch / LOCK).is_file():
        old = time.time() - scratch.lstat().st_mtime > UNLOCKED_SECONDS
        if not scratch.is_dir() or scratch.is_symlink():
            if old:
                scratch.unlink()
        elif old:
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.rmdir()  # if it is empty: killed before it took the lock
        return
    descriptor = open_lock(scratch / LOCK)
    try:
        if take(descriptor):
            _put_back(scratch)
            _clear(scratch)
    finally:
        os.close(descriptor)


def _put_back(scratch: Path) -> None:
    """Puts a directory back that a kill between the two renames of `_place` has left without its name."""
    for stale in scratch.glob(f"*{STALE}"):
        place = scratch.with_name(stale.name.removesuffix(STALE))
        if not place.exists():
            stale.rename(place)


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


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A hidden directory beside a place, locked while this process lives, and gone when the block ends.

    An error of the system that names a file in it names the place that the file would have taken.
    """
    scratch, descriptor = _begin(place)
    try:
        yield scratch
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = error.filename.replace(str(scratch), str(place.parent))
        raise
    finally:
        _clear(scratch)
        os.close(descriptor)


def _begin(place: Path) -> tuple[Path, int]:
    """The hidden directory and the descriptor of its lock; taken anew where a sweep comes before the lock."""
    while True:
        scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}.partial")
        scratch.mkdir()
        try:
            descriptor = open_lock(scratch / LOCK)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            if not take(descriptor):
                os.close(descriptor)
                continue
        if (scratch / LOCK).exists():
            return scratch, descriptor
        os.close(descriptor)


def _clear(scratch: Path) -> None:
    """Removes a hidden directory; its lock goes last, so that a kill leaves one that can be swept."""
    with suppress(OSError):
        for path in scratch.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
        (scratch / LOCK).unlink(missing_ok=True)
        scratch.rmdir()


def _place(building: Path, directory: Path) -> None:
    """Renames a finished directory to its place; what was there is moved out of the way first."""
    stale = building.with_name(f"{directory.name}{STALE}")
    with suppress(FileNotFoundError):
        directory.rename(stale)
    try:
        building.rename(directory)
    except OSError:
        with suppress(OSError):
            stale.rename(directory)
        raise
    flush(directory.parent)


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
