"""Reading what others wrote: regular files only, no more than fits, and JSON of any shape.

A FIFO or a device has no end, and opening one may wait for ever: it is refused by what it is, before a byte is read. A
compressed file is known to fit before it is expanded, by one rule: to at most 64 MiB, or a hundred times its size.
"""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

__all__ = ["expands_too_far", "open_regular", "parse_json", "read_document", "read_json", "refuse_irregular"]

EXPANSION, FREE = 100, 64 << 20
"""No data gain more than this factor by compression, but for sets so small that it does not matter."""
JSON_BYTES, JSON_DEPTH, JSON_BITS = 64 << 20, 64, 64
"""Of a JSON document: its length, how deep it is nested, and the size of its whole numbers."""


def open_regular(file: Path) -> BufferedReader:
    """A file opened for reading, if it is one.

    Raises:
        ValueError: a FIFO, a socket, a device or a directory.
        OSError: as `open`.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(file, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_irregular(file: Path) -> None:
    """Raises ValueError for a FIFO, a socket, a device or a directory, and OSError for what is not there."""
    _check(file, file.stat().st_mode)


def _check(file: Path, mode: int) -> None:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file}: {kinds.get(stat.S_IFMT(mode), 'a device')} and not a regular file")


def expands_too_far(size: int, held: int) -> bool:
    """Whether `held` bytes of a file claim to become `size` bytes, as no data do."""
    return size > max(FREE, EXPANSION * held)


def read_document(file: Path) -> bytes:
    """The text of a JSON file, which is left to the caller to parse.

    Raises:
        ValueError: no regular file, or a longer one than any document of this project.
        OSError: as `open`.
    """
    with open_regular(file) as stream:
        text = stream.read(JSON_BYTES + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"a JSON file of more than {JSON_BYTES >> 20} MiB")
    return text


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: no JSON, or more of it than a document of this project has; the message does not name the file.
        OSError: as `open`.
    """
    return parse_json(read_document(file))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError for any other text."""
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        if not level:
            return value
        if any(type(member) is int and member.bit_length() > JSON_BITS for member in level):
            raise ValueError(f"a JSON number of more than {JSON_BITS} bits")
        inner = [member for member in level if isinstance(member, dict | list)]
        level = [x for member in inner for x in (member.values() if isinstance(member, dict) else member)]
    raise ValueError("JSON that is nested too deeply")
