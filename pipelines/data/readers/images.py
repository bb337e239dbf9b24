"""Readers of encoded images: Hugging Face's image Parquet and folders of files, decoded by Pillow in threads.

    Parquet     a file, or a directory (or its data/) with train-*.parquet, test-*.parquet, ...; a column `img` or
                `image`, struct {bytes, path}, and perhaps `label`, `labels` or `fine_label`; streamed by row groups
    folder      image files; sub-folders train, test, valid are splits; below, sub-folders are classes in sorted order

Every image becomes (c, h, w) in 8 bits: c = 1 when all of 16 probed images are grey, else 3. `crop` cuts the centre
square of that side, `size` resizes by an antialiased bicubic filter and rounds to 8 bits again (CelebA: crop 140, size
64). EXIF orientation is ignored. An image that does not decode, is larger than Pillow's safety limit, or has another
shape than the others is a bad row; only a folder of images of different sizes without `size` is an error at once.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.card import one_line
from pipelines.data.labels import IGNORE, Labels
from pipelines.data.readers.columns import cells
from pipelines.data.source import (
    Chunk,
    Options,
    Source,
    SourceSplit,
    chunk_rows,
    locate_among,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Fit", "WrongSize", "read_folder", "read_image_parquet"]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
"""Decoders that hostile bytes may reach: none of them starts another program, as EPS would."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
SPLITS = {"train": "train", "test": "test", "valid": "valid", "validation": "valid", "val": "valid"}
LABELS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,
)
GREY = {"1", "L", "LA"}
COLOUR = {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}


