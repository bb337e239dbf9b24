"""Files of the user's own: recipes, and the classes of configurations that they define.

A recipe `path.py:function` may be made of classes of its own (an SDE, a flow, a network, a model). What such a run leaves names
these classes, and config.json the files that define them; to read it the classes must be there, and to have them is to run the
file. Nothing that was read decides that: a file is imported only where the user names it, as a recipe, as `module` of
`pipelines.config.load`, or in the environment variable INDM_MODULES (several paths are separated as in PATH). A recipe that
was named goes into INDM_MODULES, so that the workers of the same command import it too.

A file imports what is installed, not the files beside it. Its configuration classes need names that no class of this project
has or had, so that a name has one meaning.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.config.codec import ALIASES
from pipelines.storage.paths import local_path

__all__ = ["HELP", "VARIABLE", "defining_files", "import_file", "import_trusted", "split_word", "trust", "trusted"]

VARIABLE = "INDM_MODULES"
HELP = (
    "A run whose classes are defined in a file of your own is read with --recipe path.py:function, or with the path of the\n"
    f"file in the environment variable {VARIABLE} (several paths as in PATH). Both run the file: name only what you trust."
)
OURS = ("indm_core", "pipelines", "tune")


def split_word(word: str) -> tuple[str, str]:
    """('path.py', 'function') of the word path.py:function or path.py; ('', word) of a name."""
    if word.endswith(".py"):
        return word, ""
    file, _, function = word.rpartition(":")
    return (file, function) if file.endswith(".py") else ("", word)


def import_file(path: str | Path) -> ModuleType:
    """The module of a Python file, imported once.

    Args:
        path: Of the file; what it says is executed.

    Raises:
        ValueError: no such file, an error while it was executed, or a class whose name has a meaning already.
    """
    file = local_path(path, "recipe").resolve()
    name = f"indm_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: no such Python file; give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is executed: dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{file}: {type(error).__name__}: {error}; correct the file") from error
    if taken := _taken_names(module):
        del sys.modules[name]
        raise ValueError(f"{file}: another configuration class is called {taken[0]}; rename that of the file")
    return module


def trust(path: str | Path) -> None:
    """Imports a file that the user named, here and wherever this process's configurations go (see `VARIABLE`)."""
    import_file(path)
    file = str(local_path(path, "recipe").resolve())
    if file not in trusted():
        os.environ[VARIABLE] = os.pathsep.join([*trusted(), file])


def trusted() -> list[str]:
    """The absolute paths in INDM_MODULES."""
    return [
        str(local_path(path, VARIABLE).resolve()) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path
    ]


def import_trusted() -> list[ModuleType]:
    """The modules of the files in INDM_MODULES.

    Raises:
        ValueError: one of them cannot be imported.
    """
    try:
        return [import_file(path) for path in trusted()]
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from error


def defining_files(config: Any) -> list[str]:
    """The files, other than this project's, that define the classes of a configuration; absolute paths."""
    found: set[str] = set()
    if isinstance(config, dict):
        found.update(*map(defining_files, config.values()))
    if is_dataclass(config):
        found.update(*(defining_files(getattr(config, f.name)) for f in fields(config)))
        owner = type(config).__module__
        file = getattr(sys.modules.get(owner), "__file__", None)
        if file and owner.partition(".")[0] not in OURS:
            found.add(str(Path(file).resolve()))
    return sorted(found)


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
