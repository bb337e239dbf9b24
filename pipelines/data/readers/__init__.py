"""The readers, one format a file. A new format is a file here and an entry in READERS.

A reader is a function (source, options) -> Source | None: None where the source is not of its format. The first that
answers reads the source, so the order decides where several could.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pipelines.data.readers.arrays import read_numpy
from pipelines.data.readers.cifar import read_cifar
from pipelines.data.readers.csv_table import read_csv
from pipelines.data.readers.density import TABLES, read_table
from pipelines.data.readers.embedded import SKLEARN, read_digits, read_sklearn, read_toy2d
from pipelines.data.readers.field import read_field
from pipelines.data.readers.hdf5 import read_hdf5
from pipelines.data.readers.idx import read_idx
from pipelines.data.readers.images import read_folder, read_image_parquet
from pipelines.data.readers.mosaic import read_mosaic
from pipelines.data.readers.toy2d import TOY2D
from pipelines.data.source import Options, Source

__all__ = ["READERS", "Reader", "formats", "recognised"]


class Reader(NamedTuple):
    """A reader, and what people call the sources that it reads."""

    read: Callable[[str, Options], Source | None]
    name: str


def recognised(source: str, options: Options) -> Source | None:
    """The answer of the first reader that recognises a canonical source; None where none does."""
    return next((answer for reader in READERS if (answer := reader.read(source, options))), None)


READERS = [
    Reader(read_table, f"a published table with --table ({', '.join(TABLES)})"),
    Reader(read_digits, "digits"),
    Reader(read_field, "field:LENGTH:HxW, random fields"),
    Reader(read_toy2d, ", ".join(f"toy2d:{name}" for name in TOY2D)),
    Reader(read_sklearn, ", ".join(f"sklearn:{name}" for name in SKLEARN)),
    Reader(
        partial(read_mosaic, read_base=recognised), "mosaic:BASE:RxC of a labelled set of images (mosaic:digits:1x3)"
    ),
    Reader(read_idx, "IDX files (MNIST, EMNIST)"),
    Reader(read_cifar, "CIFAR-10 batches"),
    Reader(read_image_parquet, "Hugging Face image Parquet"),
    Reader(read_numpy, ".npy or .npz"),
    Reader(read_csv, ".csv or .tsv"),
    Reader(read_hdf5, ".h5"),
    Reader(read_folder, "a folder of images"),
]
"""In the order in which they are asked; those of an extension (see `config.modules`) come before."""


def formats() -> str:
    """What all readers read, in one line."""
    return "; ".join(reader.name for reader in READERS)
