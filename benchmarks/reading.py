"""What training reads, and how long it waits for it, against the number of readers.

    python benchmarks/reading.py                  60,000 synthetic images of 256 bytes in 938 row groups
    python benchmarks/reading.py DATA [STEP_MS]   the training split of a prepared data set; a step takes STEP_MS (10)
    python benchmarks/reading.py DATA STEP_MS ray the same through tasks of Ray Data, as the workers of a cluster read

For each order of rows (pipelines/data/order.py) and W = 1, 2, 4, 8 readers, in batches of 128:

    read           stored bytes of the row groups that all readers together read in an epoch, over those of the split
    largest        the same of the reader that reads most
    decode         processor time of reading and decoding, all readers together, s per epoch
    first          time of the first reader until its first batch, s
    p99            of the time that it waits for a batch of the second epoch, ms, where a step takes STEP_MS besides
    wait           the part of the second epoch that it waits for rows
    images/s       of the first reader that does nothing else, over those of a loader whose rows lie in memory, second epoch

The readers run one after the other in this process, one thread ahead of each. Through Ray there is the order `streams` alone;
its tasks count what they read, and `decode` is their processor time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq

from benchmarks.figure import AT_MOST, Absent, Bound, Pairs, Row
from pipelines.data.card import Card, load_card, write_card
from pipelines.data.order import Order, Streams, Windows
from pipelines.data.shards import Rows, ShardWriter, read_all, read_groups
from pipelines.data.share import Share
from pipelines.training.stream import ahead, read_rows, tasks

BATCH, READERS = 128, (1, 2, 4, 8)


class Counted:
    """Counts the stored bytes of the row groups that pyarrow reads while it is entered."""

    def __enter__(self) -> Counted:
        self.bytes, self._read = 0, pq.ParquetFile.read_row_group
        counted, read = self, self._read

        def counting(file: pq.ParquetFile, group: int, *args: Any, **kwargs: Any) -> Any:
            stored = file.metadata.row_group(group)
            counted.bytes += sum(stored.column(i).total_compressed_size for i in range(stored.num_columns))
            return read(file, group, *args, **kwargs)

        pq.ParquetFile.read_row_group = counting  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def __exit__(self, *exception: object) -> None:
        pq.ParquetFile.read_row_group = self._read


def synthetic(directory: Path, num: int = 60_000) -> None:
    """Noise of 16 levels, which compresses by a half."""
    generator = np.random.default_rng(0)
    card = Card(name="noise", source="benchmark", kind="image", shape=(1, 16, 16), levels=16, group_rows=64)
    with ShardWriter(directory, card, "train", 4096) as writer:
        writer.add(generator.integers(0, 16, (num, 1, 16, 16)), np.zeros(num))
        split = writer.close()
    write_card(directory, replace(card, splits={"train": split}))


def stored_bytes(directory: Path, card: Card) -> int:
    files = [pq.read_metadata(directory / shard.file) for shard in card.split("train").shards]
    groups = [file.row_group(i) for file in files for i in range(file.num_row_groups)]
    return sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))


def timed(batches: Iterator[Rows], step: float = 0.0) -> np.ndarray:
    """Seconds until each batch, between steps of `step` seconds."""
    waits = []
    while True:
        asked = time.perf_counter()
        if next(batches, None) is None:
            return np.array(waits)
        waits.append(time.perf_counter() - asked)
        if step:
            time.sleep(step)


def in_memory(directory: Path, order: Order) -> Iterator[Rows]:
    """The loader to compare with: a permutation of rows that lie in memory."""
    held = read_all(directory, order.card, "train")
    rows = np.random.default_rng(0).permutation(len(held["row"]))
    for start in range(0, order.epoch_steps * BATCH, BATCH):
        yield {name: column[rows[start : start + BATCH]] for name, column in held.items()}


def measure(directory: Path, order: Order, step: float) -> None:
    """Prints a row for each number of readers."""
    whole, steps = stored_bytes(directory, order.card), order.epoch_steps
    best = (steps - 1) * BATCH / timed(in_memory(directory, order))[1:].sum()
    for world in READERS:
        read, began = [], time.process_time()
        for rank in range(world):
            with Counted() as counted:
                for task in tasks(Share(order=order, rank=rank, world=world, last=steps)):
                    read_groups(directory, order.card, order.split, task)
            read.append(counted.bytes)
        seconds = time.process_time() - began
        first = Share(order=order, rank=0, world=world, last=2 * steps)
        waits, free = timed(read_rows(directory, first), step), timed(read_rows(directory, first))
        show(type(order).__name__.lower(), first, [part / whole for part in read], seconds, waits, free, step, best)


def show(
    name: str,
    first: Share,
    read: list[float],
    seconds: float,
    waits: np.ndarray,
    free: np.ndarray,
    step: float,
    best: float,
) -> None:
    """Prints a row: of all readers the parts that they read, and the first reader's times of two epochs."""
    steps = first.order.epoch_steps
    second = waits[steps:]
    print(
        f"{name:>8} {first.world:>3} {sum(read):>8.3f} {max(read):>8.3f} {seconds:>8.2f} {free[0]:>8.3f} "
        f"{1e3 * float(np.quantile(second, 0.99)):>8.2f} {second.sum() / (second.sum() + steps * step):>8.3f} "
        f"{steps * first.size / free[steps:].sum() / best:>9.3f}",
        flush=True,
    )


