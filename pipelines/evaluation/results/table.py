"""An evaluation as text, and in MLflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.config.store import configuration
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import GapResult, NelboResult, NllResult
from pipelines.evaluation.results.archive import BEST, best_figures, present
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.estimates import with_error
from pipelines.evaluation.results.seeds import LEFT_OUT
from pipelines.runs.tracking import Made, deliver, post

__all__ = ["log", "table"]


def table(document: Evaluation) -> str:
    """The figures as text, laid out as Table 4 of the INDM paper; every figure with its standard error."""
    unit, features = document.unit, _features(document)
    lines = [
        f"{'model':<24} {'params':>8} {'cost':>6}  {f'NLL {unit}':<22} {f'NELBO {unit}':<22} {'gap':<22} FD{features}"
    ]
    for name, figures in document.runs.items():
        lines += [_row(name, figures), *(f"  {line}" for result in figures.results for line in result.lines())]
    lines += [line for result in document.results for line in result.lines()]
    return "\n".join([*lines, _settings(document), LEFT_OUT])


def _features(document: Evaluation) -> str:
    """In brackets, the features that distances are taken in."""
    found = (figures.of(DistancesResult) for figures in document.runs.values())
    return next((f"({distances.reference.features})" for distances in found if distances), "")


def _row(name: str, figures: Figures) -> str:
    likelihoods = (figures.of(kind) for kind in (NllResult, NelboResult, GapResult))
    cells = " ".join(f"{'-' if found is None else str(found.after):<22}" for found in likelihoods)
    distances, shown = figures.of(DistancesResult), "-"
    if distances is not None:
        frechet = distances.distances.frechet
        lost = f" ({distances.diverged} diverged)" if distances.diverged else ""
        shown = f"{with_error(frechet.value, frechet.se)} (n = {frechet.n:,}){lost}"
    params, cost = f"{figures.parameters / 1e6:.2f}M", sum(figures.evaluations.values()) or "-"
    return f"{name:<24} {params:>8} {cost:>6}  {cells} {shown}"


def _settings(document: Evaluation) -> str:
    """How exactly it was measured."""
    s = document.settings
    rows = "images" if document.unit.startswith("bits") else "rows"
    one = f" (of NLL and gap: over {rows})" if s.nll_replicates == 1 else ""
    return (
        f"{document.images} test {rows} of {document.data}; "
        f"NLL: probability-flow ODE at {s.nll_tolerances}, {_divergence(document)}, "
        f"{_replicates(s.nll_replicates, s.stops_nll)}; "
        f"NELBO: {s.nelbo_draws} draws, {_replicates(s.nelbo_replicates, s.stops_nelbo)}; "
        f"+- is the estimator's standard error on these {rows}{one}; "
        f"cost: evaluations of networks per training step; FD: its error over sets of as many samples; {document.seconds:.0f} s"
    )


def _replicates(most: int, until_se: float) -> str:
    return f"until its error is {until_se:g} or x{most}" if until_se else f"x{most}"


def _divergence(document: Evaluation) -> str:
    """How the NLLs took the divergence."""
    found = (figures.of(NllResult) for figures in document.runs.values())
    if any(nll is not None and nll.divergence == "exact" for nll in found):
        return "exact divergence"
    return f"{document.settings.num_probes} Hutchinson probe{'s' * (document.settings.num_probes > 1)}"


def log(document: Evaluation, runs: Sequence[Weights], root: Path) -> None:
    """Writes of each run the most precise figures that there are, with their document and samples, into its MLflow run, linked
    to its last model and to the data."""
    config, _ = configuration(runs[0])
    data = ensure(config.data.source, root / "data", config.data.options)
    for run in runs:
        figures = replace(document.runs[run.name], results=best_figures(run.name, present(run)))
        measured = {f"test/{'raw/' if run.raw else ''}{name}": value for name, value in _measured(figures).items()}
        found = {name: value for name, value in (measured | _cost(figures)).items() if math.isfinite(value)}
        files = tuple(str(run / file) for file in (BEST, "samples.png", "canvases.png"))
        post(run, Made(figures=found, files=files, data=str(data)))
    deliver([run.run for run in runs], root)


def _measured(figures: Figures) -> dict[str, float]:
    return {name: value for result in figures.results for name, value in result.metrics().items()}


def _cost(figures: Figures) -> dict[str, float]:
    """What a training step takes."""
    cost = {f"train/evaluations_{network}": float(num) for network, num in figures.evaluations.items()}
    return {"train/parameters": float(figures.parameters)} | cost
