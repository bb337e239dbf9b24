"""What an evaluation measures: models on the same data, and how exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from indm_core.draw import check_sampling
from indm_core.model import GenerativeModel
from indm_core.sampling import Sampling
from indm_core.times import arctan_times
from indm_core.training import load_networks, network_tensors
from pipelines.config.run import RunConfig
from pipelines.config.store import configuration, load
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.order import permutation
from pipelines.data.shards import read_labels
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.canvases import check_canvases
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.features.reference import (
    MOST_ROWS,
    Extractor,
    Reference,
    extractor_of,
    reference_rows,
    split_rows,
)
from pipelines.evaluation.features.statistics import Statistics
from pipelines.evaluation.needs import check_needs
from pipelines.evaluation.sampling.rows import starts
from pipelines.evaluation.sampling.settled import sampling_for
from pipelines.evaluation.settings import Settings

__all__ = ["REFERENCE_CHUNK", "Of", "Plan", "Span", "Subject", "check", "subjects_of"]

REFERENCE_CHUNK = 2000
LABELS = 2**30
"""Seed of the order of labels that samples are drawn with."""
TEST_ORDER = 1
"""Stream of the order of test rows."""


Of = Literal["test", "train", "starts", "partner", "test labels", "start labels", "drawn labels"]
"""What a plan reads: the test rows that likelihoods are taken on; the training rows that samples are compared with; test rows,
dequantised, that sampling starts from; the test rows of the second data set of a bridge; the labels of test rows, of those that
sampling starts from, and those that a conditional model is sampled with."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows first, ..., stop - 1.

    Args:
        of: Of what.
        model: Whose partner it is.
    """

    of: Of
    first: int
    stop: int
    model: int | None = None

    def __str__(self) -> str:
        return f"{self.of} rows {self.first} to {self.stop - 1}"


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


def subjects_of(runs: Sequence[Weights]) -> list[Subject]:
    """The models of runs, which must be on the same data and have names that tell them apart.

    Raises:
        ValueError: no trained run, runs on other data, or two of one name.
    """
    subjects = [Subject(*configuration(run), network_tensors(load(run))) for run in runs]
    first = subjects[0]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.spec != first.spec or replace(subject.run.data, partner="") != replace(first.run.data, partner=""):
            names = f"{subject.spec.name} and {first.spec.name}"
            raise ValueError(f"{run} and {runs[0]} were trained on other data ({names}): measure them apart")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"{', '.join(map(str, runs))}: runs of the same name cannot be told apart; rename one")
    return subjects


def check(runs: Sequence[Weights], settings: Settings, root: Path) -> dict[str, RunConfig]:
    """The configurations of runs by name, where all that measuring them needs is there.

    Raises:
        ValueError: what `subjects_of`, `needs.check_needs` or `canvases.check_canvases` refuses; a solver that a model's SDE
            does not allow.
    """
    subjects = {run.name: subject for run, subject in zip(runs, subjects_of(runs), strict=True)}
    configs = {name: subject.run for name, subject in subjects.items()}
    for config in configs.values():
        data = ensure(config.data.source, root / "data", config.data.options)
        partner = config.data.partner and load_card(ensure(config.data.partner, root / "data", config.data.options))
        check_needs(data, load_card(data), settings, partner or None)
    for name, subject in subjects.items():
        _check_model(name, subject.build(), settings)
    if settings.collages:
        for name, subject in subjects.items():
            check_canvases(name, subject.build(), subject.spec, settings.layout, settings.canvas_sampling)
    return configs


def _check_model(name: str, model: GenerativeModel, settings: Settings) -> None:
    """Refuses a sampler, or a solver, that a model does not allow; ValueError names it."""
    if settings.samples:
        try:
            check_sampling(model, settings.sampling)
        except ValueError as error:
            raise ValueError(f"{settings.sampling} on {name}: {error}") from None
    if settings.nll_solver == "exponential":
        if (linear := model.sde.linear) is None:
            raise ValueError(f"nll_solver='exponential': the SDE of {name} is learned; give --nll-solver rk45")
        try:
            arctan_times(linear, 1, high=model.t_start)
        except ValueError as error:
            raise ValueError(f"nll_solver='exponential' on {name}: {error}; or give --nll-solver rk45") from None


@dataclass(frozen=True, eq=False)
class Plan:
    """Models, their data, and how exactly they are measured; rows are read when they are first asked for.

    Args:
        names: Of the runs.
        subjects: Their models.
        settings: What is measured, and how exactly.
        root: Output directory, where prepared data and classifiers are kept.
        samplings: By model, how it is sampled where the settings leave that open (auto, a fitted grid); else empty.
    """

    names: tuple[str, ...]
    subjects: tuple[Subject, ...]
    settings: Settings
    root: Path
    samplings: tuple[Sampling, ...] = ()

    @staticmethod
    def of(runs: Sequence[Weights], settings: Settings, root: Path) -> Plan:
        """The plan for runs; raises as `subjects_of` does."""
        names = tuple(run.name for run in runs)
        subjects, wanted = tuple(subjects_of(runs)), settings.sampling
        open_ = settings.samples and (wanted.sampler == "auto" or wanted.unfitted)
        pairs = zip(runs, subjects, strict=True) if open_ else ()
        samplings = tuple(sampling_for(run, subject.build(), wanted) for run, subject in pairs)
        return Plan(names=names, subjects=subjects, settings=settings, root=root, samplings=samplings)

    def sampling(self, model: int) -> Sampling:
        """How a model is sampled."""
        return self.samplings[model] if self.samplings else self.settings.sampling

    @cached_property
    def data(self) -> Path:
        """The prepared data set."""
        of = self.subjects[0].run.data
        return ensure(of.source, self.root / "data", of.options)

    @cached_property
    def card(self) -> Card:
        return load_card(self.data)

    @cached_property
    def cards(self) -> list[Card]:
        """Of all data that are read."""
        return [self.card, *(load_card(self._partner_data(s)) for s in self.subjects if s.run.data.partner)]

    @cached_property
    def test(self) -> Tensor:
        """The test rows that likelihoods are taken on, in the stored type."""
        return self._in_order(split_rows(self.data, self.card, "test", self.settings.images))

    def _in_order(self, rows: Tensor) -> Tensor:
        """Rows of the test split in the order in which they are taken. Where an estimate may stop after some of them, the seed
        draws it, because files may be sorted by class."""
        if not self.settings.stops_at_images:
            return rows
        return rows[torch.from_numpy(permutation(self.settings.seed, 0, TEST_ORDER, len(rows)))]

    @cached_property
    def train(self) -> Tensor:
        """The training rows that samples and baselines are compared with, in the stored type."""
        return reference_rows(self.data, self.card, self.settings.seed)

    @cached_property
    def starts(self) -> Tensor:
        """The test rows, dequantised, that samples start from where they start from data."""
        return starts(self.data, self.card, self.settings.samples)

    def labelled(self, model: int) -> bool:
        """Whether a model is given labels."""
        return self.subjects[model].run.model.conditional

    @cached_property
    def test_labels(self) -> Tensor:
        """Of the test rows."""
        return self._in_order(torch.from_numpy(read_labels(self.data, self.card, "test")[: len(self.test)]))

    @cached_property
    def start_labels(self) -> Tensor:
        """Of the test rows that samples start from."""
        labels = torch.from_numpy(read_labels(self.data, self.card, "test")[: self.settings.samples])
        return labels[torch.arange(self.settings.samples) % len(labels)]

    @cached_property
    def drawn_labels(self) -> Tensor:
        """As frequent as in the training rows: sample i has the label of row pi(i), pi a permutation, whatever their number."""
        labels = torch.from_numpy(read_labels(self.data, self.card, "train"))
        order = torch.from_numpy(permutation(LABELS, 0, 0, len(labels)))
        return labels[order[torch.arange(self.settings.samples) % len(labels)]]

    @cached_property
    def partners(self) -> dict[int, Tensor]:
        """By model, the test rows of the second data set of a bridge."""
        return {i: self._partner(subject) for i, subject in enumerate(self.subjects) if subject.run.data.partner}

    @cached_property
    def extractor(self) -> Extractor:
        """What samples are compared in."""
        if not self.settings.compares:
            return Extractor("raw", partial(raw, self.card.num_dims))
        return extractor_of(self.card, self.data, self.root, self.settings.inception_weights)

    @cached_property
    def reference(self) -> Reference:
        """What samples are compared with."""
        return Reference.of(self.card, self._reference_rows, self.extractor)

    @cached_property
    def statistics(self) -> Statistics:
        """The features of the reference, as far as they are known."""
        seed = self.settings.seed if self.card.split("train").count > MOST_ROWS else 0
        of = {"extractor": self.extractor.key, "rows": self._reference_rows, "seed": seed}
        return Statistics(self.root / "features", self.card, **of)

    @property
    def _reference_rows(self) -> int:
        return min(self.card.split("train").count, MOST_ROWS)

    def all_rows(self, of: Of, model: int | None = None) -> Tensor:
        """All rows of one kind."""
        if of == "partner":
            return self.partners[model or 0]
        return {
            "test": lambda: self.test,
            "train": lambda: self.train,
            "starts": lambda: self.starts,
            "test labels": lambda: self.test_labels,
            "start labels": lambda: self.start_labels,
            "drawn labels": lambda: self.drawn_labels,
        }[of]()

    def rows(self, span: Span) -> Tensor:
        """The rows of a span, a view of all of them."""
        return self.all_rows(span.of, span.model)[span.first : span.stop]

    def spans(self, of: Of, size: int, model: int | None = None) -> list[Span]:
        """All rows of one kind in spans of a size."""
        num = len(self.all_rows(of, model))
        return [Span(of=of, first=a, stop=min(a + size, num), model=model) for a in range(0, num, size)]

    def _partner(self, subject: Subject) -> Tensor:
        place = self._partner_data(subject)
        return self._in_order(split_rows(place, load_card(place), "test", self.settings.images))

    def _partner_data(self, subject: Subject) -> Path:
        return ensure(subject.run.data.partner, self.root / "data", subject.run.data.options)
