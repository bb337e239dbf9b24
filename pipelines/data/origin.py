"""Where a data set comes from: its canonical name, what people call it, and whether its files have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.data.listing import list_files
from pipelines.data.readers.embedded import embedded
from pipelines.storage.paths import local_path

__all__ = ["canonical", "fingerprint", "label"]


def canonical(source: str | Path) -> str:
    """A source as a card names it: an absolute path, or the name of an embedded set."""
    return str(source) if embedded(str(source)) else str(local_path(source, "source").resolve())


def label(origin: str) -> str:
    """What people call a canonical source, fit for a file name."""
    return origin.replace(":", "-") if embedded(origin) else Path(origin).stem or "data"


def fingerprint(origin: str) -> str:
    """A hash of the names, lengths and times of a canonical source's files; '' for an embedded set."""
    if embedded(origin):
        return ""
    path, sha = Path(origin), hashlib.sha256()
    files = {*path.rglob("*"), *list_files(path).files} if path.is_dir() else {path}  # those of linked folders, too
    for file in sorted(files):
        if file.is_file():
            stat = file.stat()
            sha.update(f"{file.relative_to(path.parent)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:16]
