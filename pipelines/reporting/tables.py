"""The runs of a report and their tables: the figures of `evaluate.py` and `compare.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pipelines.config.run import RunConfig
from pipelines.config.store import configuration, digest, identity, trained
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation.measurement import Result
from pipelines.evaluation.measurements.baselines import BaselinesResult
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results.archive import Found, best, by_precision, differences, present
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.estimates import Estimate, with_error
from pipelines.evaluation.results.seeds import HEAD, LEFT_OUT, spreads
from pipelines.evaluation.sampling.comparison import FILE as COMPARED
from pipelines.evaluation.sampling.comparison import Comparison
from pipelines.reporting.page.parts import Row, Table

__all__ = [
    "Run",
    "difference_tables",
    "own_table",
    "sampler_tables",
    "seed_tables",
]


R = TypeVar("R", bound=Result)


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


def own_table(runs: Sequence[Run]) -> Table:
    """The models' figures, the most precise of each, and those of the laws that a model of vectors has to beat."""
    unit = runs[0].spec.unit
    head = ("model", f"NLL, {unit}", f"NELBO, {unit}", f"gap, {unit}", "FD", "steps", "parameters", "cost")
    rows: list[Row] = [_measured_row(run) for run in runs]
    if baselines := runs[0].of(BaselinesResult):
        for law in baselines.result.laws:
            rows.append((f"{law.name}\nfitted", _figure(law.nll, runs[0].spec), *[""] * 6))
    return Table(head=head, rows=rows, note=f"Lower is better. The errors: {LEFT_OUT}.")


def _measured_row(run: Run) -> Row:
    """One of our models."""
    steps = f"{run.config.train.steps:,}"
    if not run.measured:
        why = f"not measured on these weights\npython pipelines/evaluate.py {run.name}"
        return (run.name, why, "", "", "", steps, "", "")
    cells = []
    for kind in (NllResult, NelboResult, GapResult):
        found = run.of(kind)
        how = _how(kind, found.document) if found and found.document.images else ""
        cells.append(_figure(found.result.after, run.spec, how) if found else "")
    figures, distances = run.measured[-1].runs[run.name], run.of(DistancesResult)
    cost = " + ".join(f"{num} {network}" for network, num in figures.evaluations.items())
    params, distance = f"{figures.parameters / 1e6:.2f}M", _distance(distances.result) if distances else ""
    return (run.name, *cells, distance, steps, params, cost)


def _how(kind: type[Result], document: Evaluation) -> str:
    """By which settings a likelihood was measured, of those that there are."""
    s, rows = document.settings, "images" if document.unit.startswith("bits") else "rows"
    images = f"{document.images:,} test {rows}"
    if kind is NllResult:
        return f"{images} x {s.nll_replicates}, {s.nll_tolerances.partition(', atol')[0]}"
    return f"{images} x {s.nelbo_replicates} x {s.nelbo_draws} draws" if kind is NelboResult else images


def _figure(estimate: Estimate, spec: DataSpec, how: str = "") -> str:
    """Mean and error; below them the error over images where that is another one, of vectors, whose papers print totals, the
    total in nats, and how it was measured."""
    text = _with_error(estimate.mean, estimate.error)
    below: list[str] = []
    if math.isfinite(estimate.se) and math.isfinite(estimate.se_images):
        below.append(f"± {estimate.se_images:.4f} over {'images' if spec.levels else 'rows'}")
    if not spec.levels and math.isfinite(estimate.mean):
        below.append(f"total {spec.num_dims * estimate.mean:.2f} nats")
    return "\n".join(filter(None, [text, "; ".join([*below, *([how] if how else [])])]))


def _distance(result: DistancesResult) -> str:
    """The Frechet distance and all that it depends on."""
    f, cost = result.distances.frechet, "" if math.isnan(result.evaluations) else f" ({result.evaluations:.1f} NFE)"
    return (
        f"{_with_error(f.value, f.se)}\nn = {f.n:,}; {_with_error(f.at_infinity, f.at_infinity_se)} at infinite n; "
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
    rows_are, unit = "image" if runs[0].spec.levels else "row", documents[0].unit
    head = ("models", f"NLL, {unit}", f"NELBO, {unit}", f"{rows_are}s")
    note = f"Paired by {rows_are} on the same draws; below 0 the first is better; ± over {rows_are}s."
    return [Table(title="Differences", head=head, rows=rows, note=note)]


def seed_tables(runs: Sequence[Run]) -> list[Table]:
    """Figures over trainings that differ by their seed alone, of the most precise measurement of several of them."""
    configs = {run.name: run.config for run in runs}
    together = (d for d in by_precision(runs[0].measured) if d.runs.keys() <= configs.keys())
    found = next(filter(None, ([spread.cells() for spread in spreads(d, configs)] for d in together)), [])
    note = "Mean ± spread/sqrt(trainings); spread: standard deviation over trainings."
    rows = [tuple(cell.replace("+-", "±") for cell in row) for row in found]
    return [Table(title="Over training seeds", head=HEAD, rows=rows, note=note)] if rows else []


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
        note = f"{run.compared.num_samples:,} samples per row of the averaged weights, compared with {run.compared.reference}."
        found.append(Table(title=f"Samplers of {run.name}", head=head, rows=shown, note=note))
    return found
