"""The report of runs: measurements beside those of the papers, samples, learning curves and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.config.store import check_data, load
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.evaluation.seeds import LEFT_OUT
from pipelines.reporting.diagnose import Drawing, diagnose, norms
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.page import is_picture, write_pages
from pipelines.reporting.tables import (
    Run,
    Table,
    difference_tables,
    environment,
    main_table,
    sampler_tables,
    seed_tables,
)
from pipelines.runs.job import read_metrics
from pipelines.runs.pictures import learning_curve
from pipelines.storage.outputs import output_root

__all__ = ["read_runs", "report", "test_data"]


def report(chosen: Sequence[Weights], wanted: ReportOptions) -> Path:
    """Writes the report of runs; returns the page.

    Raises:
        ValueError: a directory that holds no run.
    """
    runs = read_runs(chosen)
    out = output_root(wanted.out or str(chosen[0] / "report"))
    if wanted.images:
        print(f"drawing the diagnostics on {wanted.images} test images (--images 0 leaves them out) ...", flush=True)
    drawings = _drawings(runs, out, wanted.images)
    title = f"Likelihood and distance ({LEFT_OUT})"
    tables = [(title, *main_table(runs)), *difference_tables(runs), *seed_tables(runs), *sampler_tables(runs)]
    if wanted.images:
        tables.append(_norm_table(runs, wanted.images))
    tables.append(("Environment", ("what", "value"), environment()))
    return write_pages("report", tables, drawings, runs, out)


def read_runs(chosen: Sequence[Weights]) -> list[Run]:
    """The runs of some weights, which must be on the same data.

    Raises:
        ValueError: a directory that holds no run, or runs on other data.
    """
    runs = [Run.read(weights) for weights in chosen]
    for run in runs[1:]:
        if run.spec != runs[0].spec or run.config.data.source != runs[0].config.data.source:
            names = f"{run.spec.name} and {runs[0].spec.name}"
            raise ValueError(f"{run.weights} and {chosen[0]} are on other data ({names}): report them apart")
    return runs


def _norm_table(runs: Sequence[Run], images: int) -> Table:
    models = [(run.name, load(run.weights)) for run in runs]
    found = norms(models, test_data(runs[0], images))
    rows = [(name, *(f"{m:.2f} ± {e:.2f}" for m, e in row.values())) for name, row in found.items()]
    return ("Mean squared norms (Table 2)", ("model", "data", "latent", "prior"), rows)


def test_data(run: Run, images: int) -> torch.Tensor:
    """Test data, dequantised."""
    place = ensure(run.config.data.source, output_root(None) / "data", run.config.data.options)
    card = load_card(place)
    check_data(run.weights, card)
    k = torch.from_numpy(read_all(place, card, "test", images)["x"].astype("float32"))
    return run.spec.to_model(k, torch.Generator().manual_seed(0))


def _drawings(runs: Sequence[Run], out: Path, images: int) -> list[Drawing]:
    """Samples and learning curves that are there, and the diagnostics."""
    found = []
    for run in runs:
        for file, title in (("samples.png", "Samples"), ("compare.png", "Samplers")):
            if is_picture(run.weights / file, run.weights.run):
                found.append(Drawing(run.weights / file, f"{title} of {run.name}", ""))
    series = {run.name: read_metrics(run.weights.run) for run in runs}
    if any("nelbo" in record.terms for records in series.values() for record in records):
        learning_curve(series, runs[0].spec.unit, out / "learning_curve.png")
        said = "Training NELBO; dashed: of the averaged weights on held-out rows; dotted: end of pre-training."
        found.append(Drawing(out / "learning_curve.png", "Learning curves", said))
    if images:
        models = [(run.name, load(run.weights)) for run in runs]
        found += diagnose(models, test_data(runs[0], images), runs[0].spec, out)
    return found
