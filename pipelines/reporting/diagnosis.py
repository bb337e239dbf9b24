"""Why samples are what they are: every diagnostic of runs on one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from indm_core.model import GenerativeModel, LinearModel
from pipelines.config.store import load
from pipelines.config.weights import Weights
from pipelines.reporting.diagnose import diagnose
from pipelines.reporting.errors import error_tables
from pipelines.reporting.integration import draw_integration
from pipelines.reporting.options import DiagnoseOptions
from pipelines.reporting.page import write_pages
from pipelines.reporting.summary import read_runs, test_data
from pipelines.reporting.tables import Table
from pipelines.storage.outputs import output_root

__all__ = ["diagnose_runs"]


def diagnose_runs(chosen: Sequence[Weights], wanted: DiagnoseOptions) -> Path:
    """Draws and measures everything that the models allow; returns the page.

    Raises:
        ValueError: a directory that holds no trained run, or runs on other data.
    """
    runs = read_runs(chosen)
    models: list[tuple[str, GenerativeModel]] = [(run.name, load(run.weights)) for run in runs]
    out, began = output_root(wanted.out or str(chosen[0] / "diagnose")), time.monotonic()

    def said(what: str) -> None:
        print(f"{what}: done after {time.monotonic() - began:.0f} s", flush=True)

    x, spec = test_data(runs[0], max(wanted.images, wanted.errors.rows)), runs[0].spec
    drawings = diagnose(models, x[: wanted.images], spec, out)
    said("figures of the INDM paper")
    for name, model in models:
        drawings += draw_integration(name, model, x[: wanted.images], spec, out)
        said(f"figures of the thesis, {name}")
    tables: list[Table] = []
    linear = [(name, cast(LinearModel, model)) for name, model in models if model.sde.linear is not None]
    if linear and wanted.errors.rows:
        tables = error_tables(linear, x[: wanted.errors.rows], wanted.errors)
        said("Theorem 4")
    return write_pages("diagnose", tables, drawings, runs, out)
