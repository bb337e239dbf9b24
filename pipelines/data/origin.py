"""Where a data set comes from: its canonical name, its files and whether they have changed, and what people call it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.data.listing import list_files
from pipelines.data.readers.embedded import embedded
from pipelines.data.readers.mosaic import Mosaic
from pipelines.storage.paths import local_path
from pipelines.storage.remote import Place, RemotePath, is_remote, place_at

__all__ = ["canonical", "fingerprint", "label", "path_of", "without_path"]


def canonical(source: str | Path) -> str:
    """A source as a card names it: an absolute path, a URL of a store, the name of an embedded set, or mosaics of one."""
    if Mosaic.means(str(source)):
        mosaic = Mosaic.parse(str(source))
        return str(mosaic.of(canonical(mosaic.base)))
    if embedded(str(source)):
        return str(source)
    return str(place_at(source) if is_remote(source) else local_path(source, "source").resolve())


def label(origin: str) -> str:
    """What people call a canonical source, fit for a file name."""
    if Mosaic.means(origin):
        mosaic = Mosaic.parse(origin)
        return str(mosaic.of(label(mosaic.base))).replace(":", "-")
    return origin.replace(":", "-") if embedded(origin) else Path(origin).stem or "data"


def without_path(source: str) -> str:
    """A source without where it lies on this machine: the last name of its path."""
    if Mosaic.means(source):
        mosaic = Mosaic.parse(source)
        return str(mosaic.of(without_path(mosaic.base)))
    return Path(source).name


def path_of(origin: str) -> Place | None:
    """The file or directory that a canonical source is read from; None of an embedded set."""
    if Mosaic.means(origin):
        return path_of(Mosaic.parse(origin).base)
    return None if embedded(origin) else place_at(origin)


def fingerprint(origin: str) -> str:
    """A hash of the names, lengths and times, or a store's tags, of a canonical source's files; '' for an embedded set."""
    if (place := path_of(origin)) is None:
        return ""
    path, sha = Path(str(place)), hashlib.sha256()
    if is_remote(place):
        for entry in RemotePath(str(place)).entries():
            sha.update(f"{entry.place}\n{entry.size}\n{entry.mark}\n".encode())
        return sha.hexdigest()[:16]
    files = {*path.rglob("*"), *list_files(path).files} if path.is_dir() else {path}  # those of linked folders, too
    for file in sorted(files):
        if file.is_file():
            stat = file.stat()
            sha.update(f"{file.relative_to(path.parent)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:16]
