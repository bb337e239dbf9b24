"""The canvases that were measured of runs: their pictures and their figures."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluation.measurements.collages import CollageResult, RatioResult
from pipelines.evaluation.results.estimates import with_error
from pipelines.reporting.page.html import is_picture
from pipelines.reporting.page.parts import Drawing, Gallery, Section, Table
from pipelines.reporting.tables import Run

__all__ = ["collages"]

HEAD = ("model", "canvases", "FD+", "FD by place", "seam", "inside", "closing", "correlations")


def collages(runs: Sequence[Run]) -> Section:
    """Of each run its first canvases, and a row for each layout and sampler that was measured."""
    drawings = []
    for run in runs:
        found = run.of(CollageResult)
        if found and is_picture(run.weights / "canvases.png", run.weights.run):
            caption = f"{found.result.layout}; {found.result.sampling}."
            drawings.append(Drawing(run.weights / "canvases.png", f"Canvases of {run.name}", caption))
    rows = [_row(run, result) for run in runs for result in _results(run)]
    note = (
        "seam, inside, closing: jumps over those of data; correlations: of columns at a lag, in brackets those of data."
    )
    tables = [Table(head=HEAD, rows=rows, note=note)] if rows else []
    return Section(title="Canvases", parts=[*([Gallery(drawings=drawings)] if drawings else []), *tables])


def _results(run: Run) -> list[CollageResult]:
    """Of each layout and sampler the measurement of most canvases, the newest of several."""
    best: dict[tuple[object, object], CollageResult] = {}
    for document in run.measured:
        result = document.runs[run.name].of(CollageResult)
        if result is None:
            continue
        before = best.get((result.layout, result.sampling))
        if before is None or result.canvases >= before.canvases:
            best[result.layout, result.sampling] = result
    return list(best.values())


def _row(run: Run, result: CollageResult) -> tuple[str, ...]:
    size = " x ".join(map(str, result.shape))
    drawn = f"{result.canvases:,} of {size}; {result.sampling} ({result.evaluations:.1f} NFE)"
    made = f"{result.layout}\n{drawn}; {result.reference}"
    places = "\n".join(f"{p.factor}: {_shown(p.frechet.value, p.frechet.se)}" for p in result.places)
    plus = result.plus
    at_infinity = f"n = {plus.n:,}; {_shown(plus.at_infinity, plus.at_infinity_se)} at infinite n"
    lags = "\n".join(str(lag).replace("+-", "±") for lag in result.lags)
    ratios = (_ratio(each) for each in (result.seam, result.inside, result.closing))
    return (run.name, made, f"{_shown(plus.value, plus.se)}\n{at_infinity}", places, *ratios, lags)


def _ratio(ratio: RatioResult) -> str:
    return "" if ratio.value != ratio.value else _shown(ratio.value, ratio.se)


def _shown(value: float, error: float) -> str:
    return with_error(value, error).replace("+-", "±")
