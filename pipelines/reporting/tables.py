"""The tables of a report: figures of `evaluate.py` and `compare.py` beside those of the papers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipelines.config.run import RunConfig
from pipelines.config.store import digest, identity, read_run
from pipelines.data.spec import DataSpec
from pipelines.evaluation.samplers import FILE as COMPARED
from pipelines.evaluation.settings import BRIEF, FULL
from pipelines.reporting.published import PUBLISHED

__all__ = ["Printed", "Row", "Run", "Table", "difference_tables", "environment", "main_table", "sampler_tables"]


Row = Sequence[str]


class Printed(tuple[str, ...]):
    """A row of a paper's table."""


Table = tuple[str, Row, Sequence[Row]]
"""Title, head and rows."""


@dataclass(frozen=True)
class Run:
    """A run's directory and what stands in it."""

    directory: Path
    config: RunConfig
    spec: DataSpec
    measured: dict[str, Any] | None
    compared: dict[str, Any] | None

    @staticmethod
    def read(directory: Path) -> Run:
        config, spec = read_run(directory / "config.json")
        name, trained = directory.name, (directory / "model.safetensors").is_file()
        weights = digest(directory) if trained else ""
        found = [_json(directory / file, "unit", "features", "differences") for file in (FULL, BRIEF)]
        measured = next((d for d in found if d and d["weights"].get(name) == weights), None)  # not of earlier weights
        compared = _json(directory / COMPARED, "features", "num_samples")
        if compared and (not trained or compared["weights"] != identity(directory)):
            compared = None
        return Run(directory, config, spec, measured, compared)

    @property
    def name(self) -> str:
        return self.directory.name


def _json(file: Path, *needed: str) -> dict[str, Any] | None:
    """A document of `evaluate.py` or `compare.py`; None where there is none.

    Raises:
        ValueError: something else under that name.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); remove it, or measure again") from None
    whole = isinstance(document, dict) and {"runs", "weights", *needed} <= document.keys()
    if not whole or not isinstance(document["runs"], dict):
        raise ValueError(f"{file}: no measurement of runs; remove it, or measure again")
    return document


def main_table(runs: Sequence[Run]) -> tuple[Row, Sequence[Row]]:
    """Rows laid out as Table 4 of INDM's paper: ours, then the papers'; cost: evaluations of networks per training step."""
    head = ("model", "data, source", "params", "cost", "steps", "NLL", "NELBO", "gap", "distance")
    rows: list[Row] = []
    for run in runs:
        figures = run.measured["runs"].get(run.name) if run.measured else None
        steps, data = f"{run.config.train.steps:,}", f"{run.spec.name}, this machine"
        if figures is None or run.measured is None:
            rows.append(
                (run.name, data, "", "", steps, "not measured on these weights: pipelines/evaluate.py", "", "", "")
            )
            continue
        unit = run.measured["unit"]
        cells = [_measured(figures[kind], unit, run.spec) for kind in ("nll", "nelbo", "gap")]
        frechet = figures.get("frechet")
        label = f"FD({run.measured['features']}) "
        distance = f"{label}{_with_error(frechet)}, n = {frechet['samples']:,}" if frechet else ""
        cost = " + ".join(f"{num} {network}" for network, num in figures.get("evaluations", {}).items())
        rows.append((run.name, data, f"{figures['parameters'] / 1e6:.2f}M", cost, steps, *cells, distance))
        for name, law in (run.measured.get("baselines") or {}).items() if run is runs[0] else ():
            rows.append((name, data, "", "", "", _measured(law | {"se": None}, unit, run.spec), "", "", ""))
    images, table = len(runs[0].spec.shape) == 3, runs[0].config.data.options.table
    for row in (row for row in PUBLISHED if (images if row.kind == "image" else table == row.data.lower())):
        cells = ["" if value is None else f"{value:.2f} {row.unit}" for value in (row.nll, row.nelbo, row.gap)]
        fids = [f"FID {value:.2f} ({name})" for name, value in (("ODE", row.fid_ode), ("PC", row.fid_pc)) if value]
        rows.append(Printed((row.model, f"{row.data}, {row.source}", row.params, "", "", *cells, ", ".join(fids))))
    return head, rows


def _measured(estimate: dict[str, Any], unit: str, spec: DataSpec) -> str:
    """Mean, error and unit; of vectors, whose papers print totals, the total too."""
    text = f"{_with_error(estimate)} {unit}"
    if len(spec.shape) == 3 or estimate["mean"] is None:
        return text
    return f"{text} (total {spec.num_dims * estimate['mean']:.2f})"


def _with_error(estimate: dict[str, Any]) -> str:
    """Mean and standard error; what could not be had is n/a."""
    mean, se = estimate["mean"], estimate["se"] if estimate["se"] is not None else estimate.get("se_images")
    return " ± ".join("n/a" if value is None else f"{value:.4f}" for value in (mean, se))


def difference_tables(runs: Sequence[Run]) -> list[Table]:
    """The paired differences of the measurement that the first run is part of."""
    measured = runs[0].measured
    if not measured or not measured["differences"]:
        return []
    rows = [
        (pair, *(_with_error(kinds[kind] | {"se": kinds[kind]["se_images"]}) for kind in ("nll", "nelbo")))
        for pair, kinds in measured["differences"].items()
    ]
    head = ("models", f"NLL ({measured['unit']})", f"NELBO ({measured['unit']})")
    return [("Differences, paired per image on the same draws", head, rows)]


def sampler_tables(runs: Sequence[Run]) -> list[Table]:
    """The rows of `compare.py`, per run."""
    found = []
    for run in runs:
        rows = run.compared["runs"].get(run.name) if run.compared else None
        if not rows or not run.compared:
            continue
        head = ("sampler", "evaluations", "seconds", f"FD({run.compared['features']})", "kernel distance")
        shown = [
            (
                r["row"],
                "n/a" if r["evaluations"] is None else f"{r['evaluations']:.1f}",
                f"{r['seconds']:.1f}",
                _with_error(r["frechet"]) + (f", {r['diverged']} diverged" if r.get("diverged") else ""),
                _with_error(r["kernel"]),
            )
            for r in rows
        ]
        found.append((f"Samplers of {run.name}, {run.compared['num_samples']:,} samples per row", head, shown))
    return found


def environment() -> Sequence[Row]:
    packages = ("torch", "ray", "numpy", "pyarrow", "mlflow", "torch-fidelity")
    versions = []
    for name in packages:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            versions.append((name, "not installed"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, GPU: {gpu}"),
        ("system", platform.platform()),
        ("python", platform.python_version()),
        *versions,
    ]
