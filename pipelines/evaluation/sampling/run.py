"""Samples of a trained run into a directory: drawn in batches, here or by actors, and written as they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm_core.automatic import settled
from indm_core.draw import Drawn, check_sampling, draw_by
from indm_core.model import GenerativeModel
from indm_core.model.labels import labels_of
from indm_core.sampling import Sampling
from indm_core.training import network_tensors
from pipelines.config.store import check_data, configuration, load
from pipelines.config.terminal.device import device_of
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.evaluation.plan import Subject
from pipelines.evaluation.sampling.folder import SAMPLES, folder_of
from pipelines.evaluation.sampling.rows import starts
from pipelines.evaluation.sampling.settled import sampling_for
from pipelines.evaluation.sampling.shown import shown
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.pictures import save_image, save_levels
from pipelines.storage.files import replaced
from pipelines.storage.outputs import output_root

__all__ = ["Artist", "Written", "draw_run", "labels_wanted"]

MOST_IN_GRID = {3: 400, 2: 400, 1: 10_000}
"""Samples in the picture of all, by the rank of an event: images, lines, points of a plot."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was drawn of a run.

    Args:
        out: Where it lies.
        evaluations: Of the score, by a sample on average.
        diverged: Samples that had left the data's range.
        shape: Of each, 1x28x2268.
    """

    out: Path
    shape: str
    evaluations: float
    diverged: int


class Artist:
    """An actor that holds a model and draws of it."""

    def __init__(self, subject: Subject, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.model = subject.build().to(device)

    def draw(
        self,
        seeds: Sequence[int],
        sampling: Sampling,
        start: Tensor | None,
        label: Tensor | None,
        guidance: float,
        strength: float,
    ) -> Drawn:
        drawn = draw_by(self.model, seeds, sampling, start, label, guidance, strength)
        return Drawn(drawn.x.cpu(), drawn.evaluations)


def draw_run(run: Weights, wanted: SampleOptions) -> Written:
    """Draws samples of a run and writes them: images as sample-000000.png, ..., others as samples.npy, and grid.png of all.

    Raises:
        ValueError: a run without weights, a sampler or labels that its model does not take, or a folder with other samples.
    """
    config, spec = configuration(run)
    model = load(run)
    check_sampling(model, wanted.sampling, wanted.strength)
    labels = labels_wanted(run, model, wanted)
    begun = replace(wanted, sampling=settled(model.sde, wanted.sampling))
    folder_of(run, begun, "samples", SAMPLES)  # refused before a grid is fitted
    wanted = replace(wanted, sampling=sampling_for(run, model, wanted.sampling, wanted.label, wanted.guidance))
    out = folder_of(run, wanted, "samples", SAMPLES).claim()
    rank, kept = len(spec.shape), {}
    began, done, evaluated, diverged = time.monotonic(), 0, 0.0, 0
    for first, drawn in _batches(run, Subject(config, spec, network_tensors(model)), wanted, labels):
        values, lost = shown(drawn.x, spec)
        evaluated, diverged, done = evaluated + drawn.evaluations * len(values), diverged + lost, done + len(values)
        if rank == 3:
            for i, image in enumerate(values, first):
                save_image(image, spec, out / f"sample-{i:06d}.png")
        if rank < 3 or first < MOST_IN_GRID[3]:
            kept[first] = values
        print(f"{done}/{wanted.num_samples} samples, {time.monotonic() - began:.1f} s", flush=True)
    values = torch.cat([kept[first] for first in sorted(kept)])
    if rank < 3:
        with replaced(out / "samples.npy") as path:
            np.save(path, values.numpy())
    save_levels(values[: MOST_IN_GRID[rank]], spec, out / "grid.png")
    return Written(
        out=out, shape="x".join(map(str, spec.shape)), evaluations=evaluated / wanted.num_samples, diverged=diverged
    )


def labels_wanted(run: Weights, model: GenerativeModel, wanted: SampleOptions) -> Tensor | None:
    """The classes of all samples, those that are wanted in turn; None of samples without.

    Raises:
        ValueError: a run without labels, or a class that it was not trained on.
    """
    if not wanted.label:
        return None
    classes = torch.tensor(wanted.label)
    if not model.num_classes:
        raise ValueError(
            f"label={','.join(map(str, wanted.label))}: {run} was trained without labels; leave --label out, or train a run "
            "with --conditional true"
        )
    return labels_of(classes, len(classes), model.num_classes)[torch.arange(wanted.num_samples) % len(classes)]


def _batches(
    run: Weights, subject: Subject, wanted: SampleOptions, labels: Tensor | None
) -> Iterator[tuple[int, Drawn]]:
    """(number of the first sample, samples and what they took) as they are done."""
    data = None
    if wanted.start == "data":
        place = ensure(subject.run.data.source, output_root(None) / "data", subject.run.data.options)
        card = load_card(place)
        check_data(run, card)
        data = starts(place, card, wanted.num_samples, wanted.seed)
    seeds, firsts = range(wanted.seed, wanted.seed + wanted.num_samples), range(0, wanted.num_samples, wanted.batch)

    def arguments(first: int) -> tuple[Sequence[int], Sampling, Tensor | None, Tensor | None, float, float]:
        part = slice(first, first + wanted.batch)
        start, label = (None if rows is None else rows[part].clone() for rows in (data, labels))
        return seeds[part], wanted.sampling, start, label, wanted.guidance, wanted.strength

    if not wanted.actors:
        artist = Artist(subject, torch.get_num_threads(), str(device_of(wanted.device)))
        yield from ((first, artist.draw(*arguments(first))) for first in firsts)
        return
    from pipelines.cluster.pool import Call, Pool, places
    from pipelines.cluster.session import connect

    connect(wanted.actors, 1.0)
    actors, device = places(wanted.actors, wanted.device)
    tasks = {(i,): Call("draw", arguments(i), f"samples from number {i} on") for i in firsts}
    with Pool(Artist, (subject, 1, device), actors, gpus=float(device == "cuda")) as pool:
        yield from ((key[0], drawn) for key, drawn in pool.stream(tasks))
