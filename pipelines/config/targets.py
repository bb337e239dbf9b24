"""Densities as configurations: frozen dataclasses that build what they describe.

A class below `TargetConfig` is a form that a file or the command line may name; adding one is writing it, here or in a file of
one's own (see `modules`). A density of which nothing need be said is `OwnTargetConfig`: a function or a class of the user's.
The densities themselves are in indm_core/pis/targets; those that are made of data read them from pipelines/densities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from indm_core.pis.targets import (
    LGCP,
    Funnel,
    ManyWell,
    Rings,
    Target,
    brownian,
    mog40,
    nine_modes,
    students,
)
from pipelines.config.modules import Defined, Extension, defining, split_word, used
from pipelines.data.readers.text_form import Written
from pipelines.densities.points import Window, pines, points
from pipelines.densities.tables import breast_cancer, logistic
from pipelines.storage.files import sha256_of
from pipelines.storage.messages import nearest
from pipelines.storage.paths import local_path

__all__ = [
    "BreastCancerConfig",
    "BrownianConfig",
    "FunnelConfig",
    "LGCPConfig",
    "LogisticConfig",
    "ManyWellConfig",
    "MoG40Config",
    "NineModesConfig",
    "OwnTargetConfig",
    "RingsConfig",
    "StudentConfig",
    "TargetConfig",
]


@dataclass(frozen=True, kw_only=True)
class TargetConfig(ABC):
    """A density that is known up to a constant."""

    @abstractmethod
    def build(self) -> Target:
        """The target.

        Raises:
            ValueError: data of it that cannot be had, or a target of the user's that is none.
        """

    def settled(self) -> TargetConfig:
        """It with absolute paths: workers run elsewhere than the command."""
        return self

    def defined(self) -> Sequence[Defined]:
        """The files of the user's that take part in it."""
        return defining(self)


@final
@dataclass(frozen=True, kw_only=True)
class OwnTargetConfig(TargetConfig):
    """A density of the user's own. Its file is imported where the command line names it, and nowhere else.

    Args:
        word: path.py:name, the absolute path of a file and what it has under that name: a function or a class which, called
            without an argument, gives a `Target`.
    """

    word: str = ""

    def build(self) -> Target:
        extension, name = self._extension()
        make = vars(extension.module).get(name)
        if not callable(make):
            own = sorted(n for n, value in vars(extension.module).items() if callable(value) and not n.startswith("_"))
            fault = f"the file has no function or class {name!r}" if name else "which function?"
            raise ValueError(f"{self.word}: {fault}; {nearest(name, own)}; give {extension.word}:NAME")
        try:
            target = make()
        except Exception as error:
            raise ValueError(f"{self.word}: {type(error).__name__}: {error}; correct the file") from error
        if not isinstance(target, Target):
            raise ValueError(f"{self.word} gives {type(target).__name__}, not a Target (indm_core.pis.Target)")
        return target

    def defined(self) -> Sequence[Defined]:
        extension, _ = self._extension()
        return [Defined(extension.word, extension.file, extension.sha256)]

    def _extension(self) -> tuple[Extension, str]:
        file, name = split_word(self.word)
        for extension in used():
            if extension.word == file:
                return extension, name
        raise ValueError(
            f"{self.word}: {file or 'this file'} was not named by the command, and no file of a run lets it be executed; "
            f"if you trust it, give the target as {self.word}, or --import {file}"
        )


@final
@dataclass(frozen=True, kw_only=True)
class FunnelConfig(TargetConfig):
    """Neal's funnel.

    Args:
        scale: Standard deviation of the coordinate that sets the scale of the others.
        dim: Coordinates.
    """

    scale: float = 3.0
    dim: int = 10

    def build(self) -> Target:
        return Funnel(self.scale, self.dim)


@final
@dataclass(frozen=True, kw_only=True)
class NineModesConfig(TargetConfig):
    """Nine Gaussians on a grid in the plane."""

    def build(self) -> Target:
        return nine_modes()


