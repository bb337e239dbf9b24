"""The document of a table of samplers, as JSON, as text and as a picture.

RUN/comparisons/KEY.json   a table for each number of samples, reference, kind of device and weights
RUN/compare.json           of those of the run's present weights the one of the most samples

Those of a checkpoint lie in RUN/@STEP in place of RUN.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.config.codec import to_json
from pipelines.config.weights import Weights
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.results import earlier
from pipelines.evaluation.results.document import read_document, write_document
from pipelines.evaluation.results.estimates import with_error
from pipelines.evaluation.sampling.rows import family
from pipelines.runs.pictures import lines

__all__ = ["FILE", "Comparison", "RowResult", "table"]

FILE, FOLDER = "compare.json", "comparisons"


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A row of one run.

    Args:
        row: As it was written.
        seconds: Of one actor, for all samples.
        result: Distances, and the evaluations of the score.
    """

    row: str
    seconds: float
    result: DistancesResult


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of samplers.

    Args:
        num_samples: Per row.
        key: Of the feature network and the kind of device: rows are comparable where it is equal.
        reference: What the samples were compared with.
        weights: Identity of the model of the run in whose directory this lies; '' of several runs.
        runs: By run, its rows.
    """

    num_samples: int
    key: str
    reference: Reference
    weights: str
    runs: dict[str, tuple[RowResult, ...]]

    @staticmethod
    def read(file: Path) -> Comparison:
        """The table in a file, of this version or an earlier one.

        Raises:
            ValueError: something else.
        """
        return read_document(Comparison, file, earlier.comparison)

    def write(self, file: Path) -> None:
        write_document(self, file)

    def with_earlier(self, run: Weights, model: str) -> Comparison:
        """With the rows that the last table of a run has and this one has not, where they are comparable."""
        new, mine = self.runs[run.name], replace(self, weights=model)
        there = {row.row for row in new}
        same = [table for table in tables(run, model) if _key(table) == _key(mine)]
        kept = [row for table in same[-1:] for row in table.runs.get(run.name, ()) if row.row not in there]
        return replace(mine, runs=self.runs | {run.name: (*kept, *new)})

    def put(self, run: Weights) -> None:
        """Keeps the table of a run, with its earlier rows, beside those that are there."""
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for there in tables(run, self.weights):  # one of an earlier version lies in compare.json alone
            if not (place := folder / f"{_key(there)}.json").is_file():
                there.write(place)
        self.write(folder / f"{_key(self)}.json")
        (run / FILE).unlink(missing_ok=True)
        newest_first = tables(run, self.weights)[::-1]
        max(newest_first, key=lambda table: table.num_samples).write(run / FILE)

    def draw(self, file: Path) -> None:
        """Frechet distance against evaluations, one line for each sampler of each run, whatever its number of steps."""
        series: dict[str, list[tuple[float, float, float]]] = {}
        for name, rows in self.runs.items():
            for row in rows:
                frechet = row.result.distances.frechet
                point = (row.result.evaluations, frechet.value, frechet.se)
                if all(map(math.isfinite, point)):
                    series.setdefault(f"{name} {family(row.row)}", []).append(point)
        up = f"FD({self.reference.features}), n = {self.num_samples:,}"
        lines(series, "evaluations of the score per sample", up, file, log=True)


def _key(comparison: Comparison) -> str:
    """What tells tables of a run apart that cannot share rows."""
    said = [comparison.num_samples, comparison.key, to_json(comparison.reference), comparison.weights]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def tables(run: Weights, model: str) -> list[Comparison]:
    """The tables of a run that are of some weights, the newest last; files that hold none are passed over."""
    files = sorted(
        filter(Path.is_file, [run / FILE, *(run / FOLDER).glob("*.json")]), key=lambda file: file.stat().st_mtime_ns
    )
    found: dict[str, Comparison] = {}
    for file in files:
        with suppress(ValueError):
            comparison = Comparison.read(file)
            found[_key(comparison)] = comparison
    return [comparison for comparison in found.values() if comparison.weights == model]


def table(document: Comparison) -> str:
    """The rows as text, every distance with its standard error, and what they are of."""
    width = max((len(row.row) for rows in document.runs.values() for row in rows), default=24)
    head = f"{'row':<{width}} {'NFE':>7} {'seconds':>9}  {f'FD({document.reference.features})':<20} {'FD at n = inf':<20} KD"
    shown = [
        f"{document.num_samples:,} samples per row, averaged weights; FD at n = inf: as if they were infinitely many",
        f"compared with {document.reference}; seconds: of one actor, all samples",
    ]
    for name, rows in document.runs.items():
        shown += [name, head, *(_line(row, width) for row in rows)]
    return "\n".join(shown)


def _line(row: RowResult, width: int) -> str:
    result, frechet, kernel = row.result, row.result.distances.frechet, row.result.distances.kernel
    figures = ((frechet.value, frechet.se), (frechet.at_infinity, frechet.at_infinity_se), (kernel.value, kernel.se))
    near, at_infinity, far = (with_error(value, error, ".4g", ".2g") for value, error in figures)
    cost = "n/a" if math.isnan(result.evaluations) else f"{result.evaluations:.1f}"
    lost = f"  ({result.diverged} diverged)" if result.diverged else ""
    return f"{row.row:<{width}} {cost:>7} {row.seconds:>9.1f}  {near:<20} {at_infinity:<20} {far}{lost}"
