"""The runs of a training command, on prepared data, checked before any work is spent."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path

import torch

from indm_core.training import check_frozen
from pipelines.config.history import Command
from pipelines.config.provenance import Provenance, difference, say_unverified
from pipelines.config.run import RunConfig, Train
from pipelines.config.store import CONFIG, as_begun, read_run, read_weights_state
from pipelines.config.terminal.cli import options, with_values
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.origin import canonical
from pipelines.data.spec import DataSpec
from pipelines.recipes import find
from pipelines.runs.job import Job
from pipelines.runs.mirror import bring_back
from pipelines.runs.pretrained import PREFIX, begin_with
from pipelines.storage import checkpoint
from pipelines.storage.manifest import DamagedError, Manifest
from pipelines.storage.outputs import check_name
from pipelines.storage.paths import local_path
from pipelines.training.launch import Launch, Workers

__all__ = ["all_jobs", "check_shares", "jobs_for", "refuse_another_run", "start_of", "state_of"]


def all_jobs(run: RunConfig, launch: Launch, root: Path) -> list[Job]:
    """The jobs of a command: those of `jobs_for`, for each of its seeds.

    Raises:
        ValueError: as `jobs_for` does.
    """
    if launch.seeds == 1:
        return jobs_for(run, launch, root)
    seeds = range(run.train.seed, run.train.seed + launch.seeds)
    runs = [replace(run, train=replace(run.train, seed=seed)) for seed in seeds]
    return [job for each in runs for job in jobs_for(each, launch, root, f"-seed{each.train.seed}")]


def jobs_for(run: RunConfig, launch: Launch, root: Path, ending: str = "") -> list[Job]:
    """The run, and the baseline that follows it, on prepared data, checked before any work is spent.

    Args:
        ending: Of the names of the runs' directories.

    Raises:
        ValueError: data that cannot be had, a batch that the workers cannot share, or a directory of another run.
    """
    train = run.train
    check_shares(train, launch)
    run.model.check_steps(train.steps)
    if not run.data.source:
        raise ValueError(f"{run.recipe} needs data: give --source PATH (any format that pipelines/prepare.py reads)")
    data = ensure(run.data.source, root / "data", run.data.options)
    run = replace(run, data=replace(run.data, source=_absolute(run.data.source), partner=_absolute(run.data.partner)))
    card = load_card(data)
    spec = DataSpec.of(card)
    _check_data(run, card, spec)
    partner = _partner(run, card, root)
    if launch.start_from.startswith(PREFIX):
        run, start = begin_with(launch.start_from, run, spec, root)
    else:
        start = start_of(launch.start_from, root, train.steps)
    name = f"{launch.name or run.recipe}{ending}"
    check_name(name)
    directory = root / name
    bring_back(directory, launch.mirror)
    if (directory / "config.json").is_file():
        run = as_begun(run, directory / "config.json")
    command = Command.of_this_process()
    jobs = [Job(run=run, spec=spec, directory=directory, data=data, partner=partner, start_from=start, command=command)]
    shared = _shared_steps(jobs[0], launch)
    if launch.baseline:
        other = _baseline(launch.baseline, run)
        # a score network that takes labels is no start for one that does not
        same = other.model.conditional == run.model.conditional
        after = directory / "pretrained" if shared and same else start
        beside = root / ((f"{launch.name}-{other.recipe}" if launch.name else other.recipe) + ending)
        bring_back(beside, launch.mirror)
        jobs.append(Job(run=other, spec=spec, directory=beside, data=data, start_from=after, command=command))
    for job in jobs:
        refuse_another_run(job)
        _check_model(job)
    return jobs


def _check_model(job: Job) -> None:
    """Refuses a model that cannot be built for the data, of a run that has yet to begin: before workers are started for it."""
    if not (job.directory / CONFIG).is_file():
        with torch.random.fork_rng(devices=[]):
            job.run.model.build(job.spec)


def _check_data(run: RunConfig, card: Card, spec: DataSpec) -> None:
    """Refuses what the data, or a model of them, cannot be trained with."""
    if run.train.frozen:
        check_frozen(run.model.build(spec).networks().keys(), run.train.frozen)
    rows, batch_size = card.split("train").count, run.train.batch_size
    if batch_size > rows:
        raise ValueError(f"batch_size={batch_size} is larger than the {rows} training rows of {card.name}")
    if len(card.shape) != 3 and run.data.flip:
        raise ValueError(
            f"flip=True: {card.name} has {card.kind}s of shape {card.shape}, only images can be flipped; the recipe "
            f"{card.kind}s takes {card.kind}s"
        )


def _shared_steps(job: Job, launch: Launch) -> int:
    """The steps that a run has in common with its baseline; of a run that has no others, it is refused or said."""
    shared, steps = job.run.model.shared_steps, job.run.train.steps
    if launch.baseline and shared >= steps:
        raise ValueError(
            f"pretrain_steps={shared} leaves no steps of steps={steps} to compare with the baseline; "
            "give more --steps, or fewer --pretrain-steps"
        )
    if shared and shared >= steps:
        print(
            f"{job.directory.name}: all of steps={steps} train the score alone, since pretrain_steps={shared}; "
            "for a flow give more --steps, or fewer --pretrain-steps",
            flush=True,
        )
    return shared


def check_shares(train: Train, launch: Workers) -> None:
    """Refuses a batch that some number of workers cannot share."""
    for workers in range(launch.min_workers or launch.workers, launch.workers + 1):
        if train.batch_size % (workers * train.accumulate):
            raise ValueError(
                f"batch_size={train.batch_size} is not divisible by workers={workers} x accumulate={train.accumulate}; "
                "change one of them"
            )


def _absolute(source: str) -> str:
    """A source as it is found from anywhere: evaluation may be started elsewhere."""
    return canonical(source) if source else source


def _partner(run: RunConfig, card: Card, root: Path) -> Path | None:
    """The prepared second data set of a bridge, which must look like the first."""
    wanted = run.model.needs_partner
    if wanted != bool(run.data.partner):
        need = "needs a second data set: give --partner PATH" if wanted else "takes one data set: do not give --partner"
        raise ValueError(f"{run.recipe}: its model {need}")
    if not wanted:
        return None
    partner = ensure(run.data.partner, root / "data", run.data.options)
    other = load_card(partner)
    for name in ("shape", "levels", "low", "high"):
        mine, theirs = getattr(card, name), getattr(other, name)
        if mine != theirs:
            raise ValueError(f"partner={run.data.partner}: its {name} is {theirs}, that of {card.name} is {mine}")
    rows = other.split("train").count
    if run.train.batch_size > rows:
        raise ValueError(f"batch_size={run.train.batch_size} is larger than the {rows} training rows of {other.name}")
    return partner


def start_of(given: str, root: Path, steps: int) -> Path | None:
    """The checkpoint that a run starts from: a directory of one, RUN@STEP, or RUN for its newest."""
    if not given:
        return None
    start = local_path(given, "--start-from").resolve()
    if not (start / checkpoint.STATE).is_file():
        start = _checkpoint_of(given, root)
    try:
        state = checkpoint.read_state(start)
    except (OSError, DamagedError) as error:
        raise ValueError(
            f"start_from={given}: no checkpoint there ({error}); give RUN, RUN@STEP, RUN/pretrained or a directory below "
            "RUN/checkpoints"
        ) from None
    if not state.checked:
        say_unverified(start)
    step = state.content["step"]
    if step >= steps:
        raise ValueError(f"start_from={start} is at step {step}, and its steps count: give --steps above {step}")
    return start


def _checkpoint_of(word: str, root: Path) -> Path:
    """The directory of the checkpoint that a run's name stands for."""
    weights = Weights.named(word, root)
    if weights.raw:
        raise ValueError(f"start_from={word}: a run starts from the weights and their average; leave :raw out")
    return (Weights.named(f"{word}@last", root) if weights.step is None else weights).checkpoint