@final
@dataclass(frozen=True, kw_only=True)
class RingsConfig(TargetConfig):
    """Concentric rings in the plane.

    Args:
        radii: Of the rings.
        thickness: Standard deviation of the distance from a ring.
    """

    radii: tuple[float, ...] = (1.0, 2.0, 3.0)
    thickness: float = 0.1

    def build(self) -> Target:
        return Rings(self.radii, self.thickness)


@final
@dataclass(frozen=True, kw_only=True)
class MoG40Config(TargetConfig):
    """40 Gaussians with centres in [-40, 40]^d.

    Args:
        dim: Coordinates.
        centres: Seed by which the centres are drawn.
    """

    dim: int = 2
    centres: int = 0

    def build(self) -> Target:
        return mog40(self.dim, self.centres)


@final
@dataclass(frozen=True, kw_only=True)
class StudentConfig(TargetConfig):
    """10 products of Student's t with centres in [-10, 10]^d.

    Args:
        dim: Coordinates.
        centres: Seed by which the centres are drawn.
    """

    dim: int = 2
    centres: int = 0

    def build(self) -> Target:
        return students(self.dim, self.centres)


@final
@dataclass(frozen=True, kw_only=True)
class ManyWellConfig(TargetConfig):
    """Many double wells.

    Args:
        dim: Coordinates, two for each well; even.
    """

    dim: int = 32

    def build(self) -> Target:
        return ManyWell(self.dim)


@final
@dataclass(frozen=True, kw_only=True)
class BrownianConfig(TargetConfig):
    """A random walk seen through noise, both of unknown scale.

    Args:
        walk: Seed by which the walk and its noise are drawn.
    """

    walk: int = 0

    def build(self) -> Target:
        return brownian(self.walk)


@final
@dataclass(frozen=True, kw_only=True)
class BreastCancerConfig(TargetConfig):
    """The logistic regression of scikit-learn's breast cancer."""

    def build(self) -> Target:
        return breast_cancer()


@final
@dataclass(frozen=True, kw_only=True)
class LogisticConfig(TargetConfig):
    """The logistic regression of a table of your own.

    Args:
        file: A .csv or .tsv file of numbers with a header.
        sha256: Of the file's bytes, by which a run knows it again; empty: as it is now.
        label: Its column of labels, 0 or 1; all others are features.
        written: How it is written.
    """

    file: str = ""
    sha256: str = ""
    label: str = "label"
    written: Written = field(default_factory=Written)

    def settled(self) -> TargetConfig:
        file, sha256 = _settled(self.file, self.sha256)
        return replace(self, file=file, sha256=sha256)

    def build(self) -> Target:
        if not self.file:
            raise ValueError(
                "file: a logistic regression is of a table; give --target.file TABLE.csv and --label COLUMN"
            )
        return logistic(Path(self.file), self.label, self.written)


@final
@dataclass(frozen=True, kw_only=True)
class LGCPConfig(TargetConfig):
    """A log-Gaussian Cox process of points in a window.

    Args:
        file: A .csv or .tsv file of their two columns; the 126 pines where it is empty.
        sha256: Of the file's bytes, by which a run knows it again; empty: as it is now.
        written: How it is written.
        window: Where they were looked for, which becomes the unit square.
        grid: Cells along a side; d is its square.
        whitened: Whether coordinates are those in which the prior is N(0, I).
    """

    file: str = ""
    sha256: str = ""
    written: Written = field(default_factory=Written)
    window: Window = field(default_factory=Window)
    grid: int = 40
    whitened: bool = True

    def settled(self) -> TargetConfig:
        file, sha256 = _settled(self.file, self.sha256)
        return replace(self, file=file, sha256=sha256)

    def build(self) -> Target:
        positions = points(Path(self.file), self.window, self.written) if self.file else pines()
        return LGCP(positions, self.grid, whitened=self.whitened)


def _settled(file: str, sha256: str) -> tuple[str, str]:
    """A file's whole path, and the SHA-256 of its bytes; of one that cannot be read, what reads it says so.

    Raises:
        ValueError: it has another SHA-256 than it should.
    """
    if not file:
        return "", ""
    path = local_path(file, "--target.file").resolve()
    found = sha256_of(path) if path.is_file() else ""
    if sha256 and found != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {found or 'of nothing'}, not sha256={sha256}; leave --target.sha256 out"
        )
    return str(path), found
