"""A column of a Parquet file, in the memory that its file is worth.

A value that repeats lies once in a file, in a dictionary, and a run of zeros in a few bytes. Cells are therefore taken from
Arrow's dictionaries without a copy for each row; a row group that would expand as no data do is refused by its footer, before
it is read; and the rows that are read together follow from the size of their cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.messages import one_line
from pipelines.storage.reading import expands_too_far
from pipelines.storage.remote import Place, opened_place, size_of

__all__ = ["cells", "read_footer"]

BATCH = 32 << 20
"""Bytes of cells that are read together."""


def read_footer(file: Place) -> pq.FileMetaData:
    """What a Parquet file says of its content.

    Raises:
        ArrowException, OSError: it is none.
    """
    with opened_place(file) as stream:
        return pq.read_metadata(stream)


def cells(
    file: Place, path: str, most: int, groups: Sequence[int] | None = None
) -> Iterator[tuple[pa.DataType, list[Any]]]:
    """The type and the values of consecutive rows of a column, None where there is none.

    Args:
        file: A Parquet file.
        path: Of the column, `label` or, within a struct, `image.bytes`.
        most: Rows at a time.
        groups: The row groups that are read; None: all.

    Raises:
        ValueError: it cannot be read, or expands too far.
    """
    column, _, member = path.partition(".")
    try:
        footer = read_footer(file)
        leaves = {footer.schema.column(index).path for index in range(footer.num_columns)}
        rows = min(most, _rows_together(file, footer))
        repeated = list({path} & leaves)  # each row group has dictionaries of its own
        with opened_place(file) as stream, pq.ParquetFile(stream, metadata=footer, read_dictionary=repeated) as parquet:
            for group in range(parquet.num_row_groups) if groups is None else groups:
                for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=[path]):
                    batch.validate(full=True)  # pyarrow hands out indices that are in no dictionary
                    yield _values(batch[column].field(member) if member else batch[column])
    except (pa.ArrowException, OSError, KeyError, MemoryError) as error:
        raise ValueError(f"{file}: cannot read it ({one_line(error)}); download it again") from None


def _rows_together(file: Place, footer: pq.FileMetaData) -> int:
    """How many rows of a mean size fit in a batch.

    The sizes are those of whole row groups: pyarrow ends the process where the footer of a single column is damaged.
    """
    total, held = (
        sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups)),
        size_of(file),
    )
    if expands_too_far(total, held):
        raise ValueError(f"{file}: {total:,} bytes in a file of {held:,} are no data; download it again")
    return max(1, min(1 << 16, BATCH * footer.num_rows // max(1, total)))


def _values(found: pa.Array) -> tuple[pa.DataType, list[Any]]:
    if not pa.types.is_dictionary(found.type):
        return found.type, found.to_pylist()
    indices = found.indices.to_pylist()
    known = {index: found.dictionary[index].as_py() for index in set(indices) if index is not None}
    return found.type.value_type, [known.get(index) for index in indices]
