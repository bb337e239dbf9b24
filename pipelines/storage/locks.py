"""Locks that go with their process, however it ends: `flock` on a file that holds nothing.

The file is opened without following a link and is never emptied, so that a link in its place harms no other file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held", "is_held", "open_lock", "take"]


def open_lock(file: Path) -> int:
    """A descriptor of a lock file, which is made where it is absent; closing it gives the lock back.

    Raises:
        OSError: a link is in its place, or it cannot be made.
    """
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def take(descriptor: int) -> bool:
    """Takes a lock, unless another process (or another descriptor of this one) holds it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(file: Path, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock during the block.

    Args:
        file: Of the lock.
        wait: Seconds that another holder is given to end.

    Raises:
        BlockingIOError: another one still holds it.
        OSError: the file system has no locks, or a link is in the file's place.
    """
    descriptor = open_lock(file)
    try:
        deadline = time.monotonic() + wait
        while not take(descriptor):
            if time.monotonic() >= deadline:
                raise BlockingIOError(f"{file}: held by another process")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def is_held(file: Path) -> bool:
    """Whether a process holds a lock; not where there is no such file, or no lock of ours."""
    if not file.is_file():
        return False
    try:
        with held(file):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
