"""A name that says its split is that split, in any source; what is not recognised is refused, and never mixed into train."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import WHOLE, png, refused, stored

from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.data.splits import assign, canonical_split, parse

TRAIN, OTHER = 10, 200
"""Grey levels of the training images and of all others: a mixture shows."""


def pictures(folder: Path, num: int, level: int = TRAIN) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        (folder / f"{index}.png").write_bytes(png(np.full((3, 4, 4), level, np.uint8)))


def parquet(file: Path, num: int, level: int = TRAIN) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = pa.array(
        [{"bytes": png(np.full((3, 4, 4), level, np.uint8)), "path": None}] * num,
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": cells}), file)


def idx(file: Path, num: int, level: int = TRAIN) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    x = np.full((num, 4, 4), level, np.uint8)
    file.write_bytes(bytes((0, 0, 8, 3)) + np.array(x.shape, ">u4").tobytes() + x.tobytes())


def counts(out: Path, card: Card) -> dict[str, int]:
    """Rows by split, after a look at their levels."""
    for name in card.splits:
        assert (stored(out, name)[0] == (TRAIN if name == "train" else OTHER)).all()
    return {name: split.count for name, split in card.splits.items()}


@pytest.mark.parametrize(
    ("name", "split", "rest"),
    [
        ("Train", "train", ()),
        ("MNIST_training", "train", ("mnist",)),
        ("train-00000-of-00002-1a2b", "train", ()),
        ("val2017", "valid", ()),
        ("X_dev", "valid", ("x",)),
        ("TestImages", "test", ("images",)),
        ("t10k", "test", ()),
        ("evaluation", "eval", ()),
        ("contest", "", ("contest",)),
        ("train_test", "", ()),
        ("trainval", "", ("trainval",)),
    ],
)
def test_names_are_read_by_their_words(name: str, split: str, rest: tuple[str, ...]) -> None:
    assert (parse(name).split, parse(name).rest) == (split, rest)


def test_eval_is_test_where_there_is_none() -> None:
    assert assign(["train", "eval"], "x").of == {"train": ("train",), "test": ("eval",)}
    assert assign(["train", "dev", "eval"], "x").of == {"train": ("train",), "test": ("eval",), "valid": ("dev",)}
    assert assign(["train", "eval", "test"], "x").of == {"train": ("train",), "test": ("test",), "valid": ("eval",)}
    assert canonical_split("Validation") == "valid"


@pytest.mark.parametrize("options", [Options(), Options(splits=("train", "validation"))])
def test_valid_serves_as_test_unless_it_is_asked_for(tmp_path: Path, options: Options) -> None:
    """Models are measured on `test`; a set that is published with train and val has another name for it."""
    pictures(tmp_path / "in" / "train", 6)
    pictures(tmp_path / "in" / "val", 3, OTHER)
    card = prepare(tmp_path / "in", tmp_path / "out", options)
    name = "valid" if options.splits else "test"
    assert counts(tmp_path / "out", card) == {"train": 6, name: 3}
    assert any("val serves as test" in note for note in card.notes) == (name == "test")
    pictures(tmp_path / "in" / "TEST", 2, OTHER)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 6, "test": 2, "valid": 3}


@pytest.mark.parametrize(
    ("train", "other", "classes"),
    [
        ("train_images", "test_images", 0),
        ("data/TRAINING/{}", "data/Testing/{}", 2),
        ("{}/train", "{}/test", 2),
        ("img/train2017", "img/eval2017", 0),
        ("DIV_train_HR/pictures/{}", "DIV_valid_HR/pictures/{}", 2),
    ],
)
def test_folders_of_splits_at_any_depth(tmp_path: Path, train: str, other: str, classes: int) -> None:
    for name in "ab"[: classes or 1]:
        pictures(tmp_path / "in" / train.format(name), 4)
        pictures(tmp_path / "in" / other.format(name), 2, OTHER)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 4 * (classes or 1), "test": 2 * (classes or 1)}
    assert card.num_classes == classes


@pytest.mark.parametrize(
    "names", [("cat", "dog", "test"), ("bus", "train"), ("test", "val"), ("bus_station", "train_station")]
)
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pictures(tmp_path / "in" / name, 4)
    card = prepare(tmp_path / "in", tmp_path / "out", WHOLE)
    assert (card.split("train").count, card.num_classes) == (4 * len(names), len(names))
    said = [name for name in names if name in ("train", "test", "val")]
    assert all(any(f"{name}" in note and "as a class" in note for note in card.notes) for name in said)


def test_folders_that_are_partly_splits_are_refused_or_said(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    pictures(root / "train", 6)
    pictures(root / "test", 3, OTHER)
    pictures(root / "extra", 2, OTHER)
    refused(root, out, "extra beside test, train may be splits or classes", "--split train=")
    card = prepare(root, out, Options(split=("train=train", "test=extra")))
    assert counts(out, card) == {"train": 6, "test": 2}
    assert [(item.name, item.files, item.reason) for item in card.left_out] == [("test", 3, "not named by --split")]
    card = prepare(root, out, Options(split=("train=.",), test_fraction=0))
    assert (card.split("train").count, card.num_classes) == (11, 3)
    refused(root, out, "split=test=nothing", "it has", options=Options(split=("test=nothing",)))
    with pytest.raises(ValueError, match="split='tset=extra': say train=PART"):
        Options(split=("tset=extra",))
    pictures(root, 1)
    refused(root, out, "both beside and inside folders such as 'extra'")


def test_some_classes_with_splits_and_two_words_for_one_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "a" / "cat" / "train", 2)
    pictures(tmp_path / "a" / "cat" / "test", 2)
    pictures(tmp_path / "a" / "dog", 2)
    refused(tmp_path / "a", tmp_path / "out", "cat holds splits and dog does not")
    for name in ("train", "val", "dev"):
        pictures(tmp_path / "b" / name, 2)
    refused(tmp_path / "b", tmp_path / "out", "dev, val all mean valid", "--split")
    pictures(tmp_path / "c" / "train" / "cat", 2)
    pictures(tmp_path / "c" / "holdout" / "cat", 2)
    refused(tmp_path / "c", tmp_path / "out", "holdout beside train may be splits or classes")


def test_a_test_set_without_class_folders_has_no_labels(tmp_path: Path) -> None:
    """Its one folder is no class beside those of train; a class that train does not have is said."""
    for name in "ab":
        pictures(tmp_path / "in" / "train" / name, 3)
    pictures(tmp_path / "in" / "test" / "images", 2, OTHER)
    pictures(tmp_path / "in" / "val" / "a", 2, OTHER)
    pictures(tmp_path / "in" / "val" / "c", 2, OTHER)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 6, "test": 2, "valid": 4}
    assert (card.num_classes, stored(tmp_path / "out", "test")[1].tolist()) == (3, [-1, -1])
    assert [note.partition(":")[0] for note in card.notes[:2]] == ["test", "valid"]


def test_each_class_may_spell_its_splits_otherwise(tmp_path: Path) -> None:
    for folder, level in (("cat/TRAIN", TRAIN), ("cat/Val", OTHER), ("dog/train", TRAIN), ("dog/validation", OTHER)):
        pictures(tmp_path / "in" / folder, 3, level)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 6, "test": 6}


@pytest.mark.parametrize(
    ("train", "other"),
    [("mnist_TRAIN", "mnist_val"), ("train/0000", "validation/0000"), ("plain/train-0", "plain/dev-0")],
)
def test_parquet_files_of_splits(tmp_path: Path, train: str, other: str) -> None:
    parquet(tmp_path / "in" / f"{train}.parquet", 5)
    parquet(tmp_path / "in" / f"{other}.parquet", 2, OTHER)
    parquet(tmp_path / "in" / ".cache" / "extra.parquet", 2, OTHER)
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 5, "test": 2}
    assert [(item.name, item.files) for item in card.left_out] == [(".cache/", 1)]


def test_parquet_files_of_no_split(tmp_path: Path) -> None:
    """Numbered files are one set; other names are not guessed."""
    for index in range(2):
        parquet(tmp_path / "a" / f"{index:04d}.parquet", 5)
    assert prepare(tmp_path / "a", tmp_path / "out", WHOLE).split("train").count == 10
    parquet(tmp_path / "a" / "holdout.parquet", 5, OTHER)
    refused(tmp_path / "a", tmp_path / "out", "0000.parquet, 0001.parquet, holdout.parquet are no split that is known")
    parquet(tmp_path / "b" / "train-0.parquet", 5)
    parquet(tmp_path / "b" / "unlabeled-0.parquet", 5, OTHER)
    refused(tmp_path / "b", tmp_path / "out", "unlabeled-0.parquet beside train-0.parquet is no split that is known")
    card = prepare(tmp_path / "b", tmp_path / "out", Options(split=("train=train-*",), test_fraction=0))
    assert card.split("train").count == 5
    assert [item.name for item in card.left_out] == ["unlabeled-0.parquet"]
    parquet(tmp_path / "c" / "test-0.parquet", 5, OTHER)
    refused(tmp_path / "c", tmp_path / "out", "test-0.parquet is no training data", "--splits test")
    assert counts(tmp_path / "out", prepare(tmp_path / "c", tmp_path / "out", Options(splits=("test",)))) == {"test": 5}
    parquet(tmp_path / "d" / "one" / "train-0.parquet", 5)
    parquet(tmp_path / "d" / "two" / "train-0.parquet", 5)
    refused(tmp_path / "d", tmp_path / "out", "are parts of different sets")


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("Train-images-idx3-ubyte", "VAL-images-idx3-ubyte"),
        ("kmnist-train-images.idx3-ubyte", "kmnist-test-images.idx3-ubyte"),
    ],
)
def test_idx_files_of_splits(tmp_path: Path, train: str, other: str) -> None:
    idx(tmp_path / "in" / train, 5)
    idx(tmp_path / "in" / other, 2, OTHER)
    (tmp_path / "in" / "readme.txt").touch()
    card = prepare(tmp_path / "in", tmp_path / "out", Options(labels="ignore"))
    assert counts(tmp_path / "out", card) == {"train": 5, "test": 2}
    assert [item.name for item in card.left_out] == [".txt (readme.txt)"]
    idx(tmp_path / "in" / "extra-images-idx3-ubyte", 3, OTHER)
    refused(tmp_path / "in", tmp_path / "out", "extra beside", "is no split that is known")


@pytest.mark.parametrize(
    ("train", "other"),
    [("X_train y_train", "X_val y_val"), ("train_images train_labels", "testing_images testing_labels")],
)
def test_arrays_of_splits(tmp_path: Path, train: str, other: str) -> None:
    arrays = {}
    for (x, y), num, level in ((train.split(), 8, TRAIN), (other.split(), 4, OTHER)):
        arrays |= {x: np.full((num, 4, 4), level, np.uint8), y: np.arange(num) % 2}
    np.savez(tmp_path / "a.npz", **arrays, names=np.zeros(2))
    card = prepare(tmp_path / "a.npz", tmp_path / "out")
    assert counts(tmp_path / "out", card) == {"train": 8, "test": 4}
    assert (card.num_classes, [item.name for item in card.left_out]) == (2, ["names"])
    np.savez(tmp_path / "a.npz", **arrays, x_extra=arrays[train.split()[0]])
    refused(tmp_path / "a.npz", tmp_path / "out", "x_extra beside", "is no split that is known")


@pytest.mark.parametrize(("train", "other"), [("Train", "Val"), ("training", "dev")])
def test_datasets_of_splits(tmp_path: Path, train: str, other: str) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as archive:
        archive[train], archive[other], archive["names"] = x[:6], x[6:], "of columns"
    card = prepare(tmp_path / "a.h5", tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out", "test")[0], x[6:])
    assert [item.name for item in card.left_out] == ["names"]
    with h5py.File(tmp_path / "a.h5", "a") as archive:
        archive["more"] = x
    refused(tmp_path / "a.h5", tmp_path / "out", "more beside", "is no split that is known")


def test_options_of_parts_and_images_hold_for_these_only(tmp_path: Path) -> None:
    refused("digits", tmp_path / "out", "split=train=a", "no parts with names", options=Options(split=("train=a",)))
    refused(
        "digits",
        tmp_path / "out",
        "background=black, orient=False: only",
        options=Options(background="black", orient=False),
    )


def test_what_earlier_versions_prepared_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its card knows neither the later options nor what was left out: it is used, and one line says so."""
    pictures(tmp_path / "in", 6)
    directory = ensure(tmp_path / "in", tmp_path / "data")
    assert "prepared " in capsys.readouterr().err
    text = (directory / "card.json").read_text()
    old = text.replace('"rules": 2', '"other": 2').replace('"notes"', '"unknown"')
    assert "split\\" not in Options().to_json()
    assert old != text
    (directory / "card.json").write_text(old)
    assert ensure(tmp_path / "in", tmp_path / "data") == directory
    assert (directory / "card.json").read_text() == old
    assert load_card(directory).rules == 1
    assert capsys.readouterr().err.count("prepared by an earlier version") == 1
