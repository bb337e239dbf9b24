"""Reader of a directory of IDX files: MNIST, Fashion-MNIST, EMNIST.

An IDX file, big-endian: bytes 0, 0, type 8 (unsigned byte), the number m of dimensions, m sizes of four bytes, then the
values. Images (n, h, w) go with labels (n,), which --labels ignore does without; each file may be gzipped (.gz). The directory
holds one set, by its file names, [SET-]SPLIT-images-idx3-ubyte and [SET-]SPLIT-labels-idx1-ubyte in any case, a split as in
`splits`:

    MNIST     train-images-idx3-ubyte, train-labels-idx1-ubyte; t10k-... is the test split
    EMNIST    emnist-SUBSET-train-images-idx3-ubyte, ...; SUBSET is one of CLASSES

EMNIST's files hold every image with its rows and columns exchanged. It is read upright, (n, w, h) as (n, h, w), so that
its digits look as MNIST's do. The labels of its subset letters are 1, ..., 26; they become the classes 0, ..., 25, as
everywhere else.

References:
    Cohen, Afshar, Tapson, van Schaik 2017, "EMNIST: an extension of MNIST to handwritten letters" (the subsets).
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from pipelines.data.card import LeftOut
from pipelines.data.labels import Labels
from pipelines.data.listing import by_suffix, list_files
from pipelines.data.source import Chunk, Options, Source, SourceSplit, records
from pipelines.data.splits import assign, parse
from pipelines.storage.messages import one_line
from pipelines.storage.reading import expands_too_far

__all__ = ["CLASSES", "read_idx"]

CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
"""EMNIST's subsets: how many classes each has."""
PIECE = 1 << 20
"""Bytes that are expanded at a time."""


NAME = re.compile(r"(?:(.+)[-_.])?(images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?", re.IGNORECASE)
"""Of an IDX file: what stands before images or labels says its set and split."""


class _Files(NamedTuple):
    """The files of a split; labels: None where there are none, which the option `labels` allows."""

    images: Path
    labels: Path | None


def read_idx(source: str, options: Options) -> Source | None:
    """A directory of IDX files with the names of MNIST or of one subset of EMNIST."""
    root = Path(source)
    found = _files(root)
    if not found:
        return None
    sets = sorted({parse(part).rest for part in found if parse(part).split})
    if len(sets) > 1 and not options.split:
        names = ["-".join(words) or "MNIST" for words in sets]
        raise ValueError(
            f"{source}: holds several sets, {', '.join(names)}; give a directory with one of them, made there by: "
            f"mkdir {names[-1]}; mv {names[-1]}-* {names[-1]}"
        )
    parts = assign(found, source, options.split, options.splits)
    for name in (name for names in parts.of.values() for name in names):
        _check_pair(root, name, found[name], options)
    for split, names in parts.of.items():
        if len(names) > 1:
            raise ValueError(
                f"{source}: {', '.join(names)} are all {split}; say which one is: --split {split}={names[0]}"
            )
    files = {split: found[name] for split, (name,) in parts.of.items()}
    subsets = {_subset(name, root) for (name,) in parts.of.values()}
    if len(subsets) > 1:
        raise ValueError(
            f"{source}: {', '.join(name for (name,) in parts.of.values())} are of different sets; prepare them apart"
        )
    (subset,) = subsets
    shapes = {pair.images: _shape(pair.images, subset) for pair in files.values()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{file}: {shape}" for file, shape in shapes.items())
        raise ValueError(f"{source}: its splits differ in shape ({listed}); prepare them apart")
    return Source(
        kind="image",
        shape=next(iter(shapes.values())),
        levels=256,
        splits={split: _split(pair, subset) for split, pair in files.items()},
        num_classes=CLASSES.get(subset, 0) if any(pair.labels for pair in files.values()) else 0,
        parts=True,
        missing=_missing_test(root, parts.of),
        left_out=_left_out(root, files.values(), [found[name] for name in parts.left_out]),
        notes=parts.notes,
    )


def _files(root: Path) -> dict[str, _Files]:
    """The pairs of files of a directory by what stands before images and labels; one that is gzipped only where no other is."""
    found: dict[str, dict[str, Path]] = {}
    names = sorted(root.iterdir(), reverse=True) if root.is_dir() else []
    for file in names:
        match = NAME.fullmatch(file.name)
        if match and file.is_file() and not file.name.startswith("."):
            found.setdefault(match[1] or "", {})[match[2].lower()] = file
    return {
        part: _Files(files.get("images", root / _name(part, "images")), files.get("labels"))
        for part, files in sorted(found.items())
    }


def _name(part: str, what: Literal["images", "labels"]) -> str:
    """The name of a part's file as it is published, unzipped."""
    return f"{part}-{what}-idx{3 if what == 'images' else 1}-ubyte".removeprefix("-")


def _check_pair(root: Path, part: str, files: _Files, options: Options) -> None:
    """Whether a part has its images, and its labels unless they are ignored."""
    if not files.images.is_file():
        raise ValueError(f"{files.images}: missing, but {files.labels} is there; download both again")
    if files.labels is None and options.labels != "ignore":
        raise ValueError(
            f"{root / _name(part, 'labels')}: missing, the labels of {files.images.name}; download it again, or prepare the "
            "images without classes: --labels ignore"
        )


def _missing_test(root: Path, of: dict[str, tuple[str, ...]]) -> str:
    """The test images that belong to a part whose name says that it is train; '' where they are not missing."""
    (name,) = of.get("train", ("",))
    if set(of) != {"train"} or parse(name).split != "train":
        return ""
    head = re.sub(r"train(ing)?$", "", name, flags=re.IGNORECASE)
    return str(root / _name(head + ("test" if head else "t10k"), "images"))


def _subset(part: str, root: Path) -> str:
    """EMNIST's subset that a part is of, or '' for another set."""
    words = parse(part).rest
    if "emnist" not in words:
        return ""
    if len(words) != 2 or words[1] not in CLASSES:
        raise ValueError(f"{root}: {part} is no subset of EMNIST; they are {', '.join(CLASSES)}")
    return words[1]


def _left_out(root: Path, taken: Iterable[_Files], others: list[_Files]) -> tuple[LeftOut, ...]:
    """What the directory holds besides the files that are read."""
    listing = list_files(root)
    unnamed = {file for pair in others for file in pair if file and file.is_file()}
    read = {file for pair in taken for file in pair if file}
    rest = [file for file in listing.files if file not in read | unnamed]
    named = [LeftOut(name=file.name, files=1, reason="not named by --split") for file in sorted(unnamed)]
    return (*listing.left_out, *named, *by_suffix(listing, rest, "not one of the set's files"))


def _split(files: _Files, subset: str) -> SourceSplit:
    count = _checked(files.images, 3)[0]
    told = files.labels
    shape = _shape(files.images, subset)

    def chunks() -> Iterator[Chunk]:
        for first, block in _records(files.images, 3):
            upright = block.reshape(-1, shape[2], shape[1]).swapaxes(1, 2) if subset else block
            yield Chunk(upright.reshape(-1, *shape), np.arange(first, first + len(block)))

    return SourceSplit(
        count=count,
        chunks=chunks,
        locate=lambda row: f"{files.images} row {row}",
        labels=(lambda: Labels.of([_labels(told, files.images, count, subset)])) if told else None,
        source=files.images.name,
    )


def _shape(images: Path, subset: str) -> tuple[int, int, int]:
    """(1, h, w) of an image, upright."""
    _, rows, columns = _sizes(images, 3)
    return (1, columns, rows) if subset else (1, rows, columns)


def _labels(file: Path, images: Path, count: int, subset: str) -> np.ndarray:
    """The classes of a split, 0, 1, ..."""
    (num_labels,) = _checked(file, 1)
    if num_labels != count:
        raise ValueError(f"{file}: {num_labels} labels for the {count} images of {images}; download both again")
    label = np.concatenate([block[:, 0] for _, block in _records(file, 1)]).astype(np.int64)
    if not subset:
        return label
    least = 1 if subset == "letters" else 0
    wrong = (label < least) | (label >= least + CLASSES[subset])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{file} row {row}: the label {label[row]} is not one of EMNIST's {subset}, {least} to "
            f"{least + CLASSES[subset] - 1}; download it again"
        )
    return label - least


