"""Canvases of a trained run into a directory: drawn here or with the pieces of each step spread over actors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from indm_core.collage import reconstruction, replacement
from indm_core.collage.cube import equirectangular, unfolded
from indm_core.draw import Canvas, check_sampling, draw_canvases
from indm_core.training import network_tensors
from pipelines.config.store import check_data, configuration, load
from pipelines.config.terminal.device import device_of
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.canvases import canvas_of, check_canvases, remark_of, unseen_regions
from pipelines.evaluation.collages.known import Known, digest, known_of
from pipelines.evaluation.collages.labels import condition_of
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.collages.watch import Watch
from pipelines.evaluation.features.reference import split_rows
from pipelines.evaluation.plan import Subject
from pipelines.evaluation.sampling.folder import CANVASES, folder_of
from pipelines.evaluation.sampling.run import Written, labels_wanted
from pipelines.evaluation.sampling.shown import shown
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.pictures import save_image, save_levels
from pipelines.storage.files import replaced
from pipelines.storage.outputs import output_root

if TYPE_CHECKING:
    from pipelines.evaluation.collages.spread import Spread

__all__ = ["draw_collages"]

FACTORS = 256
"""That are drawn together at least, where there are as many: more canvases at once would take memory and no less time."""
MOST_SHOWN = 64
"""Canvases in the picture of all."""


def draw_collages(run: Weights, wanted: SampleOptions) -> Written:
    """Draws canvases of a run and writes them as they are done: canvas-000000.png, ..., or .npy of what is no image; beside
    loops those turned by half, beside cubes the unfolded cross and the whole sphere; and grid.png, all below each other.

    Raises:
        ValueError: a run without weights, a layout, sampler, label or picture that its model does not take, or a folder with
            other canvases.
    """
    config, spec = configuration(run)
    model = load(run).requires_grad_(False)
    plain = check_canvases(run.name, model, spec, wanted.layout, wanted.sampling)
    condition = condition_of(run, model, wanted.conditions, plain.graph, wanted.guidance)
    labels = labels_wanted(run, model, wanted)
    check_sampling(plain, wanted.sampling, wanted.strength)
    known = known_of(wanted.conditions, plain.graph, plain.shape, spec, config.data.options, lambda: _test_rows(run))
    unseen = unseen_regions(model, wanted.layout)
    folder = folder_of(run, wanted, "canvases", CANVASES, conditions=_said(wanted, known, condition))
    with _spread(Subject(config, spec, network_tensors(model)), wanted) as spread:
        model = model if spread else model.to(device_of(wanted.device))
        if spread or condition is not None:
            guidance = wanted.guidance if condition is not None else 0.0
            by_actors = {"score": spread, "evaluate": spread.evaluate} if spread else {}
            plain = canvas_of(model, wanted.layout, condition=condition, guidance=guidance, **by_actors)
        drawn = _given(plain, known, spec, wanted)
        out = folder.claim()  # last, because it removes what was there
        if unseen:
            print(remark_of(wanted.layout, unseen), flush=True)
        return _write_all(drawn, known, labels, spec, wanted, out)


def _spread(subject: Subject, wanted: SampleOptions) -> AbstractContextManager[Spread | None]:
    """The actors that score pieces; None where this process does."""
    if not wanted.actors:
        return nullcontext()
    from pipelines.evaluation.collages.spread import Spread

    return Spread(subject, wanted.actors, wanted.device)


def _test_rows(run: Weights) -> Tensor:
    """The test images, as they are stored."""
    data = configuration(run)[0].data
    place = ensure(data.source, output_root(None) / "data", data.options)
    card = load_card(place)
    check_data(run, card)
    return split_rows(place, card, "test")


def _said(wanted: SampleOptions, known: Known | None, condition: Tensor | None) -> str:
    """The conditions as a folder's record has them: pictures by what they show."""
    classes = digest(condition) if wanted.conditions.class_map and condition is not None else ""
    return " ".join(filter(None, [wanted.conditions.name(), classes, "" if known is None else known.digest]))


def _given(drawn: Canvas, known: Known | None, spec: DataSpec, wanted: SampleOptions) -> Canvas:
    """The canvas of which something is known."""
    if known is None or known.observation is None:
        return drawn
    conditions = wanted.conditions
    guide = replacement
    if conditions.guide == "reconstruction":
        guide = partial(reconstruction, weight=conditions.guide_weight)
    return drawn.given(guide, known.observation, _as_data(known, spec, wanted, drawn))


def _as_data(known: Known, spec: DataSpec, wanted: SampleOptions, drawn: Canvas) -> Tensor:
    """The known canvas as the model sees it, dequantised by the seed."""
    x = spec.to_model(known.k, torch.Generator().manual_seed(wanted.seed))
    return x.to(next(drawn.parameters(), x))


def _write_all(
    drawn: Canvas, known: Known | None, labels: Tensor | None, spec: DataSpec, wanted: SampleOptions, out: Path
) -> Written:
    num, pieces = wanted.num_samples, len(drawn.graph.factors)
    size = min(wanted.batch, max(1, FACTORS // pieces))
    start = _as_data(known, spec, wanted, drawn) if known is not None and wanted.start == "data" else None
    watch = Watch(num)
    watched = watch.over(drawn, wanted.sampling, wanted.strength, 1 if drawn.of_pieces else pieces)
    kept, evaluated, diverged = [], 0.0, 0
    for first in range(0, num, size):
        seeds = range(wanted.seed + first, wanted.seed + min(num, first + size))
        made = draw_canvases(
            watched,
            seeds,
            wanted.sampling,
            None if labels is None else labels[first : first + len(seeds)],
            wanted.guidance if labels is not None else 0.0,
            start=None if start is None else start.expand(len(seeds), *start.shape[1:]),
            strength=wanted.strength,
        )
        values, lost = shown(made.x, spec)
        for i, canvas_i in enumerate(values, first):
            _write(canvas_i, i, spec, wanted.layout, out)
        kept += [values] if first < MOST_SHOWN else []
        evaluated, diverged = evaluated + made.evaluations * len(seeds), diverged + lost
        watch.finished(len(seeds))
    if len(spec.shape) > 1:
        save_levels(torch.cat(kept)[:MOST_SHOWN], spec, out / "grid.png", columns=1)
    return Written(out=out, shape="x".join(map(str, drawn.shape)), evaluations=evaluated / num, diverged=diverged)


def _write(values: Tensor, number: int, spec: DataSpec, layout: Layout, out: Path) -> None:
    """A canvas, and what else is shown of it."""
    if len(spec.shape) != 3:
        with replaced(out / f"canvas-{number:06d}.npy") as path:
            np.save(path, values.numpy())
        return
    pictures = {"canvas": values}
    if layout.collage == "loop":
        pictures["rolled"] = values.roll(values.shape[-1] // 2, -1)
    if layout.collage == "cube":
        pictures |= {"cross": unfolded(values), "sphere": equirectangular(values, 2 * values.shape[-2])}
    for name, picture in pictures.items():
        save_image(picture, spec, out / f"{name}-{number:06d}.png")
