"""What a set of a known format comes with and a source has not is named; nothing takes its place unless it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import pixels, refused, stored

from pipelines.config.terminal.cli import override
from pipelines.data.ingest import prepare
from pipelines.data.source import Options


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(root: Path, train: str = "train", test: str = "t10k") -> Path:
    """Fifty training and ten test images."""
    root.mkdir(parents=True)
    for part, num in ((train, 50), (test, 10)):
        (root / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels(num, 8, 8)))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(num, dtype=np.uint8) % 10))
    return root


def emnist(root: Path) -> Path:
    return mnist(root, "emnist-digits-train", "emnist-digits-test")


def cifar(root: Path) -> Path:
    """Five training batches of ten images, and one of them to test."""
    root.mkdir(parents=True)
    for name in (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"):
        rows = np.concatenate([np.arange(10, dtype=np.uint8)[:, None], pixels(10, 3072)], axis=1)
        (root / name).write_bytes(rows.tobytes())
    return root


CARD = """---
dataset_info:
  splits:
  - name: train
    num_bytes: 1234
    num_examples: 60
  - name: test
    num_bytes: 123
    num_examples: 6
---
"""


def hub(root: Path) -> Path:
    """Sixty training images in two Parquet files and six test images in one, with the card of the set."""
    from test_read_images import hub as write
    from test_read_images import png

    root.mkdir(parents=True)
    images: list[bytes | None] = [png(x) for x in pixels(66, 1, 8, 8)]
    for name, part in (("train-00000-of-00002", images[:30]), ("train-00001-of-00002", images[30:60])):
        write(root / "data" / f"{name}.parquet", part, [0] * 30)
    write(root / "data" / "test-00000-of-00001.parquet", images[60:], [0] * 6)
    (root / "README.md").write_text(CARD)
    return root


SETS: dict[Callable[[Path], Path], tuple[str, ...]] = {
    mnist: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    emnist: ("emnist-digits-test-images-idx3-ubyte", "emnist-digits-test-labels-idx1-ubyte"),
    cifar: ("test_batch.bin",),
    hub: ("data/test-00000-of-00001.parquet",),
}
"""Published sets, and their files of the test split."""


@pytest.mark.parametrize("written", SETS, ids=lambda written: written.__name__)
def test_a_test_split_that_is_missing_is_named_and_not_made_of_training_data(
    tmp_path: Path, written: Callable[[Path], Path]
) -> None:
    root = written(tmp_path / "set")
    for name in SETS[written]:
        (root / name).unlink()
    named = "'test'" if written is hub else str(root / SETS[written][0])
    refused(root, tmp_path / "out", named, "is missing", "--splits train,test", "--test-fraction 0", options=Options())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("written", SETS, ids=lambda written: written.__name__)
def test_a_hold_out_that_is_asked_for_is_made_and_said(tmp_path: Path, written: Callable[[Path], Path]) -> None:
    root = written(tmp_path / "set")
    for name in SETS[written]:
        (root / name).unlink()
    rows = 60 if written is hub else 50
    for given, held in (({"splits": "train,test"}, rows // 5), ({"test_fraction": "0.1"}, rows // 10)):
        card = prepare(root, tmp_path / "out", override(Options(), given))
        assert {name: split.count for name, split in card.splits.items()} == {"train": rows - held, "test": held}
        assert "held out by --test-fraction" in card.splits["test"].source
    card = prepare(root, tmp_path / "out", Options(test_fraction=0))
    assert {name: split.count for name, split in card.splits.items()} == {"train": rows}


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_images_without_their_labels_and_labels_without_their_images(tmp_path: Path, part: str) -> None:
    root = mnist(tmp_path / "set")
    images, labels = root / f"{part}-images-idx3-ubyte", root / f"{part}-labels-idx1-ubyte"
    kept = labels.read_bytes()
    labels.unlink()
    refused(root, tmp_path / "out", f"{labels}: missing", images.name, "--labels ignore")
    card = prepare(root, tmp_path / "out", Options(labels="ignore"))
    assert (card.num_classes, card.split("train").count, card.split("test").count) == (0, 50, 10)
    assert (stored(tmp_path / "out")[1] == -1).all()
    labels.write_bytes(kept)
    images.unlink()
    refused(root, tmp_path / "out", f"{images}: missing", labels.name)


@pytest.mark.parametrize("index", [1, 3, 5])
def test_a_batch_of_cifar_that_is_missing_is_named(tmp_path: Path, index: int) -> None:
    root = cifar(tmp_path / "set")
    (root / f"data_batch_{index}.bin").unlink()
    refused(root, tmp_path / "out", f"data_batch_{index}.bin: missing", "data_batch_1 to data_batch_5")


def test_a_file_of_several_that_is_missing_is_named(tmp_path: Path) -> None:
    root = hub(tmp_path / "set")
    (root / "data" / "train-00000-of-00002.parquet").unlink()
    refused(root, tmp_path / "out", "data/train-00000-of-00002 is missing", "1 of 2", "--split train=data/train-*")
    card = prepare(root, tmp_path / "out", Options(split=("train=data/train-*", "test=data/test-*")))
    assert (card.split("train").count, card.split("test").count) == (30, 6)


def test_parquet_of_a_set_that_declares_no_test_split_gets_a_hold_out(tmp_path: Path) -> None:
    root = hub(tmp_path / "set")
    (root / "data" / "test-00000-of-00001.parquet").unlink()
    (root / "README.md").write_text(CARD.partition("  - name: test")[0] + "---\n")
    assert {name: split.count for name, split in prepare(root, tmp_path / "out").splits.items()} == {
        "train": 48,
        "test": 12,
    }
