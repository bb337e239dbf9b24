"""Reader of Hugging Face's image Parquet.

A file, or all files .parquet below a folder (hidden ones apart), whose names or folders say their split (`splits`); a column
`img` or `image`, struct {bytes, path}, and perhaps `label`, `labels` or `fine_label`; streamed by row groups. A row that has a
path and no bytes is a bad row: the images are to be in the file. A README.md beside them that declares a test split, as the
cards of published sets do, is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import pyarrow as pa

from pipelines.data.card import LeftOut
from pipelines.data.labels import IGNORE, Labels
from pipelines.data.listing import Listing, by_suffix, list_files
from pipelines.data.readers.columns import cells, read_footer
from pipelines.data.readers.images.decode import PROBED, SUFFIXES, Fit, Picture, decoded, fit_to
from pipelines.data.source import Chunk, Options, Piece, Source, SourceSplit, locate_among, one_by_one, piece_rows
from pipelines.data.splits import Parts, assign, canonical_split
from pipelines.storage.messages import one_line
from pipelines.storage.remote import Place, opened_place, place_at

__all__ = ["read_image_parquet"]

LABELS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,
)


DECLARED = re.compile(r"^ *- name: *['\"]?([\w.-]+)['\"]?\n *num_bytes: *\d+\n *num_examples: *\d+", re.MULTILINE)
"""A split in the card of a Hugging Face set, as the `datasets` library writes it."""
MOST_CARD = 1 << 20


def read_image_parquet(source: str, options: Options) -> Source | None:
    """Hugging Face's image Parquet."""
    path = place_at(source)
    if path.is_file() and path.suffix.lower() == ".parquet":
        parts, files, left_out, missing = Parts(of={"train": (path.name,)}), {path.name: path}, (), ""
    elif path.is_dir():
        listing = list_files(path)
        files = {"/".join(listing.relative(file)): file for file in listing.files if file.suffix.lower() == ".parquet"}
        images = any(file.suffix.lower() in SUFFIXES for file in listing.files)
        if not files or (images and not any(map(_holds_images, files.values()))):
            return None
        parts = assign(files, source, options.split, options.splits)
        left_out, missing = _left_out(listing, parts), _missing_test(path, parts)
    else:
        return None
    tables = {split: [_Table.open(files[name]) for name in names] for split, names in parts.of.items()}
    fit = fit_to((picture for found in tables.values() for table in found for picture in table.pictures()), options)
    return Source(
        kind="image",
        shape=fit.shape,
        levels=256,
        splits={split: _split(found, fit, parts.of[split]) for split, found in tables.items()},
        images=True,
        parts=path.is_dir(),
        missing=missing,
        left_out=left_out,
        notes=parts.notes,
    )


def _holds_images(file: Place) -> bool:
    """Whether a Parquet file has a column of images, or cannot be read; beside image files it may be a table about them."""
    try:
        return bool({"img", "image"} & set(read_footer(file).schema.to_arrow_schema().names))
    except (pa.ArrowException, OSError):
        return True


def _missing_test(root: Place, parts: Parts) -> str:
    """The split for testing that a set's card (README.md) declares, where only train is there; '' where none is missing."""
    card = root / "README.md"
    if set(parts.of) != {"train"} or not card.is_file():
        return ""
    with opened_place(card) as stream:
        declared = DECLARED.findall(stream.read(MOST_CARD).decode(errors="replace"))
    held = [name for name in declared if canonical_split(name) in ("test", "valid")]
    return f"the split {held[0]!r} of {root}, which its README.md declares," if held else ""


