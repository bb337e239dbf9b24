"""The order of a run: every row once in an epoch, the same batches for any number of workers, each reading its own part."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest

from pipelines.data.card import Card, Shard, Split
from pipelines.data.order import Order, Streams, Windows, group_bounds, permutation
from pipelines.data.shards import Rows
from pipelines.data.share import Share
from pipelines.training import stream


def card_of(rows: int, group_rows: int, shard_rows: int = 0, dims: int = 1) -> Card:
    """A data set without files."""
    per = shard_rows or rows
    shards = tuple(
        Shard(file=f"{first}", rows=min(per, rows - first), size=1, sha256="") for first in range(0, rows, per)
    )
    card = Card(name="rows", source="test", kind="vector", shape=(dims,), levels=0, group_rows=group_rows)
    return replace(card, splits={"train": Split(count=rows, skipped=0, shards=shards)})


def streams(card: Card, batch_size: int, num_streams: int = 64, pool_rows: int = 65_536, seed: int = 3) -> Streams:
    return Streams(
        card=card, split="train", batch_size=batch_size, seed=seed, num_streams=num_streams, pool_rows=pool_rows
    )


def windows(card: Card, batch_size: int, pool_rows: int = 65_536, seed: int = 3) -> Windows:
    return Windows(card=card, split="train", batch_size=batch_size, seed=seed, pool_rows=pool_rows)


def batches_of(order: Order, epoch: int) -> np.ndarray:
    """The plain twin of `Share.batches`: the rows of an epoch's batches (K, B), laid out at once."""
    lanes: dict[int, list[np.ndarray]] = {}
    for window in order.windows(epoch, 0, order.batch_size):
        lanes.setdefault(window.column, []).append(order.rows(window))
    return np.concatenate([np.concatenate(lanes[c]).reshape(order.epoch_steps, -1) for c in sorted(lanes)], axis=1)


def supply(share: Share, at_a_time: int, reads: list[int] | None = None) -> Iterator[Rows]:
    """The row groups that a worker reads, cut into parts anyhow: x = row, label = 2 row."""
    bounds, held = share.order.bounds, np.empty(0, np.int64)
    for group in share.reads():
        if reads is not None:
            reads.append(group)
        held = np.concatenate([held, np.arange(bounds[group], bounds[group + 1])])
        while len(held) >= at_a_time:
            part, held = held[:at_a_time], held[at_a_time:]
            yield {"x": part[:, None].astype(np.float32), "label": 2 * part, "row": part}
    yield {"x": held[:, None].astype(np.float32), "label": 2 * held, "row": held}


def trained_on(share: Share, at_a_time: int = 97) -> np.ndarray:
    """The rows of a worker's batches, (steps, B / W); everything that comes with them fits."""
    batches = list(share.batches(supply(share, at_a_time)))
    for batch in batches:
        assert np.array_equal(batch["x"][:, 0], batch["row"])
        assert np.array_equal(batch["label"], 2 * batch["row"])
    return np.array([batch["row"] for batch in batches]).reshape(len(batches), share.size)


def at_random(num: int) -> list[Order]:
    """Orders of all kinds: few rows and many, one row group and many, batches of one row and of all."""
    generator = np.random.default_rng(0)
    orders: list[Order] = []
    for trial in range(num):
        rows, group_rows, num_streams = (int(generator.integers(1, most)) for most in (300, 40, 20))
        card = card_of(rows, group_rows, int(generator.integers(1, rows + 1)))
        batch_size = int(generator.choice([1, rows, int(generator.integers(1, rows + 1)), min(rows, 12)]))
        pool_rows = int(generator.choice([1, 30, 100, 1000]))
        if trial % 4:
            orders.append(streams(card, batch_size, num_streams, pool_rows, seed=trial))
        else:
            orders.append(windows(card, batch_size, pool_rows, seed=trial))
    return orders


CASES = [*at_random(40), streams(card_of(1037, 10, 100), 12), streams(card_of(5, 1), 5)]


@pytest.mark.parametrize("order", CASES, ids=range(len(CASES)))
def test_every_row_once_in_an_epoch_and_the_same_batches_for_every_number_of_workers(order):
    steps, size = order.epoch_steps, order.batch_size
    whole = np.concatenate([batches_of(order, epoch) for epoch in range(3)])
    for epoch in range(2):
        rows = whole[epoch * steps : (epoch + 1) * steps].ravel()
        assert len(np.unique(rows)) == len(rows) == order.card.split("train").count // size * size
    last = min(2 * steps + 1, 80)
    np.testing.assert_array_equal(trained_on(Share(order=order, last=last)), whole[:last])
    worlds = [world for world in range(2, min(size, 24) + 1) if size % world == 0]
    for world in {*worlds[:2], *worlds[-1:]}:
        shares = [Share(order=order, rank=rank, world=world, last=min(last, 12)) for rank in range(world)]
        together = np.concatenate([trained_on(share, 13) for share in shares], axis=1)
        np.testing.assert_array_equal(together, whole[: min(last, 12)])
    for first in {1, steps - 1, steps, last - 1, last}:
        if 0 <= first <= last:
            np.testing.assert_array_equal(trained_on(Share(order=order, first=first, last=last)), whole[first:last])


