"""Why samples are what they are: every diagnostic of runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from indm_core.model import GenerativeModel, LinearModel
from pipelines.config.store import load
from pipelines.config.weights import Weights
from pipelines.reporting.data import read_runs, test_rows
from pipelines.reporting.diagnostics.errors import error_tables
from pipelines.reporting.diagnostics.figures import diagnose
from pipelines.reporting.diagnostics.integration import draw_integration
from pipelines.reporting.hardware import made_here
from pipelines.reporting.options import DiagnoseOptions
from pipelines.reporting.page.html import write_page
from pipelines.reporting.page.parts import Gallery, Page, Section
from pipelines.reporting.settings import configurations
from pipelines.reporting.stages import Stages
from pipelines.storage.outputs import output_root

__all__ = ["diagnose_runs"]


def diagnose_runs(chosen: Sequence[Weights], wanted: DiagnoseOptions) -> Path:
    """Draws and measures everything that the models allow; returns the page.

    Raises:
        ValueError: a directory that holds no trained run, or runs on other data.
    """
    stages, runs = Stages(), read_runs(chosen)
    models: list[tuple[str, GenerativeModel]] = [(run.name, load(run.weights)) for run in runs]
    out, spec = output_root(wanted.out or str(chosen[0] / "diagnose")), runs[0].spec
    rows = max(wanted.images, wanted.errors.rows)
    x = test_rows(runs[0], rows).seen(rows)
    sections = [
        Section(title="Diagnostics", parts=[Gallery(drawings=diagnose(models, x[: wanted.images], spec, out, stages))])
    ]
    for name, model in models:
        drawings = draw_integration(name, model, x[: wanted.images], spec, out, stages)
        sections.append(Section(title=f"Integration, {name}", parts=[Gallery(drawings=drawings)] if drawings else []))
    linear = [(name, cast(LinearModel, model)) for name, model in models if model.sde.linear is not None]
    if linear and wanted.errors.rows:
        tables = error_tables(linear, x[: wanted.errors.rows], wanted.errors, stages)
        sections.append(Section(title="Theorem 4", parts=tables))
    sections.append(Section(title="Settings", parts=configurations(runs)))
    names = ", ".join(run.name for run in runs)
    page = Page(
        title=f"{spec.name}: why the samples of {names} are what they are", said=[made_here()], sections=sections
    )
    return write_page("diagnose", page, out)
