"""The card of a prepared data set: what the shards beside it hold, written last and checked first.

A prepared data set is a directory of Parquet shards and one `card.json`. An image of shape (c, h, w) is stored as its
integer levels k in {0, ..., L - 1} (uint8 when L <= 256, else uint16); the model sees x = low + (high - low)(k + u)/L
with u ~ U[0, 1) (dequantisation), so that one level is (high - low)/L wide. A vector of shape (d,) is continuous:
L = 0, stored as float32 and seen as it is (low and high are not used). All numbers are little-endian.

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

__all__ = ["CARD", "VERSION", "Card", "Shard", "Split", "load_card", "one_line", "verify", "write_card"]

CARD = "card.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file: its name in the directory, its rows, its size in bytes and its SHA-256."""

    file: str
    rows: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise ValueError(f"shard {self.file!r} must be a bare file name, in the directory of its card")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of a split, how many corrupt ones its source had, and the shards that hold them in order.

    `sha256` is of the rows, their bytes and labels, however they are cut into shards and compressed; '' where they were
    prepared before rows had one.
    """

    count: int
    skipped: int
    shards: tuple[Shard, ...]
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a prepared data set holds.

    Args:
        name: what people call the data set.
        source: what it was prepared from (an absolute path, or an embedded set such as "digits").
        kind: "image" or "vector".
        shape: (c, h, w) or (d,).
        levels: L, the number of integer values of a pixel; 0 for continuous data, which are not dequantised.
        low, high: the interval that the model sees when L > 0.
        num_classes: labels are 0, ..., num_classes - 1; 0: there are none (stored as -1).
        group_rows: g, rows in a Parquet row group.
        options: how it was prepared, canonical JSON.
        fingerprint: of the source's file names, lengths and times, so that another content is prepared anew.
        splits: by name.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, ...]
    levels: int
    low: float = -1.0
    high: float = 1.0
    num_classes: int = 0
    group_rows: int = 1024
    options: str = "{}"
    fingerprint: str = ""
    splits: dict[str, Split] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if (self.kind, len(self.shape)) not in (("image", 3), ("vector", 1)):
            raise ValueError(f"kind={self.kind!r} with shape={self.shape}: an image is (c, h, w), a vector (d,)")
        if min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: every length must be at least 1")
        if self.kind == "vector" and self.levels != 0:
            raise ValueError(f"levels={self.levels}: vectors are continuous and have levels=0")
        if self.kind == "image" and not 2 <= self.levels <= 65536:
            raise ValueError(f"levels={self.levels}: an image has 2 to 65536 levels")
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high")
        if self.num_classes < 0 or self.group_rows < 1:
            raise ValueError(f"num_classes={self.num_classes}, group_rows={self.group_rows}: must be >= 0 and >= 1")

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

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            ValueError: there is none; the message says which there are.
        """
        if name not in self.splits:
            raise ValueError(f"split={name!r}: data set {self.name!r} has {', '.join(self.splits) or 'no splits'}")
        return self.splits[name]


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


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
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a readable JSON card ({one_line(error)}); prepare the data set again") from None
    card = _parse(document, file)
    for split in card.splits.values():
        for shard in split.shards:
            _check_shard(directory / shard.file, shard)
    return card


def verify(card: Card, path: str | Path) -> None:
    """Check the SHA-256 of every shard.

    Raises:
        ValueError: a shard's bytes are not the ones that were written.
    """
    directory = _directory(Path(path))
    for split in card.splits.values():
        for shard in split.shards:
            file = directory / shard.file
            _check_shard(file, shard)
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != shard.sha256:
                raise ValueError(
                    f"{file}: sha256 {found[:12]}... where the card says {shard.sha256[:12]}...; prepare it again"
                )


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
        raise ValueError(f"{file}: card version {version!r}, this code reads {VERSION}; prepare the data set again")
    try:
        splits = {
            str(name): Split(
                count=int(split["count"]),
                skipped=int(split["skipped"]),
                shards=tuple(Shard(**shard) for shard in split["shards"]),
                sha256=str(split.get("sha256", "")),
            )
            for name, split in document["splits"].items()
        }
        known = {entry.name for entry in fields(Card)}
        rest = {key: value for key, value in document.items() if key in known}
        card = Card(**rest | {"splits": splits, "shape": tuple(document["shape"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not a valid card ({one_line(error)}); prepare the data set again") from None
    for name, split in card.splits.items():
        if sum(shard.rows for shard in split.shards) != split.count:
            raise ValueError(f"{file}: split {name!r} counts {split.count} rows, its shards do not; prepare it again")
    return card


def _check_shard(file: Path, shard: Shard) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: the card names this shard but it is missing; prepare the data set again")
    size = file.stat().st_size
    if size != shard.size:
        raise ValueError(f"{file}: {size} bytes where the card says {shard.size}; prepare the data set again")
    try:
        rows = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet shard ({one_line(error)}); prepare it again") from None
    if rows != shard.rows:
        raise ValueError(f"{file}: {rows} rows where the card says {shard.rows}; prepare the data set again")