def test_a_run_goes_on_with_another_number_of_workers():
    order = streams(card_of(500, 7, 60), 24, num_streams=8, pool_rows=64)
    whole = trained_on(Share(order=order, last=50))
    first = 0
    for world, last in ((2, 13), (3, 21), (1, 22), (24, 50)):
        shares = [Share(order=order, rank=rank, world=world, first=first, last=last) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate([trained_on(s) for s in shares], axis=1), whole[first:last])
        first = last


PINNED = [
    (windows(card_of(1037, 10, 100), 12, 200), "d4d75247e027bdc6"),
    (windows(card_of(1437, 1024), 128), "cdd871b524401016"),
    (windows(card_of(300, 7, 50), 50, 60), "ec84220a56c5badf"),
    (streams(card_of(1037, 10, 100), 12, pool_rows=200), "e38118675b2d45c4"),
    (streams(card_of(1437, 1024), 128), "72ff3e6123a11d3f"),
    (streams(card_of(300, 7, 50), 50, pool_rows=60), "0953d6c5a94644eb"),
]
"""The first three as the version before streams had them."""


@pytest.mark.parametrize(("order", "sha256"), PINNED)
def test_an_order_stays_what_it_is(order, sha256):
    """A change here would change what a resumed run sees, and must be another order."""
    rows = np.concatenate([batches_of(order, epoch).ravel() for epoch in range(3)])
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] == sha256


def test_permutation_is_the_same_on_every_machine():
    np.testing.assert_array_equal(permutation(7, 2, 1, 12), [5, 3, 7, 6, 11, 10, 9, 2, 8, 4, 1, 0])
    np.testing.assert_array_equal(np.sort(permutation(0, 0, 0, 1000)), np.arange(1000))


MANY = streams(card_of(40_000, 50, 1000), 128, pool_rows=8192)
"""800 row groups: 64 streams of 12.5, in windows of 128 rows."""


def read_by(order: Order, rank: int, world: int, first: int = 0) -> list[int]:
    return list(Share(order=order, rank=rank, world=world, first=first, last=order.epoch_steps).reads())


@pytest.mark.parametrize("world", [1, 2, 4, 8, 64])
def test_each_row_group_is_read_once_over_all_workers(world):
    """But for those that a cut between two workers divides, of which there are world - 1 at most."""
    reads = [read_by(MANY, rank, world) for rank in range(world)]
    assert all(max(Counter(groups).values()) == 1 for groups in reads)
    assert max(map(len, reads)) <= 800 / world + 2
    assert 795 <= sum(map(len, reads)) <= 800 + world - 1
    if world <= 8:
        assert sum(map(len, reads)) == pytest.approx(len(read_by(MANY, 0, 1)), rel=0.05)


def test_workers_that_do_not_divide_the_streams_read_those_between_them_twice():
    order = streams(card_of(40_000, 50, 1000), 96, pool_rows=8192)
    for world in (3, 6, 12):
        total = sum(len(read_by(order, rank, world)) for rank in range(world))
        assert total <= 800 * (1 + (world - 1) / 64) + 2 * world


def test_every_worker_reads_all_of_the_order_before_streams():
    assert [len(read_by(windows(MANY.card, 128), rank, 8)) for rank in range(8)] == [800] * 8


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("first", [0, 100, 311])
def test_beginning_anywhere_reads_the_windows_of_that_step_only(first, world):
    """What is read before the first batch: of each stream, one window of less than 128 + 50 rows, and an eighth of the pool."""
    taken: list[int] = []
    share = Share(order=MANY, world=world, first=first, last=10**9)
    next(share.batches(supply(share, 50, taken)))
    assert len(taken) <= 64 / world * (128 * 9 / 8 + 2 * 50) / 50 + 1
    assert len(taken) >= 64 / world


