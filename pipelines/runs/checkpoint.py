"""Checkpoints of a run: safetensors and JSON, complete or absent.

    RUN/checkpoints/step-00000400/   training.safetensors   networks, their averages, optimiser moments
                                     state.json             step, skipped, figures; written last: without it, no checkpoint
    RUN/pretrained/                  the same at the end of the pre-training, kept for ever
    RUN/model.safetensors            the averaged weights of the finished run (beside config.json; see config.load)

The noise and the order of rows are functions of (seed, step, rank), so that the step is the whole position of a run. A
checkpoint is read by any number of workers. The directory must be visible to every node, as Ray Train's storage must.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipelines.storage.files import new_directory, write_tensors, write_text

__all__ = ["checkpoints", "latest", "prune", "read", "write"]

STATE, TENSORS = "state.json", "training.safetensors"


def write(directory: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Writes a checkpoint beside its place and renames it there: a kill leaves a complete one or none, never half of one."""
    with new_directory(directory) as partial:
        write_tensors(partial / TENSORS, tensors)
        write_text(partial / STATE, json.dumps(numbers, indent=1) + "\n")


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a checkpoint.

    Raises:
        ValueError: not a complete checkpoint.
    """
    try:
        numbers = json.loads((directory / STATE).read_text(encoding="utf-8"))
        return load_file(directory / TENSORS), numbers
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{directory}: no complete checkpoint ({type(error).__name__}: {error}); remove it, or start from another"
        ) from None


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = (path.parent for path in (run / "checkpoints").glob(f"step-*/{STATE}"))
    return sorted(path for path in found if path.name.removeprefix("step-").isdecimal())


def latest(run: Path) -> Path | None:
    """The newest checkpoint whose files are whole; one that a full disk or a bad copy has cut short is passed over."""
    return next((directory for directory in reversed(checkpoints(run)) if _whole(directory)), None)


def _whole(directory: Path) -> bool:
    """Whether the numbers can be read and the tensors' header agrees with their file's length."""
    try:
        json.loads((directory / STATE).read_text(encoding="utf-8"))
        with safe_open(directory / TENSORS, "pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        print(f"{directory}: damaged, going on from an earlier checkpoint", flush=True)
        return False


def prune(run: Path, keep: int) -> None:
    """Removes all but the last checkpoint and the `keep` best by the NELBO in their state.json; of equal ones the newest."""
    found = checkpoints(run)
    order = {path: (_nelbo(path), -position) for position, path in enumerate(found)}
    kept = {*sorted(found, key=order.__getitem__)[:keep], *found[-1:]}
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in (run / "checkpoints").glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _nelbo(directory: Path) -> float:
    try:
        return float(json.loads((directory / STATE).read_text(encoding="utf-8"))["nelbo"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")
