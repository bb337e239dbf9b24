"""What was measured of checkpoints beside their training: RUN/along.jsonl, one record a line, by step.

    step, checkpoint   of the checkpoint, and the SHA-256 of its tensors: a record is of these weights and of no others
    unit               of likelihoods
    nll, nelbo, fd     figures of the averaged weights, absent where they could not be had; nll_se, ...: their standard errors
    images, samples    test images and samples that they were taken on
    seconds            that it took

The file is written anew with each record, so that it is there whole or not at all. Who measures writes it, one process at a
time; who trains reads in it which checkpoints may be removed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.files import write_text
from pipelines.storage.reading import open_regular, parse_json

__all__ = ["FIGURES", "Figure", "Measured", "add_measured", "read_measured"]

FILE = "along.jsonl"
FIGURES = ("nll", "nelbo", "fd")
WORDS, NUMBERS = ("checkpoint", "unit"), ("images", "samples", "seconds")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number and its standard error, nan where it has none."""

    value: float
    se: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a checkpoint.

    Args:
        step: Of the checkpoint.
        checkpoint: SHA-256 of its tensors.
        figures: Those of `FIGURES` that could be had, by name.
        unit: Of the likelihoods.
        images, samples: That the likelihoods and the distance were taken on.
        seconds: It took.
    """

    step: int
    checkpoint: str
    figures: Mapping[str, Figure]
    unit: str = ""
    images: int = 0
    samples: int = 0
    seconds: float = 0.0

    def numbers(self) -> dict[str, float]:
        """The figures and their errors under their names, NAME and NAME_se; what is not finite is left out."""
        every = [(name, taken) for name in FIGURES if (taken := self.figures.get(name))]
        found = {key: value for name, taken in every for key, value in ((name, taken.value), (f"{name}_se", taken.se))}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def metrics(self) -> dict[str, float]:
        """The same under their names in MLflow."""
        return {f"along/{name}": value for name, value in self.numbers().items()}

    def to_json(self) -> str:
        """A line of the file, without its end."""
        said = {name: getattr(self, name) for name in (*WORDS, *NUMBERS)}
        return json.dumps({"step": self.step, **self.numbers(), **said})

    @staticmethod
    def from_json(line: str) -> Measured:
        """The inverse of `to_json`.

        Raises:
            ValueError: no record.
        """
        found = parse_json(line)
        try:
            if type(found["step"]) is not int:
                raise ValueError(f"step={found['step']}")
            figures = {
                name: Figure(value=float(found[name]), se=float(found.get(f"{name}_se", math.nan)))
                for name in FIGURES
                if name in found
            }
            images, samples, seconds = int(found["images"]), int(found["samples"]), float(found["seconds"])
            said = {"checkpoint": str(found["checkpoint"]), "unit": str(found["unit"]), "seconds": seconds}
            return Measured(step=found["step"], figures=figures, images=images, samples=samples, **said)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"no record of a checkpoint: {line[:80]!r} ({error})") from None


def read_measured(run: Path) -> list[Measured]:
    """The records of a run by step; none where the file cannot be read just now, as network file systems have it while another
    machine replaces it: who asks takes its checkpoints for not yet measured, and keeps them."""
    try:
        return _read(run)
    except OSError:
        return []


def _read(run: Path) -> list[Measured]:
    """The records by step; lines that are none are passed over, as those of a damaged file are."""
    try:
        with open_regular(run / FILE) as stream:
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: dict[int, Measured] = {}
    for line in lines:
        try:
            record = Measured.from_json(line)
        except ValueError:
            continue
        found[record.step] = record
    return [found[step] for step in sorted(found)]


def add_measured(run: Path, record: Measured) -> None:
    """Adds a record; one of the same step, which is of other weights, goes."""
    others = [other for other in _read(run) if other.step != record.step]
    every = sorted([*others, record], key=lambda each: each.step)
    write_text(run / FILE, "".join(f"{each.to_json()}\n" for each in every))
