"""Reader of HDF5 files (.h5, .hdf5) of vectors.

The file holds datasets of numbers (n, d) whose names say their splits (`splits`: train, test and validation, say), or a single
one of any name; they are taken as they are, and other things in it are left out. What lies outside the file is not read: no
link, no virtual or external dataset. The tables are read into memory, after all of them are known to fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from pipelines.data.card import LeftOut
from pipelines.data.source import Options, Source, checked_table, vectors
from pipelines.data.splits import assign, parse
from pipelines.storage.messages import listed, one_line
from pipelines.storage.reading import expands_too_far

if TYPE_CHECKING:
    import h5py

__all__ = ["SUFFIXES", "read_hdf5", "tables_of"]

SUFFIXES = (".h5", ".hdf5")


def read_hdf5(source: str, options: Options) -> Source | None:
    """An HDF5 file of vectors, as they are."""
    file = Path(source)
    if file.suffix not in SUFFIXES or not file.is_file():
        return None
    with _opened(file) as archive:
        within = {name: _is_table(archive[name]) for name in _own(archive)}
    rows = [name for name, is_table in within.items() if is_table or parse(name).split]
    if len(rows) <= 1 and not any(parse(name).split for name in rows) and not options.split:
        ((name, x),) = tables_of(file).items()
        taken, notes, found = {name}, (), vectors({"train": (x, f"{file}:{name}")})
    else:
        parts = assign(rows, str(file), options.split, options.splits)
        for split, names in parts.of.items():
            if len(names) > 1:
                raise ValueError(
                    f"{file}: {', '.join(names)} are all {split}; say which one is: --split {split}={names[0]}"
                )
        of = {split: name for split, (name,) in parts.of.items()}
        tables = tables_of(file, *of.values())
        taken, notes = set(of.values()), parts.notes
        found = vectors({split: (tables[name], f"{file}:{name}") for split, name in of.items()})
    left_out = tuple(LeftOut(name=name, files=1, reason="no split's table") for name in within if name not in taken)
    return replace(found, parts=True, notes=notes, left_out=left_out)


def tables_of(file: Path, *names: str) -> dict[str, np.ndarray]:
    """Tables of numbers of an HDF5 file, float64: those of the given names that it has, or (if it has none) its only one.

    Raises:
        ValueError: h5py is absent, the file cannot be read, or it holds no table, several where one is wanted, or other
            numbers.
    """
    with _opened(file) as archive:
        within = _own(archive)
        tables, others = {}, []
        for name in [name for name in names if name in within] or within:
            table = archive[name]
            if _is_table(table):
                tables[name] = table
            else:
                others.append(_described(name, table))
        refused = _refusal(file, list(tables), names, others) or _too_large(file, tables)
        found = {} if refused else {name: table[()] for name, table in tables.items()}
    if refused:
        raise ValueError(refused)
    return {name: checked_table(found.pop(name), f"{file}:{name}") for name in list(found)}


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    """An HDF5 file, whose faults become one line."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{file}: HDF5 files are read by h5py: pip install h5py") from None
    try:
        with h5py.File(file, "r") as archive:
            yield archive
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{file}: not a readable HDF5 file ({one_line(error)[:200]}); download it again") from None


def _own(archive: h5py.File) -> list[str]:
    """The names of what lies in the file itself."""
    import h5py

    return [str(name) for name in archive if isinstance(archive.get(name, getlink=True), h5py.HardLink)]


def _is_array(entry: object) -> TypeGuard[h5py.Dataset]:
    """Whether an entry is an array that lies in the file."""
    import h5py

    return isinstance(entry, h5py.Dataset) and not entry.external and not entry.is_virtual


def _is_table(entry: object) -> TypeGuard[h5py.Dataset]:
    """Whether an entry is numbers (n, d) that lie in the file."""
    return _is_array(entry) and entry.ndim == 2 and entry.dtype.kind in "iuf"


def _described(name: str, entry: object) -> str:
    return f"{name} {entry.shape}" if _is_array(entry) else name


def _refusal(file: Path, tables: list[str], names: Sequence[str], others: list[str]) -> str:
    """What is wrong with the tables of a file, before they are read; '' if nothing is."""
    if not tables or (names and others):
        return f"{file}: holds {listed(others) or 'no dataset of its own'}; a table is numbers of shape (rows, columns)"
    if len(tables) > 1 and (not names or names[0] not in tables):
        wanted = f"call the rows {', '.join(names)}" if names else "save the table as one dataset"
        return f"{file}: holds {listed(sorted(tables))}; {wanted}"
    return ""


def _too_large(file: Path, tables: Mapping[str, h5py.Dataset]) -> str:
    """Which table, as float64, is more than what is stored of it can be; '' if none is."""
    for name, table in tables.items():
        held = min(table.id.get_storage_size(), file.stat().st_size)
        if expands_too_far(8 * math.prod(table.shape), held):
            return f"{file}:{name}: {table.shape} are more numbers than the file can hold; save it again"
    return ""
