"""Readers of the binary formats of MNIST and CIFAR-10.

IDX (MNIST, Fashion-MNIST), big-endian: bytes 0, 0, type 8 (unsigned byte), number of dimensions m, then m sizes of four
bytes, then the values; `train-images-idx3-ubyte` (n, h, w) goes with `train-labels-idx1-ubyte` (n,), t10k is the test
split, and either may be gzipped.

CIFAR-10, binary: records of one label byte and 3 * 32 * 32 pixel bytes in channel order, in data_batch_1.bin to
data_batch_5.bin and test_batch.bin. The Python version (no .bin) is a pickle of {b"data": (n, 3072) uint8, b"labels":
list}. Unpickling can run any code, so `BatchUnpickler` resolves five names, to stand-ins of this file that only
remember what they are given, and refuses all others; the pixels are then read from the remembered bytes.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.source import (
    Chunk,
    Options,
    Source,
    SourceSplit,
    array_chunks,
    records,
)

__all__ = ["BatchUnpickler", "read_cifar", "read_idx"]

GZIP_RATIO = 1032
"""What a byte of a gzip file can become at most."""
CIFAR_SHAPE = (3, 32, 32)


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


def read_cifar(source: str, options: Options) -> Source | None:
    """A directory of CIFAR-10 batches, binary or Python."""
    directory = Path(source)
    suffix = ".bin" if (directory / "data_batch_1.bin").is_file() else ""
    if not (directory / f"data_batch_1{suffix}").is_file():
        return None
    train = [directory / f"data_batch_{index}{suffix}" for index in range(1, 6)]
    test = directory / f"test_batch{suffix}"
    for file in train:
        if not file.is_file():
            raise ValueError(f"{file}: missing; CIFAR-10 has data_batch_1 to data_batch_5, unpack the archive again")
    read = _binary_batch if suffix else _python_batch
    count = _binary_count if suffix else _python_count
    splits = {"train": _batches(train, read, count)}
    if test.is_file():
        splits["test"] = _batches([test], read, count)
    return Source(kind="image", shape=CIFAR_SHAPE, levels=256, num_classes=10, splits=splits)


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


Batch = Callable[[Path], Iterator[Chunk]]


def _batches(files: list[Path], read: Batch, count: Callable[[Path], int]) -> SourceSplit:
    """Files of images as one split."""
    bounds = np.cumsum([0, *(count(file) for file in files)])

    def chunks() -> Iterator[Chunk]:
        for file, first in zip(files, bounds[:-1], strict=True):
            for chunk in read(file):
                yield chunk._replace(row=chunk.row + first)

    def locate(row: int) -> str:
        index = int(np.searchsorted(bounds, row, side="right")) - 1
        return f"{files[index]} row {row - bounds[index]}"

    return SourceSplit(count=int(bounds[-1]), chunks=chunks, locate=locate)


def _binary_count(file: Path) -> int:
    size, record = file.stat().st_size, 1 + math.prod(CIFAR_SHAPE)
    if size == 0 or size % record:
        raise ValueError(f"{file}: {size} bytes, not a multiple of CIFAR-10's {record}; unpack the archive again")
    return size // record


def _binary_batch(file: Path) -> Iterator[Chunk]:
    with file.open("rb") as stream:
        for first, block in records(stream, 1 + math.prod(CIFAR_SHAPE), _binary_count(file), str(file)):
            x, row = block[:, 1:].reshape(-1, *CIFAR_SHAPE), np.arange(first, first + len(block))
            yield Chunk(x, block[:, 0].astype(np.int64), row)


def _python_count(file: Path) -> int:
    return len(_load_batch(file)[1])


def _python_batch(file: Path) -> Iterator[Chunk]:
    return array_chunks(*_load_batch(file))


def _load_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with file.open("rb") as stream:
            batch = BatchUnpickler(stream, encoding="bytes").load()
        entries = {key.decode("ascii") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        x, labels = entries["data"].pixels(), entries["labels"]
    except Exception as error:  # a hostile pickle may raise anything while it is taken apart
        raise ValueError(f"{file}: refused as a CIFAR-10 batch ({one_line(error)}); unpack the archive again") from None
    if not isinstance(labels, list) or len(labels) != len(x) or not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{file}: no 'labels' with one integer for each of {len(x)} images; unpack the archive again")
    return x.reshape(-1, *CIFAR_SHAPE), np.array(labels, np.int64)


class _Dtype:
    """numpy.dtype: remembers its code and ignores its state."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """numpy.core.multiarray._reconstruct: an array whose state is looked at only in `pixels`."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The (n, 3072) bytes."""
        _, shape, dtype, fortran, raw = self.state
        if dtype.code != "u1" or len(shape) != 2 or shape[1] != math.prod(CIFAR_SHAPE):
            raise ValueError(f"'data' is {shape} {dtype.code!r}, not (n, 3072) in uint8")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode: how Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


class BatchUnpickler(pickle.Unpickler):
    """Builds containers, numbers, text and plain arrays; any other name in the pickle is refused before it is used."""

    allowed: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which no CIFAR-10 batch needs")
        return self.allowed[module, name]
