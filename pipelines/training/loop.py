"""The training loop: the same for one process (`--local`) and for every worker of a Ray cluster, for a model that learns from
data and for a sampler that learns from a density.

`Work` is what is trained; `Session` is what the surroundings give: the rank, the device, the mean over ranks, and where figures
go. The loop begins at the newest checkpoint in the run's directory, trains to the last step, and leaves there

    config.json  hardware.json  metrics.jsonl  checkpoints/  pretrained/  samples/step-*.png  model.safetensors

metrics.jsonl has a record (`runs.record`) for every `log_every` steps, and one where a phase ends, the training was left or the
averaged weights were measured on held-out rows. Rank 0 measures them; the others wait for it where figures are averaged. The
terms of a generative model are nelbo, denoising, prior and log_det: NELBO = denoising + prior - log_det. It is the bound at
t_min without the residual, or at the time that Soft Truncation drew. A bridge adds `partner`, the NLL of the second data set
under the flow; DiffFlow has `transitions` in place of denoising.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from indm_core.compiled import cannot_compile, compile_blocks
from indm_core.errors import ConvergenceError
from indm_core.precision import computes_in_bfloat16
from indm_core.training import NonFiniteLossError, Trainer, network_tensors, step_seed
from pipelines.config.provenance import Provenance, backbone_options
from pipelines.config.run import Train
from pipelines.config.store import write_weights
from pipelines.runs.hardware import Hardware, keep_hardware
from pipelines.runs.job import METRICS, Training, finished, read_metrics
from pipelines.runs.record import HeldOut, Meter, Record
from pipelines.storage import checkpoint
from pipelines.storage.files import append_text, write_text
from pipelines.storage.outputs import writing
from pipelines.training.session import Session, Work
from pipelines.training.watch.divergence import DivergedError, Watch, left_behind, risen
from pipelines.training.watch.halt import Halt, Halted

__all__ = ["run"]

FIRST = "nelbo_at_first_step"
"""Of the numbers of a checkpoint: with what its error allows it to be, in nats."""


def run(work: Work[Any], session: Session) -> None:
    """Trains to the last step; does nothing where the run is complete. Rank 0, which writes, holds the run's lock.

    Raises:
        Halted: the session wanted the training to end; a checkpoint of the step that it had come to is there.
        DivergedError: the training has diverged; its last good checkpoint is there, and no weights.
        ValueError: a batch that the ranks cannot share, a checkpoint of another architecture, a network that cannot be frozen,
            or another process that writes the run.
    """
    with writing(work.training.directory) if session.rank == 0 else nullcontext():
        _train(work, session)


def _train(work: Work[Any], session: Session) -> None:
    training, train = work.training, work.training.train
    if session.agree(finished(training)):
        return
    if train.batch_size % (session.world * train.accumulate):
        raise ValueError(
            f"batch_size={train.batch_size} is not divisible by {session.world} workers x accumulate={train.accumulate}"
        )
    trainer = _trainer(work, session)
    newest = session.agree(checkpoint.latest(training.directory, session.say))
    numbers = _restore(work, trainer, newest)
    watch = Watch(numbers.get(FIRST, ()), newest is not None, session)
    if session.rank == 0:
        _begin(work, session, trainer)
    meter = Meter(
        batch_size=train.batch_size,
        steps=train.steps,
        unit=work.unit,
        average=session.average,
        begun=trainer.step_count,
    )
    batches = work.batches(trainer.step_count)
    generator, halt = torch.Generator(session.device), Halt(session, training)
    if halt.due(trainer.step_count):
        raise Halted
    if session.rank == 0 and train.validate_every and not read_metrics(training.directory):
        with meter.between_steps():
            _begin_curve(work, session, trainer)
    while trainer.step_count < train.steps:
        with meter.waiting():
            batch = next(batches)
        seed = step_seed(train.seed, trainer.step_count, session.rank)
        generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        try:
            report = trainer.step(batch(generator), generator)
        except NonFiniteLossError as error:
            raise _diverged(work, session, watch, trainer.step_count, str(error).partition(";")[0]) from None
        meter.add(report)
        watch.add(report)
        leaving = trainer.step_count < train.steps and halt.due(trainer.step_count)
        _after_step(work, session, trainer, meter, watch, leaving)
        if leaving:
            raise Halted
    if session.rank == 0:
        write_weights(training.directory, network_tensors(trainer.averaged), trainer.step_count, work.made_of)


def _begin(work: Work[Any], session: Session, trainer: Trainer[Any]) -> None:
    """The run's directory as it has to be at the step that is gone on from."""
    training, step = work.training, trainer.step_count
    if step >= training.train.steps:
        session.say(f"{training.directory.name}: no whole weights; they are written again from the last checkpoint")
    work.write_config()
    keep_hardware(training.directory, Hardware.here(session.device, session.world, step))
    checkpoint.discard_after(training.directory, step)
    _truncate_metrics(training.directory, step)
    session.begins(training, trainer.model)


