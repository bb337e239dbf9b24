"""Reader of a folder of image files.

`tree` says which folders are splits; below them, folders are classes in sorted order. `listing` says which files there are:
what is hidden, reached twice or no image is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from stat import S_ISREG

from pipelines.data.card import LeftOut
from pipelines.data.labels import Labels
from pipelines.data.listing import by_suffix, list_files
from pipelines.data.readers.images.decode import SUFFIXES, Fit, Picture, decoded, fit_to
from pipelines.data.readers.images.tree import by_folders
from pipelines.data.source import Chunk, Options, Piece, Source, SourceSplit, one_by_one, piece_rows
from pipelines.storage.messages import listed
from pipelines.storage.remote import Place, RemotePath, is_remote, place_at

__all__ = ["read_folder"]

REMOTE_THREADS = 16


def read_folder(source: str, options: Options) -> Source | None:
    """A folder of image files."""
    root = place_at(source)
    if not root.is_dir():
        return None
    listing = list_files(root)
    images = [file for file in listing.files if file.suffix.lower() in SUFFIXES]
    if not images:
        return None
    labelled = options.labels == "classes"
    found = by_folders([listing.relative(file) for file in images], source, options.split, options.splits, labelled)
    for part in found.files.values():
        classes = sorted({name for name, _ in part})
        if labelled and "" in classes and len(classes) > 1:
            raise ValueError(
                f"{root}: images both beside and inside class folders such as {classes[1]!r}; sort them all, or give --labels "
                "ignore, which takes them without classes"
            )
    labelled, notes = _as_trained(found.files)
    files = {split: [(name, images[index]) for name, index in part] for split, part in labelled.items()}
    first = next(iter(files.values()))
    fit = fit_to((_picture(file) for _, file in chain(first[:: -(-len(first) // 16)], *files.values())), options)
    others = [file for file in listing.files if file.suffix.lower() not in SUFFIXES]
    left_out = [
        *listing.left_out,
        *by_suffix(listing, others, "no image by its name"),
        *_left_out_folders([listing.relative(images[index]) for index in found.left_out]),
    ]
    return Source(
        kind="image",
        shape=fit.shape,
        levels=256,
        splits={split: _split(part, fit, found.folders[split] or ".") for split, part in files.items()},
        images=True,
        parts=True,
        left_out=tuple(left_out),
        notes=(*found.notes, *notes),
    )


def _left_out_folders(paths: list[tuple[str, ...]]) -> list[LeftOut]:
    """Images of folders that the option `split` does not name."""
    folders: dict[str, int] = {}
    for path in paths:
        folder = "/".join(path[:-1]) or "."
        folders[folder] = folders.get(folder, 0) + 1
    return [LeftOut(name=name, files=num, reason="not named by --split") for name, num in folders.items()]


def _as_trained(files: dict[str, list[tuple[str, int]]]) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """The splits with the classes that train has, and notes: a split that shares no folder with train has no classes (the files
    of a published test set often lie in one folder), and of another's new classes one reads."""
    classes = {split: {name for name, _ in part} - {""} for split, part in files.items()}
    trained, notes = classes.get("train", set()), []
    for split, names in classes.items():
        new = sorted(names - trained) if trained else []
        if new and len(new) == len(names):
            files = files | {split: [("", index) for _, index in files[split]]}
            notes.append(f"{split}: no folder of it ({listed(new)}) is a class of train; its images have no labels")
        elif new:
            notes.append(f"{split}: {len(new)} of its {len(names)} classes not in train: {listed(new)}")
    return files, notes


def _split(files: list[tuple[str, Place]], fit: Fit, source: str) -> SourceSplit:
    step = piece_rows(fit.channels * fit.height * fit.width)

    def pieces() -> Iterator[Piece]:
        for first in range(0, len(files), step):
            yield partial(_piece, tuple(file for _, file in files[first : first + step]), fit, first)

    return SourceSplit(
        count=len(files),
        chunks=lambda: one_by_one(pieces()),
        locate=lambda row: str(files[row][1]),
        labels=lambda: Labels.of([[name for name, _ in files]]),
        source=source,
        pieces=pieces,
    )


def _piece(files: Sequence[Place], fit: Fit, first: int, threads: int) -> Iterator[Chunk]:
    """The rows of some files; those of a store take their time to come, not the processor's."""
    threads = max(threads, REMOTE_THREADS) if is_remote(files[0]) else threads
    return decoded([[*map(_picture, files)]], fit, strict=True, first=first, threads=threads)


def _picture(file: Place) -> Picture:
    return Picture(
        lambda: RemotePath(str(file)).read_bytes() if is_remote(file) else _bytes(Path(str(file))), str(file)
    )


def _bytes(file: Path) -> bytes:
    """The bytes of a regular file; a pipe would be waited for without end.

    Raises:
        ValueError: there is none.
    """
    try:
        if not S_ISREG(file.stat().st_mode):
            raise ValueError("not a regular file")
        return file.read_bytes()
    except OSError as error:
        dangling = file.is_symlink() and not file.exists()
        why = f"a link to {file.readlink()}, which is not there" if dangling else f"cannot be read: {error.strerror}"
        raise ValueError(why) from None
