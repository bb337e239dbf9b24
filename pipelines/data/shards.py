"""Parquet shards: writing them whole, and reading them by row group (training) or in stored order (evaluation).

A shard's columns: `x` (fixed-size binary: the C-order, little-endian bytes of one row), `label` (int32, -1: none) and
`row` (int64, the index within the split); its row groups have `card.group_rows` rows, the last one perhaps fewer, so
that reading costs the memory of the rows asked for plus one row group. Every page carries its checksum.

A shard takes its name when it is whole; `card.json` (card.py) comes last. order.py says in which order a run sees the rows,
share.py which row groups a worker reads for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.card import CARD, Card, Shard, Split, one_line
from pipelines.data.order import group_bounds
from pipelines.data.stored import shard_file
from pipelines.storage.files import replaced

__all__ = ["Rows", "ShardWriter", "read_all", "read_groups", "read_labels", "read_split"]

Rows = dict[str, np.ndarray]
"""Columns x, label and row of some rows of a data set."""


def read_groups(directory: str | Path, card: Card, split: str, groups: Sequence[int]) -> Rows:
    """Whole row groups of a split, one behind the other as they are named; one that is named twice is read once.

    Returns:
        x (m, *shape) in the stored type, label (m,) int64, row (m,) int64.

    Raises:
        ValueError: a shard that cannot be read.
    """
    read = dict(_read_groups(Path(directory), card, split, sorted(set(groups))))
    return {name: np.concatenate([read[group][name] for group in groups]) for name in ("x", "label", "row")}


def read_split(
    directory: str | Path, card: Card, split: str, limit: int | None = None, start: int = 0
) -> Iterator[Rows]:
    """Rows start, ..., start + limit - 1 of a split in stored order, one row group at a time (for evaluation)."""
    rows = card.split(split).count
    stop = rows if limit is None else min(rows, start + limit)
    bounds = group_bounds(card, split)
    groups = [group for group in range(len(bounds) - 1) if bounds[group] < stop and bounds[group + 1] > start]
    for group, chunk in _read_groups(Path(directory), card, split, groups):
        keep = slice(max(start - bounds[group], 0), stop - bounds[group])
        yield {name: column[keep].copy() for name, column in chunk.items()}


def read_all(directory: str | Path, card: Card, split: str, limit: int | None = None) -> Rows:
    """The first `limit` rows of a split (all, when None) at once, for small sets."""
    x, label, row = np.empty((0, *card.shape), card.dtype), np.empty(0, np.int64), np.empty(0, np.int64)
    chunks = [{"x": x, "label": label, "row": row}, *read_split(directory, card, split, limit)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in ("x", "label", "row")}


def read_labels(directory: str | Path, card: Card, split: str) -> np.ndarray:
    """The labels of a split in stored order, int64, -1 for none; the rows themselves are not read."""
    columns = [
        pq.read_table(shard_file(Path(directory), shard), columns=["label"])["label"]
        for shard in card.split(split).shards
    ]
    return np.concatenate([column.to_numpy().astype(np.int64) for column in columns])


class ShardWriter:
    """Writes one split of a data set, shard by shard, each whole or not at all.

    Opening one removes the directory's `card.json`: until `write_card` puts it back, the directory is no data set. It is
    a context: a block that raises leaves no shard that is half written.

    Args:
        directory: made when absent; leftovers of the same names are overwritten.
        card: its shape, dtype and group_rows; its splits are ignored.
        split: name of the split.
        rows_per_shard: rounded up to whole row groups.
    """

    def __init__(self, directory: Path, card: Card, split: str, rows_per_shard: int = 16_384) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CARD).unlink(missing_ok=True)
        self._directory, self._card, self._split = directory, card, split
        self._groups_per_shard = -(-rows_per_shard // card.group_rows)
        self._shards: list[Shard] = []
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_pending = self._num_rows = 0
        self._schema = pa.schema([("x", pa.binary(card.row_bytes)), ("label", pa.int32()), ("row", pa.int64())])
        self._shard = ExitStack()  # closes the open shard and puts it in its place, or removes it
        self._partial = directory
        self._parquet: pq.ParquetWriter | None = None
        self._groups = 0
        self._rows_sha, self._labels_sha = hashlib.sha256(), hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._shard.__exit__(*exception)

    def add(self, x: np.ndarray, label: np.ndarray) -> None:
        """Append rows: x (m, *shape), already within the card's levels, and label (m,)."""
        if x.shape[1:] != self._card.shape or len(x) != len(label):
            raise ValueError(f"x.shape={x.shape}, label.shape={label.shape}: rows must be {self._card.shape}")
        self._pending.append((x.astype(self._card.dtype), label.astype(np.int32)))
        self._num_pending += len(x)
        while self._num_pending >= self._card.group_rows:
            self._write_group(self._card.group_rows)

    def close(self, skipped: int = 0) -> Split:
        """Write what is left and return the split's entry for the card."""
        if self._num_pending:
            self._write_group(self._num_pending)
        self._finish_shard()
        both = hashlib.sha256(self._rows_sha.digest() + self._labels_sha.digest()).hexdigest()
        return Split(count=self._num_rows, skipped=skipped, shards=tuple(self._shards), sha256=both)

    def _write_group(self, rows: int) -> None:
        x, label = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [(x[rows:], label[rows:])], len(x) - rows
        parquet = self._parquet or self._open_shard()
        packed = np.ascontiguousarray(x[:rows])
        self._rows_sha.update(packed.tobytes())
        self._labels_sha.update(label[:rows].astype("<i4").tobytes())
        columns = [
            pa.FixedSizeBinaryArray.from_buffers(self._schema.field("x").type, rows, [None, pa.py_buffer(packed)]),
            pa.array(label[:rows]),
            pa.array(np.arange(self._num_rows, self._num_rows + rows)),
        ]
        parquet.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=rows)
        self._num_rows += rows
        self._groups += 1
        if self._groups == self._groups_per_shard:
            self._finish_shard()

    def _file(self) -> Path:
        return self._directory / f"{self._split}-{len(self._shards):05d}.parquet"

    def _open_shard(self) -> pq.ParquetWriter:
        self._partial = self._shard.enter_context(replaced(self._file()))
        parquet = pq.ParquetWriter(
            self._partial,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._parquet = self._shard.enter_context(parquet)
        return parquet

    def _finish_shard(self) -> None:
        if self._parquet is None:
            return
        self._parquet.close()  # its last bytes are written here
        with self._partial.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        rows, size = self._num_rows - sum(shard.rows for shard in self._shards), self._partial.stat().st_size
        file = self._file()
        self._shard.close()
        self._shards.append(Shard(file=file.name, rows=rows, size=size, sha256=sha256))
        self._parquet, self._groups = None, 0


def _read_groups(directory: Path, card: Card, split: str, groups: list[int]) -> Iterator[tuple[int, Rows]]:
    """Row groups (ascending) of a split, one at a time."""
    bounds = group_bounds(card, split)
    first = 0
    for shard in card.split(split).shards:
        num_groups = -(-shard.rows // card.group_rows)
        inside = [group for group in groups if first <= group < first + num_groups]
        file = shard_file(directory, shard) if inside else directory / shard.file
        try:
            if inside:
                with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                    for group in inside:
                        expected = np.arange(bounds[group], bounds[group + 1])
                        yield group, _decode(card, parquet.read_row_group(group - first), expected)
        except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{file}: cannot read the shard ({one_line(error)}); prepare the data set again") from None
        first += num_groups


def _decode(card: Card, table: pa.Table, expected: np.ndarray) -> Rows:
    if table.schema.field("x").type != pa.binary(card.row_bytes):
        raise ValueError(f"column x is {table.schema.field('x').type}, the card's rows have {card.row_bytes} bytes")
    row = table["row"].to_numpy()
    if not np.array_equal(row, expected):
        raise ValueError(f"rows {expected[0]} to {expected[-1]} are not where the card says")
    chunk = pa.concat_arrays(table["x"].chunks)
    values = np.frombuffer(chunk.buffers()[1], card.dtype, len(chunk) * card.num_dims, chunk.offset * card.row_bytes)
    label = table["label"].to_numpy().astype(np.int64)
    return {"x": values.reshape(len(chunk), *card.shape), "label": label, "row": row}
