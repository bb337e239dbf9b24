"""On what runs were trained, and on what a page is made."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from pipelines.config.history import installed
from pipelines.reporting.page.parts import Row, Table
from pipelines.reporting.tables import Run
from pipelines.runs.hardware import Hardware, read_hardware
from pipelines.runs.job import read_metrics

__all__ = ["hardware_table", "made_here", "trained_on"]

PACKAGES = ("ray", "numpy", "pyarrow", "mlflow", "torch-fidelity")


def made_here() -> str:
    """When and where the page is made."""
    now = datetime.now(UTC)
    return f"This page: {now.day} {now:%B %Y, %H:%M} UTC, {_here()}."


def _here() -> Hardware:
    return Hardware.here(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def trained_on(runs: Sequence[Run]) -> str:
    """The machines that the runs were trained on, in a sentence."""
    found = {run.name: "; then ".join(map(str, _of(run))) or "not recorded" for run in runs}
    if len(set(found.values())) == 1:
        return f"Trained on: {next(iter(found.values()))}."
    return "Trained on: " + "; ".join(f"{name}: {said}" for name, said in found.items()) + "."


def hardware_table(runs: Sequence[Run]) -> Table:
    """A row for each machine of each run, and one for this page."""
    rows: list[Row] = []
    for run in runs:
        speeds = [record.images_per_s for record in read_metrics(run.weights.run) if record.images_per_s > 0]
        speed = f"{statistics.median(speeds):,.0f}" if speeds else ""
        machines = _of(run)
        rows += [(f"training of {run.name}, from step {each.step:,}", *_cells(each), speed) for each in machines]
        if not machines:
            rows.append((f"training of {run.name}", "not recorded", "", "", speed))
    rows.append(("this page", *_cells(_here()), ""))
    there = installed(*PACKAGES)
    versions = ", ".join(f"{name} {there.get(name, 'not installed')}" for name in PACKAGES)
    head = ("work", "machine", "system", "Python, PyTorch", "rows/s (median)")
    return Table(head=head, rows=rows, note=f"Packages here: {versions}.")


def _cells(hardware: Hardware) -> Row:
    return (str(hardware), hardware.system, f"{hardware.python}, {hardware.torch}")


def _of(run: Run) -> list[Hardware]:
    """The machines of a run, as far as its weights are trained."""
    return [each for each in read_hardware(run.weights.run) if each.step < run.config.train.steps]
