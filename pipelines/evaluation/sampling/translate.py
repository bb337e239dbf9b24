"""Images carried over a bridge, and how far they are from the data set that they should belong to.

Forward, test images of the first data set go to the second; backward, those of the second go to the first, by a
sampler. At each end the Frechet distance of the translated images from the training images of the target is set beside
that of the images as they were, in the same features: what the bridge has to do is the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from indm_core.draw import times_of, translate_backward, translate_forward
from indm_core.model import LinearModel
from indm_core.noise import seeded
from indm_core.sampling import sampler_of
from pipelines.config.run import RunConfig
from pipelines.config.store import check_data, configuration, load
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.features.networks import FeatureNetwork
from pipelines.evaluation.features.reference import Reference, extractor_of, reference_rows, split_rows
from pipelines.evaluation.results.estimates import FrechetResult, ReferenceFeatures, frechet, with_error
from pipelines.evaluation.sampling.folder import TRANSLATIONS, folder_of
from pipelines.evaluation.sampling.settled import sampling_for
from pipelines.evaluation.sampling.shown import shown
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.pictures import image_grid, pixels, put, save_levels
from pipelines.storage.files import replaced
from pipelines.storage.outputs import output_root

__all__ = ["Translation", "translate_run"]

Direction = Literal["forward", "backward"]
COLUMNS, MOST_SHOWN = 12, 96
BATCH = 500
"""Images in the feature network at once."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One way over a bridge.

    Args:
        direction: forward or backward.
        picture: Grid of sources, each above its translation.
        how: The path.
        translated, untranslated: Frechet distances from the target.
        reference: The target's training images.
        diverged: Translations that had left the data's range; they are counted in.
    """

    direction: Direction
    picture: Path
    how: str
    translated: FrechetResult
    untranslated: FrechetResult
    reference: Reference
    diverged: int

    def lines(self) -> list[str]:
        """What is printed of it."""
        lost = f", {self.diverged} of them diverged" if self.diverged else ""
        rows = [
            f"  {name:<12} FD {with_error(f.value, f.se)}, {with_error(f.at_infinity, f.at_infinity_se)} at infinite n"
            for name, f in (("translated", self.translated), ("untranslated", self.untranslated))
        ]
        return [
            f"{self.picture}: {self.translated.n:,} images {self.direction} by {self.how}, averaged weights{lost}",
            f"  compared with {self.reference}",
            *rows,
        ]


@dataclass(frozen=True)
class End:
    """A data set at one end of a bridge."""

    place: Path
    card: Card

    @staticmethod
    def of(source: str, run: RunConfig) -> End:
        place = ensure(source, output_root(None) / "data", run.data.options)
        return End(place, load_card(place))


def translate_run(run: Weights, wanted: SampleOptions) -> Iterator[Translation]:
    """Carries test images of a trained bridge, in the directions that are wanted, and writes the grids.

    Raises:
        ValueError: a run that is no bridge or has no weights, a sampler that its model does not allow, or a folder with other
            translations.
    """
    config, spec = configuration(run)
    if not config.data.partner:
        raise ValueError(
            f"{run}: no bridge, {config.recipe} was trained on one data set; train one with --partner PATH (recipe "
            "digits_bridge for instance), or remove --translate"
        )
    model = cast(LinearModel, load(run))  # only bridges have a partner
    if wanted.sampling.grid == "fitted":
        raise ValueError(
            "grid=fitted: it is of samples from the model's own start, not of translations; take another grid"
        )
    wanted = replace(wanted, sampling=sampling_for(run, model, wanted.sampling))
    out = folder_of(run, wanted, "translated", TRANSLATIONS).claim()
    ends = [End.of(source, config) for source in (config.data.source, config.data.partner)]
    for end, partner in zip(ends, (False, True), strict=True):
        check_data(run, end.card, partner=partner)
    ways: dict[Direction, tuple[End, End]] = {"forward": (ends[0], ends[1]), "backward": (ends[1], ends[0])}
    for direction, (source, target) in ways.items():
        if wanted.translate in (direction, "both"):
            yield _one_way(model, direction, source, target, spec, wanted, out)


def _one_way(
    model: LinearModel,
    direction: Direction,
    source: End,
    target: End,
    spec: DataSpec,
    wanted: SampleOptions,
    out: Path,
) -> Translation:
    k = split_rows(source.place, source.card, "test", wanted.num_samples)
    x = spec.to_model(k, torch.Generator().manual_seed(wanted.seed))
    carried = torch.cat(
        [
            _carry(model, direction, x[a : a + wanted.batch], wanted, wanted.seed + a)
            for a in range(0, len(x), wanted.batch)
        ]
    )
    values, diverged = shown(carried, spec)
    before = k.to(values.dtype)
    picture = out / f"{direction}.png"
    _draw(before, values, spec, picture)
    extractor = extractor_of(target.card, target.place, output_root(None), most_raw=spec.num_dims)
    network, rows = extractor.make(), reference_rows(target.place, target.card, wanted.seed)
    real = ReferenceFeatures(_seen(network, rows))
    distances = [frechet(_seen(network, part), real) for part in (values, before)]
    return Translation(
        direction=direction,
        picture=picture,
        how=_path(wanted) if direction == "forward" else str(wanted.sampling),
        translated=distances[0],
        untranslated=distances[1],
        reference=Reference.of(target.card, len(rows), extractor),
        diverged=diverged,
    )


def _carry(model: LinearModel, direction: Direction, x: Tensor, wanted: SampleOptions, seed: int) -> Tensor:
    """A batch, each image by a seed of its own."""
    sampling, noise = wanted.sampling, seeded(range(seed, seed + len(x)))
    if direction == "forward":
        options = {"rtol": sampling.rtol, "atol": sampling.atol, "deterministic": wanted.path == "ode"}
        return translate_forward(model, x, generator=noise, **options)
    sampler, ts = sampler_of(sampling), times_of(model, sampling)
    return translate_backward(model, x, sampler, ts, denoise=sampling.denoise, generator=noise)


def _path(wanted: SampleOptions) -> str:
    if wanted.path == "sde":
        return "the diffusion"
    return f"the ODE at rtol={wanted.sampling.rtol:g}, atol={wanted.sampling.atol:g}"


def _seen(network: FeatureNetwork, values: Tensor) -> Tensor:
    """Features (n, d)."""
    return torch.cat([network(part) for part in values.split(BATCH)])


def _draw(before: Tensor, after: Tensor, spec: DataSpec, file: Path) -> None:
    """Images in lines of sources and translations; of others the translations alone, in a file and drawn."""
    if len(spec.shape) < 3:
        with replaced(file.with_suffix(".npy")) as path:
            np.save(path, after.numpy())
        save_levels(after, spec, file)
        return
    pairs = zip(before[:MOST_SHOWN].split(COLUMNS), after[:MOST_SHOWN].split(COLUMNS), strict=True)
    lines = []
    for source, translation in pairs:
        for part in (source, translation):
            blank = part.new_zeros(COLUMNS - len(part), *part.shape[1:])
            lines.append(torch.cat([part, blank]) if len(before) > COLUMNS else part)
    put(file, image_grid(pixels(torch.cat(lines), spec), columns=min(COLUMNS, len(before))).save)
