"""The report of runs: what they reach and what they draw, what the figures mean, and what stands beside them.

A reader finds in this order: data, models, date and hardware; samples beside data; the runs' figures and their differences;
canvases; definitions; papers on the same data; samplers and learning curves; diagnostics; hardware; settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indm_core.model import GenerativeModel
from pipelines.config.store import load, trained
from pipelines.config.weights import Weights
from pipelines.evaluation.measurements.likelihood import NelboResult, NllResult
from pipelines.reporting.collages import collages
from pipelines.reporting.data import TestRows, read_runs, test_rows
from pipelines.reporting.definitions import definitions
from pipelines.reporting.diagnostics.figures import diagnose, norms
from pipelines.reporting.gallery import POINTS, gallery
from pipelines.reporting.hardware import hardware_table, made_here, trained_on
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.page.html import is_picture, write_page
from pipelines.reporting.page.parts import Drawing, Gallery, Page, Section, Table
from pipelines.reporting.published import published_section
from pipelines.reporting.settings import configurations, measurements
from pipelines.reporting.stages import Stages
from pipelines.reporting.tables import Run, difference_tables, own_table, sampler_tables, seed_tables
from pipelines.runs.job import read_metrics
from pipelines.runs.pictures import learning_curve
from pipelines.storage.along import read_measured
from pipelines.storage.outputs import output_root

__all__ = ["report"]


def report(chosen: Sequence[Weights], wanted: ReportOptions) -> Path:
    """Writes the report of runs; returns the page.

    Raises:
        ValueError: a directory that holds no run; for diagnostics, runs without weights, or data that are gone or changed.
    """
    stages, runs = Stages(), read_runs(chosen)
    out = output_root(wanted.out or str(chosen[0] / "report"))
    wants_models = wanted.images or wanted.samples
    stages.say(f"weights and test rows of {', '.join(run.name for run in runs)}")
    data = _data(runs, wanted)
    models = [load(run.weights) if wanted.images or (wants_models and trained(run.weights)) else None for run in runs]
    sections = [
        gallery(runs, models, data, wanted.samples, out, stages),
        Section(title="Figures", parts=[own_table(runs), *difference_tables(runs), *seed_tables(runs)]),
        collages(runs),
        definitions(runs),
        published_section(runs[0].spec, runs[0].config.data.options.table),
        _samplers(runs),
        _curves(runs, out),
        *_diagnostics(runs, models, data, wanted.images, out, stages),
        Section(title="Hardware", parts=[hardware_table(runs)]),
        Section(title="Settings", parts=[*measurements(runs), *configurations(runs)]),
    ]
    page = Page(title=_title(runs), said=[_compared(runs), f"{trained_on(runs)} {made_here()}"], sections=sections)
    stages.say("the page")
    return write_page("report", page, out)


def _title(runs: Sequence[Run]) -> str:
    return f"{runs[0].spec.name}: {', '.join(run.name for run in runs)}"


def _compared(runs: Sequence[Run]) -> str:
    """The data, and on how many of them the models were measured."""
    spec = runs[0].spec
    shape = " x ".join(map(str, spec.shape))
    said = {
        3: f"images of {shape}",
        2: f"sequences of {shape} (channels x positions)",
        1: f"vectors of {shape} columns",
    }
    what = said[len(spec.shape)] + (f", {spec.levels} levels" if spec.levels else "")
    what += ", standardised for the model" if spec.std else ""
    found = {each.document.images for run in runs for kind in (NllResult, NelboResult) if (each := run.of(kind))}
    measured = (
        f"likelihoods on {' and '.join(f'{num:,}' for num in sorted(found))} test rows" if found else "not measured yet"
    )
    models = "one model" if len(runs) == 1 else f"{len(runs)} models compared"
    labelled = ", ".join(run.name for run in runs if run.config.model.conditional)
    given = f"; {labelled}: given each row's label" if labelled else ""
    return f"{spec.name}, {what}; {models}; {measured}{given}."


def _data(runs: Sequence[Run], wanted: ReportOptions) -> TestRows | str:
    """Test rows; why there are none, where no diagnostics need them."""
    most = POINTS if len(runs[0].spec.shape) == 1 else max(100, wanted.samples)
    try:
        return test_rows(runs[0], max(most, wanted.images))
    except (ValueError, OSError) as error:
        if wanted.images:
            raise
        print(f"no test data are shown: {error}", flush=True)
        return str(error)


def _samplers(runs: Sequence[Run]) -> Section:
    """What `compare.py` left."""
    files = [
        (run, run.weights / "compare.png") for run in runs if is_picture(run.weights / "compare.png", run.weights.run)
    ]
    drawings = [Drawing(file, f"Samplers of {run.name}", "") for run, file in files]
    return Section(title="Samplers", parts=[*([Gallery(drawings=drawings)] if drawings else []), *sampler_tables(runs)])


def _curves(runs: Sequence[Run], out: Path) -> Section:
    """NELBO on training rows and on held-out rows against step, as far as the weights are trained."""
    series = {
        run.name: [each for each in read_metrics(run.weights.run) if each.step <= run.config.train.steps]
        for run in runs
    }
    if not any("nelbo" in record.terms for records in series.values() for record in records):
        return Section(title="Learning curves", parts=[])
    along = {
        run.name: [each for each in read_measured(run.weights.run) if each.step <= run.config.train.steps]
        for run in runs
    }
    learning_curve(series, runs[0].spec.unit, out / "learning_curve.png", along)
    said = "Training NELBO; dashed: of the averaged weights on held-out rows, ± a standard error; dotted: end of pre-training."
    said += " Beside it: checkpoints, measured beside the training." if any(along.values()) else ""
    return Section(title="Learning curves", parts=[Gallery(drawings=[Drawing(out / "learning_curve.png", "", said)])])


def _diagnostics(
    runs: Sequence[Run],
    models: Sequence[GenerativeModel | None],
    data: TestRows | str,
    images: int,
    out: Path,
    stages: Stages,
) -> list[Section]:
    """The figures of the INDM paper on some test rows, and the norms of its Table 2."""
    if not images or isinstance(data, str):
        return []
    print(f"diagnostics on {images} test rows; --images 0 leaves them out", flush=True)
    named = [(run.name, model) for run, model in zip(runs, models, strict=True) if model is not None]
    x = data.seen(images)
    drawings = diagnose(named, x, runs[0].spec, out, stages)
    stages.say("norms")
    rows = [(name, *(f"{m:.2f} ± {e:.2f}" for m, e in row.values())) for name, row in norms(named, x).items()]
    table = Table(title="Mean squared norms (Table 2)", head=("model", "data", "latent", "prior"), rows=rows)
    return [Section(title=f"Diagnostics, on {len(x)} test rows", parts=[Gallery(drawings=drawings), table])]
