"""Runs, copied to an object store while they are trained, and brought back to a machine that has none of them.

A run is written on a file system: it has locks, renaming, and a file that grows. What it gains is copied by a thread of the
command, so that a training never waits for the store:

    STORE/RUN/   the files of RUN. Of a checkpoint the tensors go first and state.json last, as on a disk: a copy that was cut
                 short is no checkpoint. Checkpoints that were removed here are removed there, after newer ones have come

What was copied is remembered in RUN/.mirrored.json: the next command copies what was written since, and what the store lacks
or has in another length.

The same command on another machine, with the same --mirror, brings the run back and goes on from its newest checkpoint, whose
SHA-256 is compared as that of any. One machine at a time: a store has no locks.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pipelines.storage import checkpoint
from pipelines.storage.files import new_directory, write_text
from pipelines.storage.outputs import CONFIG, is_run
from pipelines.storage.reading import parse_json, read_json
from pipelines.storage.remote import RemotePath, store_at

__all__ = ["Mirror", "bring_back"]

Version = tuple[int, int]
"""Of a file: bytes, and nanoseconds since 1970 when it was written."""

POLL_SECONDS = 5.0
MEMORY = ".mirrored.json"
CHECKPOINT = re.compile(r"checkpoints/step-(\d+)/.+")


def bring_back(run: Path, given: str) -> None:
    """Brings a run from its mirror where there is none here; of one that is here the mirror must not be ahead.

    Args:
        run: Its directory.
        given: The option --mirror; '' for none.

    Raises:
        ValueError: the mirror is ahead, has another run of this name, or cannot be read or written.
    """
    if (place := store_at(given, "mirror")) is None:
        return
    place.refuse_unwritable()
    there = place / run.name
    names = [str(entry.place.relative_to(there)) for entry in there.entries()]
    if not is_run(run):
        if CONFIG in names and not checkpoint.checkpoints(run):  # what is here is never replaced
            print(f"{run.name}: brought back from {there}", flush=True)
            with new_directory(run) as building:
                for name in names:
                    (building / name).parent.mkdir(parents=True, exist_ok=True)
                    (there / name).get(building / name)
        return
    if CONFIG in names and _told_apart((there / CONFIG).read_bytes()) != _told_apart((run / CONFIG).read_bytes()):
        raise ValueError(
            f"mirror={given}: has another run of the name {run.name}; give another --mirror, or another --name"
        )
    newest = max((int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name))), default=0)
    here = max(map(checkpoint.step_of, checkpoint.checkpoints(run)), default=0)
    if newest > here:
        raise ValueError(
            f"mirror={given}: has step {newest} of {run.name}, and {run} ends at step {here}; remove {run} to go on from the "
            "mirror, or give another --mirror"
        )


def _told_apart(config: bytes) -> str:
    """What a config.json says that a run keeps for good: its recipe, data, model and seed."""
    document = parse_json(config.decode("utf-8"))
    run = document.get("run", {}) if isinstance(document, dict) else {}
    kept = {name: run.get(name) for name in ("recipe", "data", "model")}
    return json.dumps(kept | {"seed": run.get("train", {}).get("seed")}, sort_keys=True)


class Mirror:
    """A context in which a thread copies what runs gain; what is left when the block ends is copied then.

    Args:
        runs: Their directories.
        given: The option --mirror; '' for none.
    """

    def __init__(self, runs: Sequence[Path], given: str) -> None:
        self.runs, self.place = runs, store_at(given, "mirror")
        self.copied: dict[Path, dict[Path, Version]] = {}
        self.said, self.stopping = False, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="mirror")

    def __enter__(self) -> Mirror:
        if self.place:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.place is None:
            return
        self.stopping.set()
        self.thread.join()
        self.said = False
        self._attempt(self.place)

    def _run(self) -> None:
        while self.place and not self.stopping.wait(POLL_SECONDS):
            self._attempt(self.place)

    def _attempt(self, place: RemotePath) -> None:
        """Copies what is new; that the store does not answer is said once."""
        try:
            for run in filter(is_run, self.runs):
                self._copy(run, place / run.name)
        except FileNotFoundError:  # removed here while it was listed: the next attempt knows
            return
        except ValueError as error:
            if not self.said:
                print(f"not mirrored: {error}; the training goes on, and it is tried again", flush=True)
            self.said = True
        else:
            self.said = False

    def _copy(self, run: Path, there: RemotePath) -> None:
        if run not in self.copied:
            self.copied[run] = _remembered(run, there)
        copied, files = self.copied[run], {file: _version(file) for file in _files(run)}
        new = [file for file, version in files.items() if copied.get(file) != version]
        folders = sorted({file.parent for file in new}, key=_last_checkpoint, reverse=True)
        orderly = [[run / CONFIG] if run / CONFIG in new else []]  # without it, what follows is no run
        for group in orderly + [_tensors_first(folder, new) for folder in folders]:
            with suppress(FileNotFoundError):  # removed here meanwhile
                for file in group:
                    if copied.get(file) != files[file]:
                        (there / file.relative_to(run).as_posix()).put(file)
                        copied[file] = files[file]
        if new:
            _remember(run, there, copied)
        kept = {file.relative_to(run).as_posix() for file in files}
        mirrored = [str(entry.place.relative_to(there)) for entry in there.entries()] if new else []
        mirrored = [name for name in mirrored if CHECKPOINT.fullmatch(name)]
        whole = any(name in kept and name.endswith(checkpoint.STATE) for name in mirrored)
        gone = [name for name in mirrored if name not in kept and whole]
        for name in sorted(gone, key=lambda name: not name.endswith(checkpoint.STATE)):
            (there / name).remove()


def _files(run: Path) -> list[Path]:
    """The files of a run without locks and what is not finished, which are hidden."""
    found = (file for file in run.rglob("*") if file.is_file() and not file.is_symlink())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(run).parts))


def _last_checkpoint(folder: Path) -> tuple[bool, str]:
    """Sorts folders so that the newest checkpoint is the last: it goes first where a machine is about to leave."""
    return folder.parent.name == "checkpoints", str(folder)


def _remembered(run: Path, there: RemotePath) -> dict[Path, Version]:
    """What commands before have copied, as far as the store still has it in its length."""
    try:
        kept = {
            run / name: (int(size), int(when)) for name, (size, when) in read_json(run / MEMORY)[str(there)].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # there is none: all is copied
        return {}
    sizes = {run / str(entry.place.relative_to(there)): entry.size for entry in there.entries()}
    return {file: version for file, version in kept.items() if sizes.get(file) == version[0]}


def _remember(run: Path, there: RemotePath, copied: dict[Path, Version]) -> None:
    names = {file.relative_to(run).as_posix(): version for file, version in copied.items() if file.exists()}
    write_text(run / MEMORY, json.dumps({str(there): names}))


def _version(file: Path) -> Version:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _tensors_first(folder: Path, new: Sequence[Path]) -> list[Path]:
    """The new files of a folder, the state of a checkpoint last."""
    return sorted((file for file in new if file.parent == folder), key=lambda file: file.name == checkpoint.STATE)
