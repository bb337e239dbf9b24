"""Pre-training that several trials share.

While a model is pre-trained its score alone is trained, as a linear diffusion: the flow rests at the identity. Trials that
differ by the length of that phase, or by how the flow is trained after it, take the same steps at first. One training takes
them once, to the longest length, in stages; each trial begins from the checkpoint where its own pre-training ends. Rows, noise
and learning rates are functions of the seed and the step, so that with one worker such a trial has the weights, to the last
bit, of one that was trained on its own.

A learning rate that decays depends on the number of all steps, and a stage ends before: such trials are trained on their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from indm_core.training import AdamW
from pipelines.config.run import RunConfig, to_document
from pipelines.config.terminal.cli import options, with_values
from pipelines.runs.job import Job
from pipelines.training.jobs import refuse_another_run
from tune.named import PRETRAIN
from tune.plan import built

__all__ = ["shared"]

FLOW = "flow"
"""The network that rests."""


def shared(jobs: Mapping[int, Job], name: str) -> tuple[list[Job], dict[int, Path]]:
    """What is trained for several trials together.

    Args:
        jobs: By trial.
        name: Of the sweep: the stages are its runs NAME-pretrained-STEPS.

    Returns:
        The stages, in the order of their training, and by trial the checkpoint that it begins from.

    Raises:
        ValueError: a stage's directory holds another run.
    """
    stages: list[Job] = []
    starts: dict[int, Path] = {}
    for number, group in enumerate(_groups(jobs)):
        before: Job | None = None
        for steps in sorted({_length(job.run) for job in group.values()}):
            ending = f"-{number}" if number else ""
            stage = _stage(next(iter(group.values())), f"{name}-pretrained-{steps}{ending}", before, steps)
            refuse_another_run(stage)
            starts |= {index: _end(stage) for index, job in group.items() if _length(job.run) == steps}
            stages.append(stage)
            before = stage
    return stages, starts


def _groups(jobs: Mapping[int, Job]) -> list[dict[int, Job]]:
    """The trials that share their pre-training, two or more in each."""
    found: dict[str, dict[int, Job]] = {}
    for index, job in jobs.items():
        decays = any(each.decay != "none" for each in job.run.train.optimisers.values())
        if 0 < _length(job.run) < job.run.train.steps and not decays and built(job).phase(0) == "pretraining":
            found.setdefault(_key(job.run), {})[index] = job
    return [group for group in found.values() if len(group) > 1]


def _length(run: RunConfig) -> int:
    return next((option.value for option in options(run) if option.path == PRETRAIN), 0)


def _key(run: RunConfig) -> str:
    """What the steps of the pre-training depend on."""
    optimisers = {name: AdamW() if name == FLOW else each for name, each in run.train.optimisers.items()}
    same = with_values(replace(run, train=replace(run.train, optimisers=optimisers)), {PRETRAIN: 0})
    return json.dumps(to_document(same), sort_keys=True)


def _stage(trial: Job, name: str, before: Job | None, steps: int) -> Job:
    """The training up to a length, from the end of the stage before."""
    run = with_values(trial.run, {PRETRAIN: steps, "train.steps": steps})
    directory, start = trial.directory.parent / name, _end(before) if before else None
    return replace(trial, run=run, directory=directory, start_from=start)


def _end(stage: Job) -> Path:
    """The checkpoint of a stage's last step."""
    return stage.directory / "checkpoints" / f"step-{stage.run.train.steps:08d}"
