"""IDX files come back byte by byte; damaged ones are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from sources import pixels, refused, stored

from pipelines.data.ingest import prepare


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(root: Path, zipped: bool = True) -> tuple[np.ndarray, np.ndarray]:
    root.mkdir(exist_ok=True)
    x, label = pixels(60, 28, 28), np.arange(60, dtype=np.uint8) % 10
    for prefix, part in (("train", slice(0, 50)), ("t10k", slice(50, 60))):
        for name, array in ((f"{prefix}-images-idx3-ubyte", x[part]), (f"{prefix}-labels-idx1-ubyte", label[part])):
            file = root / (name + ".gz" * zipped)
            file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return x, label


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_round_trip(tmp_path: Path, zipped: bool) -> None:
    x, label = mnist(tmp_path / "mnist", zipped)
    card = prepare(tmp_path / "mnist", tmp_path / "out")
    assert (card.shape, card.levels, card.num_classes, list(card.splits)) == ((1, 28, 28), 256, 10, ["train", "test"])
    for split, part in (("train", slice(0, 50)), ("test", slice(50, 60))):
        found = stored(tmp_path / "out", split)
        np.testing.assert_array_equal(found[0][:, 0], x[part])
        np.testing.assert_array_equal(found[1], label[part])


def test_bad_idx_files_are_named(tmp_path: Path) -> None:
    root, out = tmp_path / "mnist", tmp_path / "out"
    mnist(root, zipped=False)
    images, labels = root / "train-images-idx3-ubyte", root / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    images.write_bytes(good[:-1])
    refused(root, out, str(images), "truncated at row 49 of the 50")
    images.write_bytes(good + b"\0")
    refused(root, out, str(images), "more bytes")
    images.write_bytes(b"\0\0\x0d\3" + good[4:])
    refused(root, out, str(images), "00000d03")
    images.write_bytes(good[:4] + b"\x7f\xff\xff\xff" + good[8:])
    refused(root, out, str(images), "2147483647", "more than its bytes can hold")
    images.write_bytes(good)
    labels.write_bytes(idx(np.zeros(49, np.uint8)))
    refused(root, out, str(labels), "49 labels", "50 images")


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-500])
    refused(tmp_path / "mnist", tmp_path / "out", str(file), "truncated")
