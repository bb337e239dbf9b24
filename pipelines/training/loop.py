"""The training loop: the same for one process (`--local`) and for every worker of a Ray cluster.

A `Session` is what the surroundings give: rank, device, the stream of rows, how to average over ranks and where figures go.
The loop resumes from the newest checkpoint of the run directory, trains to the last step, and leaves

    config.json  metrics.jsonl  checkpoints/  pretrained/  samples/step-*.png  model.safetensors

A record of metrics.jsonl (one a line, one every `log_every` steps) has: step, phase, nelbo / denoising / prior / log_det in
`unit` (bits/dim for dequantised data, nats/dim otherwise; the bound at t_min without the residual, or at Soft Truncation's
time), for a bridge `partner` (the second set's NLL under the flow), for DiffFlow `transitions` in place of denoising,
images_per_s, data_wait (share of the time that the step waited for rows), eta_s, skipped, and the gradient norm of each network
before clipping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm_core.draw import draw, start_times
from indm_core.errors import ConvergenceError
from indm_core.likelihood import dequantise
from indm_core.model import GenerativeModel
from indm_core.noise import seeded
from indm_core.sample import sample_ode
from indm_core.training import Trainer, network_tensors, step_seed
from pipelines.config.store import write_run
from pipelines.runs import checkpoint
from pipelines.runs.job import Job, finished, read_metrics
from pipelines.storage.files import write_text
from pipelines.training.meter import Meter
from pipelines.training.session import Rows, Session

__all__ = ["run_job"]


def run_job(job: Job, session: Session) -> None:
    """Trains a run to its last step; does nothing where it is complete.

    Raises:
        NonFiniteLossError: the loss was not finite too many steps in a row.
        ValueError: a checkpoint of another architecture.
    """
    train = job.run.train
    if session.agree(finished(job)):
        return
    share = train.batch_size // session.world
    if train.batch_size % (session.world * train.accumulate):
        raise ValueError(
            f"batch_size={train.batch_size} is not divisible by {session.world} workers x accumulate={train.accumulate}"
        )
    torch.manual_seed(train.seed)
    model = job.run.model.build(job.spec).to(session.device)
    trainer = Trainer(
        model,
        train.optimisers,
        ema_decay=train.ema_decay,
        ema_ramp=train.ema_ramp,
        wrap=session.wrap,
        autocast=_autocast(train.precision, session.device),
    )
    _restore(job, trainer, session.agree(checkpoint.latest(job.directory)))
    if session.rank == 0:
        job.directory.mkdir(parents=True, exist_ok=True)
        write_run(job.directory / "config.json", job.run, job.spec)
        _truncate_metrics(job.directory / "metrics.jsonl", trainer.step_count)
    meter = Meter(job, session)
    stream = session.rows(job, trainer.step_count * train.batch_size)
    partners = session.rows(job.of_partner(), trainer.step_count * train.batch_size) if job.partner else None
    generator = torch.Generator(session.device)
    while trainer.step_count < train.steps:
        with meter.waiting():
            rows, others = next(stream), next(partners) if partners else None
        for part in filter(None, (rows, others)):
            if len(part["x"]) != share:
                raise ValueError(
                    f"the data stream gave {len(part['x'])} rows where a step needs {share}; prepare it again"
                )
        seed = step_seed(train.seed, trainer.step_count, session.rank)
        generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        micro = share // train.accumulate
        xs = _on_device(rows, job, session.device, generator).split(micro)
        ys = _on_device(others, job, session.device, generator).split(micro) if others else [None] * len(xs)
        meter.add(trainer.step(list(zip(xs, ys, strict=True)), generator))
        _after_step(job, session, trainer, meter)
    _finish(job, session, trainer)


def _after_step(job: Job, session: Session, trainer: Trainer, meter: Meter) -> None:
    """Figures, pictures and checkpoints that are due after a step."""
    train, step = job.run.train, trainer.step_count
    last = step == train.steps
    switching = not last and trainer.model.phase(step) != trainer.model.phase(step - 1)
    if step % train.log_every == 0 or last or switching:
        record = meter.record(trainer)
        if session.rank == 0:
            with (job.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            session.publish(job, record)
    if session.rank == 0 and train.sample_every and step % train.sample_every == 0:
        try:
            session.publish_picture(job, _picture(job, trainer.averaged, step, session.device))
        except ConvergenceError as error:  # a picture is not worth a run
            print(f"no picture of step {step}: {error}", flush=True)
    sound = trainer.skipped_in_a_row == 0  # else its parameters may be what makes the loss infinite
    if (step % train.checkpoint_every == 0 and sound) or last or switching:
        place = job.directory / "checkpoints" / f"step-{step:08d}"
        if session.rank == 0:
            tensors, numbers = trainer.state()
            numbers |= {"recipe": job.run.recipe, "nelbo": meter.latest.get("nelbo", math.inf)}
            if switching and step == job.run.model.shared_steps:  # first: a kill between the two takes the switch again
                checkpoint.write(job.directory / "pretrained", tensors, numbers)
            checkpoint.write(place, tensors, numbers)
            checkpoint.prune(job.directory, train.keep)
        session.checkpointed(job, place, meter.latest)


def _finish(job: Job, session: Session, trainer: Trainer) -> None:
    if session.rank == 0:
        checkpoint.save_tensors(job.directory / "model.safetensors", network_tensors(trainer.averaged))


def _restore(job: Job, trainer: Trainer, newest: Path | None) -> None:
    """The newest checkpoint of the run, else the one that it starts from, else nothing."""
    source = newest or job.start_from
    if source is None:
        return
    tensors, numbers = checkpoint.read(source)
    networks: set[str] = set()
    if newest is None:
        there = {key.split(".")[1] for key in tensors if key.startswith("model.")}
        networks = there & trainer.optimisers.keys()
        if not networks:
            raise ValueError(f"{source}: has networks {sorted(there)}, none of this run's {sorted(trainer.optimisers)}")
    try:
        trainer.load(tensors, numbers, networks)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; give another --name, or the options that it was written with") from None


def _autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _on_device(rows: Rows, job: Job, device: torch.device, generator: torch.Generator) -> Tensor:
    """Rows on the training device, dequantised, scaled and flipped there."""
    spec = job.spec
    k = torch.from_numpy(rows["x"].astype(np.int32) if rows["x"].dtype == np.uint16 else rows["x"])
    x = dequantise(k.to(device, non_blocking=True), spec.levels, spec.low, spec.high, generator)
    if job.run.data.flip:
        flipped = torch.rand(len(x), 1, 1, 1, device=device, generator=generator) < 0.5
        x = torch.where(flipped, x.flip(-1), x)
    return x


def _picture(job: Job, model: GenerativeModel, step: int, device: torch.device) -> Path:
    """A grid of 64 samples (1,000 points of a vector set) of the averaged model by the probability-flow ODE."""
    from pipelines.runs.pictures import save_samples

    file = job.directory / "samples" / f"step-{step:08d}.png"
    file.parent.mkdir(exist_ok=True)
    num = 64 if len(job.spec.shape) == 3 else 1000
    model.eval()
    x = draw(
        model,
        lambda sde, score, u, ts, generator: sample_ode(sde, score, u, ts, rtol=1e-3, atol=1e-3),
        start_times(model),
        torch.zeros((), device=device),
        num,
        generator=seeded(range(num)),
    )
    save_samples(x, job.spec, file)
    return file


def _truncate_metrics(file: Path, step: int) -> None:
    """Drops the records of steps that a resumed run takes again."""
    kept = [record for record in read_metrics(file.parent) if record["step"] <= step]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
