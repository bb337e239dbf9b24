"""Reader of the five tables of density estimation, cleaned, split and normalised as published (`--table NAME`).

The source is a file that users have, .npy, .csv or .hdf5, or the directory of that one file. (A pickle is not read:
save its values with numpy.save, its columns in their order.)

    power       8 columns; 1 and 3 are dropped, noise below the rounding is added to all but the last, rows are shuffled
    gas         16 sensors (a header's Time, Meth and Eth are dropped); of each correlated pair (> 0.98) one is dropped
    hepmass     a directory of 1000_train.csv and 1000_test.csv; class 1, without features whose least value occurs > 5 times
    miniboone   as it is
    bsds300     an HDF5 file with train, validation and test as stored, not normalised

The last tenth of the rows is `test`, the last tenth of the rest `valid`; normalisation is by the mean and standard
deviation of the rest (power, miniboone), of the training rows (hepmass) or of all rows (gas). These sets are read into
memory.

References:
    Papamakarios, Pavlakou, Murray 2017, "Masked autoregressive flow for density estimation", appendix D (the five sets).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.data.readers.arrays import read_array
from pipelines.data.readers.csv_table import read_rows
from pipelines.data.readers.hdf5 import SUFFIXES as HDF5_SUFFIXES
from pipelines.data.readers.hdf5 import tables_of
from pipelines.data.source import Options, Source, checked_table, vectors
from pipelines.data.splits import canonical_split

__all__ = ["TABLES", "read_table"]

SUFFIXES = (".npy", ".csv", *HDF5_SUFFIXES)


def read_table(source: str, options: Options) -> Source | None:
    """One of the five sets, where `options.table` names it."""
    if not options.table:
        return None
    if options.table not in TABLES:
        raise ValueError(f"table={options.table!r}: the published tables are {', '.join(TABLES)}")
    return TABLES[options.table](Path(source))


def _power(path: Path) -> Source:
    table = _rows(path)
    _need_columns(table.x, table.file, 8, "active and reactive power, voltage, intensity, three meters, time")
    x = table.x
    generator = np.random.RandomState(42)
    x = x[generator.permutation(len(x))][:, [0, 2, 4, 5, 6, 7]]
    voltage, power, meters = (generator.random_sample((len(x), num)) for num in (1, 1, 3))
    noise = np.concatenate([0.001 * power, 0.01 * voltage, meters, np.zeros((len(x), 1))], axis=1)
    return _tenths(x + noise, table.file, normalise="rest")


def _gas(path: Path) -> Source:
    table = _rows(path, without=("Time", "Meth", "Eth"))
    _need_columns(table.x, table.file, 16, "16 sensors, without Time, Meth and Eth, which a header may name")
    x = table.x
    kept = list(range(x.shape[1]))
    while True:
        correlated = (np.atleast_2d(np.corrcoef(x[:, kept], rowvar=False)) > 0.98).sum(axis=1) > 1
        if not correlated.any():
            break
        del kept[int(np.argmax(correlated))]
    return _tenths(x[:, kept], table.file, normalise="all")


def _hepmass(path: Path) -> Source:
    parts = {}
    for split in ("train", "test"):
        file = path / f"1000_{split}.csv"
        if not file.is_file():
            raise ValueError(f"{file}: table=hepmass is a directory of 1000_train.csv and 1000_test.csv")
        _, x = read_rows(file, spare=split == "test")
        parts[split] = x[x[:, 0] == 1][:, 1:]
    width = parts["train"].shape[1]
    if parts["test"].shape[1] not in (width, width + 1):
        raise ValueError(f"{path}: {width} features in 1000_train.csv, {parts['test'].shape[1]} in 1000_test.csv")
    train, test = parts["train"], parts["test"][:, :width]  # the published test file has one cell more in its rows
    _enough(train, str(path / "1000_train.csv"))
    kept = (train == train.min(axis=0)).sum(axis=0) <= 5  # the published rule looks at the least value only
    if not kept.any():
        raise ValueError(
            f"{path / '1000_train.csv'}: the least value of every feature occurs more than 5 times; none is continuous"
        )
    mean, std = train[:, kept].mean(axis=0), train[:, kept].std(axis=0, ddof=1)
    train, test = (train[:, kept] - mean) / std, (test[:, kept] - mean) / std
    held = len(train) // 10
    return vectors(
        {
            "train": (train[:-held], f"{path}/1000_train.csv"),
            "valid": (train[-held:], f"{path}/1000_train.csv"),
            "test": (test, f"{path}/1000_test.csv"),
        }
    )


def _miniboone(path: Path) -> Source:
    table = _rows(path)
    _need_columns(table.x, table.file, 43, "without the features that repeat a value")
    return _tenths(table.x, table.file, normalise="rest")


def _bsds300(path: Path) -> Source:
    arrays = tables_of(path, "train", "validation", "test")
    missing = {"train", "validation", "test"} - arrays.keys()
    if missing:
        raise ValueError(
            f"{path}: no dataset {', '.join(sorted(missing))}; table=bsds300 is the published BSDS300.hdf5"
        )
    _need_columns(arrays["train"], f"{path}:train", 63, "patches of 8 x 8 less their mean")
    return vectors({canonical_split(name): (x, f"{path}:{name}") for name, x in arrays.items()})


TABLES: dict[str, Callable[[Path], Source]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
}


class _Table(NamedTuple):
    """Numbers float64 (n, d), no column of which is constant, and the file they are from."""

    x: np.ndarray
    file: str


def _rows(path: Path, without: tuple[str, ...] = ()) -> _Table:
    """The table of a file, or of the one file of a directory."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        if len(files) != 1:
            raise ValueError(f"{path}: {len(files)} files of {', '.join(SUFFIXES)}; give the file of the table")
        (path,) = files
    names: list[str] = []
    if path.suffix == ".csv":
        names, x = read_rows(path)
    elif path.suffix in HDF5_SUFFIXES:
        (x,) = tables_of(path).values()
    elif path.suffix == ".npy":
        x = read_array(path)
    else:
        raise ValueError(f"{path}: {path.suffix or 'no suffix'} is not read; save the table as {', '.join(SUFFIXES)}")
    x = checked_table(x, str(path), names)
    names = names or [str(index) for index in range(x.shape[1])]
    kept = [index for index, name in enumerate(names) if name not in without]
    for index in kept:
        if len(x) and x[:, index].min() == x[:, index].max():
            raise ValueError(
                f"{path} column {names[index]}: the constant {x[0, index]:g} in every row has no density; remove it"
            )
    return _Table(x[:, kept], str(path))


def _need_columns(x: np.ndarray, file: str, num: int, names: str) -> None:
    if x.shape[1] != num:
        raise ValueError(f"{file}: {x.shape[1]} columns where the published table has {num} ({names})")


def _enough(x: np.ndarray, file: str) -> None:
    if len(x) < 20:
        raise ValueError(f"{file}: {len(x)} rows; a table that is split into tenths has at least 20")


def _tenths(x: np.ndarray, file: str, *, normalise: str) -> Source:
    """The published split, normalised by all rows or by those that are not `test`."""
    _enough(x, file)
    held = len(x) // 10
    rest, test = x[:-held], x[-held:]
    mean, std = rest.mean(axis=0), rest.std(axis=0)
    if normalise == "all":
        mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    if not std.all():
        raise ValueError(
            f"{file}: column {np.argmin(std)} of those kept is constant but in its last rows; shuffle them"
        )
    rest, test = (rest - mean) / std, (test - mean) / std
    held = len(rest) // 10
    return vectors({"train": (rest[:-held], file), "valid": (rest[-held:], file), "test": (test, file)})
