"""What trainings that differ by their seed alone have in common, and how far they lie apart.

The standard errors of an evaluation are of one training: they say how exactly its model was measured, not what another seed of
its weights, rows and noise would have given. With the figures m_1, ..., m_k of k trainings,

    mean = (m_1 + ... + m_k)/k,    spread^2 = sum_i (m_i - mean)^2/(k - 1).

The spread contains the error of the measurement, as far as the trainings do not share its draws. The error of the mean as a
statement about the recipe is spread/sqrt(k).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.config.run import RunConfig, same_but_seed
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import DifferenceResult, GapResult, NelboResult, NllResult
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.estimates import Estimate

__all__ = ["HEAD", "LEFT_OUT", "Spread", "seed_lines", "spreads"]

LEFT_OUT = (
    "one training of each model: the spread over training seeds is in none of the errors (train.py --seeds 3 shows it)"
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over trainings that differ by their seed.

    Args:
        model: The runs' common name, or that of a difference of two models.
        seeds: Of the trainings.
        figure: What was measured, with its unit.
        mean, spread: Over trainings; the spread is their standard deviation.
        error: The standard error of the measurement of one training (root mean square over them).
    """

    model: str
    seeds: tuple[int, ...]
    figure: str
    mean: float
    spread: float
    error: float

    @staticmethod
    def of(model: str, figure: str, found: Mapping[int, tuple[float, float]]) -> Spread:
        """From (value, standard error) by seed."""
        values, errors = zip(*found.values(), strict=True)
        spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
        error = math.sqrt(statistics.fmean(error**2 for error in errors))
        mean = statistics.fmean(values)
        return Spread(model=model, seeds=tuple(found), figure=figure, mean=mean, spread=spread, error=error)

    def cells(self) -> tuple[str, ...]:
        """Model, seeds, figure, mean with its error over trainings, spread, error of the measurement."""
        own = self.spread / math.sqrt(len(self.seeds))
        shown = f"{self.mean:+.4f} +- {own:.4f}", f"{self.spread:.4f}", f"{self.error:.4f}"
        return (self.model, ", ".join(map(str, self.seeds)), self.figure, *("n/a" if "nan" in s else s for s in shown))


HEAD = ("model", "seeds", "figure", "mean over trainings", "spread over trainings", "error of a measurement")


def spreads(document: Evaluation, configs: Mapping[str, RunConfig]) -> list[Spread]:
    """Every figure of the runs of an evaluation of which there are several seeds, and of their differences.

    Args:
        configs: By run, its configuration.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in document.runs:
        groups.setdefault(same_but_seed(configs[name]), {})[configs[name].train.seed] = name
    several = [names for names in groups.values() if len(names) > 1]
    found = []
    for names in several:
        figures = {seed: _figures(document.runs[name], document.unit) for seed, name in names.items()}
        found += _over(common_name(names), figures)
    pairs = {(p.first, p.second): p for p in document.results if isinstance(p, DifferenceResult)}
    for names in several:
        for others in several:
            of = {seed: pairs.get((names[seed], others[seed])) for seed in names.keys() & others.keys()}
            known = {seed: _differences(pair, document.unit) for seed, pair in sorted(of.items()) if pair}
            if len(known) > 1:
                found += _over(f"{common_name(names)} - {common_name(others)}", known)
    return found


def common_name(names: Mapping[int, str]) -> str:
    """The name that runs have without their seed."""
    return next("".join(name.rsplit(f"-seed{seed}", 1)) for seed, name in names.items())


def _over(model: str, figures: Mapping[int, Mapping[str, tuple[float, float]]]) -> list[Spread]:
    first = next(iter(figures.values()))
    shared = [figure for figure in first if all(figure in each for each in figures.values())]
    return [Spread.of(model, name, {seed: each[name] for seed, each in figures.items()}) for name in shared]


def _figures(figures: Figures, unit: str) -> dict[str, tuple[float, float]]:
    found = {}
    for label, kind in (("NLL", NllResult), ("NELBO", NelboResult), ("gap", GapResult)):
        if result := figures.of(kind):
            found[f"{label} {unit}"] = (result.after.mean, result.after.error)
    if result := figures.of(DistancesResult):
        frechet = result.distances.frechet
        found[f"FD({result.reference.features})"] = (frechet.value, frechet.se)
    return found


def _differences(pair: DifferenceResult, unit: str) -> dict[str, tuple[float, float]]:
    both: Sequence[tuple[str, Estimate]] = (("NLL", pair.nll.after), ("NELBO", pair.nelbo.after))
    return {f"{label} {unit}": (each.mean, each.se_images) for label, each in both}


def seed_lines(document: Evaluation, configs: Mapping[str, RunConfig]) -> str:
    """The table over trainings as lines of text; '' where no two runs differ by their seed alone."""
    rows = [spread.cells() for spread in spreads(document, configs)]
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (HEAD, *rows)]
    said = "spread: standard deviation over trainings; mean +- spread/sqrt(trainings); error: of measuring one training"
    return "\n".join(["", *("  ".join(row).rstrip() for row in padded), said, ""])