def test_windows_are_what_a_worker_was_said_to_hold():
    for order in (MANY, streams(card_of(9_000, 70, 500), 96, num_streams=64, pool_rows=1000)):
        served = order.windows(1, 0, order.batch_size)
        assert [window.first_step for window in served] == sorted(window.first_step for window in served)
        for window in served:
            assert window.length < order.pool * window.width / order.batch_size + order.card.group_rows
            inside = {int(np.searchsorted(order.bounds, row, "right")) - 1 for row in order.rows(window)}
            assert inside == set(window.groups)
    first = [window.length for window in MANY.windows(1, 0, 128) if window.begin == 0]
    assert np.mean(first) < 0.9 * 128  # cut shorter, so that an epoch does not begin with the whole pool


def test_a_row_group_that_two_streams_share_is_wanted_by_both_at_once():
    """Both at the beginning of the epoch or both at its end, within one window of 64 steps and what row groups add to it."""
    wanted: dict[int, list[int]] = {}
    for window in MANY.windows(1, 0, 128):
        for group in window.groups:
            wanted.setdefault(group, []).append(window.first_step)
    shared = [steps for steps in wanted.values() if len(steps) > 1]
    assert len(shared) >= 50
    assert max(max(steps) - min(steps) for steps in shared) <= 64 + 25
    assert {min(steps) == 0 for steps in shared} == {True, False}


@pytest.mark.parametrize(("world", "least"), [(1, 1.0), (4, 0.25)])
def test_memory_is_that_of_the_pool_whatever_the_length_of_the_epoch(world, least):
    """Of rows of 1 KiB, between two batches, over two epochs; and it falls with the number of workers."""
    card = replace(card_of(5_000, 25, 1000), shape=(256,))
    order = streams(card, 64, num_streams=16, pool_rows=1600)
    share = Share(order=order, rank=0, world=world, last=2 * order.epoch_steps)
    x = np.zeros((25, 256), np.float32)
    groups = ({"x": x, "label": np.arange(25), "row": np.arange(25) + 25 * group} for group in share.reads())
    tracemalloc.start()
    held = [tracemalloc.get_traced_memory()[0] for _ in share.batches(groups)]
    tracemalloc.stop()
    a_row = 1024 + 16
    bound = 16 / world * (100 + 25 + 25) + 1600 / 8 / world  # windows, divided row groups; and a block of batches
    assert least * 0.5 * 1600 * a_row < max(held) < bound * a_row * 1.1


def test_epochs_and_seeds_give_unrelated_orders():
    """The rank correlation of unrelated permutations of n rows has standard error 1 / sqrt(n)."""
    orders = [streams(card_of(1037, 10, 100), 1, seed=seed) for seed in (0, 1)]
    orders += [streams(card_of(1037, 2000), 1, seed=seed) for seed in (2, 3)]
    rows = [batches_of(order, epoch).ravel() for order in orders for epoch in (0, 1)]
    for i, first in enumerate(rows):
        for second in rows[i + 1 :]:
            assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 5 / np.sqrt(1037)
            assert (first == second).sum() < 10


def test_what_an_epoch_leaves_out_differs_between_epochs():
    for group_rows in (10, 2000):
        order = streams(card_of(1037, group_rows, 100), 250)
        left = [frozenset(range(1037)) - set(batches_of(order, epoch).ravel().tolist()) for epoch in range(8)]
        assert {len(rows) for rows in left} == {37}
        assert len(set(left)) == 8


