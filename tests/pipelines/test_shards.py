"""Rows are stored in shards, read whole or by row group, and what is damaged is told."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sources import verify, write_shards

from pipelines.data.card import Card, load_card, write_card
from pipelines.data.order import Streams
from pipelines.data.shards import read_all, read_groups, read_split
from pipelines.data.share import Share

ROWS = 1037
BLANK = Card(name="levels", source="test", kind="image", shape=(2, 3, 4), levels=17, num_classes=5, group_rows=10)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card, np.ndarray, np.ndarray]:
    """A split of 1,037 rows in shards of 100 rows and groups of 10."""
    directory = tmp_path_factory.mktemp("stored")
    generator = np.random.default_rng(0)
    x, label = generator.integers(0, 17, (ROWS, 2, 3, 4)), generator.integers(-1, 5, ROWS)
    cuts = [0, 1, 40, 333, 334, 900, ROWS]
    chunks = ((x[a:b], label[a:b]) for a, b in pairwise(cuts))
    card = write_shards(directory, BLANK, "train", chunks, rows_per_shard=95)
    write_card(directory, card)
    return directory, card, x, label


def test_stored_rows_come_back(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    directory, card, x, label = stored
    assert load_card(directory) == card == load_card(directory / "card.json")
    verify(card, directory)
    assert card.num_dims == 24
    rows = read_all(directory, card, "train")
    assert rows["x"].dtype == np.uint8
    np.testing.assert_array_equal(rows["x"], x)
    np.testing.assert_array_equal(rows["label"], label)
    np.testing.assert_array_equal(rows["row"], np.arange(ROWS))
    part = list(read_split(directory, card, "train", limit=150, start=57))
    np.testing.assert_array_equal(np.concatenate([chunk["row"] for chunk in part]), np.arange(57, 207))
    np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in part]), x[57:207])
    assert max(len(chunk["x"]) for chunk in part) <= card.group_rows


@pytest.mark.parametrize(("levels", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16)])
def test_levels_choose_the_stored_type(tmp_path: Path, levels: int, dtype: type) -> None:
    card = replace(BLANK, levels=levels)
    x = np.arange(levels - 24, levels).reshape(1, 2, 3, 4)
    card = write_shards(tmp_path, card, "train", [(x, np.zeros(1))])
    rows = read_all(tmp_path, card, "train")
    assert rows["x"].dtype == dtype
    np.testing.assert_array_equal(rows["x"], x)


def test_vectors_are_stored_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    card = Card(name="v", source="test", kind="vector", shape=(3,), levels=0, group_rows=7)
    card = write_shards(tmp_path, card, "train", [(x, np.full(50, -1))])
    np.testing.assert_array_equal(read_all(tmp_path, card, "train")["x"], x)


@pytest.mark.parametrize("world", [1, 4])
def test_a_worker_reads_each_row_group_once_and_whole(
    stored: tuple[Path, Card, np.ndarray, np.ndarray], world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch of 103 batches from files: the rows, and what was read for them."""
    directory, card, x, label = stored
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int) -> object:
        table = original(self, i)
        read.append(int(table["row"][0].as_py()))
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    order = Streams(card=card, split="train", batch_size=10 * world, seed=3, num_streams=8, pool_rows=200)
    seen: list[int] = []
    for rank in range(world):
        share = Share(order=order, rank=rank, world=world, last=order.epoch_steps)
        parts = (read_groups(directory, card, "train", [group]) for group in share.reads())
        for batch in share.batches(parts):
            np.testing.assert_array_equal(batch["x"], x[batch["row"]])
            np.testing.assert_array_equal(batch["label"], label[batch["row"]])
            seen += batch["row"].tolist()
    assert len(set(seen)) == len(seen) == ROWS // (10 * world) * 10 * world
    assert len(read) <= len(order.bounds) - 1 + world - 1
    assert len(set(read)) >= len(order.bounds) - 1 - 4


