"""Extensions: Python modules of the user's own, with recipes, readers, and the classes of configurations that they define.

A module is imported where the user names it: by --import before a command line is read, as the recipe path.py:function, as
`module` of `pipelines.config.load`, or in the environment variable INDM_MODULES (several are separated as in PATH). The word is
the path of a file, or the name that an installed package gives to a module of its own by an entry point:

    [project.entry-points."indm.extensions"]
    mine = "my_package.diffusions"

What a run leaves names its classes, and config.json what to import for them, with the SHA-256 of the file; to read it the
classes must be there, and to have them is to run the module. Nothing that was read decides that. A word that was named goes
into INDM_MODULES, so that the workers of the same command import it too.

A file imports what is installed, not the files beside it. Its configuration classes need names that no class of this project
has or had, so that a name has one meaning. A `Reader` of the module is asked before the readers of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.config.codec import ALIASES
from pipelines.storage.messages import nearest
from pipelines.storage.paths import local_path

__all__ = [
    "GROUP",
    "VARIABLE",
    "Defined",
    "Extension",
    "defining",
    "how_to_import",
    "say_changed",
    "split_word",
    "use",
    "used",
]

VARIABLE, GROUP = "INDM_MODULES", "indm.extensions"
OURS = ("indm_core", "pipelines", "tune")


@dataclass(frozen=True)
class Extension:
    """A module that was imported.

    Args:
        word: By which it is named: an absolute path, or the name of an entry point.
        module: What came of it.
        sha256: Of its file as it was then.
    """

    word: str
    module: ModuleType
    sha256: str

    @property
    def file(self) -> str:
        return str(Path(self.module.__file__ or "").resolve())


@dataclass(frozen=True)
class Defined:
    """Where classes of a run are defined, as config.json keeps it.

    Args:
        word: By which the module is imported.
        file: That defines them.
        sha256: Of the file; '' where the run is from before it was kept.
    """

    word: str
    file: str
    sha256: str

    def to_json(self) -> dict[str, str]:
        return {"import": self.word, "file": self.file, "sha256": self.sha256}

    @staticmethod
    def from_json(entry: Any) -> Defined:
        """The inverse of `to_json`; an earlier version kept the path alone."""
        if isinstance(entry, Mapping):
            return Defined(*(str(entry.get(name, "")) for name in ("import", "file", "sha256")))
        return Defined(str(entry), str(entry), "")


def split_word(word: str) -> tuple[str, str]:
    """('path.py', 'function') of the word path.py:function or path.py; ('', word) of a name."""
    if word.endswith(".py"):
        return word, ""
    file, _, function = word.rpartition(":")
    return (file, function) if file.endswith(".py") else ("", word)


def use(word: str | Path) -> Extension:
    """Imports a module that the user named, once, here and wherever this process's configurations go (see `VARIABLE`).

    Args:
        word: The path of a .py file, or the name of an entry point; what it says is executed.

    Raises:
        ValueError: no such module, an error while it was executed, or a class whose name has a meaning already.
    """
    word = _absolute(str(word))
    found = _imported(word)
    if word not in _named():
        os.environ[VARIABLE] = os.pathsep.join([*_named(), word])
    return found


def used() -> list[Extension]:
    """What INDM_MODULES names, imported.

    Raises:
        ValueError: one of them cannot be imported.
    """
    try:
        return [_imported(word) for word in _named()]
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from error


def defining(config: Any) -> list[Defined]:
    """The files, other than this project's, that define the classes of a configuration."""
    found: dict[str, Defined] = {}
    if isinstance(config, dict):
        members = list(config.values())
    else:
        members = [getattr(config, f.name) for f in fields(config)] if is_dataclass(config) else []
        module = sys.modules.get(type(config).__module__)
        if is_dataclass(config) and module and module.__file__ and module.__name__.partition(".")[0] not in OURS:
            entry = _defined(module, str(Path(module.__file__).resolve()))
            found[entry.file] = entry
    for member in members:
        found |= {entry.file: entry for entry in defining(member)}
    return [found[file] for file in sorted(found)]


