"""Reader of mosaics, drawn from any labelled set of images that another reader reads: the law of a canvas of any size is known.

    mosaic:BASE:RxC    images of R x C cells, each an image of BASE: mosaic:digits:1x3, mosaic:/data/MNIST:2x2

The classes of the cells follow the rule of `mosaics`, and cells of a split are images of the same split of BASE, whose hold-out
is the one that BASE alone would have. There are `rows` training mosaics and a fifth as many in each other split; its label is
the class of its first (top left) cell. The options hold for BASE as they do for it alone. BASE is in memory, and the mosaics
are drawn as they are asked for: the rows depend on BASE, R, C and `seed` only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from pipelines.data.card import CARD
from pipelines.data.holdout import Routes
from pipelines.data.labels import Classes, Labels
from pipelines.data.mosaics import RULE, classes_of_mosaics, mosaics
from pipelines.data.source import Chunk, Options, Source, SourceSplit, chunk_rows
from pipelines.data.splits import SPLITS

__all__ = ["Mosaic", "read_mosaic"]

PREFIX = "mosaic:"
AT_A_TIME = 1024
"""Fields of classes that are drawn at a time for the labels."""
LIKE = "write mosaic:BASE:RxC, such as mosaic:digits:1x3 or mosaic:/data/MNIST:2x2"


@final
@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """The name of a set of mosaics.

    Args:
        base: The source whose images are the cells.
        rows, cols: R and C, cells down and across.
    """

    base: str
    rows: int
    cols: int

    @staticmethod
    def means(source: str) -> bool:
        """Whether a source is called a set of mosaics."""
        return source.startswith(PREFIX)

    @staticmethod
    def parse(source: str) -> Mosaic:
        """The parts of a name; a base may have colons of its own.

        Raises:
            ValueError: no base, one of mosaics, or no R x C of at least one cell.
        """
        base, _, size = source.removeprefix(PREFIX).rpartition(":")
        cells = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size)
        if not base or not cells:
            raise ValueError(f"source={source!r}: a base and a number of cells are missing; {LIKE}")
        rows, cols = int(cells[1]), int(cells[2])
        if Mosaic.means(base):
            raise ValueError(f"source={source!r}: mosaics of mosaics follow no rule; {LIKE}")
        if min(rows, cols) < 1:
            raise ValueError(f"source={source!r}: {size} has no cells; {LIKE}")
        return Mosaic(base=base, rows=rows, cols=cols)

    def of(self, base: str) -> Mosaic:
        """The same of another base."""
        return replace(self, base=base)

    def __str__(self) -> str:
        return f"{PREFIX}{self.base}:{self.rows}x{self.cols}"


def read_mosaic(source: str, options: Options, read_base: Callable[[str, Options], Source | None]) -> Source | None:
    """Mosaics of a base, which `read_base` recognises.

    Raises:
        ValueError: a base that is none, or none of images of two or more classes, or a split that lacks a class.
    """
    if not Mosaic.means(source):
        return None
    mosaic = Mosaic.parse(source)
    if (Path(mosaic.base) / CARD).is_file():
        raise ValueError(f"source={source!r}: {mosaic.base} is already prepared; give what it was prepared from")
    base = read_base(mosaic.base, replace(options, labels="classes"))  # without labels the cells have no rule
    if base is None:
        raise ValueError(f"source={source!r}: the format of {mosaic.base} is not recognised; {LIKE}")
    if base.kind != "image":
        raise ValueError(f"source={source!r}: {mosaic.base} has vectors, and a cell is an image with a class; {LIKE}")
    classes = _classes(source, mosaic.base, base)
    pools = _pools(source, base, classes, options)
    streams = np.random.SeedSequence(options.seed).spawn(len(SPLITS))
    c, h, w = base.shape
    return replace(
        base,
        shape=(c, mosaic.rows * h, mosaic.cols * w),
        splits={
            name: _split(mosaic, name, pools[name], options.rows, stream)
            for name, stream in zip(SPLITS, streams, strict=True)
            if name in pools
        },
        num_classes=0 if classes.names else classes.num,  # names tell their number themselves
        missing="",
        notes=(*base.notes, RULE),
    )


def _classes(source: str, name: str, base: Source) -> Classes:
    """The classes of a base, two or more."""
    try:
        classes = base.classes()
    except ValueError as error:
        raise ValueError(
            f"source={source!r}: {str(error).rpartition('; ')[0]}; cells are images with a class"
        ) from None
    if classes.num < 2:
        said = "one class" if classes.num else "no labels"
        raise ValueError(f"source={source!r}: {name} has {said}, and the rule of mosaics is about classes; {LIKE}")
    return classes


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Pool:
    """The images that the cells of a split are drawn from.

    Args:
        part: The split of the base that has them.
        rows: (n,), which of its rows.
        labels: (n,), their classes 0, ..., K - 1, each of which occurs.
        names: Of the classes, or their numbers.
        source: What people call them.
    """

    part: SourceSplit
    rows: np.ndarray
    labels: np.ndarray
    names: tuple[int | str, ...]
    source: str

    def images(self) -> np.ndarray:
        """The images themselves, (n, c, h, w)."""
        found = []
        for chunk in self.part.chunks():
            if chunk.bad:
                row, reason = chunk.bad[0]
                raise ValueError(f"{self.part.locate(row)}: {reason}; remove it, for mosaics are made of all images")
            found.append(chunk.x[np.isin(chunk.row, self.rows, assume_unique=True)])
        return np.concatenate(found)


def _pools(source: str, base: Source, classes: Classes, options: Options) -> dict[str, _Pool]:
    """By split of the result; a hold-out is that of the base alone."""
    pools = {}
    names = classes.names or tuple(range(classes.num))
    for name, part in base.splits.items():
        routes = Routes.of(name, part, base, options)
        for index, split in enumerate(routes.names):
            rows = np.flatnonzero(routes.target == index)
            labels = classes.of(name, rows)
            lacking = np.setdiff1d(np.arange(classes.num), labels)
            if len(lacking):
                raise ValueError(
                    f"source={source!r}: {split} has no image of class {names[lacking[0]]} of the {classes.num}, and cells of "
                    "each split are drawn from its own; give a base with all classes in each split, numbered from 0"
                )
            pools[split] = _Pool(part=part, rows=rows, labels=labels, names=names, source=routes.source(part, index))
    return pools


def _split(mosaic: Mosaic, name: str, pool: _Pool, train_rows: int, stream: np.random.SeedSequence) -> SourceSplit:
    count = train_rows if name == "train" else train_rows // 5
    of_classes, of_images = stream.spawn(2)

    def fields(most: int) -> Iterator[np.ndarray]:
        generator = np.random.default_rng(of_classes)
        for first in range(0, count, most):
            num = min(most, count - first)
            yield classes_of_mosaics(num, mosaic.rows, mosaic.cols, len(pool.names), generator)

    def chunks() -> Iterator[Chunk]:
        images, generator, first = pool.images(), np.random.default_rng(of_images), 0
        for classes in fields(chunk_rows(images[:1].nbytes * mosaic.rows * mosaic.cols)):
            yield Chunk(mosaics(images, pool.labels, classes, generator), np.arange(first, first + len(classes)))
            first += len(classes)

    def labels() -> Labels:
        codes = np.concatenate([classes[:, 0, 0] for classes in fields(AT_A_TIME)])
        return Labels(codes=codes.astype(np.int32), values=pool.names)

    return SourceSplit(
        count=count,
        chunks=chunks,
        locate=lambda row: f"{mosaic} {name} row {row}",
        labels=labels,
        source=f"drawn from the {len(pool.rows):,} images of {pool.source}",
    )
