"""Reader of HDF5 files (.h5, .hdf5) of vectors.

The file holds the datasets train, test and validation (those of them that there are), or a single one of any name, each
of numbers (n, d); they are taken as they are. What lies outside the file is not read: no link, no virtual or external
dataset. The tables are read into memory, after all of them are known to fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.source import Options, Source, checked_table, vectors
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
    named = tables_of(file, "train", "test", "validation")
    if len(named) == 1:
        named = {"train": next(iter(named.values()))}
    return vectors({name: (x, f"{file}:{name}") for name, x in named.items()})


def tables_of(file: Path, *names: str) -> dict[str, np.ndarray]:
    """Tables of numbers of an HDF5 file, float64: those of the given names that it has, or (if it has none) its only one.

    Raises:
        ValueError: h5py is absent, the file cannot be read, or it holds no table, several where one is wanted, or other
            numbers.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{file}: HDF5 files are read by h5py: pip install h5py") from None
    try:
        with h5py.File(file, "r") as archive:
            within = [name for name in archive if isinstance(archive.get(name, getlink=True), h5py.HardLink)]
            tables, others = {}, []
            for name in [name for name in names if name in within] or within:
                table = archive[name]
                if not isinstance(table, h5py.Dataset) or table.external or table.is_virtual:
                    others.append(name)
                elif table.ndim != 2 or table.dtype.kind not in "iuf":
                    others.append(f"{name} {table.shape}")
                else:
                    tables[name] = table
            refused = _refusal(file, list(tables), names, others) or _too_large(file, tables)
            found = {} if refused else {name: table[()] for name, table in tables.items()}
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{file}: not a readable HDF5 file ({one_line(error)[:200]}); download it again") from None
    if refused:
        raise ValueError(refused)
    return {name: checked_table(found.pop(name), f"{file}:{name}") for name in list(found)}


def _refusal(file: Path, tables: list[str], names: Sequence[str], others: list[str]) -> str:
    """What is wrong with the tables of a file, before they are read; '' if nothing is."""
    if not tables:
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
