"""Reader of CIFAR-10's batches, in both published forms, data_batch_1 to data_batch_5 for training and test_batch.

The binary version (.bin): records of one label byte and 3 * 32 * 32 pixel bytes in channel order. The Python version
(no suffix) is a pickle of {b"data": (n, 3072) uint8, b"labels": list}. Unpickling can run any code, so `BatchUnpickler`
resolves five names, to stand-ins of this file that only remember what they are given, and refuses all others; the
pixels are then read from the remembered bytes. Before that its opcodes are walked: containers, numbers and text only, none of
which makes more of a pickle than it holds.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.labels import Labels
from pipelines.data.source import (
    Chunk,
    Options,
    Source,
    SourceSplit,
    locate_among,
    records,
)
from pipelines.storage.messages import one_line
from pipelines.storage.reading import open_regular

__all__ = ["BatchUnpickler", "read_cifar"]

CIFAR_SHAPE = (3, 32, 32)
NAMES = (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch")
"""Of the files of a set, before the suffix."""
MOST_BYTES = 1 << 28
"""Of a batch: eight times the published one."""
LISTS = "MARK POP POP_MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
NUMBERS = (
    "EMPTY_DICT DICT SETITEM SETITEMS NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
)
TEXTS = (
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
)
OBJECTS = "PROTO FRAME STOP GLOBAL STACK_GLOBAL REDUCE BUILD PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
OPCODES = {word for words in (LISTS, NUMBERS, TEXTS, OBJECTS) for word in words.split(" ")}
"""What a batch is pickled by."""


def read_cifar(source: str, options: Options) -> Source | None:
    """A directory of CIFAR-10 batches, binary or Python."""
    directory = Path(source)
    suffix = next((end for end in (".bin", "") if any((directory / (name + end)).is_file() for name in NAMES)), None)
    if suffix is None:
        return None
    *train, test = (directory / (name + suffix) for name in NAMES)
    for file in train:
        if not file.is_file():
            raise ValueError(f"{file}: missing; CIFAR-10 has data_batch_1 to data_batch_5, unpack the archive again")
    read = _binary_batch if suffix else _python_batch
    count = _binary_count if suffix else _python_count
    splits = {"train": _batches(train, read, count)}
    if test.is_file():
        splits["test"] = _batches([test], read, count)
    missing = "" if "test" in splits else str(test)
    return Source(kind="image", shape=CIFAR_SHAPE, levels=256, num_classes=10, splits=splits, missing=missing)


Batch = Callable[[Path], Iterator[tuple[int, np.ndarray, Sequence[int]]]]
"""Reads a file: (first row, images, labels) of consecutive rows."""


def _batches(files: list[Path], read: Batch, count: Callable[[Path], int]) -> SourceSplit:
    """Files of images as one split."""
    counts = [count(file) for file in files]

    def chunks() -> Iterator[Chunk]:
        first = 0
        for file, rows in zip(files, counts, strict=True):
            for start, x, _ in read(file):
                yield Chunk(x, np.arange(first + start, first + start + len(x)))
            first += rows

    def labels() -> Labels:
        return Labels.of(label for file in files for _, _, label in read(file))

    return SourceSplit(count=sum(counts), chunks=chunks, locate=locate_among(files, counts), labels=labels)


def _binary_count(file: Path) -> int:
    size, record = file.stat().st_size, 1 + math.prod(CIFAR_SHAPE)
    if size == 0 or size % record:
        raise ValueError(f"{file}: {size} bytes, not a multiple of CIFAR-10's {record}; unpack the archive again")
    return size // record


def _binary_batch(file: Path) -> Iterator[tuple[int, np.ndarray, Sequence[int]]]:
    with file.open("rb") as stream:
        for first, block in records(stream, 1 + math.prod(CIFAR_SHAPE), _binary_count(file), str(file)):
            yield first, block[:, 1:].reshape(-1, *CIFAR_SHAPE), block[:, 0].tolist()


def _python_count(file: Path) -> int:
    return len(_load_batch(file)[1])


def _python_batch(file: Path) -> Iterator[tuple[int, np.ndarray, Sequence[int]]]:
    yield 0, *_load_batch(file)


def _load_batch(file: Path) -> tuple[np.ndarray, list[int]]:
    try:
        with open_regular(file) as stream:
            text = stream.read(MOST_BYTES + 1)
        _check_opcodes(text)
        batch = BatchUnpickler(io.BytesIO(text), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError("no dictionary")
        entries = {key.decode("ascii") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        data, labels = entries.get("data"), entries.get("labels")
        if not isinstance(data, _Array):
            raise ValueError("no array 'data'")
        x = data.pixels()
    except Exception as error:  # a hostile pickle may raise anything while it is taken apart
        raise ValueError(f"{file}: refused as a CIFAR-10 batch ({one_line(error)}); unpack the archive again") from None
    if not isinstance(labels, list) or len(labels) != len(x) or not all(type(label) is int for label in labels):
        raise ValueError(f"{file}: no 'labels' with one integer for each of {len(x)} images; unpack the archive again")
    return x.reshape(-1, *CIFAR_SHAPE), labels


def _check_opcodes(text: bytes) -> None:
    """Refuses pickles that would grow: those that remember more than their length, and those that use a tuple twice, by which
    its hash and its text double in length each time."""
    if len(text) > MOST_BYTES:
        raise pickle.UnpicklingError(f"more than {MOST_BYTES >> 20} MiB")
    tuples: set[int] = set()
    stored, before = 0, ""
    for opcode, argument, _ in pickletools.genops(text):
        name = opcode.name
        if name not in OPCODES:
            raise pickle.UnpicklingError(f"the pickle has the opcode {name}, which no CIFAR-10 batch needs")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = stored if name == "MEMOIZE" else int(str(argument))
            if not 0 <= index <= len(text):
                raise pickle.UnpicklingError(f"the pickle remembers a value as number {index}")
            tuples = tuples | {index} if "TUPLE" in before else tuples - {index}
            stored += 1
        elif name in ("GET", "BINGET", "LONG_BINGET") and int(str(argument)) in tuples:
            raise pickle.UnpicklingError("the pickle uses a tuple twice")
        before = name


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
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
            raise ValueError("'data' is no array of numbers")
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
