"""Training on a data set: what the loop is given of a model, its rows and its samples.

Rows come as they are stored (`stream`, `ray_stream`). On the training device they become data (`DataSpec.to_model`),
levels by the noise of the step,

    x = low + (high - low) (k + uniform) / levels,

are mirrored at random where the run says so, and are cut into micro-batches. As y come with them their labels where the model
is conditional, and for a bridge the rows of the second data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm_core.draw import draw, start_times
from indm_core.model import GenerativeModel
from indm_core.noise import seeded
from indm_core.sampling import Sampling, sampler_of
from pipelines.data.spec import DataSpec
from pipelines.runs.job import Job
from pipelines.runs.record import Unit
from pipelines.training.loop import run
from pipelines.training.session import Batch, Session, Work
from pipelines.training.stream import Rows, RowStream
from pipelines.training.watch.validation import held_out_rows

__all__ = ["run_job", "work_on_rows"]


def run_job(job: Job, rows: RowStream, session: Session) -> None:
    """Trains a model on its data set to the last step; does nothing where the run is complete.

    Args:
        job: The run.
        rows: Where its rows come from.
        session: What the surroundings give.

    Raises:
        DivergedError: the training has diverged.
        ValueError: a checkpoint of another architecture, or rows that are not there.
    """
    run(work_on_rows(job, rows, session), session)


def work_on_rows(job: Job, rows: RowStream, session: Session) -> Work[GenerativeModel]:
    """What the loop is given of a job.

    Args:
        job, rows, session: As of `run_job`.
    """
    return Work(
        training=job.training,
        build=partial(job.run.model.build, job.spec),
        batches=partial(_batches, job, rows, session),
        unit=Unit(job.spec.unit, partial(_in_unit, job.spec)),
        write_config=job.write_config,
        draw=partial(_draw_samples, job.spec, session.device),
        validate=held_out_rows(job, session.device) if job.run.train.validate_every and session.rank == 0 else None,
        shared_steps=job.run.model.shared_steps,
        made_of=job.provenance().to_document(),
    )


def _batches(job: Job, rows: RowStream, session: Session, step: int) -> Iterator[Batch]:
    """This rank's batches from a step on, in pairs with those of the second data set where there is one."""
    train = job.run.train
    share, first = train.batch_size // session.world, step * train.batch_size
    stream = rows(job, first)
    partners = rows(job.of_partner(), first) if job.partner else repeat(None)
    for pair in zip(stream, partners, strict=False):
        for part in filter(None, pair):
            if len(part["x"]) != share:
                raise ValueError(
                    f"the data stream gave {len(part['x'])} rows where a step needs {share}; prepare it again"
                )
        yield partial(_micro_batches, job, *pair, share // train.accumulate, session.device)


def _micro_batches(
    job: Job, rows: Rows, others: Rows | None, size: int, device: torch.device, generator: torch.Generator
) -> list[tuple[Tensor, Tensor | None]]:
    xs = _on_device(rows, job, device, generator).split(size)
    ys: Sequence[Tensor | None] = [None] * len(xs)
    if others:
        ys = _on_device(others, job, device, generator).split(size)
    elif job.run.model.conditional:
        ys = torch.from_numpy(rows["label"]).to(device, non_blocking=True).split(size)
    return list(zip(xs, ys, strict=True))


def _on_device(rows: Rows, job: Job, device: torch.device, generator: torch.Generator) -> Tensor:
    """Rows on the training device, dequantised, scaled and flipped there."""
    spec = job.spec
    k = torch.from_numpy(rows["x"].astype(np.int32) if rows["x"].dtype == np.uint16 else rows["x"])
    x = spec.to_model(k.to(device, non_blocking=True), generator)
    if job.run.data.flip:
        flipped = torch.rand(len(x), 1, 1, 1, device=device, generator=generator) < 0.5
        x = torch.where(flipped, x.flip(-1), x)
    return x


def _in_unit(spec: DataSpec, term: str, nats: Tensor) -> float:
    """A term in the data's unit. The scale of the levels is a part of the NLL of a data set, and of none of its parts."""
    shown = spec.in_unit(nats)
    return float(shown if term in ("nelbo", "partner") else shown - spec.in_unit(torch.zeros_like(nats)))


def _draw_samples(spec: DataSpec, device: torch.device, model: GenerativeModel, file: Path) -> None:
    """A picture of 64 samples (1,000 points of a vector set) by the probability-flow ODE; of a conditional model the classes in
    turn."""
    from pipelines.runs.pictures import save_samples

    num = 64 if len(spec.shape) > 1 else 1000
    label = torch.arange(num) % model.num_classes if model.num_classes else None
    x = draw(
        model,
        sampler_of(Sampling(sampler="ode", rtol=1e-3, atol=1e-3)),
        start_times(model),
        torch.zeros((), device=device),
        num,
        generator=seeded(range(num)),
        label=label,
    )
    save_samples(x, spec, file)
