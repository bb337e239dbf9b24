"""Checkpoints of a run: safetensors and JSON, complete or absent, with a checksum of every bit.

    RUN/checkpoints/step-00000400/   training.safetensors   networks, their averages, optimiser moments
                                     state.json             step, skipped, figures, provenance; SHA-256 of the tensors and of
                                                            itself (`storage.manifest`); written last: without it, no checkpoint
    RUN/pretrained/                  the same at the end of the pre-training, kept for ever
    RUN/model.safetensors            the averaged weights of the finished run (beside config.json; see config.store)

The noise and the order of rows are functions of (seed, step, rank), so that the step is the whole position of a run. A
checkpoint is read by any number of workers. The directory must be visible to every node, as Ray Train's storage must.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from pipelines.storage.along import read_measured
from pipelines.storage.files import new_directory, write_tensors
from pipelines.storage.manifest import DamagedError, Manifest, read_manifest, write_manifest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "STATE",
    "By",
    "checkpoints",
    "digest_of",
    "discard_after",
    "figures_by",
    "held_out",
    "kept",
    "latest",
    "newest_below",
    "newest_state",
    "prune",
    "read",
    "read_part",
    "read_state",
    "step_of",
    "unmeasured",
    "write",
]

By = Literal["nelbo", "nll", "fd"]
"""What checkpoints are compared by: the NELBO on held-out rows, or what was measured beside the training (`storage.along`)."""

STATE, TENSORS = "state.json", "training.safetensors"
LAST = 2
"""Checkpoints that are kept whatever their figures: the newest, and the one to fall back to."""


def write(directory: Path, tensors: dict[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Writes a checkpoint beside its place and renames it there: a kill leaves a complete one or none, never half of one.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; nothing of it is left.
    """
    with new_directory(directory) as building:
        digest = write_tensors(building / TENSORS, tensors)
        write_manifest(building / STATE, numbers, {TENSORS: digest})


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a checkpoint.

    Raises:
        ValueError: not a complete checkpoint, or not what was written.
    """
    try:
        return _read(directory)
    except (OSError, DamagedError) as error:
        raise ValueError(f"{directory}: no complete checkpoint ({error}); remove it, or start from another") from None


def read_part(directory: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names have a prefix, under their names without it; the others are not read.

    Raises:
        DamagedError: not a readable file.
    """
    try:
        with safe_open(directory / TENSORS, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is no dict)
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{directory / TENSORS}: {error}") from None


def read_state(directory: Path) -> Manifest:
    """The state of a checkpoint; its tensors are not read.

    Raises:
        DamagedError: missing, not what was written, or of another step than the directory's.
        ValueError: of a schema that this code does not read.
    """
    state = read_manifest(directory / STATE)
    for name in ("step", "skipped", "averaged"):
        if type(state.content.get(name)) is not int:
            raise DamagedError(f"{state.file} has no number {name!r}")
    if _is_numbered(directory) and step_of(directory) != state.content["step"]:
        raise DamagedError(f"{state.file} is of step {state.content['step']}")
    if state.checked and TENSORS not in state.files:
        raise DamagedError(f"{state.file} says nothing of {TENSORS}")
    return state


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = (path.parent for path in (run / "checkpoints").glob(f"step-*/{STATE}"))
    return sorted(filter(_is_numbered, found), key=step_of)


def kept(run: Path) -> dict[int, Path]:
    """All complete checkpoints of a run by step, the end of its pre-training among them."""
    found = {step_of(path): path for path in checkpoints(run)}
    pretrained = run / "pretrained"
    try:
        return {read_state(pretrained).content["step"]: pretrained} | found
    except (OSError, ValueError):
        return found


def step_of(directory: Path) -> int:
    """The step that a checkpoint's directory is named by."""
    return int(directory.name.removeprefix("step-"))


def newest_state(run: Path) -> Manifest | None:
    """The state of the newest checkpoint whose state is whole; its tensors are not looked at."""
    for directory in _newest_first(run):
        try:
            return read_state(directory)
        except DamagedError:
            continue
    return None


