"""Readers of the sets that need no file.

digits            scikit-learn's 1,797 images of 8 x 8 pixels with levels 0, ..., 16 (L = 17) and 10 classes
toy2d:NAME        a generated set on the plane (toy2d.py): `rows` training rows and a fifth as many test rows
sklearn:NAME      scikit-learn's wine, iris, breast_cancer or diabetes: the features, dequantised by uniform noise of each
                  column's resolution and standardised by their training rows, and the classes
"""

from __future__ import annotations

import numpy as np

from pipelines.data.order import permutation
from pipelines.data.readers.mosaic import Mosaic
from pipelines.data.readers.toy2d import TOY2D
from pipelines.data.source import Options, Source, in_memory

__all__ = ["SKLEARN", "embedded", "read_digits", "read_sklearn", "read_toy2d"]

SKLEARN = ("wine", "iris", "breast_cancer", "diabetes")


def embedded(source: str) -> bool:
    """Whether a source needs no path: digits, a generated set, a bundled table, or mosaics of one of them."""
    if Mosaic.means(source):
        return embedded(Mosaic.parse(source).base)
    return source == "digits" or source.startswith(("field:", "toy2d:", "sklearn:"))


def read_digits(source: str, options: Options) -> Source | None:
    """scikit-learn's digits."""
    if source != "digits":
        return None
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("source='digits' comes with scikit-learn: pip install scikit-learn") from None
    pixels, label = load_digits(return_X_y=True)
    part = in_memory(pixels.astype(np.uint8).reshape(-1, 1, 8, 8), "digits", np.asarray(label, np.int64))
    return Source(kind="image", shape=(1, 8, 8), levels=17, num_classes=10, splits={"train": part})


def read_toy2d(source: str, options: Options) -> Source | None:
    """A generated set on the plane."""
    prefix, _, shape = source.partition(":")
    if prefix != "toy2d":
        return None
    if shape not in TOY2D:
        raise ValueError(f"source={source!r}: the generated sets are {', '.join('toy2d:' + name for name in TOY2D)}")
    streams = np.random.SeedSequence(options.seed).spawn(2)
    splits = {}
    for split, rows, stream in zip(("train", "test"), (options.rows, options.rows // 5), streams, strict=True):
        x = TOY2D[shape](rows, np.random.default_rng(stream)).astype(np.float32)
        splits[split] = in_memory(x, f"{source} {split}")
    return Source(kind="vector", shape=(2,), levels=0, splits=splits)


def read_sklearn(source: str, options: Options) -> Source | None:
    """A table that scikit-learn brings along, split by `options` and standardised by its training rows."""
    prefix, _, name = source.partition(":")
    if prefix != "sklearn":
        return None
    if name not in SKLEARN:
        raise ValueError(
            f"source={source!r}: the bundled tables are {', '.join('sklearn:' + name for name in SKLEARN)}"
        )
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    x, label = bunch.data, bunch.target
    classes = np.asarray(label, np.int64) if name != "diabetes" else None  # its targets are measurements
    held = permutation(options.seed, 0, 0, len(x))[: round(len(x) * options.test_fraction)]
    test = np.zeros(len(x), bool)
    test[held] = True
    x = x + _resolution(x) * np.random.default_rng(options.seed).random(x.shape)
    mean, std = x[~test].mean(axis=0), x[~test].std(axis=0)
    x = ((x - mean) / std).astype(np.float32)
    parts = {"train": ~test} | ({"test": test} if test.any() else {})
    splits = {
        split: in_memory(x[rows], source, None if classes is None else classes[rows]) for split, rows in parts.items()
    }
    notes = ("the columns are dequantised, and standardised by their training rows",)
    shape, columns = (x.shape[1],), tuple(bunch.feature_names)
    return Source(kind="vector", shape=shape, levels=0, splits=splits, columns=columns, notes=notes)


def _resolution(x: np.ndarray) -> np.ndarray:
    """The least difference between two values of a column, (d,)."""
    gaps = [np.diff(np.unique(column)) for column in x.T]
    return np.array([gap[gap > 1e-9 * np.ptp(column)].min() for gap, column in zip(gaps, x.T, strict=True)])