def _baseline(name: str, run: RunConfig) -> RunConfig:
    """A baseline with the run's data and training; what the two recipes have in common stays so after the overrides."""
    if run.train.frozen:
        frozen = ",".join(run.train.frozen)
        raise ValueError(f'frozen={frozen}: a baseline trains all its networks; give --baseline "", or freeze none')
    other = replace(find(name, "baseline")(), data=run.data, train=run.train)
    theirs, before = ({o.path: o.plain for o in options(c)} for c in (other, find(run.recipe)()))
    common = {path for path in theirs.keys() & before.keys() if theirs[path] == before[path]}
    forms = {o.path: o.value for o in options(run) if is_dataclass(o.value) and o.plain != before.get(o.path)}
    other = with_values(other, {path: value for path, value in forms.items() if path in common})
    values = {o.path: o.value for o in options(run) if not is_dataclass(o.value)}
    return with_values(other, {path: values[path] for path in common & values.keys() if path != "recipe"})


def refuse_another_run(job: Job) -> None:
    """A directory that holds a run with other options, or of other data, is neither overwritten nor gone on with.

    config.json says what the run is, and so do its checkpoints and its weights: all must agree with the job.

    Raises:
        ValueError: it holds another run; what differs.
    """
    directory = job.directory
    remedy = f"give another --name, or remove {directory}"
    state = state_of(directory, job.run.train.steps)
    if not (directory / CONFIG).is_file():
        return
    there, spec = read_run(directory / CONFIG)
    if there.recipe != job.run.recipe:
        raise ValueError(f"{directory} holds a run of recipe {there.recipe}, not {job.run.recipe}; {remedy}")
    if changed := difference(there, job.run):
        raise ValueError(
            f"{directory} holds a run with {changed}; give the options that it was begun with, or {remedy}"
        )
    if spec != job.spec:
        raise ValueError(f"{directory} was trained on other data ({spec.name} {spec.shape}); {remedy}")
    if state is None:
        return
    made = Provenance.read(state.content, str(state.file))
    if made is None:
        say_unverified(directory)
        return
    now = job.provenance()
    if changed := made.config_changed(now.run, now.spec):
        raise ValueError(
            f"{directory / CONFIG} has changed: {state.file} is of a run with {changed}; put it back, or {remedy}"
        )
    if changed := made.data_changed(now.data) or made.partner_changed(now.partner):
        raise ValueError(
            f"{directory} was trained on other data: {changed}; put the source back as it was, or {remedy}"
        )


def state_of(directory: Path, steps: int) -> Manifest | None:
    """What the newest checkpoint in a run's directory, or its weights, say that they are; None where nothing is there yet.

    Raises:
        ValueError: no directory, a checkpoint without the configuration that it is of, or one beyond the last step.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file where the run's directory would be; give another --name")
    remedy = f"give another --name, or remove {directory}"
    state = _state(directory)
    if state is not None and not (directory / CONFIG).is_file():
        raise ValueError(
            f"{directory / CONFIG} is missing, and {state.file} says that there is a run: restore it"
            f"{' (the same file has it under config)' if state.checked else ''}, or {remedy}"
        )
    if state is not None and state.content["step"] > steps:
        raise ValueError(f"{state.file.parent} is beyond steps={steps}; give more --steps, or {remedy}")
    return state


def _state(run: Path) -> Manifest | None:
    """What the newest checkpoint of a run, or its weights where it has none, say that it is; None where there is no run."""
    try:
        return checkpoint.newest_state(run) or read_weights_state(run)
    except DamagedError:
        return None
