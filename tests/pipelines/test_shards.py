"""The order of a run is a seeded permutation per epoch that any number of workers and any resumption share."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sources import write_shards

from pipelines.data.card import Card, load_card, verify, write_card
from pipelines.data.order import EpochPlan, Window, fitting_window, permutation, window_order
from pipelines.data.shards import read_all, read_split, read_window

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


def plan_of(card: Card, batch_size: int = 12, seed: int = 3, window_rows: int = 200) -> EpochPlan:
    return EpochPlan(card=card, split="train", batch_size=batch_size, seed=seed, window_rows=window_rows)


def order_of(card: Card, windows: list[Window], rank: int = 0, world: int = 1) -> np.ndarray:
    return np.concatenate([window_order(card, window, rank, world) for window in windows])


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


@pytest.mark.parametrize("batch_size", [1, 12, 250, ROWS])
@pytest.mark.parametrize("window_rows", [1, 200, 65_536])
def test_an_epoch_is_a_permutation(
    stored: tuple[Path, Card, np.ndarray, np.ndarray], batch_size: int, window_rows: int
) -> None:
    plan = plan_of(stored[1], batch_size, window_rows=window_rows)
    windows = plan.epoch_windows(4)
    order = order_of(stored[1], list(windows))
    assert len(order) == plan.epoch_rows == ROWS // batch_size * batch_size
    assert len(np.unique(order)) == len(order)
    assert order.min() >= 0
    assert order.max() < ROWS
    for before, after in pairwise(windows):
        assert before.stop == after.start
        assert before.stop - before.start >= window_rows


def test_the_tail_left_out_differs_between_epochs(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    plan = plan_of(stored[1], batch_size=250)
    left = [set(range(ROWS)) - set(order_of(stored[1], list(plan.epoch_windows(epoch))).tolist()) for epoch in range(8)]
    assert all(len(rows) == 37 for rows in left)
    assert len(frozenset(map(frozenset, left))) == 8


def test_epochs_and_seeds_give_unrelated_orders(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    """In one window, where every row moves on its own: the rank correlation has standard error 1 / sqrt(n)."""
    plans = [plan_of(stored[1], 1, seed, window_rows=65_536) for seed in (0, 1)]
    orders = [order_of(stored[1], list(plan.epoch_windows(epoch))) for plan in plans for epoch in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 5 / np.sqrt(ROWS)
            assert (first == second).sum() < 10


def test_rows_that_are_neighbours_on_disk_part(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    """With the whole split in one window every position is as likely for a row: chi-square over 40 epochs."""
    plan = plan_of(stored[1], 1, window_rows=65_536)
    positions = np.concatenate([np.argsort(order_of(stored[1], list(plan.epoch_windows(e))))[:10] for e in range(40)])
    counts = np.bincount(positions * 8 // ROWS, minlength=8)
    assert ((counts - 50) ** 2 / 50).sum() < 33  # 7 degrees of freedom, alpha 3e-5


def test_permutation_is_the_same_on_every_machine() -> None:
    """Pinned: a change here would change what a resumed run sees."""
    np.testing.assert_array_equal(permutation(7, 2, 1, 12), PINNED)
    np.testing.assert_array_equal(np.sort(permutation(0, 0, 0, 1000)), np.arange(1000))


PINNED = [5, 3, 7, 6, 11, 10, 9, 2, 8, 4, 1, 0]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("window_rows", [1, 90, 65_536])
def test_the_union_over_ranks_is_the_global_batch(
    stored: tuple[Path, Card, np.ndarray, np.ndarray], world: int, window_rows: int
) -> None:
    directory, card, x, label = stored
    plan = plan_of(card, batch_size=12, window_rows=window_rows)
    windows = list(plan.windows(stop=2 * plan.epoch_rows))
    batches = order_of(card, windows).reshape(-1, 12)
    assert len(batches) == 2 * (ROWS // 12)
    for rank in range(world):
        chunks = [read_window(directory, card, window, rank, world) for window in windows]
        rows = np.concatenate([chunk["row"] for chunk in chunks])
        share = 12 // world
        np.testing.assert_array_equal(rows.reshape(-1, share), batches[:, rank * share : (rank + 1) * share])
        np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), x[rows])
        np.testing.assert_array_equal(np.concatenate([chunk["label"] for chunk in chunks]), label[rows])


@pytest.mark.parametrize("start", [0, 12, 13, 199, 200, 201, 1031, 1032, 1033, 2063, 2064, 5000])
def test_resuming_anywhere_continues_identically(stored: tuple[Path, Card, np.ndarray, np.ndarray], start: int) -> None:
    plan = plan_of(stored[1])
    whole = order_of(stored[1], list(plan.windows(stop=6000)))
    assert len(whole) == 6000
    resumed = list(plan.windows(start, stop=6000))
    np.testing.assert_array_equal(order_of(stored[1], resumed), whole[start:])
    restarted = [pickle.loads(pickle.dumps(window)) for window in islice(plan.windows(start), 3)]  # noqa: S301
    np.testing.assert_array_equal(order_of(stored[1], restarted), whole[start:][: len(order_of(stored[1], restarted))])
    assert all(len(pickle.dumps(window)) < 1000 for window in restarted)


def test_reading_a_window_touches_its_groups_only(
    stored: tuple[Path, Card, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, card, *_ = stored
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int) -> object:
        table = original(self, i)
        read.append(table.num_rows)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for window in plan_of(card).epoch_windows(0):
        read.clear()
        read_window(directory, card, window, 1, 2)
        assert len(read) == len(window.groups)
        assert sum(read) < 2 * 200 + card.group_rows
        assert max(read) <= card.group_rows


def test_fitting_window_bounds_memory() -> None:
    large = Card(name="n", source="s", kind="image", shape=(3, 256, 256), levels=256, group_rows=85)
    assert fitting_window(large) * large.row_bytes <= 2**28
    assert fitting_window(BLANK) == 65_536
    assert fitting_window(large, num_bytes=1) == 85


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": ROWS + 1}, "batch_size=1038"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "tset"}, "split='tset'.*train"),
    ],
)
def test_an_impossible_plan_is_refused(
    stored: tuple[Path, Card, np.ndarray, np.ndarray], change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(plan_of(stored[1]), **change)


def test_workers_must_divide_the_batch(stored: tuple[Path, Card, np.ndarray, np.ndarray]) -> None:
    window = next(plan_of(stored[1]).windows())
    with pytest.raises(ValueError, match="batch_size=12: not a multiple of the 5 workers"):
        read_window(stored[0], stored[1], window, 0, 5)
    with pytest.raises(ValueError, match="rank=2"):
        window_order(stored[1], window, 2, 2)
    with pytest.raises(ValueError, match="start=-1"):
        next(plan_of(stored[1]).windows(-1))


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
    fails(lambda: verify(card, tmp_path), str(file), "sha256")
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