def counted_groups(directory: Path, card: Card, split: str, groups: tuple[int, ...]) -> Rows:
    """`read_groups` in a task of Ray, with two columns more: stored bytes and seconds, of which each row has its part."""
    began = time.process_time()
    with Counted() as counted:
        rows = read_groups(directory, card, split, groups)
    num, spent = len(rows["row"]), time.process_time() - began
    return rows | {"stored": np.full(num, counted.bytes / num), "spent": np.full(num, spent / num)}


class Summed:
    """Sums the two columns of what the tasks bring, and passes it on."""

    def __init__(self) -> None:
        self.stored = self.spent = 0.0

    def add(self, parts: Iterator[Rows]) -> Iterator[Rows]:
        for part in parts:
            self.stored += float(part["stored"].sum())
            self.spent += float(part["spent"].sum())
            yield part


def measure_on_ray(directory: Path, order: Order, step: float) -> None:
    """Prints a row for each number of readers, whose rows come from tasks of Ray."""
    from pipelines.training.on_ray.stream import parts_on_ray

    whole, steps = stored_bytes(directory, order.card), order.epoch_steps
    best = (steps - 1) * BATCH / timed(in_memory(directory, order))[1:].sum()
    for world in READERS:
        read, spent = [], 0.0
        for rank in range(world):
            share, summed = Share(order=order, rank=rank, world=world, last=steps), Summed()
            for _ in summed.add(parts_on_ray(directory, share, read=counted_groups)):
                pass
            read.append(summed.stored)
            spent += summed.spent
        first = Share(order=order, rank=0, world=world, last=2 * steps)
        waits = timed(ahead(first.batches(parts_on_ray(directory, first)), first), step)
        free = timed(ahead(first.batches(parts_on_ray(directory, first)), first))
        show("ray", first, [part / whole for part in read], spent, waits, free, step, best)


def figure(quick: bool) -> Iterator[Row | Absent]:
    """The wait for rows as a part of a step, the decode rate against the need, and the first batch.

    A step takes 10 ms, less than that of any recipe for images takes here.
    """
    step, pairs = 0.01, 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        synthetic(directory, 6_000 if quick else 60_000)
        order = Streams(card=load_card(directory), split="train", batch_size=BATCH, seed=0)
        share = Share(order=order, rank=0, world=1, last=2 * order.epoch_steps)
        waits = [timed(read_rows(directory, share), step) for _ in range(pairs)]
        second = [each[order.epoch_steps :] for each in waits]
        yield Pairs(tuple(float(each.mean()) for each in second), (step,) * pairs).row(
            "wait for a batch, second epoch", "a step of 10 ms", Bound(AT_MOST, 0.02), faster=False
        )
        yield Pairs(tuple(float(np.quantile(each, 0.99)) for each in second), (step,) * pairs).row(
            "99 of 100 waits are shorter, second epoch", "a step of 10 ms", faster=False
        )
        yield Pairs(tuple(float(each[0]) for each in waits), (step,) * pairs).row(
            "first batch", "a step of 10 ms", faster=False
        )
        groups = list(tasks(Share(order=order, rank=0, world=1, last=order.epoch_steps)))
        decode = [decoding(directory, order, groups) / order.epoch_steps for _ in range(pairs)]
        yield Pairs(tuple(decode), (step,) * pairs).row(
            "decoding a batch, on one core", "a step of 10 ms", Bound(AT_MOST, 0.25), faster=False
        )


def decoding(directory: Path, order: Order, groups: list[tuple[int, ...]]) -> float:
    """Processor time of reading and decoding row groups, s."""
    began = time.process_time()
    for task in groups:
        read_groups(directory, order.card, order.split, task)
    return time.process_time() - began


def main() -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as made:
        if len(sys.argv) < 2:
            synthetic(Path(made))
        directory = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        step = float(sys.argv[2]) / 1e3 if len(sys.argv) > 2 else 0.01
        card = load_card(directory)
        split = card.split("train")
        print(f"{card.name}: {split.count:,} rows of {card.row_bytes:,} bytes in row groups of {card.group_rows}")
        print("   order   W     read  largest   decode    first      p99     wait  images/s")
        if sys.argv[3:] == ["ray"]:
            from pipelines.cluster.session import connect

            connect(2, 1.0)
            measure_on_ray(directory, Streams(card=card, split="train", batch_size=BATCH, seed=0), step)
            return 0
        for kind in (Windows, Streams):
            measure(directory, kind(card=card, split="train", batch_size=BATCH, seed=0), step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
