"""The tables of a report: figures of `evaluate.py` and `compare.py` beside those of the papers."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import torch

from pipelines.config.history import installed
from pipelines.config.run import RunConfig
from pipelines.config.store import configuration, digest, identity, trained
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation.archive import Found, best, by_precision, differences, present
from pipelines.evaluation.estimates import Estimate, with_error
from pipelines.evaluation.measurement import Result
from pipelines.evaluation.measurements.baselines import BaselinesResult
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results import Evaluation
from pipelines.evaluation.sampling.comparison import FILE as COMPARED
from pipelines.evaluation.sampling.comparison import Comparison
from pipelines.evaluation.seeds import HEAD, spreads
from pipelines.reporting.published import PUBLISHED

__all__ = [
    "Printed",
    "Row",
    "Run",
    "Table",
    "difference_tables",
    "environment",
    "main_table",
    "sampler_tables",
    "seed_tables",
]


R = TypeVar("R", bound=Result)
Row = Sequence[str]


class Printed(tuple[str, ...]):
    """A row of a paper's table."""


Table = tuple[str, Row, Sequence[Row]]
"""Title, head and rows."""


@dataclass(frozen=True)
class Run:
    """The weights of a run, and what was measured of them.

    Args:
        measured: The measurements of them as they are today, the newest last.
        compared: The table of their samplers.
    """

    weights: Weights
    config: RunConfig
    spec: DataSpec
    measured: Sequence[Evaluation]
    compared: Comparison | None

    @staticmethod
    def read(weights: Weights) -> Run:
        """What there is of a run, as far as it is of the weights that lie there.

        Raises:
            ValueError: no run, or a file that is no measurement under the name of one.
        """
        config, spec = configuration(weights)
        measured = present(weights, strict=True)
        compared = Comparison.read(weights / COMPARED) if (weights / COMPARED).is_file() else None
        if compared and not (trained(weights) and compared.weights == identity(weights)):
            compared = None
        return Run(weights, config, spec, measured, compared)

    @property
    def name(self) -> str:
        return self.weights.name

    def of(self, kind: type[R]) -> Found[R] | None:
        """The most precise result of a kind; None where it was not measured."""
        return best(self.name, self.measured, kind)


def main_table(runs: Sequence[Run]) -> tuple[Row, Sequence[Row]]:
    """Rows laid out as Table 4 of INDM's paper: ours, then the papers'; cost: evaluations of networks per training step."""
    head = ("model", "data, source", "params", "cost", "steps", "NLL", "NELBO", "gap", "distance")
    rows: list[Row] = [_measured_row(run) for run in runs]
    if baselines := runs[0].of(BaselinesResult):
        for law in baselines.result.laws:
            shown = _figure(law.nll, baselines.document.unit, runs[0].spec)
            rows.append((law.name, _source(runs[0]), "", "", "", shown, "", "", ""))
    images, table = len(runs[0].spec.shape) == 3, runs[0].config.data.options.table
    for row in (row for row in PUBLISHED if (images if row.kind == "image" else table == row.data.lower())):
        cells = ["" if value is None else f"{value:.2f} {row.unit}" for value in (row.nll, row.nelbo, row.gap)]
        fids = [f"FID {value:.2f} ({name})" for name, value in (("ODE", row.fid_ode), ("PC", row.fid_pc)) if value]
        rows.append(Printed((row.model, f"{row.data}, {row.source}", row.params, "", "", *cells, ", ".join(fids))))
    return head, rows


def _measured_row(run: Run) -> Row:
    """One of our models."""
    steps = f"{run.config.train.steps:,}"
    if not run.measured:
        why = "not measured on these weights: pipelines/evaluate.py"
        return (run.name, _source(run), "", "", steps, why, "", "", "")
    cells = []
    for kind in (NllResult, NelboResult, GapResult):
        found = run.of(kind)
        shown = _figure(found.result.after, found.document.unit, run.spec) if found else ""
        cells.append(f"{shown}; {_how(kind, found.document)}" if found and found.document.images else shown)
    figures, distances = run.measured[-1].runs[run.name], run.of(DistancesResult)
    cost = " + ".join(f"{num} {network}" for network, num in figures.evaluations.items())
    params, distance = f"{figures.parameters / 1e6:.2f}M", _distance(distances.result) if distances else ""
    return (run.name, _source(run), params, cost, steps, *cells, distance)