def _sizes(file: Path, rank: int) -> tuple[int, ...]:
    try:
        with _open(file) as stream:
            return _header(stream, file, rank)
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{file}: truncated or corrupt ({one_line(error)}); download it again") from None


def _checked(file: Path, rank: int) -> tuple[int, ...]:
    """The sizes in a header, which the file is known to hold: nothing is allocated for a count that nobody has counted."""
    sizes = _sizes(file, rank)
    declared, held = 4 + 4 * rank + math.prod(sizes), file.stat().st_size
    if expands_too_far(declared, held):
        raise ValueError(f"{file}: declares the sizes {sizes}, more than its bytes can hold; download it again")
    if file.suffix == ".gz":
        try:
            with _open(file) as stream:
                held = sum(map(len, iter(partial(stream.read, PIECE), b"")))
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{file}: truncated or corrupt ({one_line(error)}); download it again") from None
    if held < declared:
        row = (held - 4 - 4 * rank) // math.prod(sizes[1:])
        raise ValueError(f"{file}: truncated at row {row} of the {sizes[0]} that it declares; download it again")
    if held > declared:
        raise ValueError(f"{file}: more bytes than the {sizes[0]} rows that it declares; download it again")
    return sizes


def _records(file: Path, rank: int) -> Iterator[tuple[int, np.ndarray]]:
    try:
        with _open(file) as stream:
            count, *row = _header(stream, file, rank)
            yield from records(stream, math.prod(row), count, str(file))
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{file}: truncated or corrupt ({one_line(error)}); download it again") from None


def _open(file: Path) -> BinaryIO:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # pyright: ignore[reportReturnType]


def _header(stream: BinaryIO, file: Path, rank: int) -> tuple[int, ...]:
    head = stream.read(4 + 4 * rank)
    if len(head) < 4 + 4 * rank or head[:4] != bytes((0, 0, 8, rank)):
        raise ValueError(f"{file}: starts with {head[:4].hex()}, not with IDX's 000008{rank:02x}; download it again")
    sizes = tuple(int(size) for size in np.frombuffer(head, ">u4", rank, 4))
    if 0 in sizes:
        raise ValueError(f"{file}: declares the sizes {sizes}, of which one is 0; download it again")
    return sizes
