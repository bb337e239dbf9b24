"""Rows for a Ray worker: one Ray Data stream for the whole run, in the run's order.

Read tasks fetch the run's tasks (`stream.tasks`) ahead of the training, in parallel, each keeping and decoding the rows of its
rank; Ray delivers them in order whatever the number of tasks. Nothing larger than a few tasks is ever in memory, and there is
no pause between epochs.

Every rank reads each window's row groups and keeps 1/world of the rows: that is what makes the global batch of step k the same
for every number of workers, and lets a run go on with another number of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import ray
from ray.exceptions import RayError

from pipelines.runs.job import Job
from pipelines.training.stream import Rows, read_task, tasks

__all__ = ["READ_CPUS", "ray_rows"]

READ_CPUS = 0.5
"""Logical CPUs of a read task: Ray Data needs some beside the workers'."""
TASKS_AHEAD = 2
BATCHES_AHEAD = 4


def ray_rows(job: Job, first_row: int, rank: int, world: int) -> Iterator[Rows]:
    """This rank's rows {x, label, row} from a row of the run on, in chunks of its share of a batch.

    Args:
        job: The run.
        first_row: Rows of the run that are already trained on (step * batch_size).
        rank, world: Of the worker.
    """
    card, grouped = tasks(job, first_row)
    directory = job.data

    def read(batch: dict[str, np.ndarray]) -> Rows:
        return read_task(directory, card, grouped[int(batch["id"][0])], rank, world)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    if not grouped:
        return iter(())
    ids = [{"id": task} for task in range(len(grouped))]  # not data.range, whose tasks want a whole CPU each
    dataset = ray.data.from_items(ids, override_num_blocks=len(ids)).map_batches(
        read,  # pyright: ignore[reportArgumentType]
        batch_size=1,
        batch_format="numpy",
        num_cpus=READ_CPUS,
        compute=ray.data.TaskPoolStrategy(size=TASKS_AHEAD),
    )
    share = job.run.train.batch_size // world
    batches = dataset.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=BATCHES_AHEAD)
    return _in_one_line(batches)  # pyright: ignore[reportArgumentType]


def _in_one_line(batches: Iterable[Rows]) -> Iterator[Rows]:
    """The batches; a read task's ValueError, of which Ray keeps the text only, is one of this process too."""
    try:
        yield from batches
    except RayError as error:
        raised = re.findall(r"^ValueError: (.+)$", str(error), flags=re.MULTILINE)
        raise ValueError(raised[0]) if raised else error from error
