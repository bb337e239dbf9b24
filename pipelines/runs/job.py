"""A run in its directory: what is trained there, and what it has left so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from indm_core.training import step_seed
from pipelines.config.history import Command, History
from pipelines.config.pis import PISRun, write_pis_run
from pipelines.config.provenance import Provenance
from pipelines.config.run import Configured, RunConfig, Train
from pipelines.config.store import CONFIG, WEIGHTS, read_weights_state, write_run
from pipelines.data.card import Card, load_card
from pipelines.data.spec import DataSpec
from pipelines.runs.record import Record, RecordReader
from pipelines.storage import checkpoint
from pipelines.storage.manifest import DamagedError

__all__ = ["METRICS", "AnyJob", "Job", "PISJob", "Training", "finished", "read_metrics"]


METRICS = "metrics.jsonl"
PARTNER = 2**31
"""In place of a rank: what tells the second data set's order from the first's."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training in its directory, whatever is trained there.

    Args:
        recipe: The recipe's name.
        directory: Of the run.
        train: For how many steps, how, and how often it logs, keeps checkpoints and draws.
        start_from: A checkpoint of another run whose networks of the same name start this one; None starts afresh.
    """

    recipe: str
    directory: Path
    train: Train
    start_from: Path | None = None


class AnyJob(Protocol):
    """What a command trains in a directory, whatever that is: a model on a data set (`Job`), or a sampler that needs none."""

    @property
    def run(self) -> Configured: ...

    @property
    def directory(self) -> Path: ...

    @property
    def command(self) -> Command: ...

    @property
    def training(self) -> Training: ...

    @property
    def cards(self) -> Sequence[Card]: ...

    @property
    def places(self) -> Sequence[Path]:
        """What every machine has to see beside the output directory."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """The training of a model on a data set, in its directory.

    Args:
        run: The configuration.
        spec: Of the data.
        directory: Of the run.
        data: Of the prepared data set.
        partner: Of the second one of a bridge.
        start_from: A checkpoint of another run whose networks of the same name start this one; None starts afresh.
        command: That trains it.
    """

    run: RunConfig
    spec: DataSpec
    directory: Path
    data: Path
    partner: Path | None = None
    start_from: Path | None = None
    command: Command = field(default_factory=Command)

    @property
    def training(self) -> Training:
        """The job without its data and its model."""
        train, recipe = self.run.train, self.run.recipe
        return Training(recipe=recipe, directory=self.directory, train=train, start_from=self.start_from)

    @property
    def cards(self) -> list[Card]:
        """Of its data sets."""
        return [load_card(path) for path in self.places]

    @property
    def places(self) -> list[Path]:
        """The directories of its data sets."""
        return [path for path in (self.data, self.partner) if path]

    def provenance(self) -> Provenance:
        """What its weights are made of."""
        return Provenance.of(self.run, self.spec, *self.cards)

    def write_config(self) -> None:
        """Writes config.json, in which this command is the last of the run's history."""
        file = self.directory / CONFIG
        write_run(file, self.run, self.spec, History.read(file).with_command(self.command, self.cards))

    def of_partner(self) -> Job:
        """The same run on the second data set, in an order of its own."""
        train = replace(self.run.train, seed=step_seed(self.run.train.seed, 0, PARTNER))
        return replace(self, run=replace(self.run, train=train), data=self.partner, partner=None)


@dataclass(frozen=True, kw_only=True)
class PISJob:
    """The training of a path integral sampler, in its directory; it has no data.

    Args:
        run: The configuration.
        directory: Of the run.
        start_from: A checkpoint of another run whose control starts this one; None starts afresh.
        command: That trains it.
    """

    run: PISRun
    directory: Path
    start_from: Path | None = None
    command: Command = field(default_factory=Command)
    cards: tuple[Card, ...] = ()
    places: tuple[Path, ...] = ()

    @property
    def training(self) -> Training:
        """The job without its sampler."""
        train, recipe = self.run.train, self.run.recipe
        return Training(recipe=recipe, directory=self.directory, train=train, start_from=self.start_from)

    def write_config(self) -> None:
        """Writes config.json, in which this command is the last of the run's history."""
        file = self.directory / CONFIG
        write_pis_run(file, self.run, History.read(file).with_command(self.command, ()))


def finished(training: Training) -> bool:
    """Whether a run has taken its last step and its averaged weights are those of that step, bit for bit.

    Of a run that an earlier version finished, which has no checksum of its weights, the times of its files are all there is.
    """
    try:
        state = read_weights_state(training.directory)
        if state is not None:
            state.verify()
            return state.content["step"] >= training.train.steps
    except DamagedError:
        return False
    weights, newest = training.directory / WEIGHTS, checkpoint.newest_state(training.directory)
    if newest is None or newest.checked or newest.content["step"] < training.train.steps or not weights.is_file():
        return False
    return weights.stat().st_mtime_ns >= newest.file.stat().st_mtime_ns


def read_metrics(directory: Path) -> list[Record]:
    """The records of a run; a line that a kill cut short is left out."""
    return RecordReader(directory / METRICS).read()
