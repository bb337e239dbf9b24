"""The runs of a training command, on prepared data, checked before any work is spent."""

from __future__ import annotations

import json
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from indm_core.training import check_frozen
from pipelines.config.cli import options, with_values
from pipelines.config.run import RunConfig, Train
from pipelines.config.store import as_begun, read_run
from pipelines.data.cache import embedded, ensure
from pipelines.data.card import Card, load_card
from pipelines.data.spec import DataSpec
from pipelines.recipes import find
from pipelines.runs import checkpoint
from pipelines.runs.job import Job
from pipelines.training.launch import Launch

__all__ = ["all_jobs", "jobs_for"]


MAY_CHANGE = {"train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.keep"}


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
    _check_shares(train, launch)
    run.model.check_steps(train.steps)
    if not run.data.source:
        raise ValueError(f"{run.recipe} needs data: give --source PATH (any format that pipelines/prepare.py reads)")
    data = ensure(run.data.source, root / "data", run.data.options)
    run = replace(run, data=replace(run.data, source=_absolute(run.data.source), partner=_absolute(run.data.partner)))
    card = load_card(data)
    spec = DataSpec.of(card)
    if train.frozen:
        check_frozen(run.model.build(spec).networks().keys(), train.frozen)
    rows = card.split("train").count
    if train.batch_size > rows:
        raise ValueError(f"batch_size={train.batch_size} is larger than the {rows} training rows of {card.name}")
    if len(card.shape) != 3 and run.data.flip:
        raise ValueError(f"flip=True: {card.name} has vectors of shape {card.shape}, only images can be flipped")
    partner = _partner(run, card, root)
    start = _start(launch.start_from, train.steps)
    directory = root / f"{launch.name or run.recipe}{ending}"
    if (directory / "config.json").is_file():
        run = as_begun(run, directory / "config.json")
    jobs = [Job(run=run, spec=spec, directory=directory, data=data, partner=partner, start_from=start)]
    shared = run.model.shared_steps
    if launch.baseline and shared >= train.steps:
        raise ValueError(
            f"pretrain_steps={shared} leaves no steps of steps={train.steps} to compare with the baseline; "
            "give more --steps, or fewer --pretrain-steps"
        )
    if launch.baseline:
        other = _baseline(launch.baseline, run)
        after = directory / "pretrained" if shared else start
        beside = root / ((f"{launch.name}-{other.recipe}" if launch.name else other.recipe) + ending)
        jobs.append(Job(run=other, spec=spec, directory=beside, data=data, start_from=after))
    for job in jobs:
        _refuse_another_run(job)
    return jobs


def _check_shares(train: Train, launch: Launch) -> None:
    """Refuses a batch that some number of workers cannot share."""
    for workers in range(launch.min_workers or launch.workers, launch.workers + 1):
        if train.batch_size % (workers * train.accumulate):
            raise ValueError(
                f"batch_size={train.batch_size} is not divisible by workers={workers} x accumulate={train.accumulate}; "
                "change one of them"
            )


def _absolute(source: str) -> str:
    """A source as it is found from anywhere: evaluation may be started elsewhere."""
    return source if not source or embedded(source) else str(Path(source).expanduser().resolve())


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


def _start(given: str, steps: int) -> Path | None:
    """The checkpoint that a run starts from."""
    if not given:
        return None
    start = Path(given).expanduser().resolve()
    try:
        step = int(json.loads((start / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"start_from={start}: no checkpoint there; give RUN/pretrained or RUN/checkpoints/step-..."
        ) from None
    if step >= steps:
        raise ValueError(f"start_from={start} is at step {step}, and its steps count: give --steps above {step}")
    return start


def _baseline(name: str, run: RunConfig) -> RunConfig:
    """A baseline with the run's data and training; what the two recipes have in common stays so after the overrides."""
    if run.train.frozen:
        frozen = ",".join(run.train.frozen)
        raise ValueError(f'frozen={frozen}: a baseline trains all its networks; give --baseline "", or freeze none')
    other = replace(find(name, "baseline")(), data=run.data, train=run.train)
    theirs, before = ({o.path: _form(o.value) for o in options(c)} for c in (other, find(run.recipe)()))
    common = {path for path in theirs.keys() & before.keys() if theirs[path] == before[path]}
    forms = {o.path: o.value for o in options(run) if is_dataclass(o.value) and _form(o.value) != before.get(o.path)}
    other = with_values(other, {path: value for path, value in forms.items() if path in common})
    values = {o.path: o.value for o in options(run) if not is_dataclass(o.value)}
    return with_values(other, {path: values[path] for path in common & values.keys() if path != "recipe"})


def _refuse_another_run(job: Job) -> None:
    """A directory that holds a run with other options is not overwritten."""
    file = job.directory / "config.json"
    if job.directory.exists() and not job.directory.is_dir():
        raise ValueError(f"{job.directory} is a file where the run's directory would be; give another --name")
    if not file.is_file():
        return
    there, spec = read_run(file)
    remedy = f"give another --name, or remove {job.directory}"
    if there.recipe != job.run.recipe:
        raise ValueError(f"{job.directory} holds a run of recipe {there.recipe}, not {job.run.recipe}; {remedy}")
    old, new = ({o.path: _form(o.value) for o in options(run)} for run in (there, job.run))
    newest = checkpoint.latest(job.directory)
    if newest and int(newest.name.removeprefix("step-")) > job.run.train.steps:
        raise ValueError(f"{newest} is beyond steps={job.run.train.steps}; give more --steps, or {remedy}")
    changed = [p for p in sorted(old.keys() | new.keys()) if p not in MAY_CHANGE and old.get(p) != new.get(p)]
    if changed:
        p = changed[0]
        raise ValueError(f"{job.directory} holds a run with {p}={old.get(p)}, not {new.get(p)}; {remedy}")
    if spec != job.spec:
        raise ValueError(f"{job.directory} was trained on other data ({spec.name} {spec.shape}); {remedy}")


def _form(value: Any) -> Any:
    """A configuration's class; its fields are options of their own."""
    return type(value).__name__ if is_dataclass(value) else value
