"""Reader of a directory of IDX files: MNIST, Fashion-MNIST.

Big-endian: bytes 0, 0, type 8 (unsigned byte), number of dimensions m, then m sizes of four bytes, then the values;
`train-images-idx3-ubyte` (n, h, w) goes with `train-labels-idx1-ubyte` (n,), t10k is the test split, and either may be
gzipped.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.source import Chunk, Options, Source, SourceSplit, records

__all__ = ["read_idx"]

GZIP_RATIO = 1032
"""What a byte of a gzip file can become at most."""


def read_idx(source: str, options: Options) -> Source | None:
    """A directory of IDX files with MNIST's names."""
    splits, shapes = {}, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx_file(Path(source), prefix, "images", 3)
        labels = _idx_file(Path(source), prefix, "labels", 1)
        if images:
            splits[split], shapes[images[0]] = _idx_split(images[0], labels)
    if not splits:
        return None
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{file}: {other}" for file, other in shapes.items())
        raise ValueError(f"{source}: its splits differ in shape ({found}); prepare them apart")
    return Source(kind="image", shape=shape, levels=256, splits=splits)


def _idx_file(directory: Path, prefix: str, content: str, rank: int) -> list[Path]:
    names = (f"{prefix}-{content}-idx{rank}-ubyte", f"{prefix}-{content}.idx{rank}-ubyte")
    candidates = [directory / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return [file for file in candidates if file.is_file()]


def _open_idx(file: Path) -> BinaryIO:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # pyright: ignore[reportReturnType]


def _idx_header(stream: BinaryIO, file: Path, rank: int) -> tuple[int, ...]:
    head = stream.read(4 + 4 * rank)
    if len(head) < 4 + 4 * rank or head[:4] != bytes((0, 0, 8, rank)):
        raise ValueError(f"{file}: starts with {head[:4].hex()}, not with IDX's 000008{rank:02x}; download it again")
    sizes = tuple(int(size) for size in np.frombuffer(head, ">u4", rank, 4))
    if 0 in sizes:
        raise ValueError(f"{file}: declares the sizes {sizes}, of which one is 0; download it again")
    if math.prod(sizes) > GZIP_RATIO * file.stat().st_size:  # before anything of that size is allocated
        raise ValueError(f"{file}: declares the sizes {sizes}, more than its bytes can hold; download it again")
    return sizes


def _idx_records(file: Path, rank: int) -> Iterator[tuple[int, np.ndarray]]:
    try:
        with _open_idx(file) as stream:
            count, *row = _idx_header(stream, file, rank)
            yield from records(stream, math.prod(row), count, str(file))
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{file}: truncated or corrupt ({one_line(error)}); download it again") from None


def _idx_sizes(file: Path, rank: int) -> tuple[int, ...]:
    try:
        with _open_idx(file) as stream:
            return _idx_header(stream, file, rank)
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{file}: truncated or corrupt ({one_line(error)}); download it again") from None


def _idx_split(images: Path, labels: list[Path]) -> tuple[SourceSplit, tuple[int, int, int]]:
    count, height, width = _idx_sizes(images, 3)
    label = np.full(count, -1)
    if labels:
        (num_labels,) = _idx_sizes(labels[0], 1)
        if num_labels != count:
            raise ValueError(
                f"{labels[0]}: {num_labels} labels for the {count} images of {images}; download both again"
            )
        label = np.concatenate([block[:, 0] for _, block in _idx_records(labels[0], 1)]).astype(np.int64)

    def chunks() -> Iterator[Chunk]:
        for first, block in _idx_records(images, 3):
            stop = first + len(block)
            yield Chunk(block.reshape(-1, 1, height, width), label[first:stop], np.arange(first, stop))

    return SourceSplit(count=count, chunks=chunks, locate=lambda row: f"{images} row {row}"), (1, height, width)
