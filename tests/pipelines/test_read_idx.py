"""IDX files come back byte by byte, EMNIST's upright; damaged ones are refused."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sources import pixels, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.readers.idx import CLASSES
from pipelines.data.source import Options


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


def emnist(root: Path, subset: str, x: np.ndarray, label: np.ndarray, suffix: str = "") -> None:
    """Four fifths of the images as train, the rest as test, rows and columns exchanged as in the published files."""
    root.mkdir(exist_ok=True)
    held = len(x) // 5
    for split, part in (("train", slice(held, None)), ("test", slice(0, held))):
        for name, array in (("images-idx3", x[part].swapaxes(1, 2)), ("labels-idx1", label[part])):
            content = idx(np.ascontiguousarray(array))
            file = root / f"emnist-{subset}-{split}-{name}-ubyte{suffix}"
            file.write_bytes(gzip.compress(content) if suffix else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("subset", CLASSES)
def test_emnist_is_read_upright_with_classes_from_zero(tmp_path: Path, subset: str, suffix: str) -> None:
    """Images that are wider than high show the exchange; the number of classes is the subset's, seen or not."""
    least = 1 if subset == "letters" else 0
    x, label = pixels(40, 6, 5), (np.arange(40) % 7 + least).astype(np.uint8)
    emnist(tmp_path / "in", subset, x, label, suffix)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert (card.shape, card.levels, card.num_classes) == ((1, 6, 5), 256, CLASSES[subset])
    assert {name: split.count for name, split in card.splits.items()} == {"train": 32, "test": 8}
    for split, part in (("train", slice(8, None)), ("test", slice(0, 8))):
        found = stored(tmp_path / "out", split)
        np.testing.assert_array_equal(found[0][:, 0], x[part])
        np.testing.assert_array_equal(found[1], label[part] - least)


def test_emnist_without_labels_has_no_classes(tmp_path: Path) -> None:
    emnist(tmp_path / "in", "letters", pixels(40, 6, 5), np.ones(40, np.uint8))
    for file in (tmp_path / "in").glob("*labels*"):
        file.unlink()
    assert prepare(tmp_path / "in", tmp_path / "out", Options(labels="ignore")).num_classes == 0
    assert (stored(tmp_path / "out")[1] == -1).all()


@pytest.mark.parametrize(
    ("subset", "label", "told"),
    [
        ("letters", 0, "one of EMNIST's letters, 1 to 26"),
        ("letters", 27, "one of EMNIST's letters, 1 to 26"),
        ("balanced", 47, "one of EMNIST's balanced, 0 to 46"),
    ],
)
def test_labels_that_a_subset_of_emnist_does_not_have_are_refused(
    tmp_path: Path, subset: str, label: int, told: str
) -> None:
    """Never shifted to another class, nor to "no label"."""
    labels = np.ones(40, np.uint8)
    labels[11] = label
    emnist(tmp_path / "in", subset, pixels(40, 6, 5), labels)
    file = tmp_path / "in" / f"emnist-{subset}-train-labels-idx1-ubyte"
    refused(tmp_path / "in", tmp_path / "out", f"{file} row 3: the label {label} is not {told}")


def test_of_several_sets_in_a_directory_none_is_chosen(tmp_path: Path) -> None:
    """The published archive holds all subsets in one directory; the remedy that is told is one that works."""
    x, label = pixels(40, 6, 5), np.ones(40, np.uint8)
    for subset in ("letters", "digits", "mnist"):
        emnist(tmp_path / "in", subset, x, label, ".gz")
    refused(tmp_path / "in", tmp_path / "out", "several sets, emnist-digits, emnist-letters, emnist-mnist;")
    with pytest.raises(ValueError, match="give a directory with one of them, made there by: mkdir") as caught:
        prepare(tmp_path / "in", tmp_path / "out")
    subprocess.run(str(caught.value).partition("made there by: ")[2], shell=True, cwd=tmp_path / "in", check=True)
    assert prepare(tmp_path / "in" / "emnist-mnist", tmp_path / "out").num_classes == 10
    refused(tmp_path / "in", tmp_path / "out", "several sets, emnist-digits, emnist-letters;")
    mnist(tmp_path / "in")
    refused(tmp_path / "in", tmp_path / "out", "several sets, MNIST, emnist-digits, emnist-letters;")
