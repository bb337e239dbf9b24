"""What an evaluation measures: models on the same data, and how exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.training import load_networks, network_tensors
from pipelines.config.run import RunConfig
from pipelines.config.store import load, read_run
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features import raw
from pipelines.evaluation.needs import check_needs
from pipelines.evaluation.reference import Extractor, Reference, extractor_of, reference_rows, split_rows
from pipelines.evaluation.settings import Settings

__all__ = ["Chunk", "Plan", "Subject", "check", "chunks", "subjects_of"]

Chunk = tuple[int, Tensor]
"""The number of the first row, and the rows (b, *shape)."""
REFERENCE_CHUNK = 2000


@dataclass(frozen=True)
class Subject:
    """A trained model, as it travels through the object store."""

    run: RunConfig
    spec: DataSpec
    tensors: dict[str, Tensor]

    def build(self) -> GenerativeModel:
        model = self.run.model.build(self.spec)
        load_networks(model, self.tensors)
        return model.eval()


def subjects_of(runs: Sequence[Path]) -> list[Subject]:
    """The models of runs, which must be on the same data and have names that tell them apart.

    Raises:
        ValueError: no trained run, runs on other data, or two of one name.
    """
    subjects = [Subject(*read_run(run / "config.json"), network_tensors(load(run))) for run in runs]
    first = subjects[0]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.spec != first.spec or replace(subject.run.data, partner="") != replace(first.run.data, partner=""):
            names = f"{subject.spec.name} and {first.spec.name}"
            raise ValueError(f"{run} and {runs[0]} were trained on other data ({names}): measure them apart")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"{', '.join(map(str, runs))}: runs of the same name cannot be told apart; rename one")
    return subjects


def check(runs: Sequence[Path], settings: Settings, root: Path) -> dict[str, RunConfig]:
    """The configurations of runs by name, where all that measuring them needs is there.

    Raises:
        ValueError: what `subjects_of` or `needs.check_needs` refuses.
    """
    configs = {run.name: subject.run for run, subject in zip(runs, subjects_of(runs), strict=True)}
    for config in configs.values():
        data = ensure(config.data.source, root / "data", config.data.options)
        partner = config.data.partner and load_card(ensure(config.data.partner, root / "data", config.data.options))
        check_needs(data, load_card(data), settings, partner or None)
    return configs


@dataclass(frozen=True, eq=False)
class Plan:
    """Models, their data, and how exactly they are measured; rows are read when they are first asked for.

    Args:
        names: Of the runs.
        subjects: Their models.
        settings: What is measured, and how exactly.
        root: Output directory, where prepared data and classifiers are kept.
    """

    names: tuple[str, ...]
    subjects: tuple[Subject, ...]
    settings: Settings
    root: Path

    @cached_property
    def data(self) -> Path:
        """The prepared data set."""
        of = self.subjects[0].run.data
        return ensure(of.source, self.root / "data", of.options)

    @cached_property
    def card(self) -> Card:
        return load_card(self.data)

    @cached_property
    def test(self) -> Sequence[Chunk]:
        """The test rows that likelihoods are taken on, in chunks."""
        return chunks(split_rows(self.data, self.card, "test", self.settings.images), self.settings.chunk)

    @cached_property
    def train(self) -> Tensor:
        """The training rows that samples and baselines are compared with."""
        return reference_rows(self.data, self.card, self.settings.seed)

    @cached_property
    def train_chunks(self) -> Sequence[Chunk]:
        return chunks(self.train, REFERENCE_CHUNK)

    @cached_property
    def extractor(self) -> Extractor:
        """What samples are compared in."""
        if not self.settings.samples:
            return Extractor("raw", partial(raw, self.card.num_dims))
        return extractor_of(self.card, self.data, self.root, self.settings.inception_weights)

    @cached_property
    def reference(self) -> Reference:
        """What samples are compared with."""
        return Reference.of(self.card, len(self.train), self.extractor)

    def partner(self, model: int) -> Sequence[Chunk]:
        """The test rows of the second data set of a bridge."""
        of = self.subjects[model].run.data
        place = ensure(of.partner, self.root / "data", of.options)
        return chunks(split_rows(place, load_card(place), "test", self.settings.images), self.settings.chunk)


def chunks(rows: Tensor, size: int) -> Sequence[Chunk]:
    """Rows in chunks that travel alone: a slice would take all the others with it."""
    return [(a, rows[a : a + size].clone()) for a in range(0, len(rows), size)]
