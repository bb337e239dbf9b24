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
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indm_core.draw import draw, start_times
from indm_core.errors import ConvergenceError
from indm_core.likelihood import bits_per_dim, dequantise
from indm_core.model import GenerativeModel
from indm_core.noise import seeded
from indm_core.sample import sample_ode
from indm_core.training import StepReport, Trainer, network_tensors, step_seed
from pipelines import checkpoint
from pipelines.atomic import write_text
from pipelines.config import RunConfig, write_run
from pipelines.models import DataSpec

__all__ = ["Job", "Session", "finished", "read_metrics", "run_job", "to_unit"]

Rows = dict[str, np.ndarray]
PARTNER = 2**31
"""In place of a rank: what tells the second data set's order from the first's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run in its directory.

    Args:
        run: The configuration.
        spec: Of the data.
        directory: Of the run.
        data: Of the prepared data set.
        partner: Of the second one of a bridge.
        start_from: A checkpoint of another run whose networks of the same name start this one; None starts afresh.
    """

    run: RunConfig
    spec: DataSpec
    directory: Path
    data: Path
    partner: Path | None = None
    start_from: Path | None = None

    def of_partner(self) -> Job:
        """The same run on the second data set, in an order of its own."""
        train = replace(self.run.train, seed=step_seed(self.run.train.seed, 0, PARTNER))
        return replace(self, run=replace(self.run, train=train), data=self.partner, partner=None)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a worker is given.

    Args:
        rank, world: Of this worker.
        device: That it computes on.
        rows: rows(job, first_row) -> this rank's rows {x, label} in chunks of its share of a batch, from a row of the run on.
        average: The mean of a vector over the ranks.
        agree: Rank 0's value of a small picklable thing, on every rank (file systems show one change at different times).
        wrap: Wraps the model for gradient averaging.
        publish: Called on rank 0 with (job, record) for every record.
        publish_picture: Called on rank 0 with (job, file) for every picture.
        checkpointed: Called on every rank with (job, directory, record) after each checkpoint.
    """

    rank: int
    world: int
    device: torch.device
    rows: Callable[[Job, int], Iterator[Rows]]
    average: Callable[[Tensor], Tensor]
    agree: Callable[[Any], Any]
    wrap: Callable[[GenerativeModel], nn.Module]
    publish: Callable[[Job, dict[str, Any]], None]
    publish_picture: Callable[[Job, Path], None]
    checkpointed: Callable[[Job, Path, dict[str, Any]], None]


def to_unit(nats: Tensor, spec: DataSpec) -> tuple[Tensor, str]:
    """Negative log-likelihoods in bits/dim of the discrete data, or in nats/dim for continuous data; and the unit."""
    if spec.levels:
        return bits_per_dim(nats, spec.num_dims, spec.levels, spec.low, spec.high), "bits/dim"
    return nats / spec.num_dims, "nats/dim"


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
    meter = _Meter(job, session)
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


def _after_step(job: Job, session: Session, trainer: Trainer, meter: _Meter) -> None:
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


def finished(job: Job) -> bool:
    """Whether a run has taken its last step and its averaged weights are those of that step, not of a shorter run."""
    weights, newest = job.directory / "model.safetensors", checkpoint.latest(job.directory)
    if newest is None or int(newest.name.removeprefix("step-")) < job.run.train.steps or not weights.is_file():
        return False
    return weights.stat().st_mtime_ns >= (newest / checkpoint.STATE).stat().st_mtime_ns


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
    from pipelines.pictures import draw_samples

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
    draw_samples(x, job.spec, file)
    return file


class _Meter:
    """Sums of a logging interval, without waiting for the device until the interval's end."""

    def __init__(self, job: Job, session: Session) -> None:
        self.job, self.session = job, session
        self.latest: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}
        self.steps, self.wait, self.began = 0, 0.0, time.monotonic()

    def waiting(self) -> _Stopwatch:
        return _Stopwatch(self)

    def add(self, report: StepReport) -> None:
        if not report.skipped:
            for name, term in report.terms.items():
                self.terms[name] = self.terms.get(name, 0.0) + term
            for name, norm in report.gradient_norms.items():
                self.norms[name] = self.norms.get(name, 0.0) + norm
            self.steps += 1

    def record(self, trainer: Trainer) -> dict[str, Any]:
        """The interval's record; every rank calls it, because the terms are averaged over ranks."""
        train, seconds = self.job.run.train, time.monotonic() - self.began
        record: dict[str, Any] = {"step": trainer.step_count, "phase": trainer.model.phase(trainer.step_count - 1)}
        if self.steps:
            means = self.session.average(torch.stack(list(self.terms.values())) / self.steps).double().cpu()
            record |= self._in_unit(dict(zip(self.terms, means, strict=True)))
        steps = max(1, trainer.step_count - self.latest.get("step", trainer.step_count - max(1, self.steps)))
        record |= {
            "images_per_s": steps * train.batch_size / seconds,
            "data_wait": self.wait / seconds,
            "eta_s": (train.steps - trainer.step_count) * seconds / steps,
            "skipped": trainer.skipped,
        }
        record |= {f"gradient_norm/{name}": total / max(1, self.steps) for name, total in self.norms.items()}
        self.latest = record
        self._reset()
        return record

    def _in_unit(self, means: dict[str, Tensor]) -> dict[str, Any]:
        spec, shown = self.job.spec, {}
        for name, value in means.items():
            in_unit, unit = to_unit(value, spec)
            is_part = name not in ("nelbo", "partner")
            shown[name] = float(in_unit - to_unit(torch.zeros_like(value), spec)[0] if is_part else in_unit)
            shown["unit"] = unit
        return shown


class _Stopwatch:
    def __init__(self, meter: _Meter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.meter.wait += time.monotonic() - self.began


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The records of a run; a line that a kill cut short is left out."""
    file = directory / "metrics.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _truncate_metrics(file: Path, step: int) -> None:
    """Drops the records of steps that a resumed run takes again."""
    kept = [record for record in read_metrics(file.parent) if record["step"] <= step]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