def latest(run: Path, say: Callable[[str], None] = partial(print, flush=True)) -> Path | None:
    """The newest checkpoint that is what was written; those after it are passed over and named.

    Args:
        say: Takes the lines that name them.

    Raises:
        ValueError: a checkpoint of a newer version.
        OSError: one that cannot be read.
    """
    damaged = []
    for directory in _newest_first(run):
        try:
            _read(directory)
        except DamagedError as error:
            damaged.append((directory, error))
            continue
        for place, error in damaged:
            say(f"{place}: damaged, going on from an earlier checkpoint, {directory.name} ({error})")
        return directory
    for place, error in damaged:
        say(f"{place}: damaged, and no earlier checkpoint is whole: the run begins anew ({error})")
    return None


def prune(run: Path, keep: int, by: By = "nelbo", due: Callable[[int], bool] = lambda step: False) -> None:
    """Removes all but the last two checkpoints, the `keep` best, and those that have yet to be measured; of equal ones the
    newest is kept.

    The best are the lowest in `by`. Where it was measured of none, they have the lowest NELBO on training rows.

    Args:
        due: due(step): whether the checkpoint of a step is measured beside the training.
    """
    found = checkpoints(run)
    measured = figures_by(run, by)
    if not any(math.isfinite(measured[step_of(path)]) for path in found):
        measured = {step_of(path): _figure(path, "nelbo") for path in found}
    order = {path: (measured[step_of(path)], -position) for position, path in enumerate(found)}
    kept = {*sorted(found, key=order.__getitem__)[:keep], *found[-LAST:], *unmeasured(run, due)}
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def figures_by(run: Path, by: By) -> dict[int, float]:
    """What the kept checkpoints are compared by, by step; infinity where it was not measured of these very weights."""
    places = kept(run)
    if by == "nelbo":
        return {step: held_out(place) for step, place in places.items()}
    of = {record.step: record for record in read_measured(run)}
    found = {}
    for step, place in places.items():
        same = step in of and of[step].checkpoint == digest_of(place) and by in of[step].figures
        found[step] = of[step].figures[by].value if same else math.inf
    return found


def unmeasured(run: Path, due: Callable[[int], bool]) -> list[Path]:
    """The checkpoints that are to be measured beside the training and have not been, oldest first."""
    of = {record.step: record.checkpoint for record in read_measured(run)}
    several = {path: digest_of(path) for path in checkpoints(run) if due(step_of(path))}
    return [path for path, digest in several.items() if digest and of.get(step_of(path)) != digest]


def digest_of(directory: Path) -> str:
    """SHA-256 of the tensors of a checkpoint, as its state has it; '' where that is not whole."""
    try:
        return read_state(directory).files.get(TENSORS, "")
    except (OSError, ValueError):
        return ""


def held_out(directory: Path) -> float:
    """The NELBO of a checkpoint's averaged weights on held-out rows; infinity where it was not measured."""
    return _figure(directory, "validation_nelbo")


def newest_below(run: Path, nelbo: float) -> Path | None:
    """The newest whole checkpoint whose NELBO on training rows is not above a value; of nan, the newest."""
    for directory in _newest_first(run):
        try:
            if not _figure(directory, "nelbo") > nelbo:
                _read(directory)
                return directory
        except DamagedError:
            continue
    return None


def discard_after(run: Path, step: int) -> None:
    """Removes the checkpoints after the step that a run goes on from, damaged or diverged ones, which would be kept in place of
    others; the end of the pre-training is one of them."""
    for path in checkpoints(run):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(DamagedError, ValueError):
        if read_state(run / "pretrained").content["step"] > step:
            shutil.rmtree(run / "pretrained", ignore_errors=True)


def _read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = read_state(directory)
    state.verify()
    return read_part(directory, ""), state.content


def _newest_first(run: Path) -> list[Path]:
    """The checkpoints from the newest on; the end of the pre-training, which is one of them, comes after all others."""
    pretrained = run / "pretrained"
    return [*reversed(checkpoints(run)), *([pretrained] if (pretrained / STATE).is_file() else [])]


def _is_numbered(directory: Path) -> bool:
    return directory.name.startswith("step-") and directory.name.removeprefix("step-").isdecimal()


def _figure(directory: Path, name: str) -> float:
    """A figure in the state of a checkpoint; infinity where there is none."""
    try:
        figure = float(read_state(directory).content[name])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return math.inf if math.isnan(figure) else figure
