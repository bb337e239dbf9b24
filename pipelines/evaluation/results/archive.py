"""The measurements that there are of a run: each is kept by its settings, and none takes the place of a more precise one.

    RUN/evaluations/KEY.json   a document for each combination of settings, runs measured together and their weights
    RUN/evaluation.json        of those of the run's present weights the most precise, for whoever wants one

Those of a checkpoint lie in RUN/@STEP in place of RUN. Earlier versions wrote evaluation.json and evaluation-brief.json alone;
these are read like the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from pipelines.config.codec import to_json
from pipelines.config.store import digest, trained
from pipelines.config.weights import Weights
from pipelines.evaluation.measurement import Result, find
from pipelines.evaluation.measurements.collages import CollageResult
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import (
    DifferenceResult,
    LikelihoodResult,
    NelboResult,
    NllResult,
)
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.settings import Settings

__all__ = [
    "BEST",
    "Found",
    "best",
    "best_figures",
    "by_precision",
    "differences",
    "key",
    "measured_so",
    "present",
    "put",
]

BEST, BRIEF, FOLDER = "evaluation.json", "evaluation-brief.json", "evaluations"


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Found(Generic[R]):
    """A result, and the measurement that it is of."""

    result: R
    document: Evaluation


def key(document: Evaluation) -> str:
    """What tells a measurement from others of the same runs: its settings, but for the number of actors, and the weights."""
    said = [to_json(replace(document.settings, actors=0)), sorted(document.weights.items())]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def put(run: Weights, document: Evaluation) -> None:
    """Keeps a measurement of a run beside those that are there."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for file in filter(Path.is_file, (run / BRIEF, run / BEST)):
        with suppress(ValueError):  # a file of an earlier version may be the only one of its measurement
            earlier = Evaluation.read(file)
            if not (place := folder / f"{key(earlier)}.json").is_file():
                earlier.write(place)
    document.write(folder / f"{key(document)}.json")
    (run / BEST).unlink(missing_ok=True)
    for most_precise in by_precision(present(run))[:1]:
        most_precise.write(run / BEST)


def present(run: Weights, *, strict: bool = False) -> list[Evaluation]:
    """The measurements of weights as they are today, the newest last.

    Args:
        strict: Refuse a file that is no measurement under the name of one, instead of passing over it.

    Raises:
        ValueError: there is one, and `strict`.
    """
    if not trained(run):
        return []
    files = [run / BRIEF, run / BEST, *(run / FOLDER).glob("*.json")]
    found, name, weights = [], run.name, digest(run)
    for file in sorted(filter(Path.is_file, files), key=_written):
        with nullcontext() if strict else suppress(ValueError):
            found.append(Evaluation.read(file))
    of_today = [document for document in found if document.weights.get(name) == weights and name in document.runs]
    return list({key(document): document for document in of_today}.values())


def _written(file: Path) -> tuple[int, str]:
    return file.stat().st_mtime_ns, file.name


def by_precision(documents: Sequence[Evaluation]) -> list[Evaluation]:
    """Measurements, given the newest last: the most precise first, of equally precise ones the newest."""
    newest_first = documents[::-1]
    return sorted(newest_first, key=_whole, reverse=True)  # which leaves equal ones in their order


def measured_so(runs: Sequence[Weights], settings: Settings) -> Evaluation | None:
    """The measurement of exactly these runs, with these weights and settings; None where there is none."""
    weights = {run.name: digest(run) for run in runs}
    return next((d for d in present(runs[0]) if (d.weights, d.settings) == (weights, settings)), None)


def best(name: str, documents: Sequence[Evaluation], kind: type[R]) -> Found[R] | None:
    """The most precise result of a kind; of equally precise ones, the newest; None where it was not measured.

    Args:
        name: Of the run.
        documents: Its measurements, the newest last.
        kind: Of the run, or of its data.
    """
    found = []
    for document in reversed(documents):
        result = find((*document.runs[name].results, *document.results), kind)
        found += [Found(result, document)] if result is not None else []
    return max(found, key=lambda each: _precision(kind, each.document), default=None)


def best_figures(name: str, documents: Sequence[Evaluation]) -> tuple[Result, ...]:
    """The most precise result of every kind that was measured of a run."""
    kinds = dict.fromkeys(type(result) for document in documents for result in document.runs[name].results)
    return tuple(found.result for kind in kinds if (found := best(name, documents, kind)))


def differences(documents: Sequence[Evaluation], weights: Mapping[str, str]) -> list[Found[DifferenceResult]]:
    """The differences of two runs, of each pair the most precise one, of weights that both still have.

    Args:
        documents: Measurements of any runs, the newest last.
        weights: By run, the SHA-256 of its present weights.
    """
    found: dict[tuple[str, str], list[Found[DifferenceResult]]] = {}
    for document in reversed(documents):
        for result in document.results:
            if isinstance(result, DifferenceResult):
                names = (result.first, result.second)
                if all(name in weights and document.weights.get(name) == weights[name] for name in names):
                    found.setdefault(names, []).append(Found(result, document))
    return [max(several, key=lambda each: _whole(each.document)) for several in found.values()]


# What a more precise measurement has more of. Test images come first, because what they are drawn from is what is asked about.


def _likelihood(document: Evaluation) -> tuple[float, ...]:
    s, found = document.settings, [nll for run in document.runs.values() if (nll := run.of(NllResult))]
    exact = any(nll.divergence == "exact" for nll in found)
    images, replicates = _taken(found, document.images, s.nll_replicates)
    return (images, -_of_solver(s), exact, replicates * s.num_probes)


def _of_solver(s: Settings) -> float:
    """The tolerance at which rk45 errs about as much: a thousandth of the other solver's nats (docs/RESULTS.md)."""
    if s.nll_solver == "rk45":
        return max(s.rtol, s.atol)
    return 1e-3 if s.nll_nfe else 1e-3 * s.nll_tolerance


def _bound(document: Evaluation) -> tuple[float, ...]:
    s, found = document.settings, [nelbo for run in document.runs.values() if (nelbo := run.of(NelboResult))]
    images, replicates = _taken(found, document.images, s.nelbo_replicates)
    return (images, replicates * s.nelbo_draws)


def _taken(found: Sequence[LikelihoodResult], images: int, replicates: int) -> tuple[int, int]:
    """The fewest images and replicates of several results, each of which may have stopped before the most that was allowed."""
    took = [result.took[0] for result in found if result.took]
    return min([images, *(each.images for each in took)]), min([replicates, *(each.replicates for each in took)])


def _samples(document: Evaluation) -> tuple[float, ...]:
    return (document.settings.samples,)


def _canvases(document: Evaluation) -> tuple[float, ...]:
    return (document.settings.canvases,)


def _whole(document: Evaluation) -> tuple[float, ...]:
    return (*_likelihood(document), *_bound(document), *_samples(document), len(document.runs))


PRECISION: dict[type[Result], Callable[[Evaluation], tuple[float, ...]]] = {
    NllResult: _likelihood,
    NelboResult: _bound,
    DistancesResult: _samples,
    CollageResult: _canvases,
}


def _precision(kind: type[Result], document: Evaluation) -> tuple[float, ...]:
    return PRECISION.get(kind, _whole)(document)