class WrongSize(ValueError):
    """An image whose size is not the data set's."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an encoded image becomes an array, the same for every image of a data set.

    Args:
        channels: 1 or 3.
        height, width: of the result.
        crop, size: as in `Options`.
        reference: name of an image that has this size, for messages.
    """

    channels: int
    height: int
    width: int
    crop: int
    size: int
    reference: str

    def decode(self, encoded: bytes) -> np.ndarray:
        """The image as uint8 (c, h, w).

        Raises:
            ValueError: it does not decode or does not fit; `WrongSize` when only `size` is missing.
        """
        image = _open(encoded)
        if self.channels == 1 and image.mode not in GREY:
            raise ValueError(f"colour ({image.mode}) in a set of grey images")
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        image = _cut(image.convert("L" if self.channels == 1 else "RGB"), self.crop, self.size)
        if image.size != (self.width, self.height):
            raise WrongSize(
                f"{_sides(image.size)} where {self.reference} is {_sides((self.width, self.height))}; give --size"
            )
        pixels = np.asarray(image, np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def read_image_parquet(source: str, options: Options) -> Source | None:
    """Hugging Face's image Parquet."""
    path = Path(source)
    files = [path] if path.is_file() and path.suffix == ".parquet" else sorted(path.glob("*.parquet"))
    files = files or sorted(path.glob("data/*.parquet"))
    if not files:
        return None
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(SPLITS.get(re.split(r"[-_.]", file.stem)[0], "train"), []).append(file)
    parts = {split: parts[split] for split in dict.fromkeys(SPLITS.values()) if split in parts}
    tables = {split: [_Table.open(file) for file in names] for split, names in parts.items()}
    first = next(iter(tables.values()))[0]
    fit = _probe(((cell, f"{first.file} row {row}") for row, cell in enumerate(first.head(16))), options)
    splits = {split: _parquet_split(found, fit) for split, found in tables.items()}
    shape = (fit.channels, fit.height, fit.width)
    return Source(kind="image", shape=shape, levels=256, splits=splits, resizable=True)


def read_folder(source: str, options: Options) -> Source | None:
    """A folder of image files."""
    root = Path(source)
    if not root.is_dir():
        return None
    names = {entry.name: SPLITS[entry.name] for entry in sorted(root.iterdir()) if entry.name in SPLITS}
    folders = {split: root / name for name, split in names.items()} or {"train": root}
    files = {split: _images(folder) for split, folder in folders.items()}
    files = {split: files[split] for split in dict.fromkeys(SPLITS.values()) if files.get(split)}
    if not files:
        return None
    classes = sorted({name for found in files.values() for name, _ in found})
    if "" in classes and len(classes) > 1:
        raise ValueError(f"{root}: images both beside and inside class folders such as {classes[1]!r}; sort them all")
    train = [file for _, file in next(iter(files.values()))]
    fit = _probe(((file.read_bytes(), str(file)) for file in train[:: -(-len(train) // 16)]), options)
    splits = {split: _folder_split(found, fit) for split, found in files.items()}
    shape = (fit.channels, fit.height, fit.width)
    return Source(kind="image", shape=shape, levels=256, splits=splits, resizable=True)


def _pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ValueError("image files are decoded by Pillow: pip install pillow") from None


def _open(encoded: bytes) -> Image:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 2**27):
            raise ValueError(f"{_sides(image.size)}, above Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels")
        image.load()
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ValueError(f"not a readable image ({one_line(error)[:200]})") from None
    if image.mode not in GREY | COLOUR:
        raise ValueError(f"mode {image.mode}, not an 8-bit image")
    return image


def _cut(image: Image, crop: int, size: int) -> Image:
    """The centre square of side `crop` (or the largest, when only `size` is given), resized to `size`."""
    from PIL import Image as Pillow

    side = crop or (min(image.size) if size else 0)
    if side > min(image.size):
        raise ValueError(f"{_sides(image.size)} is smaller than crop={crop}")
    if side:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Pillow.Resampling.BICUBIC) if size and image.size != (size, size) else image


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _probe(images: Iterable[tuple[bytes | None, str]], options: Options) -> Fit:
    """The most frequent size of some images, and whether they are all grey."""
    _pillow()
    sizes: dict[str, tuple[int, int]] = {}
    grey, reason = True, "no images"
    for encoded, name in images:
        try:
            image = _open(encoded or b"")
            sizes[name] = _cut(image, options.crop, options.size).size
            grey = grey and image.mode in GREY
        except ValueError as error:
            reason = f"{name}: {error}"
    if not sizes:
        raise ValueError(f"{reason}; none of the first images can be read")
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]
    reference = next(name for name, size in sizes.items() if size == (width, height))
    return Fit(
        channels=1 if grey else 3,
        height=height,
        width=width,
        crop=options.crop,
        size=options.size,
        reference=reference,
    )


def _attempt(fit: Fit, read: Callable[[], bytes | None], strict: str) -> tuple[np.ndarray, str]:
    """An image and "", or no image and the reason; a wrong size raises when `strict` names the file."""
    try:
        return fit.decode(read() or b""), ""
    except WrongSize as error:
        if strict:
            raise ValueError(f"{strict}: {error} to resize them all") from None
        return np.empty(0, np.uint8), str(error)
    except (ValueError, OSError) as error:
        return np.empty(0, np.uint8), one_line(error)


def _decode(
    pool: ThreadPoolExecutor,
    fit: Fit,
    first: int,
    images: list[Callable[[], bytes | None]],
    strict: list[str],
) -> Chunk:
    """Rows first, first + 1, ... of a split, decoded in parallel."""
    tasks = list(zip(images, strict, strict=True))
    parts = [tasks[start : start + 32] for start in range(0, len(tasks), 32)]  # one task per tiny image is slower
    decoded = pool.map(lambda part: [_attempt(fit, image, name) for image, name in part], parts)
    found = list(chain.from_iterable(decoded))
    good = np.array([not reason for _, reason in found], bool)
    shape = (fit.channels, fit.height, fit.width)
    x = np.array([pixels for pixels, reason in found if not reason], np.uint8).reshape(-1, *shape)
    bad = tuple((first + index, reason) for index, (_, reason) in enumerate(found) if reason)
    return Chunk(x, first + np.flatnonzero(good), bad)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A Parquet file with a column of encoded images."""

    file: Path
    image: str
    label: str
    count: int

    @classmethod
    def open(cls, file: Path) -> _Table:
        try:
            with pq.ParquetFile(file) as parquet:
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable Parquet file ({one_line(error)}); download it again") from None
        image = next((name for name in ("img", "image") if name in schema.names), "")
        kind = schema.field(image).type if image else pa.null()
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ValueError(
                f"{file}: columns {', '.join(schema.names)}; needs img or image as a struct of bytes and path"
            )
        label = next((name for name in ("label", "labels", "fine_label") if name in schema.names), "")
        return cls(file=file, image=image, label=label, count=count)

    def head(self, num: int) -> list[bytes | None]:
        """The first encoded images."""
        return [cell for cells in islice(self.batches(num), 1) for cell in cells]

    def batches(self, num: int) -> Iterator[list[bytes | None]]:
        """At most `num` encoded images at a time."""
        for _, found in cells(self.file, f"{self.image}.bytes", num):
            yield found

    def labels(self) -> Iterator[list[Any]]:
        """The labels of consecutive rows; None of all where there is no such column."""
        if not self.label:
            yield [None] * self.count
            return
        for kind, found in cells(self.file, self.label, 1024):
            if not any(known(kind) for known in LABELS):
                raise ValueError(f"{self.file}: column {self.label} is {kind}, labels are numbers or words; {IGNORE}")
            yield found


def _parquet_split(tables: list[_Table], fit: Fit) -> SourceSplit:
    counts = [table.count for table in tables]

    def chunks() -> Iterator[Chunk]:
        first = 0
        step = chunk_rows(fit.channels * fit.height * fit.width)
        with _pool() as pool:
            for found in chain.from_iterable(table.batches(step) for table in tables):
                images = [lambda cell=cell: cell for cell in found]
                yield _decode(pool, fit, first, images, [""] * len(images))
                first += len(found)

    def labels() -> Labels:
        return Labels.of(block for table in tables for block in table.labels())

    locate = locate_among([table.file for table in tables], counts)
    return SourceSplit(count=sum(counts), chunks=chunks, locate=locate, labels=labels)


def _images(folder: Path) -> list[tuple[str, Path]]:
    """(class, file) of every image below a folder, sorted; the class of a file directly in it is ""."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    return [("" if file.parent == folder else file.relative_to(folder).parts[0], file) for file in files]


def _folder_split(files: list[tuple[str, Path]], fit: Fit) -> SourceSplit:
    """A split of (class, file)."""
    step = chunk_rows(fit.channels * fit.height * fit.width)

    def chunks() -> Iterator[Chunk]:
        with _pool() as pool:
            for first in range(0, len(files), step):
                part = [file for _, file in files[first : first + step]]
                yield _decode(pool, fit, first, [file.read_bytes for file in part], [str(file) for file in part])

    def labels() -> Labels:
        return Labels.of([[name for name, _ in files]])

    return SourceSplit(count=len(files), chunks=chunks, locate=lambda row: str(files[row][1]), labels=labels)
