"""The files below a folder, as all readers of folders see them: `list_files`.

Hidden files and folders (a leading dot), and those that systems put beside the files of others, are no data. A folder that is
reached by a symbolic link is read, but each folder once: a real one goes before a link to it, and a link that leads to a folder
above, or to one that is read already, is left out. All that is left out is listed with its reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.card import LeftOut
from pipelines.storage.remote import Place, RemotePath, is_remote

__all__ = ["Listing", "by_suffix", "list_files"]

SYSTEM = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}
"""What macOS, Synology and Windows put beside the files of others."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files below a folder, sorted, and what is left out of it."""

    root: Place
    files: tuple[Any, ...]  # places of the root's kind
    left_out: tuple[LeftOut, ...]

    def relative(self, file: Any) -> tuple[str, ...]:
        """A file's path below the folder, in parts."""
        return file.relative_to(self.root).parts


def list_files(root: Place) -> Listing:
    """The files below a folder.

    Raises:
        ValueError: a folder that cannot be listed.
    """
    return _list_store(RemotePath(str(root))) if is_remote(root) else _list_folder(Path(str(root)))


def _list_store(root: RemotePath) -> Listing:
    """The files below a folder of an object store, which has no links."""
    files: list[RemotePath] = []
    hidden: Counter[str] = Counter()
    for entry in root.entries():
        parts = entry.place.relative_to(root).parts
        at = next((depth for depth, part in enumerate(parts) if part.startswith(".") or part in SYSTEM), None)
        if at is None:
            files.append(entry.place)
        else:
            hidden[f"{parts[at]}/" if at + 1 < len(parts) else "hidden files"] += 1
    return Listing(root=root, files=tuple(sorted(files)), left_out=_hidden(hidden))


def _hidden(found: Counter[str]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(name=name, files=num, reason="hidden or the system's") for name, num in sorted(found.items()))


def _list_folder(root: Path) -> Listing:
    there = root.resolve()
    seen = {_identity(folder) for folder in (there, *there.parents)}
    files: list[Path] = []
    hidden: Counter[str] = Counter()
    twice: list[LeftOut] = []
    links = _walk(root, seen, files, hidden, twice)
    while links:  # after all real folders
        link = links.pop(0)
        if _identity(link) in seen:
            twice.append(_read_already(link, root))
            continue
        seen.add(_identity(link))
        links += _walk(link, seen, files, hidden, twice, root)
    return Listing(root=root, files=tuple(sorted(files)), left_out=(*_hidden(hidden), *twice))


def by_suffix(listing: Listing, files: Iterable[Place], reason: str) -> list[LeftOut]:
    """Files that are left out, one entry for each suffix, the first of them as its example."""
    found: dict[str, list[Place]] = {}
    for file in files:
        found.setdefault(file.suffix.lower() or "no suffix", []).append(file)
    return [
        LeftOut(
            name=f"{suffix} ({'/'.join(listing.relative(part[0]))}{', ...' * (len(part) > 1)})",
            files=len(part),
            reason=reason,
        )
        for suffix, part in sorted(found.items())
    ]


def _walk(
    folder: Path,
    seen: set[tuple[int, int]],
    files: list[Path],
    hidden: Counter[str],
    twice: list[LeftOut],
    root: Path | None = None,
) -> list[Path]:
    """Adds the files below a folder; returns the links to other folders."""
    root, pending, links = root or folder, [folder], []
    while pending:
        within = pending.pop()
        try:
            entries = sorted(os.scandir(within), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"{within}: cannot be listed ({error.strerror}); let it be read, or take it away"
            ) from None
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name in SYSTEM:
                folder_like = os.path.isdir(path) and not entry.is_symlink()
                num = sum(len(names) for _, _, names in os.walk(path)) if folder_like else 1
                hidden[entry.name + "/" * folder_like if folder_like else "hidden files"] += num
            elif entry.is_dir(follow_symlinks=False):
                if root is not folder and _identity(path) in seen:
                    twice.append(_read_already(path, root))
                    continue
                seen.add(_identity(path))
                pending.append(path)
            elif os.path.isdir(path):
                links.append(path)
            else:
                files.append(path)
    return sorted(links)


def _read_already(path: Path, root: Path) -> LeftOut:
    reason = f"leads to {path.resolve()}, which is read already or lies above"
    return LeftOut(name="/".join(path.relative_to(root).parts), files=0, reason=reason)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino
