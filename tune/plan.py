"""What a sweep is going to do: its trials as jobs, all checked before the first of them begins.

Of a grid and of random points every one is built; of what a searcher will suggest the corners are. A point whose training is
that of an earlier one is left out: the linear diffusion has no pre-training to be searched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from indm_core.model import GenerativeModel
from pipelines.config.codec import to_json
from pipelines.config.history import Command
from pipelines.config.run import RunConfig, to_document
from pipelines.config.terminal.cli import options, override, with_values
from pipelines.evaluation.needs import check_needs
from pipelines.runs.job import Job
from pipelines.training.jobs import jobs_for
from tune.named import PRETRAIN
from tune.options import Options
from tune.points import points as different_points
from tune.results import refuse_another
from tune.spaces import Point, Space

__all__ = ["Plan", "as_trial", "built", "check", "points"]

RUNGS = 8
"""How often a trial is measured on held-out rows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep.

    Args:
        name: Of its directory and the beginning of its runs' names.
        run: The recipe that all trials have in common.
        space: What is searched.
        options: How.
        root: The output directory.
        command: That sweeps.
        parent: Id of its MLflow run.
        starts: By trial, the checkpoint of a shared pre-training that it begins from.
    """

    name: str
    run: RunConfig
    space: Space
    options: Options
    root: Path
    command: Command = field(default_factory=Command)
    parent: str = ""
    starts: Mapping[int, Path] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def run_name(self, index: int) -> str:
        """The name of a trial's run."""
        return f"{self.name}-{index:03d}"

    def job(self, index: int, point: Point) -> Job:
        """The training of a trial.

        Raises:
            ValueError: the recipe is refused at the point, or the run's directory holds another run.
        """
        (job,) = jobs_for(self.space.run(self.run, point), self.options.launch(self.run_name(index)), self.root)
        return replace(job, command=self.command, start_from=self.starts.get(index))

    def asked(self) -> dict[str, str]:
        """What makes it this sweep; the number of its trials, what is minimised and who ends them may change."""
        o = self.options
        return {
            "recipe": json.dumps(to_document(self.run), sort_keys=True),
            "space": repr(self.space),
            "search": f"{o.search}, seed {o.search_seed}",
            "samplers": o.samplers,
            "evaluation": json.dumps(to_json(replace(o.evaluation, actors=0)), sort_keys=True),
            "workers": f"{o.workers} of {o.device}",
        }


def as_trial(run: RunConfig, steps: int, given: Mapping[str, str], others: Sequence[str]) -> RunConfig:
    """A recipe as a trial of so many steps: its pre-training keeps its share, it is measured on held-out rows and kept `RUNGS`
    times, and draws no pictures, unless options say otherwise.

    Args:
        given: Options of the recipe.
        others: Options that are taken elsewhere, for suggestions.

    Raises:
        ValueError: what `override` refuses, another number of steps, or measurements beside the training.
    """
    if named := [name for name in given if name in ("steps", "train.steps")]:
        raise ValueError(f"--{named[0]} {given[named[0]]}: trials take --trial-steps")
    every = max(1, -(-steps // RUNGS))
    values = {
        "train.steps": steps,
        "train.checkpoint_every": every,
        "train.validate_every": every,
        "train.sample_every": 0,
        "train.measure_every": 0,
        "train.keep_by": "nelbo",
    }
    known = {option.path: option.value for option in options(run)}
    if PRETRAIN in known:
        values[PRETRAIN] = round(known[PRETRAIN] * steps / run.train.steps)
    found = override(
        with_values(run, values | {"train.log_every": min(every, run.train.log_every)}), dict(given), others
    )
    if found.train.measure_every:
        raise ValueError(
            f"measure_every={found.train.measure_every}: trials are measured when they have ended; leave it out"
        )
    return found


def points(plan: Plan) -> list[Point]:
    """The points of a grid or of a random search whose trainings differ (`tune.points`)."""
    return different_points(
        plan, lambda point: json.dumps(to_document(plan.space.run(plan.run, point)), sort_keys=True)
    )


def check(plan: Plan, several: Sequence[Point]) -> str:
    """Builds the trials of some points and finds out whether they can be trained and measured.

    Returns:
        The unit of their likelihoods.

    Raises:
        ValueError: another sweep's directory, or a point that is refused; the message names it.
    """
    refuse_another(plan.directory, plan.asked())
    if plan.options.scheduler != "none" and not plan.run.train.validate_every:
        raise ValueError(
            f"scheduler={plan.options.scheduler} ends trials by their NELBO on held-out rows, and validate_every=0; give "
            "--validate-every STEPS"
        )
    unit = ""
    for index, point in enumerate(several):
        try:
            job = plan.job(index, point)
            model = built(job)
            if (
                (steps := _pretrain_steps(job.run))
                and PRETRAIN in _searched(plan, point)
                and model.phase(0) != "pretraining"
            ):
                raise ValueError(
                    f"pretrain_steps={steps}: {job.run.recipe} has no flow of the data that rests meanwhile; give --model.flow"
                )
            check_needs(job.data, job.cards[0], plan.options.evaluation, *job.cards[1:])
            unit = job.spec.unit
        except ValueError as error:
            raise ValueError(f"{plan.space.label(point)}: {error}") from error
    return unit


def _pretrain_steps(run: RunConfig) -> int:
    return next((option.value for option in options(run) if option.path == PRETRAIN), 0)


def _searched(plan: Plan, point: Point) -> set[str]:
    """The fields that a point sets."""
    return {name for d in plan.space.dimensions for name, _ in d.choice(point[d.name]).given}


def built(job: Job) -> GenerativeModel:
    """A job's model, without memory where its parts can do without numbers."""
    try:
        with torch.device("meta"):
            return job.run.model.build(job.spec)
    except RuntimeError:
        return job.run.model.build(job.spec)