def _trainer(work: Work[Any], session: Session) -> Trainer[Any]:
    """What is trained, with the weights that belong to the seed, and its optimisers."""
    train = work.training.train
    torch.manual_seed(train.seed)
    trainer = Trainer(
        work.build().to(session.device),
        train.optimisers,
        steps=train.steps,
        frozen=train.frozen,
        ema_decay=train.ema_decay,
        ema_ramp=train.ema_ramp,
        wrap=session.wrap,
        autocast=_autocast(train, session),
    )
    if train.compile:
        _compile(trainer.model, session)
    return trainer


def _diverged(work: Work[Any], session: Session, watch: Watch, step: int, reason: str) -> DivergedError:
    """What is raised, by every rank, of a training that has diverged; rank 0 puts its directory in order before."""
    said, training = "", work.training
    if session.rank == 0:
        first = work.unit.of("nelbo", torch.tensor(watch.first)) if math.isfinite(watch.first) else math.nan
        said = left_behind(training.directory, training.train, step, reason, first, work.suspect)
    return DivergedError(session.agree(said))


def _after_step(
    work: Work[Any], session: Session, trainer: Trainer[Any], meter: Meter, watch: Watch, leaving: bool
) -> None:
    """Figures, pictures and checkpoints that are due after a step, or because the training is left there."""
    training, train, step = work.training, work.training.train, trainer.step_count
    last = step == train.steps
    switching = not last and trainer.model.phase(step) != trainer.model.phase(step - 1)
    measured = bool(train.validate_every) and (step % train.validate_every == 0 or last)
    if step % train.log_every == 0 or last or switching or leaving or measured:
        with meter.between_steps():
            held_out = _held_out(work, trainer) if measured and session.rank == 0 else None
        meter.latest = record = replace(meter.record(trainer), held_out=held_out)
        _record(training, session, record)
    if session.rank == 0 and train.sample_every and step % train.sample_every == 0:
        with meter.between_steps():
            _draw(work, session, trainer)
    if reason := watch.skipping() or (_rising(work, session, meter.latest, watch) if last or switching else ""):
        raise _diverged(work, session, watch, step, reason)
    sound = trainer.skipped_in_a_row == 0  # else its parameters may be what makes the loss infinite
    if ((step % train.checkpoint_every == 0 or leaving) and sound) or last or switching:
        with meter.between_steps():
            _keep(work, session, trainer, meter.latest, watch, switching)


def _keep(
    work: Work[Any], session: Session, trainer: Trainer[Any], latest: Record, watch: Watch, switching: bool
) -> None:
    """A checkpoint of the step."""
    training, step = work.training, trainer.step_count
    place = training.directory / "checkpoints" / f"step-{step:08d}"
    if session.rank == 0:
        tensors, numbers = trainer.state()
        numbers |= {"recipe": training.recipe, **_figures(latest, step), **work.made_of}
        numbers |= {FIRST: [watch.first, watch.most]} if math.isfinite(watch.most) else {}
        if switching and step == work.shared_steps:  # first: a kill between the two takes the switch again
            checkpoint.write(training.directory / "pretrained", tensors, numbers)
        checkpoint.write(place, tensors, numbers)
        train = training.train
        checkpoint.prune(training.directory, train.keep, train.keep_by, train.measures)
    session.checkpointed(training, place, latest)


def _rising(work: Work[Any], session: Session, latest: Record, watch: Watch) -> str:
    """Says that the bound is above its first value, on held-out rows where they were measured; every rank calls it."""
    ends: list[HeldOut] = []
    if session.rank == 0:
        first = next(iter(read_metrics(work.training.directory)), latest)
        ends = [point for point in (first.held_out, latest.held_out) if point]
    ends = session.agree(ends)
    if len(ends) == 2 and math.isfinite(ends[0].nelbo):
        return risen(ends[0], ends[1], work.unit.name)
    return watch.rising(work.unit)


