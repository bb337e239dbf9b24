"""What a sweep over samplers is going to do: its trials as rows of trained runs (`evaluation.sampling.rows`), all checked
before the first of them is drawn.

A trial has a point, and a point says in which options its row differs from the one that all have in common. Where there are
several runs, or checkpoints, the run is a dimension like the others: of DiNofs that differ by their T_m, it is T_m.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.config.history import Command
from pipelines.config.store import digest, load
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.evaluation.needs import check_needs
from pipelines.evaluation.plan import subjects_of
from pipelines.evaluation.sampling.rows import Row, check_row, row_at
from pipelines.evaluation.settings import Settings
from pipelines.storage.outputs import check_writable
from tune.named import given_fields, in_file
from tune.results import refuse_another
from tune.sampling.options import SamplerOptions
from tune.spaces import Choice, Choices, Dimension, Point, Space

__all__ = ["SamplerPlan", "check", "space_of"]

RUN = "run"
"""The dimension of several runs."""


@dataclass(frozen=True, kw_only=True)
class SamplerPlan:
    """A sweep over samplers.

    Args:
        name: Of its directory, and the beginning of its trials' names.
        runs: Whose samplers they are.
        space: What is searched.
        options: How.
        root: The output directory.
        command: That sweeps.
    """

    name: str
    runs: tuple[Weights, ...]
    space: Space
    options: SamplerOptions
    root: Path
    command: Command = field(default_factory=Command)

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def trial_name(self, index: int) -> str:
        """What a trial is called in tables and in MLflow."""
        return f"{self.name}-{index:03d}"

    def run_of(self, point: Point) -> Weights:
        """The run of a trial."""
        return next((run for run in self.runs if run.name == point.get(RUN)), self.runs[0])

    def row(self, point: Point) -> Row:
        """The row of a trial.

        Raises:
            ValueError: an option that a sampler has not, a value that it does not take, or one that is searched twice.
        """
        return row_at(self.options.row, self.space.given(point))

    def trial(self, point: Point) -> str:
        """What tells a trial from others: its run and its row."""
        return f"{self.run_of(point).name} {self.row(point).text}"

    def asked(self) -> dict[str, str]:
        """What makes it this sweep; the number of its trials and what is minimised may change."""
        o = self.options
        return {
            "run": json.dumps({run.name: digest(run) for run in self.runs}),
            "row": o.row,
            "space": repr(self.space),
            "search": f"{o.search}, seed {o.search_seed}",
            "num_samples": str(o.num_samples),
            "inception_weights": o.inception_weights,
        }


def space_of(files: Sequence[str], fields: Sequence[str], runs: Sequence[Weights]) -> Space:
    """The space that a command line names: OPTION=VALUES each, files of such, and the runs where there are several.

    Raises:
        ValueError: a file that cannot be read, values that are none, or nothing to search.
    """
    found: list[Dimension] = []
    if len(runs) > 1:
        found.append(Choices(name=RUN, choices=tuple(Choice(label=run.name) for run in runs)))
    for file in files:
        found += in_file(file)
    found += given_fields(fields)
    if not found:
        raise ValueError(
            "there is nothing to search: give options of a sampler by --space snr=0.1,0.2, or several runs"
        )
    return Space(dimensions=tuple(found))


def check(plan: SamplerPlan, several: Sequence[Point]) -> None:
    """Finds out whether the trials of some points can be drawn and measured.

    Raises:
        ValueError: another sweep's directory, a run that is not trained or cannot be written to, runs on different data, or a
            point that is refused; the message names it.
    """
    for run in plan.runs:
        check_writable(run.place)
    config = subjects_of(plan.runs)[0].run
    data = ensure(config.data.source, plan.root / "data", config.data.options)
    wanted = Settings(samples=plan.options.num_samples, inception_weights=plan.options.inception_weights)
    check_needs(data, load_card(data), wanted)
    refuse_another(plan.directory, plan.asked())
    models = {run: load(run) for run in plan.runs}
    for point in several:
        try:
            check_row(models[plan.run_of(point)], plan.row(point))
        except ValueError as error:
            raise ValueError(f"{plan.space.label(point)}: {error}") from error
