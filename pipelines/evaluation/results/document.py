"""The document of an evaluation: what was found, of what and how, as frozen dataclasses and as JSON.

    {"version": 2, "type": "Evaluation", ...}   as it is written: each object with its class under "type" (`config.codec`)
    {"unit": ..., "runs": ...}                  as it was before there were versions; `earlier` reads it

In a file null stands for a number that could not be had; here that is nan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.config.codec import from_json, to_json
from pipelines.evaluation import measurements
from pipelines.evaluation.measurement import Result, find
from pipelines.evaluation.results import earlier
from pipelines.evaluation.results.shares import Share
from pipelines.evaluation.settings import Settings
from pipelines.storage.files import write_text
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json

__all__ = ["Evaluation", "Figures", "from_document", "read_document", "to_document", "write_document"]

VERSION = 2
KNOWN = measurements.MEASUREMENTS
"""A reader finds the class of a result because these are imported."""

R = TypeVar("R", bound=Result)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found of one run.

    Args:
        parameters: Of its networks.
        evaluations: Of each network, in a training step on one sample.
        results: Of the measurements.
    """

    parameters: int
    evaluations: dict[str, int]
    results: tuple[Result, ...]

    def of(self, kind: type[R]) -> R | None:
        """The result of a class; None where it was not measured."""
        return find(self.results, kind)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found of runs that were measured together.

    Args:
        unit: Of likelihoods.
        data: The data set.
        images: Test images (or rows) that likelihoods were taken on.
        settings: How exactly it was measured.
        weights: By run, the SHA-256 of its weights.
        runs: By run, what was found.
        results: What was found of the data, and of runs together.
        seconds: It took.
        shares: How the actors' time was shared; none in documents of before.
    """

    unit: str
    data: str
    images: int
    settings: Settings
    weights: dict[str, str]
    runs: dict[str, Figures]
    results: tuple[Result, ...]
    seconds: float
    shares: tuple[Share, ...] = ()

    def of(self, kind: type[R]) -> R | None:
        """The result of a class; None where it was not measured."""
        return find(self.results, kind)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_document(self)

    @staticmethod
    def from_json(document: Any, where: str = "evaluation") -> Evaluation:
        """The evaluation in a document of this version or of an earlier one.

        Raises:
            ValueError: something else, or a result that this code does not know.
        """
        return from_document(Evaluation, document, where, earlier.evaluation)

    @staticmethod
    def read(file: Path) -> Evaluation:
        """The evaluation in a file; raises as `from_json` does."""
        return read_document(Evaluation, file, earlier.evaluation)

    def write(self, file: Path) -> None:
        write_document(self, file)


def to_document(value: Any) -> dict[str, Any]:
    """Plain JSON values of a frozen dataclass, with the version."""
    return {"version": VERSION} | _plain(to_json(value))


def from_document(kind: type[T], document: Any, where: str, upgrade: Callable[[Any], Any]) -> T:
    """The inverse of `to_document`.

    Args:
        upgrade: Makes a document of this version of one from before there were versions.
    """
    try:
        if isinstance(document, dict) and "version" not in document:
            document = upgrade(document)
        elif not isinstance(document, dict) or document["version"] != VERSION:
            raise ValueError(f"this version of the project reads version {VERSION}")
        members = {name: _numbers(value) for name, value in document.items() if name != "version"}
        return from_json(kind, members, kind.__name__)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        said = one_line(error, 300)
        raise ValueError(f"{where}: no measurement of runs ({said}); remove it, or measure again") from None


def read_document(kind: type[T], file: Path, upgrade: Callable[[Any], Any]) -> T:
    """`from_document` of a file."""
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not JSON ({one_line(error, 300)}); remove it, or measure again") from None
    return from_document(kind, document, str(file), upgrade)


def write_document(value: Any, file: Path) -> None:
    """`to_document` into a file."""
    write_text(file, json.dumps(to_document(value), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Without what is None, which a reader takes as the default; with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    """With nan for null."""
    if isinstance(value, dict):
        return {name: _numbers(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_numbers(member) for member in value]
    return math.nan if value is None else value