@pytest.mark.parametrize("group_rows", [10, 300, 2000], ids=["many groups", "four groups", "one group"])
def test_the_step_of_a_row_is_uniform(group_rows):
    """Of the first ten rows, over 80 epochs, while the whole set fits in the pool: chi-square of eight parts of the epoch."""
    order = streams(card_of(1037, group_rows), 16)
    steps = np.concatenate([np.argsort(batches_of(order, e).ravel())[:10] // 16 for e in range(80)])
    counts = np.bincount(steps * 8 // order.epoch_steps, minlength=8)
    assert ((counts - 100) ** 2 / 100).sum() < 33  # 7 degrees of freedom, alpha 3e-5


def test_a_set_of_one_row_group_is_permuted_as_a_whole():
    """Pairs of rows meet in a batch as often as in a uniform permutation: (B - 1) / (n - 1) of the pairs."""
    order = streams(card_of(64, 100), 8)
    met, pairs = 0, 0
    for epoch in range(200):
        batch = np.argsort(batches_of(order, epoch).ravel()) // 8
        met, pairs = met + int((batch[:-1] == batch[1:]).sum()), pairs + 63
    assert abs(met / pairs - 7 / 63) < 5 * np.sqrt(7 / 63 * 56 / 63 / pairs)


def apart(order: Order) -> float:
    """The mean number of rows of the run between two that are neighbours on disk."""
    when = np.empty(order.card.split("train").count)
    when[:] = np.nan
    for epoch in range(3):
        rows = batches_of(order, epoch)
        when[rows.ravel()] = np.repeat(np.arange(len(rows)), order.batch_size)
        distance = np.abs(np.diff(when))
    return float(np.nanmedian(distance)) * order.batch_size


@pytest.mark.parametrize("pool_rows", [4096, 65_536])
def test_neighbours_on_disk_part_as_far_as_they_did(pool_rows):
    """By 0.29 of a pool in the median, of a set that is one: 1 - sqrt(1/2) of a window. Windows of less row groups than before
    hold less of it at the ends of their streams."""
    card = card_of(40_000, 50, 1000)
    pool = min(pool_rows, 40_000)
    now, before = apart(streams(card, 128, pool_rows=pool_rows)), apart(windows(card, 128, pool_rows=pool_rows))
    assert now > 0.22 * pool
    assert now > 0.75 * before


def test_a_batch_is_of_many_row_groups():
    """At least 0.8 of as many as 128 rows drawn from the pool without regard to streams have."""
    batches = batches_of(MANY, 0)
    groups = np.searchsorted(MANY.bounds, batches, "right")
    num = np.mean([len(set(row)) for row in groups.tolist()])
    pool = 8192 / 50
    assert num > 0.8 * pool * (1 - (1 - 1 / pool) ** 128)


def test_large_images_have_fewer_streams():
    """64 row groups of 85 images, 256 x 256 in colour, as they were prepared before: a GiB; the streams are fewer."""
    large = Card(name="n", source="s", kind="image", shape=(3, 256, 256), levels=256, group_rows=85)
    large = replace(
        large, splits={"train": Split(count=8500, skipped=0, shards=card_of(8500, 85).split("train").shards)}
    )
    order = Streams(card=large, split="train", batch_size=128, seed=0)
    assert len(order.columns) == 17
    assert order.pool * large.row_bytes <= 2**28
    held = sum(max(w.length for w in order.windows(0, *columns)) for columns in pairwise(order.columns))
    assert held * large.row_bytes < 2**28 + 16 * 85 * large.row_bytes
    assert len(replace(order, pool_bytes=1).columns) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1038}, "batch_size=1038: split 'train' of 'rows' has 1037 rows"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"pool_rows": 0}, "pool_rows=0"),
        ({"num_streams": 0}, "num_streams=0"),
        ({"split": "tset"}, "split='tset'.*train"),
    ],
)
def test_an_impossible_order_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(streams(card_of(1037, 10), 12), **change)


def test_an_impossible_share_is_refused():
    order = streams(card_of(1037, 10), 12)
    with pytest.raises(ValueError, match="batch_size=12: not a multiple of the 5 workers"):
        Share(order=order, world=5, last=1)
    with pytest.raises(ValueError, match="rank=2"):
        Share(order=order, rank=2, world=2, last=1)
    with pytest.raises(ValueError, match="first=-1"):
        Share(order=order, first=-1, last=1)


def test_other_row_groups_than_were_asked_for_are_refused():
    share = Share(order=streams(card_of(100, 10), 10), last=10)
    parts = list(supply(share, 10))
    with pytest.raises(ValueError, match=r"does not give rows \d+ to \d+; prepare the data again"):
        list(share.batches(iter(parts[1:])))
    with pytest.raises(ValueError, match="does not give rows"):
        list(share.batches(islice(parts, 3)))


def test_batches_are_made_ahead_as_far_as_their_bytes_allow_and_a_fault_comes_in_its_place(monkeypatch):
    monkeypatch.setattr(stream, "AHEAD_BYTES", 3 * 10 * 4)
    share = Share(order=streams(card_of(100, 10), 10), last=10)
    made: list[np.ndarray] = []

    def noted() -> Iterator[Rows]:
        for batch in share.batches(supply(share, 10)):
            made.append(batch["row"])
            yield batch

    batches = stream.ahead(noted(), share)
    first = next(batches)
    deadline = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4
    assert np.array_equal(np.array([batch["row"] for batch in (first, *batches)]), trained_on(share))

    wrong = stream.ahead(share.batches(iter(list(supply(share, 10))[1:])), share)
    with pytest.raises(ValueError, match="does not give rows"):
        list(wrong)

    left = stream.ahead(noted(), share)
    next(left)
    left.close()
    num = len(made)
    time.sleep(0.05)
    assert len(made) == num


def test_row_groups_are_those_of_the_shards():
    np.testing.assert_array_equal(group_bounds(card_of(25, 4, 10), "train"), [0, 4, 8, 10, 14, 18, 20, 24, 25])
