"""Readers of tables that are standardised: scikit-learn's bundled sets, HDF5 files, and the five sets of density estimation.

sklearn:NAME      wine, iris, breast_cancer or diabetes: the features, dequantised by uniform noise of each column's resolution
                  and standardised by their training rows, and the classes
.h5, .hdf5        datasets train, test and validation of vectors (n, d) as they are, or a single one of any name
--table NAME      power, gas, hepmass, miniboone or bsds300, cleaned, split and normalised as published, from a file that users
                  have: .npy, .csv or .hdf5 (a pickle is not read: save its values with numpy.save, its columns in their order)

    power       8 columns; 1 and 3 are dropped, noise below the rounding is added to all but the last, rows are shuffled
    gas         16 sensors (a header's Time, Meth and Eth are dropped); of each correlated pair (> 0.98) one is dropped
    hepmass     a directory of 1000_train.csv and 1000_test.csv; class 1, without features whose least value occurs > 5 times
    miniboone   as it is
    bsds300     train, validation and test as stored, not normalised

The last tenth of the rows is `test`, the last tenth of the rest `validation`; normalisation is by the mean and standard
deviation of the rest (power, miniboone), of the training rows (hepmass) or of all rows (gas). These sets are read into memory.

References:
    Papamakarios, Pavlakou, Murray 2017, "Masked autoregressive flow for density estimation", appendix D (the five sets).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.order import permutation
from pipelines.data.readers.arrays import read_array, read_rows
from pipelines.data.source import (
    Options,
    Source,
    SourceSplit,
    array_chunks,
)

__all__ = ["SKLEARN", "TABLES", "read_hdf5", "read_sklearn", "read_table"]

SKLEARN = ("wine", "iris", "breast_cancer", "diabetes")


def read_sklearn(source: str, options: Options) -> Source | None:
    """A set that scikit-learn brings along, split by `options` and standardised by its training rows."""
    prefix, _, name = source.partition(":")
    if prefix != "sklearn":
        return None
    if name not in SKLEARN:
        raise ValueError(
            f"source={source!r}: the bundled tables are {', '.join('sklearn:' + name for name in SKLEARN)}"
        )
    from sklearn import datasets

    x, label = getattr(datasets, f"load_{name}")(return_X_y=True)
    classes = np.asarray(label, np.int64) if name != "diabetes" else np.full(len(x), -1)
    held = permutation(options.seed, 0, 0, len(x))[: round(len(x) * options.test_fraction)]
    test = np.zeros(len(x), bool)
    test[held] = True
    x = x + _resolution(x) * np.random.default_rng(options.seed).random(x.shape)
    mean, std = x[~test].mean(axis=0), x[~test].std(axis=0)
    parts = {"train": ~test} | ({"test": test} if test.any() else {})
    splits = {split: _split((x[rows] - mean) / std, source, classes[rows]) for split, rows in parts.items()}
    return Source(kind="vector", shape=(x.shape[1],), levels=0, splits=splits)


def read_hdf5(source: str, options: Options) -> Source | None:
    """An HDF5 file of vectors, as they are."""
    file = Path(source)
    if file.suffix not in (".h5", ".hdf5") or not file.is_file() or options.table:
        return None
    named = _hdf5(file, "train", "test", "validation")
    if len(named) == 1:
        named = {"train": next(iter(named.values()))}
    return _source({name: (x, f"{file}:{name}") for name, x in named.items()})


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
    return _source(
        {
            "train": (train[:-held], f"{path}/1000_train.csv"),
            "validation": (train[-held:], f"{path}/1000_train.csv"),
            "test": (test, f"{path}/1000_test.csv"),
        }
    )


def _miniboone(path: Path) -> Source:
    table = _rows(path)
    _need_columns(table.x, table.file, 43, "without the features that repeat a value")
    return _tenths(table.x, table.file, normalise="rest")


def _bsds300(path: Path) -> Source:
    arrays = _hdf5(path, "train", "validation", "test")
    missing = {"train", "validation", "test"} - arrays.keys()
    if missing:
        raise ValueError(
            f"{path}: no dataset {', '.join(sorted(missing))}; table=bsds300 is the published BSDS300.hdf5"
        )
    _need_columns(arrays["train"], f"{path}:train", 63, "patches of 8 x 8 less their mean")
    return _source({name: (arrays[name], f"{path}:{name}") for name in ("train", "validation", "test")})


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


SUFFIXES = (".npy", ".csv", ".h5", ".hdf5")
MOST_BYTES = 1 << 30
"""Compressed HDF5 datasets of up to this size (as float64) are read whatever the size of their file."""
BLOCK = 1 << 16


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
    elif path.suffix in (".h5", ".hdf5"):
        (x,) = _hdf5(path).values()
    elif path.suffix == ".npy":
        x = read_array(path)
    else:
        raise ValueError(f"{path}: {path.suffix or 'no suffix'} is not read; save the table as {', '.join(SUFFIXES)}")
    x = _checked(x, str(path), names)
    names = names or [str(index) for index in range(x.shape[1])]
    kept = [index for index, name in enumerate(names) if name not in without]
    for index in kept:
        if len(x) and x[:, index].min() == x[:, index].max():
            raise ValueError(
                f"{path} column {names[index]}: the constant {x[0, index]:g} in every row has no density; remove it"
            )
    return _Table(x[:, kept], str(path))


def _hdf5(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Tables of numbers of an HDF5 file, float64: those of the given names that it has, or (if it has none) its only one.

    What lies outside the file is not read: no link, no virtual or external dataset. Nothing is read before all is known to fit.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: HDF5 files are read by h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as archive:
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
            refused = _refusal(path, {name: table.shape for name, table in tables.items()}, names, others)
            found = {} if refused else {name: table[()] for name, table in tables.items()}
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({one_line(error)[:200]}); download it again") from None
    if refused:
        raise ValueError(refused)
    return {name: _checked(found.pop(name), f"{path}:{name}") for name in list(found)}


def _refusal(path: Path, shapes: dict[str, tuple[int, ...]], names: Sequence[str], others: list[str]) -> str:
    """What is wrong with the tables of an HDF5 file, before they are read; '' if nothing is."""
    if not shapes:
        return (
            f"{path}: holds {', '.join(others) or 'no dataset of its own'}; a table is numbers of shape (rows, columns)"
        )
    if len(shapes) > 1 and (not names or names[0] not in shapes):
        wanted = f"call the rows {', '.join(names)}" if names else "save the table as one dataset"
        return f"{path}: holds {', '.join(sorted(shapes))}; {wanted}"
    most, total = max(MOST_BYTES, 100 * path.stat().st_size), 0
    for name, shape in shapes.items():
        total += 8 * math.prod(shape)
        if total > most:
            return f"{path}:{name}: {shape} are more numbers than the file can hold"
    return ""


def _checked(x: np.ndarray, file: str, names: Sequence[str] = ()) -> np.ndarray:
    """Finite numbers (n, d), float64, that a float32 holds."""
    if x.ndim != 2 or x.dtype.kind not in "iuf":
        raise ValueError(f"{file}: {x.dtype} of shape {x.shape}; a table is numbers of shape (rows, columns)")
    if 0 in x.shape:
        raise ValueError(f"{file}: shape {x.shape} has no numbers; a table has rows and columns")
    x = x.astype(np.float64)
    for first in range(0, len(x), BLOCK):
        wrong = ~(np.abs(x[first : first + BLOCK]) <= np.finfo(np.float32).max)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{file} row {first + row} column {names[column] if names else column}: {x[first + row, column]} is missing or "
                "not finite (float32); remove the row"
            )
    return x


def _resolution(x: np.ndarray) -> np.ndarray:
    """The least difference between two values of a column, (d,)."""
    gaps = [np.diff(np.unique(column)) for column in x.T]
    return np.array([gap[gap > 1e-9 * np.ptp(column)].min() for gap, column in zip(gaps, x.T, strict=True)])


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
    return _source({"train": (rest[:-held], file), "validation": (rest[-held:], file), "test": (test, file)})


def _source(parts: dict[str, tuple[np.ndarray, str]]) -> Source:
    splits = {name: _split(x, file) for name, (x, file) in parts.items()}
    width, first = next((x.shape[1], file) for x, file in parts.values())
    for x, file in parts.values():
        if x.shape[1] != width:
            raise ValueError(f"{file}: {x.shape[1]} columns, but {width} in {first}; all splits have the same")
    return Source(kind="vector", shape=(width,), levels=0, splits=splits)


def _split(x: np.ndarray, file: str, label: np.ndarray | None = None) -> SourceSplit:
    x = x.astype(np.float32)
    label = np.full(len(x), -1) if label is None else label
    return SourceSplit(count=len(x), chunks=lambda: array_chunks(x, label), locate=lambda row: f"{file} row {row}")
