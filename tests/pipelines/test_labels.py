"""Labels of any kind become classes, or are refused before a row is copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import WHOLE, pixels, png, refused, stored

from pipelines.data.card import Card, load_card
from pipelines.data.ingest import prepare
from pipelines.data.labels import Labels, classes_of
from pipelines.data.source import Options

IGNORE = Options(test_fraction=0, labels="ignore")


def hub(file: Path, labels: pa.Array | list, column: str = "label") -> Path:
    """Hugging Face's image Parquet with labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(pixels(1, 4, 4, seed=row)), "path": None} for row in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind), column: labels}), file)
    return file


def archive(file: Path, labels: np.ndarray, **others: np.ndarray) -> Path:
    np.savez(file, x=pixels(len(labels), 4, 4), y=labels, **others)
    return file


def prepared(source: Path, options: Options = WHOLE) -> tuple[Card, list[int]]:
    out = source.parent / "out"
    prepare(source, out, options)
    return load_card(out), stored(out)[1].tolist()


WORDS = ["dog", "cat", "eel", "cat"] * 5


@pytest.mark.parametrize(
    "labels",
    [pa.array(WORDS), pa.array(WORDS, pa.large_string()), pa.array(WORDS).dictionary_encode()],
    ids=["words", "large", "categories"],
)
def test_words_are_classes_in_the_order_of_their_names(tmp_path: Path, labels: pa.Array) -> None:
    card, found = prepared(hub(tmp_path / "train.parquet", labels))
    assert (card.num_classes, card.classes) == (3, ("cat", "dog", "eel"))
    assert found == [1, 0, 2, 0] * 5


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2, 0, 1] * 5),
        np.array([2.0, 0.0, 1.0] * 5),
        np.array([2, 0, 1] * 5, ">u2"),
        np.array([[2], [0], [1]] * 5),
    ],
    ids=["int", "float", "big-endian", "column"],
)
def test_whole_numbers_are_the_classes_themselves(tmp_path: Path, labels: np.ndarray) -> None:
    card, found = prepared(archive(tmp_path / "rows.npz", labels))
    assert (card.num_classes, card.classes, found) == (3, (), [2, 0, 1] * 5)


def test_numbers_far_above_their_number_are_numbered_in_their_order(tmp_path: Path) -> None:
    years = np.array([2021, 1999, 2021, 10000] * 5)
    card, found = prepared(archive(tmp_path / "rows.npz", years))
    assert (card.num_classes, card.classes) == (3, ("1999", "2021", "10000"))
    assert found == [1, 0, 1, 2] * 5


def test_words_of_numpy_and_truth_values_are_classes(tmp_path: Path) -> None:
    card, found = prepared(archive(tmp_path / "words.npz", np.array(["b", "a"] * 6)))
    assert (card.classes, found) == (("a", "b"), [1, 0] * 6)
    card, found = prepared(hub(tmp_path / "flags" / "train.parquet", pa.array([True, False] * 6)))
    assert (card.num_classes, found) == (2, [1, 0] * 6)


def test_the_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    test = {"x_test": pixels(4, 4, 4), "y_test": np.array(["ant", "cat", "dog", "dog"])}
    np.savez(tmp_path / "a.npz", x_train=pixels(20, 4, 4), y_train=np.array(WORDS), **test)
    card, found = prepared(tmp_path / "a.npz")
    assert card.classes == ("ant", "cat", "dog", "eel")
    assert found == [2, 1, 3, 1] * 5
    assert stored(tmp_path / "out", "test")[1].tolist() == [0, 1, 2, 2]


def test_a_folder_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        for row in range(3):
            file = tmp_path / "in" / name / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(pixels(1, 4, 4, seed=row)))
    card, found = prepared(tmp_path / "in")
    assert (card.classes, found) == (("ant", "zebra"), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (pa.array([0, 1, None] * 5), ["row 2: no label, as 5 of 15 rows of train"]),
        (pa.array([0, 1, -1] * 5), ["row 2: no label, as 5 of 15 rows"]),
        (pa.array([0.0, 1.0, float("nan")] * 5), ["row 2: no label"]),
        (pa.array(["a", "b", ""] * 5), ["row 2: no label"]),
        (pa.array([0, 1, -7] * 5), ["row 2: the label -7 is not in 0, 1, ..."]),
        (pa.array([0.5, 1.25, 1.0] * 5), ["row 0: the label 0.5 measures something"]),
        (pa.array([0.0, float("inf"), 1.0] * 5), ["row 1: the label inf"]),
        (pa.array(range(2_000_000_000, 2_000_000_015)), ["2000000000", "15 different ones of 15 rows"]),
        (pa.array([f"person-{row}" for row in range(15)]), ["'person-0'", "15 different ones of 15 rows"]),
        (pa.array([2**63, 1, 2] * 5, pa.uint64()), ["the label 9223372036854775808 is not in"]),
        (pa.array(["a" * 1000, "b", "c"] * 5), ["is a text of over 256 letters"]),
        (pa.array([[1], [0], [1]] * 5), ["column label is list", "labels are numbers or words"]),
    ],
)
def test_what_is_no_class_is_refused_and_ignored_by_the_option(
    tmp_path: Path, labels: pa.Array, parts: list[str]
) -> None:
    file = hub(tmp_path / "train.parquet", labels)
    refused(file, tmp_path / "new", *parts, "--labels ignore")
    card, found = prepared(file, IGNORE)
    assert (card.num_classes, card.classes, set(found)) == (0, (), {-1})


def test_many_labels_are_classes_if_two_rows_share_one_on_average() -> None:
    for rows, told in ((2 * 146, ""), (2 * 146 - 1, "146 different ones of 291 rows")):
        labels = {"train": Labels.of([[f"id {row // 2}" for row in range(rows)]])}
        if told:
            with pytest.raises(ValueError, match=told):
                classes_of(labels, lambda split, row: f"row {row}")
        else:
            assert classes_of(labels, lambda split, row: f"row {row}").num == 146


def test_a_label_of_many_bits_is_refused_without_its_digits() -> None:
    with pytest.raises(ValueError, match=r"row 1: the label of 40001 bits is not in 0 to 9") as caught:
        classes_of({"train": Labels.of([[3, 2**40000, 2**70]])}, lambda split, row: f"row {row}", 10)
    assert len(str(caught.value)) < 200


def test_words_beside_numbers_and_a_training_split_without_labels_are_refused(tmp_path: Path) -> None:
    x = {"x_train": pixels(20, 4, 4), "x_test": pixels(4, 4, 4)}
    np.savez(tmp_path / "a.npz", y_train=np.arange(20) % 3, y_test=np.array(["0", "1", "2", "0"]), **x)
    refused(tmp_path / "a.npz", tmp_path / "out", "words and numbers, such as '", "--labels ignore")
    np.savez(tmp_path / "b.npz", y_test=np.array([0, 1, 2, 0]), **x)
    refused(tmp_path / "b.npz", tmp_path / "out", "b.npz:x_test row 0: labelled, but no row of train is")
    np.savez(
        tmp_path / "c.npz", y_train=np.arange(20) % 3, **x
    )  # a test split is drawn from and compared, never classified
    card, _ = prepared(tmp_path / "c.npz")
    assert card.num_classes == 3
    assert set(stored(tmp_path / "out", "test")[1].tolist()) == {-1}


def test_options_of_labels_do_not_prepare_old_sets_anew() -> None:
    """The text of options in the cards of earlier versions is that of today's defaults."""
    assert "labels" not in Options().to_json()
    assert '"labels": "ignore"' in Options(labels="ignore").to_json()