def _begin_curve(work: Work[Any], session: Session, trainer: Trainer[Any]) -> None:
    """The first point of the validation curve: the weights that the run begins with."""
    training, step = work.training, trainer.step_count
    if work.validate is None:
        session.say(f"{training.directory.name}: the data have no held-out rows, and so there is no validation curve")
    elif held_out := _held_out(work, trainer):
        phase = trainer.model.phase(step)
        _record(training, session, Record(step=step, phase=phase, unit=work.unit.name, held_out=held_out))


def _record(training: Training, session: Session, record: Record) -> None:
    """Every rank tells of a record; rank 0's is in the file before."""
    if session.rank == 0:
        append_text(training.directory / METRICS, record.to_json() + "\n")
    session.publish(training, record)


def _held_out(work: Work[Any], trainer: Trainer[Any]) -> HeldOut | None:
    """The NELBO of the averaged model on held-out rows, taken on a copy: some layers change where they are only asked."""
    return work.validate(copy.deepcopy(trainer.averaged).eval()) if work.validate else None


def _figures(record: Record, step: int) -> dict[str, float]:
    """What a checkpoint's state says of its step: the NELBO on training rows and, where it was measured, on held-out ones."""
    own = {"nelbo": record.terms.get("nelbo", math.inf)}
    if record.held_out is None or record.step != step:
        return own
    return own | {"validation_nelbo": record.held_out.nelbo, "validation_se": record.held_out.se}


def _draw(work: Work[Any], session: Session, trainer: Trainer[Any]) -> None:
    """A picture of the averaged model; a picture is not worth a run, so that one which fails is only said."""
    file = work.training.directory / "samples" / f"step-{trainer.step_count:08d}.png"
    try:
        file.parent.mkdir(exist_ok=True)
        work.draw(trainer.averaged.eval(), file)
    except (ConvergenceError, OSError, ValueError) as error:
        session.say(f"no picture of step {trainer.step_count}: {error}")


def _restore(work: Work[Any], trainer: Trainer[Any], newest: Path | None) -> dict[str, Any]:
    """Goes on from the newest checkpoint of the run, else from the one that it starts from, else from nothing.

    Returns:
        The numbers of the run's own checkpoint; of a run that begins, none.
    """
    source = newest or work.training.start_from
    if source is None:
        return {}
    tensors, numbers = checkpoint.read(source)
    networks: set[str] = set()
    if newest is None:
        there, own = {key.split(".")[1] for key in tensors if key.startswith("model.")}, trainer.model.networks().keys()
        networks = there & own
        if not networks:
            raise ValueError(f"{source}: has networks {sorted(there)}, none of this run's {sorted(own)}")
    try:
        trainer.load(tensors, numbers, networks)
    except ValueError as error:
        there, here = Provenance.read(numbers, str(source)), Provenance.read(work.made_of, "this run")
        given = backbone_options(there.run, here.run) if there and here else ""
        remedy = f"the options that it was written with{f': {given}' if given else ''}"
        raise ValueError(f"{source}: {error}; give {'another --name, or ' if newest else ''}{remedy}") from None
    return numbers if newest is not None else {}


def _autocast(train: Train, session: Session) -> Callable[[], AbstractContextManager[Any]]:
    device = session.device
    if train.precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision=tf32: a {device.type} device has no such numbers; give --precision fp32 or bf16")
    if train.precision == "tf32":  # of convolutions it is PyTorch's default
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if train.precision != "bf16":
        return nullcontext
    if not computes_in_bfloat16(device):
        session.say(f"precision=bf16: this {device.type} has no instructions for it, and so this is trained in fp32")
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _compile(model: torch.nn.Module, session: Session) -> None:
    """What is trained; the average, which is measured, runs as it is."""
    if why := cannot_compile(session.device):
        session.say(
            f"compile=true: nothing is compiled for this {session.device.type} ({why}), and so blocks run as they are"
        )
    elif not compile_blocks(model):
        session.say("compile=true: no network of this model repeats a block that could be compiled; it runs as it is")


def _truncate_metrics(directory: Path, step: int) -> None:
    """Drops the records of steps that a resumed run takes again."""
    kept = [record for record in read_metrics(directory) if record.step <= step]
    write_text(directory / METRICS, "".join(record.to_json() + "\n" for record in kept))