def test_row_groups_come_as_they_are_named(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    """In any order, from any shard, the same one twice."""
    directory, card, x, _ = stored
    rows = read_groups(directory, card, "train", [103, 2, 40, 2])
    expected = np.concatenate([np.arange(1030, 1037), np.arange(20, 30), np.arange(400, 410), np.arange(20, 30)])
    np.testing.assert_array_equal(rows["row"], expected)
    np.testing.assert_array_equal(rows["x"], x[expected])


def fresh(directory: Path, rows: int = 40) -> Card:
    x = np.random.default_rng(1).integers(0, 17, (rows, 2, 3, 4))
    card = write_shards(directory, BLANK, "train", [(x, np.zeros(rows))], rows_per_shard=20)
    write_card(directory, card)
    return card


def fails(call: object, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()  # pyright: ignore[reportCallIssue]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_missing_data_set_says_what_is_there(tmp_path: Path) -> None:
    fails(lambda: load_card(tmp_path / "no"), str(tmp_path / "no"), "no such directory", "prepare.py")
    (tmp_path / "notes.txt").touch()
    fails(lambda: load_card(tmp_path), "notes.txt", "prepare.py SOURCE --out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON card"),
        ("[]", "card version None"),
        ('{"version": 99}', "card version 99, this code reads 1"),
        ('{"version": 1}', "not a valid card"),
    ],
)
def test_a_bad_card_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.json").write_text(text)
    fails(lambda: load_card(tmp_path), str(tmp_path / "card.json"), message)


def test_a_card_that_miscounts_is_refused(tmp_path: Path) -> None:
    fresh(tmp_path)
    document = json.loads((tmp_path / "card.json").read_text())
    document["splits"]["train"]["count"] = 41
    (tmp_path / "card.json").write_text(json.dumps(document))
    fails(lambda: load_card(tmp_path), "41 rows")
    document["splits"]["train"]["shards"][0]["rows"] = 21
    (tmp_path / "card.json").write_text(json.dumps(document))
    fails(lambda: load_card(tmp_path), "train-00000.parquet", "20 rows where the card says 21")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    fresh(tmp_path)
    (tmp_path / "train-00001.parquet").unlink()
    fails(lambda: load_card(tmp_path), "train-00001.parquet", "missing")


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    card = fresh(tmp_path)
    file = tmp_path / "train-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    fails(lambda: load_card(tmp_path), str(file), "bytes where the card says")
    fails(lambda: read_all(tmp_path, card, "train"), str(file), "cannot read")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    card = fresh(tmp_path)
    file = tmp_path / "train-00000.parquet"
    content = bytearray(file.read_bytes())
    content[150] ^= 0xFF
    file.write_bytes(content)
    load_card(tmp_path)
    with pytest.raises(AssertionError):
        verify(card, tmp_path)
    fails(lambda: read_all(tmp_path, card, "train"), str(file), "cannot read")


def test_shards_of_another_data_set_are_noticed(tmp_path: Path) -> None:
    card = fresh(tmp_path)
    fails(lambda: read_all(tmp_path, replace(card, shape=(1, 5, 5)), "train"), "train-00000.parquet", "25 bytes")
    (tmp_path / "train-00001.parquet").replace(tmp_path / "train-00000.parquet")
    fails(lambda: read_all(tmp_path, card, "train"), "not where the card says")


def test_killed_writing_leaves_no_data_set(tmp_path: Path) -> None:
    fresh(tmp_path)

    def chunks():
        yield np.ones((25, 2, 3, 4), int), np.zeros(25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, BLANK, "train", chunks(), rows_per_shard=20)
    assert not list(tmp_path.glob(".*"))  # of the second shard there were 5 rows, or a file half written
    fails(lambda: load_card(tmp_path), "no prepared data set here")
    card = fresh(tmp_path, rows=60)
    assert load_card(tmp_path) == card
    verify(card, tmp_path)


def test_a_card_checks_its_fields() -> None:
    for change, message in [
        ({"kind": "vector"}, "kind='vector'"),
        ({"levels": 1}, "levels=1"),
        ({"low": 1.0}, "low=1.0"),
        ({"shape": (0, 1, 1)}, "shape="),
        ({"num_classes": -1}, "num_classes=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(BLANK, **change)
    with pytest.raises(ValueError, match="continuous"):
        Card(name="v", source="s", kind="vector", shape=(2,), levels=3)