def _left_out(listing: Listing, parts: Parts) -> tuple[LeftOut, ...]:
    others = [file for file in listing.files if file.suffix.lower() != ".parquet"]
    named = [LeftOut(name=name, files=1, reason="not named by --split") for name in parts.left_out]
    return (*listing.left_out, *by_suffix(listing, others, "no Parquet file"), *named)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A Parquet file with a column of encoded images."""

    file: Place
    image: str
    label: str
    rows: tuple[int, ...]  # of its row groups
    has_paths: bool

    @classmethod
    def open(cls, file: Place) -> _Table:
        try:
            footer = read_footer(file)
            schema = footer.schema.to_arrow_schema()
            rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable Parquet file ({one_line(error)}); download it again") from None
        image = next((name for name in ("img", "image") if name in schema.names), "")
        kind = schema.field(image).type if image else pa.null()
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ValueError(
                f"{file}: columns {', '.join(schema.names)}; needs img or image as a struct of bytes and path"
            )
        label = next((name for name in ("label", "labels", "fine_label") if name in schema.names), "")
        has_paths = kind.get_field_index("path") >= 0
        return cls(file=file, image=image, label=label, rows=rows, has_paths=has_paths)

    @property
    def count(self) -> int:
        """Of all rows."""
        return sum(self.rows)

    def pictures(self) -> Iterator[Picture]:
        """The encoded images, a few at a time in memory."""
        return chain.from_iterable(self.batches(PROBED, range(len(self.rows))))

    def batches(self, num: int, groups: range) -> Iterator[list[Picture]]:
        """At most `num` encoded images of some row groups at a time."""
        first, last = sum(self.rows[: groups.start]), sum(self.rows[: groups.stop])
        for _, found in cells(self.file, f"{self.image}.bytes", num, groups):
            yield [self._picture(first + row, encoded) for row, encoded in enumerate(found)]
            first += len(found)
        if first != last:
            raise ValueError(f"{self.file}: {first} rows where its footer says {last}; download it again")

    def together(self, num: int) -> Iterator[range]:
        """Consecutive row groups of at least `num` rows, the last ones perhaps fewer."""
        start, rows = 0, 0
        for group, more in enumerate(self.rows):
            rows += more
            if rows >= num or group == len(self.rows) - 1:
                yield range(start, group + 1)
                start, rows = group + 1, 0

    def labels(self) -> Iterator[list[Any]]:
        """The labels of consecutive rows; None of all where there is no such column."""
        if not self.label:
            yield [None] * self.count
            return
        for kind, found in cells(self.file, self.label, 1024):
            if not any(known(kind) for known in LABELS):
                raise ValueError(f"{self.file}: column {self.label} is {kind}, labels are numbers or words; {IGNORE}")
            yield found

    def _picture(self, row: int, encoded: bytes | None) -> Picture:
        return Picture(lambda: self._refuse(row) if encoded is None else encoded, f"{self.file} row {row}")

    def _refuse(self, row: int) -> bytes:
        """Says what a row without bytes has."""
        if row < len(self._paths) and self._paths[row]:
            raise ValueError(
                f"the row has a path ({one_line(self._paths[row], 100)!r}) and no bytes; embed the images (datasets: "
                "embed_table_storage) or give the folder of the files"
            )
        raise ValueError("the row has no image")

    @cached_property
    def _paths(self) -> list[str | None]:
        """The paths of all rows, for those without bytes."""
        if not self.has_paths:
            return []
        return [path for _, found in cells(self.file, f"{self.image}.path", 1024) for path in found]


def _split(tables: list[_Table], fit: Fit, names: tuple[str, ...]) -> SourceSplit:
    counts = [table.count for table in tables]
    step = piece_rows(fit.channels * fit.height * fit.width)

    def pieces() -> Iterator[Piece]:
        before = 0
        for table in tables:
            for groups in table.together(step):
                yield partial(_piece, table, groups, step, fit, before)
            before += table.count

    def labels() -> Labels:
        return Labels.of(block for table in tables for block in table.labels())

    shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} files"
    locate = locate_among([table.file for table in tables], counts)
    return SourceSplit(
        count=sum(counts),
        chunks=lambda: one_by_one(pieces()),
        locate=locate,
        labels=labels,
        source=shown,
        pieces=pieces,
    )


def _piece(table: _Table, groups: range, step: int, fit: Fit, before: int, threads: int) -> Iterator[Chunk]:
    """The rows of some row groups of a table, before which its split has so many rows."""
    first = before + sum(table.rows[: groups.start])
    return decoded(table.batches(step, groups), fit, strict=False, first=first, threads=threads)
