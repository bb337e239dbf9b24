"""Samples beside the data: grids of images, lines of sequences, or pair plots of vectors with the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.model import GenerativeModel
from indm_core.sampling import Sampling
from pipelines.data.card import Card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.reporting.data import TestRows
from pipelines.reporting.page.html import is_picture
from pipelines.reporting.page.parts import Drawing, Gallery, Note, Section
from pipelines.reporting.pairs import draw_pairs, shown_columns
from pipelines.reporting.stages import Stages
from pipelines.reporting.tables import Run
from pipelines.runs.pictures import save_levels

__all__ = ["POINTS", "gallery"]

POINTS = 1000
"""Vectors that are drawn, at most as many as there are test rows."""
EVALUATED = 100
"""Images in the grid that `evaluate.py` leaves."""


def gallery(
    runs: Sequence[Run],
    models: Sequence[GenerativeModel | None],
    data: TestRows | str,
    num: int,
    out: Path,
    stages: Stages,
) -> Section:
    """Samples of each run beside the data.

    Args:
        models: Of the runs; None where one has no weights.
        data: Test rows, or why there are none.
        num: Images that are drawn of a run of which no measurement left any; 0 draws none, and no vectors.
    """
    spec, measured = runs[0].spec, [_measured(run) for run in runs]
    notes = [Note(text=f"No test data are shown: {data}")] if isinstance(data, str) else []
    drawings: list[Drawing] = []
    if len(spec.shape) > 1:
        if isinstance(data, TestRows):
            shown = data.rows[: EVALUATED if any(measured) else num or EVALUATED]
            save_levels(shown, spec, out / "data.png")
            kind = "images" if len(spec.shape) == 3 else "sequences"
            drawings.append(Drawing(out / "data.png", f"Test {kind} of {spec.name}", f"The first {len(shown)}."))
        each = zip(runs, models, measured, strict=True)
        found = [_images(run, model, result, num, out, stages) for run, model, result in each]
    elif isinstance(data, TestRows) and num:
        found = [_vectors(run, model, data, out, stages) for run, model in zip(runs, models, strict=True)]
    else:
        found = []
    drawings += [each for each in found if isinstance(each, Drawing)]
    notes += [each for each in found if isinstance(each, Note)]
    gallery = [Gallery(drawings=drawings)] if drawings else []
    return Section(title="Samples beside data", parts=[*gallery, *notes])


def _measured(run: Run) -> DistancesResult | None:
    """The measurement whose samples are in the run's samples.png."""
    found = run.of(DistancesResult)
    return found.result if found and is_picture(run.weights / "samples.png", run.weights.run) else None


def _images(
    run: Run, model: GenerativeModel | None, measured: DistancesResult | None, num: int, out: Path, stages: Stages
) -> Drawing | Note:
    """The grid of the most precise measurement, or one that is drawn here."""
    title = f"Samples of {run.name}"
    if measured:
        return Drawing(run.weights / "samples.png", title, f"Of the measurement: {measured.sampling}.")
    if model is None or not num:
        return Note(text=f"{run.name}: {'no samples were asked for' if model else _untrained(run)}.")
    sampling = Sampling.named("deis", 20) if model.sde.linear is not None else Sampling(rtol=1e-3, atol=1e-3)
    x = _drawn(run, model, num, sampling, stages)
    if isinstance(x, Note):
        return x
    file = out / f"samples-{run.name.replace(':', '-')}.png"
    save_levels(run.spec.from_model(x), run.spec, file)
    return Drawing(file, title, f"{len(x)} drawn for this page: {sampling}, seeds 0 to {len(x) - 1}.")


def _vectors(run: Run, model: GenerativeModel | None, data: TestRows, out: Path, stages: Stages) -> Drawing | Note:
    """A pair plot of as many samples as test rows, in the units of the source."""
    if model is None:
        return Note(text=f"{run.name}: {_untrained(run)}.")
    found = run.of(DistancesResult)
    sampling = found.result.sampling if found else Sampling(rtol=1e-3, atol=1e-3)
    rows = data.rows[:POINTS]
    x = _drawn(run, model, len(rows), sampling, stages)
    if isinstance(x, Note):
        return x
    samples = run.spec.from_model(x).double()
    finite = samples[samples.isfinite().all(1)]
    names = _columns(data.card, run.spec)
    shown, file = shown_columns(names), out / f"pairs-{run.name.replace(':', '-')}.png"
    outside = draw_pairs(rows.numpy(), finite.numpy(), shown, file)
    said = [f"{len(rows):,} test rows, and over them as many samples: {sampling}"]
    said += [f"the first {len(shown)} of {len(names)} columns"] if len(shown) < len(names) else []
    said += data.card.notes
    said += [f"{outside:,} samples lie outside of the axes"] if outside else []
    said += [f"{len(samples) - len(finite):,} samples diverged and are not drawn"] if len(finite) < len(samples) else []
    return Drawing(file, f"Samples of {run.name} over data", f"{'; '.join(said)}.")


def _drawn(run: Run, model: GenerativeModel, num: int, sampling: Sampling, stages: Stages) -> Tensor | Note:
    """Samples of the seeds 0, 1, ...; why there are none where the sampler fails."""
    stages.say(f"{num:,} samples of {run.name} ({sampling})")
    try:
        with torch.no_grad():
            return model.sample(num, sampler=sampling, seed=0, batch_size=256 if len(run.spec.shape) == 1 else 64)
    except (ConvergenceError, ValueError) as error:
        return Note(text=f"{run.name}: no samples by {sampling} ({error}).")


def _untrained(run: Run) -> str:
    return f"no weights yet, so that no samples are drawn; its newest checkpoint is {run.name}@last"


def _columns(card: Card, spec: DataSpec) -> list[str]:
    """The names of a vector's coordinates; numbers where the source has no names."""
    names = card.columns or tuple(map(str, range(spec.num_dims)))
    return [f"column {name}" if name.isdigit() else name for name in names]
