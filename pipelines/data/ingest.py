"""Any known format -> Parquet shards and a card: `prepare`, and once for all: `ensure`.

A source is an embedded set (`digits`, `toy2d:NAME`), a file or a directory; the first reader of READERS that recognises
it streams its splits. Each row is checked on the way: an integer k must satisfy 0 <= k < L, a vector must be finite, a
label must be -1 or more. Rows that do not decode are skipped and counted, up to the share `max_skip` of a split. A
source with a single split of n rows gets a hold-out: the first round(n * test_fraction) rows of a permutation that
depends on (seed, n) only become `test`. The card is written last.

`ensure` prepares into a directory whose name follows from the source and the options, once: a preparation happens in a
directory of its own that is renamed when whole, under a lock, so that of two processes at once the later one discards
its copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.data.card import (
    CARD,
    Card,
    Split,
    load_card,
    write_card,
)
from pipelines.data.order import permutation
from pipelines.data.readers.arrays import (
    read_csv,
    read_digits,
    read_numpy,
    read_toy2d,
)
from pipelines.data.readers.binary import read_cifar, read_idx
from pipelines.data.readers.images import read_folder, read_image_parquet
from pipelines.data.readers.tables import (
    SKLEARN,
    TABLES,
    read_hdf5,
    read_sklearn,
    read_table,
)
from pipelines.data.readers.toy2d import TOY2D
from pipelines.data.shards import ShardWriter
from pipelines.data.source import (
    Chunk,
    Options,
    Source,
    SourceSplit,
    chunk_rows,
)

__all__ = ["READERS", "Options", "data_directory", "embedded", "ensure", "prepare"]

READERS = (
    read_table,
    read_digits,
    read_toy2d,
    read_sklearn,
    read_idx,
    read_cifar,
    read_image_parquet,
    read_numpy,
    read_csv,
    read_hdf5,
    read_folder,
)
FORMATS = (
    "IDX files (MNIST), CIFAR-10 batches, Hugging Face image Parquet, a folder of images, .npy or .npz, .csv, .h5, "
    f"digits, {', '.join(['toy2d:' + name for name in TOY2D] + ['sklearn:' + name for name in SKLEARN])}; with --table the "
    f"published tables {', '.join(TABLES)}"
)


def embedded(source: str) -> bool:
    """Whether a source needs no path: digits, a generated set or a bundled table."""
    return source == "digits" or source.startswith(("toy2d:", "sklearn:"))


def prepare(source: str | Path, out: str | Path, options: Options = Options()) -> Card:
    """Write the shards and the card of a source.

    Args:
        source: "digits", "toy2d:NAME", or a path.
        out: directory, made when absent; what an earlier preparation left there is replaced when this one is whole.
        options: see `Options`.

    Raises:
        ValueError: an unknown format, or bad content; the message names file, row and remedy.
    """
    directory, origin = Path(out).expanduser(), _origin(source)
    found = _open_source(origin, options)
    if not embedded(origin) and directory.resolve() == Path(origin):
        raise ValueError(f"out={str(out)!r}: is the source itself; choose another directory")
    building = directory / f".{uuid.uuid4().hex}.preparing"
    try:
        card = _build(building, origin, found, options)
        _clear(directory, building)
        for file in sorted(building.iterdir(), key=lambda file: file.name == CARD):  # the card last
            file.rename(directory / file.name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return card


def _build(directory: Path, origin: str, found: Source, options: Options) -> Card:
    """Writes shards and card of an opened source into a new directory."""
    directory.mkdir(parents=True)
    card = Card(
        name=options.name or _label(origin),
        source=origin,
        kind=found.kind,
        shape=found.shape,
        levels=options.levels or found.levels,
        low=options.low,
        high=options.high,
        options=options.to_json(),
        fingerprint=_fingerprint(origin),
    )
    card = replace(card, group_rows=chunk_rows(card.row_bytes))
    splits: dict[str, Split] = {}
    num_classes = found.num_classes
    for name, part in found.splits.items():
        written, labels = _write(directory, card, found, _routes(name, part, found, options), part, options)
        splits |= written
        num_classes = max(num_classes, labels)
    card = replace(card, splits=splits, num_classes=num_classes)
    write_card(directory, card)
    return card


def data_directory(source: str | Path, root: str | Path, options: Options = Options()) -> Path:
    """Where `ensure` keeps a source: root/digits, root/toy2d-spiral, or root/<base name>-<hash of path and options>."""
    origin = _origin(source)
    if embedded(origin) and options == Options():
        return Path(root) / _label(origin)
    key = hashlib.sha256(f"{origin}\n{options.to_json()}".encode()).hexdigest()[:8]
    return Path(root) / f"{_label(origin)}-{key}"


def ensure(source: str | Path, root: str | Path, options: Options = Options()) -> Path:
    """The directory of a prepared source, preparing it when absent, incomplete or made from something else.

    A source that is a prepared data set already (it holds a card.json) is used where it lies.
    """
    if (Path(source) / CARD).is_file():
        _check_prepared(load_card(source), source, options)
        return Path(source).resolve()
    directory = data_directory(source, root, options)
    if _current(directory, _origin(source), options):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        prepare(source, building, options)
        with _locked(directory.parent):
            if not _current(directory, _origin(source), options):
                _place(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def _check_prepared(card: Card, source: str | Path, options: Options) -> None:
    """Refuses a prepared data set that was made otherwise than the options ask."""
    try:
        made = json.loads(card.options)
        made = made if isinstance(made, dict) else {}
    except (ValueError, RecursionError):
        made = {}
    default = Options()
    for name in ("table", "crop", "size", "levels", "low", "high"):
        wanted, there = getattr(options, name), made.get(name, getattr(default, name))
        if wanted not in (getattr(default, name), there):
            raise ValueError(
                f"{name}={wanted}: {source} was prepared with {name}={there}; prepare it again with --{name} {wanted}, or give "
                f"--{name} {there or repr('')}"
            )


def _current(directory: Path, origin: str, options: Options) -> bool:
    try:
        card = load_card(directory)
    except (OSError, ValueError):  # OSError: another process is putting a newer one in its place
        return False
    there = embedded(origin) or not Path(origin).exists()  # a source that was taken away cannot have changed
    return (card.source, card.options) == (origin, options.to_json()) and (
        there or card.fingerprint == _fingerprint(origin)
    )


def _fingerprint(origin: str) -> str:
    """A hash of the names, lengths and times of a source's files; '' for an embedded set."""
    if embedded(origin):
        return ""
    path, sha = Path(origin), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            stat = file.stat()
            sha.update(f"{file.relative_to(path.parent)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:16]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; where the file system has no locks, renaming alone has to do."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _place(building: Path, directory: Path) -> None:
    """Put a finished directory in its place; what was there is moved out of the way first."""
    stale = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.stale")
    with suppress(FileNotFoundError):
        directory.rename(stale)
    building.rename(directory)
    shutil.rmtree(stale, ignore_errors=True)


def _origin(source: str | Path) -> str:
    return str(source) if embedded(str(source)) else str(Path(source).expanduser().resolve())


def _label(origin: str) -> str:
    return origin.replace(":", "-") if embedded(origin) else Path(origin).stem or "data"


def _open_source(origin: str, options: Options) -> Source:
    """The answer of the first reader that recognises the source."""
    path = Path(origin)
    if not embedded(origin) and not path.exists():
        raise ValueError(f"source={origin!r}: no such file or directory; known: {FORMATS}")
    if (path / CARD).is_file():
        raise ValueError(f"source={origin!r}: is already prepared; use this directory as it is")
    found = next((answer for reader in READERS if (answer := reader(origin, options))), None)
    if found is None:
        names = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else [path.name]
        raise ValueError(f"source={origin!r}: format not recognised ({', '.join(names) or 'empty'}); known: {FORMATS}")
    if (options.size or options.crop) and not found.resizable:
        raise ValueError(f"size={options.size}, crop={options.crop}: only image files are resized, not {origin}")
    return found


def _clear(directory: Path, building: Path) -> None:
    """Take away the card first, then the shards that it names and what killed preparations left."""
    shards: list[str] = []
    if (directory / CARD).is_file():
        try:
            shards = [shard.file for split in load_card(directory).splits.values() for shard in split.shards]
        except ValueError:
            shards = []
        (directory / CARD).unlink()
    for name in shards:
        (directory / name).unlink(missing_ok=True)
    for left in directory.glob(".*.preparing"):
        if left != building:
            shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Routes:
    """Which split of the result each row of a source's split goes to."""

    names: tuple[str, ...]
    target: np.ndarray


def _routes(name: str, part: SourceSplit, found: Source, options: Options) -> _Routes:
    target = np.zeros(part.count, np.uint8)
    names = (name,)
    if len(found.splits) == 1 and options.test_fraction > 0:
        held = round(part.count * options.test_fraction)
        if not 0 < held < part.count:
            raise ValueError(
                f"test_fraction={options.test_fraction}: leaves {part.count - held} of {part.count} rows to train on; "
                "0 holds none out"
            )
        target[permutation(options.seed, 0, 0, part.count)[:held]] = 1
        names = ("train", "test")
    available = {*found.splits, *names}
    for wanted in options.splits:
        if wanted not in available:
            raise ValueError(f"splits={' '.join(options.splits)}: the source has {', '.join(sorted(available))}")
    return _Routes(names=names, target=target)


def _write(
    directory: Path, card: Card, found: Source, routes: _Routes, part: SourceSplit, options: Options
) -> tuple[dict[str, Split], int]:
    """Write a source's split; returns the result's splits and the number of classes that the labels show."""
    keep = {name: index for index, name in enumerate(routes.names) if not options.splits or name in options.splits}
    if not keep:
        return {}, 0
    writers = {name: ShardWriter(directory, card, name, 16 * card.group_rows) for name in keep}
    skipped, classes, bad = np.zeros(len(routes.names), np.int64), 0, []
    low, high = np.full(found.shape, np.inf), np.full(found.shape, -np.inf)  # of the training rows
    for chunk in _progress(part, " + ".join(keep)):
        skipped += np.bincount(routes.target[[row for row, _ in chunk.bad]], minlength=len(skipped))
        bad = bad or list(chunk.bad[:1])
        if skipped.sum() > options.max_skip * part.count:
            row, reason = bad[0]
            raise ValueError(
                f"{part.locate(row)}: {reason}; {skipped.sum()} of {part.count} rows are bad, more than "
                f"max_skip={options.max_skip}; repair them or raise --max-skip"
            )
        _check(chunk, card, found, part)
        classes = max(classes, int(chunk.label.max(initial=-1)) + 1)
        for name, index in keep.items():
            rows = routes.target[chunk.row] == index
            writers[name].add(chunk.x[rows], chunk.label[rows])
            if found.kind == "vector" and name == "train":
                low = np.minimum(low, chunk.x[rows].min(axis=0, initial=np.inf))
                high = np.maximum(high, chunk.x[rows].max(axis=0, initial=-np.inf))
    splits = {name: writer.close(int(skipped[keep[name]])) for name, writer in writers.items()}
    for name, split in splits.items():
        if split.count == 0:
            raise ValueError(
                f"split {name!r} of {card.source} has no readable rows; repair it or leave it out: --splits"
            )
    if found.kind == "vector" and "train" in keep and (low == high).any():
        column = int(np.argmax(low == high))
        raise ValueError(
            f"{card.source} column {found.column(column)}: the constant {low[column]:g} in every row of train (float32) has no "
            "density; remove it"
        )
    return splits, classes


def _check(chunk: Chunk, card: Card, found: Source, part: SourceSplit) -> None:
    """Every value within the levels (or finite), every label within the classes."""
    if card.levels:
        wrong = (chunk.x < 0) | (chunk.x >= card.levels) if chunk.x.size else np.zeros(chunk.x.shape, bool)
        remedy = f"is not one of the {card.levels} levels 0 to {card.levels - 1}; give --levels or repair the row"
    else:
        wrong = ~np.isfinite(chunk.x)
        remedy = "is not a finite float32; remove the row"
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0])
        where = part.locate(int(chunk.row[index[0]]))
        where += f" column {found.column(index[1])}" if found.kind == "vector" else ""
        raise ValueError(f"{where}: the value {chunk.x[index]} {remedy}")
    wrong = (chunk.label < -1) | (chunk.label >= (found.num_classes or 2**31 - 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        classes = f"0 to {found.num_classes - 1}" if found.num_classes else "0, 1, ... (-1: none)"
        raise ValueError(f"{part.locate(int(chunk.row[row]))}: the label {chunk.label[row]} is not in {classes}")


def _progress(part: SourceSplit, name: str) -> Iterator[Chunk]:
    """The chunks of a split, with a line to stderr every five seconds."""
    begun = shown = time.monotonic()
    rows = 0
    for chunk in part.chunks():
        yield chunk
        rows += len(chunk.x) + len(chunk.bad)
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            print(f"{name}: {rows:,}/{part.count:,} rows, {rows / (now - begun):,.0f} rows/s", file=sys.stderr)
