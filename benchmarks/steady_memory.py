"""Whether the memory of a training stays flat: resident bytes after 1,000 steps and after 10,000.

    python -m benchmarks steady-memory

The project's own loop trains toy2d_linear in this process, with its rows, records and averages, as `--local` does; checkpoints,
pictures and validation are left to the end. The resident set is that of this process when a record is written, every 100 steps.
What grows with the steps, a list that nobody empties, a graph that is held, shows as a ratio above 1; the allocator's own
arenas have settled by the first reading.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch

from benchmarks.figure import AT_MOST, Absent, Bound, Row
from pipelines.recipes import find
from pipelines.runs.job import Training
from pipelines.runs.record import Record
from pipelines.training.dataset import run_job
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.session import Session
from pipelines.training.stream import local_rows

EVERY, FIRST, LAST = 100, 1_000, 10_000
"""Steps of a reading, of the first one that counts, and of all."""
TARGET = Bound(AT_MOST, 1.02)


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def readings(recipe: str, batch_size: int, steps: int) -> list[float]:
    """The resident set every `EVERY` steps of a training."""
    run, found = find(recipe)(), []
    train = replace(run.train, steps=steps, batch_size=batch_size, log_every=EVERY, checkpoint_every=steps)
    run = replace(run, train=replace(train, sample_every=0, validate_every=0), data=find("toy2d_spiral")().data)

    def publish(training: Training, record: Record) -> None:
        found.append(resident())

    session = Session(
        rank=0,
        world=1,
        device=torch.device("cpu"),
        average=lambda vector: vector,
        agree=lambda value: value,
        stopping=lambda training, step: False,
        wrap=lambda model: model,
        begins=lambda training, model: None,
        publish=publish,
        checkpointed=lambda training, place, record: None,
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        (job,) = jobs_for(run, Launch(name="steady"), Path(folder))
        run_job(job, local_rows, session)
    return found


def figure(quick: bool) -> Iterator[Row | Absent]:
    """Resident memory after 10,000 steps of a small training, beside that after 1,000."""
    if not Path("/proc/self/statm").is_file():
        yield Absent(what="resident memory", reason="this system has no /proc")
        return
    first, last = (FIRST // 5, LAST // 10) if quick else (FIRST, LAST)
    found = readings("toy2d_linear", 64, last)
    counted = found[first // EVERY - 1 :]
    yield Row(
        what=f"resident after {last:,} steps",
        reference=f"after {first:,} steps",
        unit="MiB",
        ours=counted[-1],
        theirs=counted[0],
        ratio=counted[-1] / counted[0],
        low=min(counted) / counted[0],
        high=max(counted) / counted[0],
        target=TARGET,
    )
