"""A file that results are appended to as they come, so that whatever ends the process loses none of them.

A record is a line of JSON and the bytes of a safetensors file:

    {"key": ..., "bytes": n, "sha256": of these bytes, "seconds": ..., "work": ...}
    n bytes, and the end of a line

One process at a time writes. A kill in the middle leaves the beginning of a record at the end of the file, which the next
reader cuts off. A record whose bytes have another checksum counts as absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["Journal", "Record"]

LONGEST_HEAD = 4096


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was kept under a key.

    Args:
        tensors: By name.
        seconds: That all had taken until then.
        work: Seconds of this one.
    """

    tensors: dict[str, Tensor]
    seconds: float
    work: float = 0.0


@dataclass(frozen=True)
class Journal:
    """Records in a file; of equal keys the later one counts.

    Args:
        file: In a directory that exists. It is made by the first record; a link is not followed.
    """

    file: Path

    def read(self, wanted: Collection[str]) -> dict[str, Record]:
        """The whole records of the wanted keys."""
        if not self.file.exists():
            return {}
        found = {}
        with self._opened() as stream:
            end, size = 0, os.fstat(stream.fileno()).st_size
            while (head := _head(stream)) is not None and stream.tell() + head["bytes"] < size:
                content = stream.read(head["bytes"] + 1)
                end = stream.tell()
                record = _record(head, content[:-1]) if head["key"] in wanted else None
                if record is not None:
                    found[head["key"]] = record
            stream.truncate(end)
        return found

    def append(self, key: str, tensors: Mapping[str, Tensor], seconds: float = 0.0, work: float = 0.0) -> None:
        """Adds a record.

        Raises:
            ValueError: the file cannot be written.
        """
        # cloned, because a file takes no memory twice and two tensors may be views of one
        content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        sha = hashlib.sha256(content).hexdigest()
        head = {"key": key, "bytes": len(content), "sha256": sha, "seconds": seconds, "work": work}
        with self._opened() as stream:
            stream.write(json.dumps(head).encode() + b"\n" + content + b"\n")
            stream.flush()

    def remove(self) -> None:
        """Takes the file away."""
        self.file.unlink(missing_ok=True)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, for one process at a time."""
        try:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            with os.fdopen(descriptor, "r+b") as stream:
                with suppress(OSError):  # not every file system has locks
                    fcntl.flock(stream, fcntl.LOCK_EX)
                yield stream
        except OSError as error:
            raise ValueError(
                f"{self.file}: cannot be written ({error.strerror}); make it possible, or remove it"
            ) from None


def _head(stream: BinaryIO) -> dict[str, Any] | None:
    """The first line of the next record; None where there is none, or something else."""
    try:
        head = json.loads(stream.readline(LONGEST_HEAD))
        numbers = isinstance(head["seconds"], float) and isinstance(head.setdefault("work", 0.0), float)
        whole = isinstance(head["key"], str) and isinstance(head["sha256"], str) and numbers
        return head if whole and type(head["bytes"]) is int and head["bytes"] >= 0 else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _record(head: dict[str, Any], content: bytes) -> Record | None:
    """A record whose bytes are those that were written; None for others."""
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        return None
    try:
        return Record(tensors=load(content), seconds=head["seconds"], work=head["work"])
    except SafetensorError:
        return None