def _how(kind: type[Result], document: Evaluation) -> str:
    """By which settings a likelihood was measured, of those that there are."""
    s, images = (
        document.settings,
        f"{document.images:,} test {'images' if document.unit.startswith('bits') else 'rows'}",
    )
    if kind is NllResult:
        return f"{images} x {s.nll_replicates}, rtol {s.rtol:g}"
    return f"{images} x {s.nelbo_replicates} x {s.nelbo_draws} draws" if kind is NelboResult else images


def _source(run: Run) -> str:
    return f"{run.spec.name}, this machine"


def _figure(estimate: Estimate, unit: str, spec: DataSpec) -> str:
    """Mean, error and unit; of vectors, whose papers print totals, the total too."""
    text = f"{_with_error(estimate.mean, estimate.error)} {unit}"
    if len(spec.shape) == 3 or math.isnan(estimate.mean):
        return text
    return f"{text} (total {spec.num_dims * estimate.mean:.2f})"


def _distance(result: DistancesResult) -> str:
    """The Frechet distance and all that it depends on."""
    f, cost = result.distances.frechet, "" if math.isnan(result.evaluations) else f" ({result.evaluations:.1f} NFE)"
    return (
        f"FD {_with_error(f.value, f.se)}, n = {f.n:,}; {_with_error(f.at_infinity, f.at_infinity_se)} at infinite n; "
        f"{result.sampling}{cost}, {result.weights} weights; {result.reference}"
    )


def _with_error(value: float, error: float) -> str:
    """Mean and standard error; what could not be had is n/a."""
    return with_error(value, error, ".4f").replace("+-", "±")


def difference_tables(runs: Sequence[Run]) -> list[Table]:
    """The paired differences of the runs, and of others in the same output directories, of weights that they have today."""
    documents = [document for run in runs for document in run.measured]
    weights = {run.name: digest(run.weights) for run in runs if run.measured}
    for name in {name for document in documents for name in document.weights} - weights.keys():
        for root in {run.weights.run.parent for run in runs}:
            with suppress(OSError, ValueError):  # it is gone, or lies elsewhere
                weights[name] = digest(Weights.of(root / name))
    pairs = differences(documents, weights)
    if not pairs:
        return []
    rows = []
    for pair in pairs:
        both = (_with_error(d.mean, d.se_images) for d in (pair.result.nll.after, pair.result.nelbo.after))
        rows.append((f"{pair.result.first} - {pair.result.second}", *both, f"{pair.document.images:,}"))
    head = ("models", *(f"{name} ({documents[0].unit})" for name in ("NLL", "NELBO")), "images")
    return [("Differences, paired per image on the same draws", head, rows)]


def seed_tables(runs: Sequence[Run]) -> list[Table]:
    """Figures over trainings that differ by their seed alone, of the most precise measurement of several of them."""
    configs = {run.name: run.config for run in runs}
    together = (d for d in by_precision(runs[0].measured) if d.runs.keys() <= configs.keys())
    found = next(filter(None, ([spread.cells() for spread in spreads(d, configs)] for d in together)), [])
    title = "Over training seeds: mean ± spread/sqrt(trainings); spread: standard deviation over trainings"
    rows = [tuple(cell.replace("+-", "±") for cell in row) for row in found]
    return [(title, HEAD, rows)] if rows else []


def sampler_tables(runs: Sequence[Run]) -> list[Table]:
    """The rows of `compare.py`, per run."""
    found = []
    for run in runs:
        rows = run.compared.runs.get(run.name) if run.compared else None
        if not rows or not run.compared:
            continue
        features = run.compared.reference.features
        head = ("sampler", "evaluations", "seconds", f"FD({features})", "FD at infinite n", "kernel distance")
        shown = []
        for row in rows:
            result, f, k = row.result, row.result.distances.frechet, row.result.distances.kernel
            cost = "n/a" if math.isnan(result.evaluations) else f"{result.evaluations:.1f}"
            lost = f", {result.diverged} diverged" if result.diverged else ""
            at_infinity, kernel = _with_error(f.at_infinity, f.at_infinity_se), _with_error(k.value, k.se)
            shown.append((row.row, cost, f"{row.seconds:.1f}", _with_error(f.value, f.se) + lost, at_infinity, kernel))
        title = f"Samplers of {run.name}, {run.compared.num_samples:,} samples per row of the averaged weights"
        found.append((f"{title}, compared with {run.compared.reference}", head, shown))
    return found


def environment() -> Sequence[Row]:
    packages = ("torch", "ray", "numpy", "pyarrow", "mlflow", "torch-fidelity")
    there = installed(*packages)
    versions = [(name, there.get(name, "not installed")) for name in packages]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, GPU: {gpu}"),
        ("system", platform.platform()),
        ("python", platform.python_version()),
        *versions,
    ]
