r"""What a second worker, DDP and Ray cost: the project's workers against bare processes, side by side.

    python benchmarks/workers.py [--workers 2] [--steps 150] [--rounds 3] [--recipe digits_linear_nll] [--batch-size 128]

Three ways to take the same steps, which take turns. `bare`: as many processes with one thread each, which run the same loop on
their shares of the batches at the same time, without Ray and without averaging: what the machine can give. `ddp`: the same
processes with their gradients averaged (gloo). `ray`: the project's workers, of one thread each, rows by Ray Data. With
--workers 1, bare is the loop in plain PyTorch, and the ratio of step times is what Ray Train costs. The session of Ray is there
from the beginning, and idle while the others work.

Figures are of the logging intervals after the first `SKIPPED`, in which processes, Ray Data and the others are still being
started: medians over intervals and rounds of images/s over all workers, and of step times with the wait for the batch. On a
busy machine the ratio means little; the load is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import torch
import torch.distributed as dist

from benchmarks.figure import AT_MOST, Absent, Bound, Pairs, Row
from pipelines.cluster.session import connect
from pipelines.config.run import RunConfig
from pipelines.recipes import find
from pipelines.runs.job import Job, read_metrics
from pipelines.runs.record import Record
from pipelines.runs.tracking import open_run
from pipelines.training.dataset import run_job
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.on_ray.group import build_trainer, fit
from pipelines.training.on_ray.worker import average, wrapped
from pipelines.training.session import Session
from pipelines.training.stream import read_rows, share_of

EVERY, SKIPPED = 10, 5
"""Steps of a logging interval, and intervals that do not count."""


def bare(job: Job, rank: int, world: int, store: str, gate: Barrier, line: Queue[list[Record]]) -> None:
    """One process without Ray: its share of every batch, on one thread; all begin together.

    Args:
        store: A file by which the processes find each other, to average their gradients; '' where they do not.
    """
    torch.set_num_threads(1)
    records: list[Record] = []
    together = bool(store) and world > 1
    if together:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    session = Session(
        rank=rank,
        world=world,
        device=torch.device("cpu"),
        average=lambda vector: average(vector, world) if together else vector,
        agree=agreed if together else lambda value: value,
        stopping=lambda training, step: False,
        wrap=lambda model: wrapped(model, torch.device("cpu"), world) if together else model,
        begins=lambda training, model: None,
        publish=lambda training, record: records.append(record),
        checkpointed=lambda training, place, record: None,
    )
    mine = job if together else replace(job, directory=job.directory / f"rank{rank}")
    mine.directory.mkdir(parents=True, exist_ok=True)
    gate.wait()
    run_job(mine, lambda job, first: read_rows(job.data, share_of(job, first, rank, world)), session)
    line.put(records)


def agreed(value: Any) -> Any:
    """Rank 0's value."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def by_bare(job: Job, workers: int, store: str = "") -> list[float]:
    """Images/s of the intervals, by processes side by side: those of all of them together."""
    context = multiprocessing.get_context("spawn")
    gate, line = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=bare, args=(job, rank, workers, store, gate, line)) for rank in range(workers)]
    for process in processes:
        process.start()
    found = [line.get() for _ in processes]
    for process in processes:
        process.join()
    return [statistics.mean(record.images_per_s for record in interval) for interval in zip(*found, strict=True)]


def by_ray(job: Job, workers: int, root: Path) -> list[float]:
    """Images/s of the intervals, by the project's workers."""
    job.directory.mkdir(parents=True)
    open_run(job, root)
    launch = Launch(name=job.directory.name, workers=workers, threads=1)
    outcome = fit(build_trainer([job], launch, root))
    if outcome.refusal:
        raise ValueError(outcome.refusal.reason)
    return [record.images_per_s for record in read_metrics(job.directory)]


def steps_only(recipe: str, steps: int, batch_size: int) -> RunConfig:
    """A recipe that trains so many steps, without pictures, validation and checkpoints between."""
    run = find(recipe)()
    train = replace(run.train, steps=steps, batch_size=batch_size, log_every=EVERY, checkpoint_every=steps)
    return replace(run, train=replace(train, sample_every=0, validate_every=0))


def by(name: str, run: RunConfig, workers: int, root: Path, number: int) -> list[float]:
    """Images/s of the intervals that count, one of the ways, in a round."""
    (job,) = jobs_for(run, Launch(name=f"{name}-{number}", workers=workers), root)
    store = str(root / f"store-{number}") if name == "ddp" else ""
    return (by_ray(job, workers, root) if name == "ray" else by_bare(job, workers, store))[SKIPPED:]


def figure(quick: bool) -> Iterator[Row | Absent]:
    """A step of one worker of Ray Train beside the same loop in a bare process."""
    recipe, batch_size, steps = "digits_linear_nll", 128, 100 if quick else 150
    run = steps_only(recipe, steps, batch_size)
    connect(1, 1.0)
    rounds: dict[str, list[float]] = {"ray": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 if quick else 5):
            for name, seconds in rounds.items():
                seconds.append(batch_size / statistics.median(by(name, run, 1, Path(folder), number)))
    ray.shutdown()
    pairs = Pairs(tuple(rounds["ray"]), tuple(rounds["bare"]))
    yield pairs.row(f"{recipe}, 1 worker, a step", "the loop in a bare process", Bound(AT_MOST, 1.03), faster=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="digits_linear_nll")
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    run = steps_only(given.recipe, given.steps, given.batch_size)
    connect(given.workers, 1.0)
    found: dict[str, list[float]] = {"bare": [], "ray": []} | ({"ddp": []} if given.workers > 1 else {})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(given.rounds):
            for name, speeds in found.items():
                counted = by(name, run, given.workers, root, number)
                speeds += counted
                median, load = statistics.median(counted), os.getloadavg()[0]
                print(f"round {number + 1}, {name}: {median:.1f} images/s, load {load:.1f}", flush=True)
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    print(f"{given.workers} workers, batch {given.batch_size}, medians of {len(found['ray'])} intervals:")
    for name, speed in medians.items():
        step = 1e3 * given.batch_size / speed
        print(f"  {name:<5} {speed:8.1f} images/s  {step:7.1f} ms a step  {speed / medians['bare']:.3f} of bare")


if __name__ == "__main__":
    main()