def how_to_import(modules: Sequence[Defined]) -> str:
    """What is said where the classes of a run are not there."""
    absent = [entry.file for entry in modules if entry.word.endswith(".py") and not Path(entry.file).is_file()]
    gone = f" ({', '.join(absent)} is not there any more: name its place of today)" if absent else ""
    words = list(dict.fromkeys(entry.word for entry in modules))
    return (
        f"the run's own classes are defined in {', '.join(entry.file for entry in modules)}{gone}: if you trust that, let it "
        f"be run by --import {','.join(words)} or {VARIABLE}={os.pathsep.join(words)}"
    )


def say_changed(recorded: Sequence[Defined], now: Sequence[Defined], where: str) -> None:
    """Says of a run's own classes, once in a process, that they are defined otherwise than when the run was written."""
    there = {entry.sha256 for entry in now}
    for entry in recorded:
        if entry.sha256 and entry.sha256 not in there:
            _say_once(
                f"{where}{entry.file} is not as it was when this was written; its classes are taken as they are imported"
            )


@cache
def _say_once(line: str) -> None:
    print(line, flush=True)


def _named() -> list[str]:
    """The words in INDM_MODULES."""
    return [_absolute(word) for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word]


def _absolute(word: str) -> str:
    return str(local_path(word, "--import").resolve()) if word.endswith(".py") or os.sep in word else word


@cache
def _imported(word: str) -> Extension:
    """The module that an absolute path or a name stands for."""
    module, digest = _of_file(Path(word)) if os.sep in word else _of_entry_point(word)
    if taken := _taken_names(module):
        sys.modules.pop(module.__name__)
        raise ValueError(f"{word}: another configuration class is called {taken[0]}; rename that of the file")
    from pipelines.data.readers import READERS, Reader  # with what they read by, which help needs not

    own = [value for value in vars(module).values() if isinstance(value, Reader)]
    READERS[:0] = [reader for reader in own if reader not in READERS]
    return Extension(word, module, digest)


def _of_file(file: Path) -> tuple[ModuleType, str]:
    name = f"indm_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file) if file.is_file() and file.suffix == ".py" else None
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: no such Python file; give the path of a .py file")
    digest, module = _sha256(file), importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is executed: dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{file}: {type(error).__name__}: {error}; correct the file") from error
    return module, digest


def _of_entry_point(name: str) -> tuple[ModuleType, str]:
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        there = (
            nearest(name, sorted(points)) if points else f"no installed package has entry points of the group {GROUP}"
        )
        raise ValueError(f"--import {name}: neither a path of a .py file nor the name of an extension; {there}")
    module = _loaded(points[name])
    if not isinstance(module, ModuleType) or not module.__file__:
        raise ValueError(
            f"--import {name}: its entry point {points[name].value} is no module with a file; name the module alone"
        )
    return module, _sha256(Path(module.__file__))


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"--import {point.name} ({point.value}): {type(error).__name__}: {error}; correct the package"
        ) from error


def _defined(module: ModuleType, file: str) -> Defined:
    """A file that defines classes, by the extension that it came with."""
    for extension in used():
        if extension.module is module:
            return Defined(extension.word, file, extension.sha256)
    top = module.__name__.partition(".")[0]
    words = [extension.word for extension in used() if extension.module.__name__.partition(".")[0] == top]
    return Defined(words[0] if words else file, file, _sha256(Path(file)))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _taken_names(module: ModuleType) -> list[str]:
    """The configuration classes of a module whose names other ones have, or had."""
    taken = []
    for owner in list(vars(module).values()):
        if not isinstance(owner, type) or owner.__module__ != module.__name__:
            continue
        family = [other for base in owner.__mro__[1:] if is_dataclass(base) for other in _tree(base)]
        names = {other.__name__ for other in family if other.__module__ != module.__name__}
        if family and (owner.__name__ in names or owner.__name__ in ALIASES):
            taken.append(owner.__name__)
    return taken


def _tree(base: type) -> list[type]:
    return [base, *(below for child in base.__subclasses__() for below in _tree(child))]
