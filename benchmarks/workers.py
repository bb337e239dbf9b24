r"""What Ray, DDP and a second worker cost: the project's workers against bare processes, side by side.

    python benchmarks/workers.py [--workers 2] [--steps 60] [--rounds 3] [--recipe digits_vp_nll] [--batch-size 128]

The two take turns. `ray`: `--workers` workers of Ray Train with one thread each, whose gradients are averaged, rows by Ray
Data. `bare`: as many processes with one thread each that run the same loop on the same shares of the batches at the same time,
without Ray, without averaging, rows by their own threads: what the machine can give. With --workers 1, bare is the loop in
plain PyTorch, and the ratio of step times is what Ray Train costs.

Figures are of the logging intervals after the first, which has the start in it: median over intervals and rounds of images/s
over all workers, and of step times with the wait for the batch. On a busy machine the ratio means little; the load is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines.cluster.session import connect
from pipelines.recipes import find
from pipelines.runs.job import Job, read_metrics
from pipelines.runs.record import Record
from pipelines.runs.tracking import open_run
from pipelines.training.dataset import run_job
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.on_ray.driver import build_trainer, fit
from pipelines.training.session import Session
from pipelines.training.stream import read_rows, share_of

EVERY = 10
"""Steps of a logging interval."""


@dataclass(frozen=True)
class Measured:
    """Of the logging intervals of a training: images/s over all workers, and seconds per step, waiting included."""

    images_per_s: list[float]
    step_s: list[float]

    @staticmethod
    def of(records: list[Record], batch_size: int) -> Measured:
        speeds = [record.images_per_s for record in records[1:]]
        return Measured(speeds, [batch_size / speed for speed in speeds])


def bare(job: Job, rank: int, world: int, gate: Barrier, line: Queue[list[Record]]) -> None:
    """One process of the bare ones: its share of every batch, on one thread; all begin together."""
    torch.set_num_threads(1)
    records: list[Record] = []
    session = Session(
        rank=rank,
        world=world,
        device=torch.device("cpu"),
        average=lambda vector: vector,
        agree=lambda value: value,
        stopping=lambda training, step: False,
        wrap=lambda model: model,
        begins=lambda training, model: None,
        publish=lambda training, record: records.append(record),
        checkpointed=lambda training, place, record: None,
    )
    mine = replace(job, directory=job.directory / f"rank{rank}")
    mine.directory.mkdir(parents=True)
    gate.wait()
    run_job(mine, lambda job, first: read_rows(job.data, share_of(job, first, rank, world)), session)
    line.put(records)


def by_bare(job: Job, workers: int) -> Measured:
    """As many processes side by side; the speeds of their intervals are those of all of them together."""
    context = multiprocessing.get_context("spawn")
    gate, line = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=bare, args=(job, rank, workers, gate, line)) for rank in range(workers)]
    for process in processes:
        process.start()
    found = [line.get() for _ in processes]
    for process in processes:
        process.join()
    speeds = [statistics.mean(record.images_per_s for record in interval) for interval in zip(*found, strict=True)][1:]
    return Measured(speeds, [job.run.train.batch_size / speed for speed in speeds])


def by_ray(job: Job, workers: int, root: Path) -> Measured:
    """The project's workers."""
    job.directory.mkdir(parents=True)
    open_run(job, root)
    launch = Launch(name=job.directory.name, workers=workers, threads=1)
    outcome = fit(build_trainer([job], launch, root))
    if outcome.refusal:
        raise ValueError(outcome.refusal.reason)
    return Measured.of(read_metrics(job.directory), job.run.train.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="digits_vp_nll")
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    run = find(given.recipe)()
    train = replace(
        run.train, steps=given.steps, batch_size=given.batch_size, log_every=EVERY, checkpoint_every=given.steps
    )
    run = replace(run, train=replace(train, sample_every=0, validate_every=0))
    connect(given.workers, 1.0)
    bares, rays = Measured([], []), Measured([], [])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(given.rounds):
            for name, all_of, measure in (
                ("bare", bares, by_bare),
                ("ray", rays, partial(by_ray, root=root)),
            ):
                (job,) = jobs_for(run, Launch(name=f"{name}-{number}", workers=given.workers), root)
                found = measure(job, given.workers)
                all_of.images_per_s.extend(found.images_per_s)
                all_of.step_s.extend(found.step_s)
                speed = statistics.median(found.images_per_s)
                print(f"round {number + 1}, {name}: {speed:.1f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
    medians = [statistics.median(measured.images_per_s) for measured in (rays, bares)]
    steps = [statistics.median(measured.step_s) for measured in (rays, bares)]
    print(f"{given.workers} workers, medians of {len(rays.step_s)} intervals:")
    print(f"  Ray {medians[0]:.1f} images/s, bare {medians[1]:.1f}, ratio {medians[0] / medians[1]:.3f}")
    print(f"  Ray {1e3 * steps[0]:.1f} ms a step, bare {1e3 * steps[1]:.1f}, ratio {steps[0] / steps[1]:.3f}")


if __name__ == "__main__":
    main()
