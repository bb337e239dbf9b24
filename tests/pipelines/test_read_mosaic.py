"""Mosaics are drawn from the images of a base's own split, the same in every preparation; bad names are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import WHOLE, pixels, refused, stored

from pipelines.data.cache import data_directory, ensure
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.mosaics import RULE
from pipelines.data.origin import canonical, without_path
from pipelines.data.readers import mosaic
from pipelines.data.readers.mosaic import Mosaic
from pipelines.data.source import Options

FEW = Options(rows=200)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(root: Path, **labels: np.ndarray) -> dict[str, np.ndarray]:
    """A directory of IDX files of 4 x 3 pixels with the labels of each split; returns the images."""
    root.mkdir()
    images = {}
    for seed, (split, label) in enumerate(labels.items()):
        images[split] = pixels(len(label), 4, 3, seed=seed)
        (root / f"{split}-images-idx3-ubyte").write_bytes(idx(images[split]))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(label.astype(np.uint8)))
    return images


def cells(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Mosaics (n, 1, R h, C w) as cells (n, R, C, h w)."""
    n, _, height, width = x.shape
    cut = x.reshape(n, rows, height // rows, cols, width // cols).swapaxes(2, 3)
    return cut.reshape(n, rows, cols, -1)


def classes(x: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The classes of cells, each of which must be one of the images."""
    known = {image.tobytes(): label for image, label in zip(images.astype(np.uint8), labels, strict=True)}
    return np.array([known[cell.tobytes()] for cell in x.reshape(-1, x.shape[-1])]).reshape(x.shape[:-1])


def test_mosaics_of_digits_are_prepared_and_read_back(tmp_path):
    where = ensure("mosaic:digits:1x3", tmp_path, FEW)
    card = load_card(where)
    assert (card.kind, card.shape, card.levels, card.num_classes) == ("image", (1, 8, 24), 17, 10)
    assert (card.split("train").count, card.split("test").count) == (200, 40)
    assert RULE in card.notes
    assert data_directory("mosaic:digits:1x3", tmp_path) == tmp_path / "mosaic-digits-1x3"
    written = (where / "card.json").stat().st_mtime_ns
    assert ensure("mosaic:digits:1x3", tmp_path, FEW) == where
    assert (where / "card.json").stat().st_mtime_ns == written
    seen = [{cell.tobytes() for cell in cells(stored(where, split)[0], 1, 3).reshape(-1, 64)} for split in card.splits]
    assert not seen[0] & seen[1]
    prepare("digits", tmp_path / "base", FEW)
    for split in ("train", "test"):
        (x, label), (images, labels) = stored(where, split), stored(tmp_path / "base", split)
        found = classes(cells(x, 1, 3), images, labels)
        np.testing.assert_array_equal(found[:, 0, 0], label)
        assert set(np.unique(np.diff(found[:, 0]) % 10)) == {0, 1}


def test_rows_depend_on_the_seed_and_neither_on_chunks_nor_on_their_number(tmp_path, monkeypatch):
    source = "mosaic:digits:2x2"
    prepare(source, tmp_path / "a", FEW)
    prepare(source, tmp_path / "more", Options(rows=300))
    prepare(source, tmp_path / "seed", Options(rows=200, seed=1))
    monkeypatch.setattr(mosaic, "chunk_rows", lambda row_bytes: 7)
    monkeypatch.setattr(mosaic, "AT_A_TIME", 3)
    prepare(source, tmp_path / "b", FEW)
    for split in ("train", "test"):
        a, b, more, seed = (stored(tmp_path / name, split) for name in ("a", "b", "more", "seed"))
        for first, second, third in zip(a, b, more, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(first, third[: len(first)])
        assert (a[0] != seed[0]).any()


def test_cells_of_a_directory_come_from_its_own_splits(tmp_path):
    labels = {"train": np.arange(60) % 3, "t10k": np.arange(15) % 3}
    images = mnist(tmp_path / "MNIST", **labels)
    card = prepare(f"mosaic:{tmp_path / 'MNIST'}:2x3", tmp_path / "out", FEW)
    assert (card.shape, card.levels, card.name) == ((1, 8, 9), 256, "mosaic-MNIST-2x3")
    for split, part in (("train", "train"), ("test", "t10k")):
        x, label = stored(tmp_path / "out", split)
        c = classes(cells(x, 2, 3), images[part], labels[part])
        np.testing.assert_array_equal(c[:, 0, 0], label)
        assert ((c[:, 0, :-1] + c[:, 1, 1:] - c[:, 0, 1:] - c[:, 1, :-1]) % 3 == 0).all()


def test_a_changed_base_is_drawn_from_anew(tmp_path, monkeypatch):
    labels = {"train": np.arange(30) % 3, "t10k": np.arange(6) % 3}
    mnist(tmp_path / "MNIST", **labels)
    monkeypatch.chdir(tmp_path)
    source = f"mosaic:{tmp_path / 'MNIST'}:1x2"
    assert canonical("mosaic:MNIST:1x2") == canonical("mosaic:./MNIST:01x2") == source
    assert without_path(source) == "mosaic:MNIST:1x2"
    where = ensure("mosaic:MNIST:1x2", tmp_path / "data", FEW)
    before = load_card(where)
    assert where.name.startswith("mosaic-MNIST-1x2-")
    assert before.fingerprint
    (tmp_path / "MNIST" / "t10k-labels-idx1-ubyte").write_bytes(idx((np.arange(6)[::-1] % 3).astype(np.uint8)))
    assert ensure(source, tmp_path / "data", FEW) == where
    assert load_card(where).digest != before.digest
    refused(source, tmp_path / "MNIST", "is the source itself", options=FEW)


def test_hold_outs_and_labels_are_as_the_options_say(tmp_path):
    card = prepare("mosaic:digits:1x2", tmp_path / "whole", Options(rows=50, test_fraction=0))
    assert set(card.splits) == {"train"}
    card = prepare("mosaic:digits:1x2", tmp_path / "test", Options(rows=50, splits=("test",)))
    assert set(card.splits) == {"test"}
    card = prepare("mosaic:digits:1x2", tmp_path / "bare", Options(rows=50, labels="ignore"))
    assert card.num_classes == 0
    assert (stored(tmp_path / "bare")[1] == -1).all()
    mnist(tmp_path / "alone", train=np.arange(60) % 3)
    refused(f"mosaic:{tmp_path / 'alone'}:1x2", tmp_path / "out", "comes with a test split", options=FEW)


def test_classes_keep_their_names(tmp_path):
    names = ("ant", "bee")
    for index, name in enumerate(names):
        (tmp_path / "insects" / name).mkdir(parents=True)
        for number in range(30):
            x = np.full((5, 4), 100 * index + number, np.uint8)
            Image.fromarray(x).save(tmp_path / "insects" / name / f"{number}.png")
    card = prepare(f"mosaic:{tmp_path / 'insects'}:1x2", tmp_path / "out", Options(rows=50))
    x, label = stored(tmp_path / "out")
    assert (card.classes, card.num_classes, card.shape) == (names, 2, (1, 5, 8))
    np.testing.assert_array_equal(x[:, 0, 0, 0] >= 100, label == 1)
    assert prepare(card.source, tmp_path / "sized", Options(rows=50, size=8)).shape == (1, 8, 16)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("mosaic:digits", "missing"),
        ("mosaic:", "missing"),
        ("mosaic::1x3", "missing"),
        ("mosaic:digits:3", "missing"),
        ("mosaic:digits:-1x3", "missing"),
        ("mosaic:digits:1x3x3", "missing"),
        ("mosaic:digits:0x3", "has no cells"),
        ("mosaic:digits:3x0", "has no cells"),
        ("mosaic:toy2d:rings:1x3", "has vectors"),
        ("mosaic:sklearn:wine:1x3", "has vectors"),
        ("mosaic:mosaic:digits:1x2:1x3", "mosaics of mosaics"),
    ],
)
def test_bad_names_are_refused(tmp_path, source, part):
    refused(source, tmp_path / "out", f"source={source!r}", part, "such as mosaic:digits:1x3")


def test_bases_that_have_no_labelled_images_are_refused(tmp_path):
    source = f"mosaic:{tmp_path}/%s:1x3"
    refused(source % "none", tmp_path / "out", "none", "no such file", "mosaic:BASE:RxC")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    refused(source % "empty", tmp_path / "out", "empty")
    np.save(tmp_path / "plain.npy", pixels(30, 8, 6))
    refused(source % "plain.npy", tmp_path / "out", "no labels", "such as mosaic:digits:1x3")
    mnist(tmp_path / "one", train=np.zeros(20), t10k=np.zeros(5))
    refused(source % "one", tmp_path / "out", "one class")
    mnist(tmp_path / "lacking", train=np.arange(20) % 4, t10k=np.arange(20) % 3)
    refused(source % "lacking", tmp_path / "out", "test has no image of class 3 of the 4")
    prepare("digits", tmp_path / "prepared")
    refused(source % "prepared", tmp_path / "out", "already prepared", "what it was prepared from")


def test_a_mosaic_has_a_name():
    parsed = Mosaic.parse("mosaic:/a:b/MNIST:12x3")
    assert (parsed.base, parsed.rows, parsed.cols, str(parsed)) == ("/a:b/MNIST", 12, 3, "mosaic:/a:b/MNIST:12x3")
    assert not Mosaic.means("mosaics:x")
    assert mosaic.read_mosaic("digits", WHOLE, lambda source, options: None) is None
