"""The card of a prepared data set: what the shards beside it hold, written last and checked first.

A prepared data set is a directory of Parquet shards and one `card.json`. An image of shape (c, h, w) is stored as its
integer levels k in {0, ..., L - 1} (uint8 when L <= 256, else uint16); the model sees x = low + (high - low)(k + u)/L
with u ~ U[0, 1) (dequantisation), so that one level is (high - low)/L wide. A vector of shape (d,) is continuous:
L = 0, stored as float32 and seen as it is or standardised (low and high are not used). All numbers are little-endian.

A split of n rows is a list of shards whose rows, in order, are 0, ..., n - 1. Each shard is cut into Parquet row groups
of g = `group_rows` rows (the last one of a shard may be shorter), so that the card alone says which rows lie where.
A directory without `card.json` is not a data set: a preparation that was killed leaves nothing that looks like one.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.files import write_text
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json

__all__ = [
    "CARD",
    "RULES",
    "STORE",
    "VERSION",
    "Card",
    "LeftOut",
    "Shard",
    "Split",
    "load_card",
    "one_line",
    "write_card",
]

CARD = "card.json"
STORE = "store.json"
"""Beside the card of a set whose shards lie in an object store until they are first read (stored.py)."""
VERSION = 1
MOST_BYTES = 1 << 30
"""Of a row, and of a row group."""
RULES = 2
"""Of what is taken from a source, and how; a card without the field is of rules 1, which did not record what they left out."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file: its name in the directory, its rows, its size in bytes and its SHA-256."""

    file: str
    rows: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _check_text(file=self.file, sha256=self.sha256)
        _check_whole(rows=self.rows, size=self.size)
        if Path(self.file).name != self.file or len(self.file.encode(errors="replace")) > 255:
            raise ValueError(
                f"shard {one_line(self.file, 80)!r} must be a bare file name, in the directory of its card"
            )


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of a split.

    Args:
        count: How many there are.
        skipped: How many corrupt ones its source had.
        shards: The files that hold them in order.
        source: What they come from, as people read it.
        classes: How many classes occur.
        reasons: Why rows were skipped, each with its number and its first row.
        sha256: Of the rows, their bytes and labels, however they are cut into shards and compressed; '' where they were
            prepared before rows had one.
    """

    count: int
    skipped: int
    shards: tuple[Shard, ...]
    source: str = ""
    classes: int = 0
    reasons: tuple[str, ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        _check_whole(count=self.count, skipped=self.skipped, classes=self.classes)
        _check_text(source=self.source, reasons="".join(self.reasons), sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something in a source that is in no split: its name, how many files it holds, and why."""

    name: str
    files: int
    reason: str

    def __post_init__(self) -> None:
        _check_text(name=self.name, reason=self.reason)
        _check_whole(files=self.files)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a prepared data set holds.

    Args:
        name: what people call the data set.
        source: what it was prepared from (an absolute path, or an embedded set such as "digits").
        kind: "image", "sequence" or "vector".
        shape: (c, h, w), (c, l) or (d,).
        levels: L, the number of integer values of a pixel; 0 for continuous data, which are not dequantised.
        low, high: the interval that the model sees when L > 0.
        num_classes: labels are 0, ..., num_classes - 1; 0: there are none (stored as -1).
        classes: their names; () where they are numbers.
        columns: the names of a vector's coordinates, as the source has them; () where it has none.
        mean, std: of the training rows, where the model sees them standardised: of the columns of vectors, of the channels of
            sequences; else ().
        group_rows: g, rows in a Parquet row group.
        options: how it was prepared, canonical JSON.
        fingerprint: of the source's file names, lengths and times, so that another content is prepared anew.
        splits: by name.
        left_out: what the source holds besides.
        notes: what was decided on the way.
        rules: see RULES.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, ...]
    levels: int
    low: float = -1.0
    high: float = 1.0
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    group_rows: int = 1024
    options: str = "{}"
    fingerprint: str = ""
    splits: dict[str, Split] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    rules: int = RULES
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_text(name=self.name, source=self.source, options=self.options, fingerprint=self.fingerprint)
        for name in ("classes", "columns"):
            _check_text(**dict(zip(self._numbered(name), getattr(self, name), strict=True)))
        _check_text(notes="".join(self.notes))
        _check_whole(rules=self.rules, levels=self.levels, num_classes=self.num_classes, group_rows=self.group_rows)
        _check_whole(**dict(zip(self._numbered("shape"), self.shape, strict=True)))
        if (self.kind, len(self.shape)) not in (("image", 3), ("sequence", 2), ("vector", 1)):
            raise ValueError(
                f"kind={self.kind!r} with shape={self.shape}: an image is (c, h, w), a sequence (c, l), a vector (d,)"
            )
        if min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: every length must be at least 1")
        if self.kind == "vector" and self.levels != 0:
            raise ValueError(f"levels={self.levels}: vectors are continuous and have levels=0")
        if (self.kind == "image" or self.levels) and not 2 <= self.levels <= 65536:
            raise ValueError(f"levels={self.levels}: an image has 2 to 65536 levels, and a sequence may have them")
        if not all(type(end) in (int, float) and abs(end) <= MOST_BYTES for end in (self.low, self.high)):
            raise ValueError(f"low={self.low!r}, high={self.high!r}: not the ends of an interval")
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high")
        if self.group_rows < 1 or self.group_rows * self.row_bytes > MOST_BYTES:
            raise ValueError(
                f"group_rows={self.group_rows}, shape={self.shape}: a row group has 1 row to {MOST_BYTES:,} bytes"
            )
        if self.mean or self.std:
            numbers = (*self.mean, *self.std)
            known = all(type(number) is float and math.isfinite(number) for number in numbers) and min(self.std) > 0
            if self.kind == "image" or self.levels or not known or {len(self.mean), len(self.std)} != {self.shape[0]}:
                raise ValueError(
                    f"mean and std: not those of {self.shape[0]} columns of vectors or channels of sequences"
                )
        if self.columns and (self.kind != "vector" or len(self.columns) != self.num_dims):
            raise ValueError(f"shape={self.shape}: {len(self.columns)} columns have names")
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}: {len(self.classes)} classes have names")

    def _numbered(self, name: str) -> list[str]:
        return [f"{name}_{index}" for index in range(len(getattr(self, name)))]

    @property
    def num_dims(self) -> int:
        """Dimensions of one row."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The stored type: uint8, uint16 or float32."""
        return np.dtype("<f4" if self.levels == 0 else "u1" if self.levels <= 256 else "<u2")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return self.num_dims * self.dtype.itemsize

    @property
    def digest(self) -> str:
        """Which data these are: of the bytes of all shards, 16 hexadecimal digits."""
        shards = [shard.sha256 for _, split in sorted(self.splits.items()) for shard in split.shards]
        return hashlib.sha256("".join(shards).encode()).hexdigest()[:16]

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            ValueError: there is none; the message says which there are.
        """
        if name not in self.splits:
            raise ValueError(f"split={name!r}: data set {self.name!r} has {', '.join(self.splits) or 'no splits'}")
        return self.splits[name]


def write_card(directory: Path, card: Card) -> None:
    """Write `card.json`, whole and after all shards: it is what makes the directory a data set."""
    write_text(directory / CARD, json.dumps(asdict(card), indent=1) + "\n")


def load_card(path: str | Path) -> Card:
    """Read and check the card of a prepared data set.

    Args:
        path: the directory or its `card.json`.

    Raises:
        ValueError: nothing there, not JSON, another format version, or shards that are missing or of another length.
    """
    directory = _directory(Path(path))
    file = directory / CARD
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable JSON card ({one_line(error)}); prepare the data set again") from None
    card = _parse(document, file)
    for split in card.splits.values():
        for shard in split.shards:
            _check_shard(directory / shard.file, shard, card.group_rows)
    return card


def _check_text(**values: object) -> None:
    """Refuses what is no text, or has a character that ends one."""
    for name, value in values.items():
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{name}={one_line(repr(value), 60)}: not a text")


def _check_whole(**values: object) -> None:
    """Refuses what is no whole number from 0 on."""
    for name, value in values.items():
        if type(value) is not int or not 0 <= value < 2**62:
            raise ValueError(f"{name}={one_line(repr(value), 60)}: not a whole number from 0 on")


def _directory(path: Path) -> Path:
    directory = path.parent if path.name == CARD else path
    if (directory / CARD).is_file():
        return directory
    if directory.is_dir():
        names = sorted(entry.name for entry in directory.iterdir())
        there = f"the directory holds {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}"
    else:
        there = "it is a file" if directory.exists() else "no such directory"
    raise ValueError(
        f"{directory}: no prepared data set here ({there}); prepare one: "
        f"python pipelines/prepare.py SOURCE --out {directory.name or directory}"
    )


def _parse(document: Any, file: Path) -> Card:
    if not isinstance(document, dict) or document.get("version") != VERSION:
        version = document.get("version") if isinstance(document, dict) else None
        raise ValueError(
            f"{file}: card version {one_line(repr(version), 60)}, this code reads {VERSION}; prepare the data set again"
        )
    try:
        splits = {
            str(name): Split(
                count=split["count"],
                skipped=split["skipped"],
                shards=tuple(Shard(**shard) for shard in split["shards"]),
                source=split.get("source", ""),
                classes=split.get("classes", 0),
                reasons=tuple(split.get("reasons", ())),
                sha256=split.get("sha256", ""),
            )
            for name, split in document["splits"].items()
        }
        known = {entry.name for entry in fields(Card)}
        rest = {"rules": document.get("rules", 1)} | {key: value for key, value in document.items() if key in known}
        lists = {
            "shape": tuple(document["shape"]),
            "classes": tuple(document.get("classes", ())),
            "columns": tuple(document.get("columns", ())),
            "mean": tuple(document.get("mean", ())),
            "std": tuple(document.get("std", ())),
            "left_out": tuple(LeftOut(**entry) for entry in document.get("left_out", ())),
            "notes": tuple(document.get("notes", ())),
        }
        card = Card(**rest | lists | {"splits": splits})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not a valid card ({one_line(error, 200)}); prepare the data set again") from None
    for name, split in card.splits.items():
        if sum(shard.rows for shard in split.shards) != split.count:
            raise ValueError(f"{file}: split {name!r} counts {split.count} rows, its shards do not; prepare it again")
    return card


def _check_shard(file: Path, shard: Shard, group_rows: int) -> None:
    if not file.is_file() and (file.parent / STORE).is_file():
        return
    if not file.is_file():
        raise ValueError(f"{file}: the card names this shard but it is missing; prepare the data set again")
    size = file.stat().st_size
    if size != shard.size:
        raise ValueError(f"{file}: {size} bytes where the card says {shard.size}; prepare the data set again")
    try:
        found = pq.read_metadata(file)
        rows, groups = found.num_rows, found.num_row_groups
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise ValueError(f"{file}: not a readable Parquet shard ({one_line(error)}); prepare it again") from None
    if rows != shard.rows:
        raise ValueError(f"{file}: {rows} rows where the card says {shard.rows}; prepare the data set again")
    if groups != -(-rows // group_rows):
        raise ValueError(f"{file}: {groups} groups, not of the card's {group_rows} rows; prepare the data set again")
