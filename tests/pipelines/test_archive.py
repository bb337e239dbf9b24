"""Measurements are kept by their settings: none takes the place of a more precise one, and the report says which it shows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray_session import TINY_2D, train

from indm_core.sampling import Sampling
from pipelines.config.store import digest
from pipelines.config.weights import Weights
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurements.distances import Compared, DistancesResult, KernelResult
from pipelines.evaluation.measurements.likelihood import DifferenceResult, GapResult, NelboResult, NllResult
from pipelines.evaluation.results import archive
from pipelines.evaluation.results.archive import best, best_figures, differences, key, measured_so, present, put
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.estimates import Estimate, FrechetResult
from pipelines.evaluation.sampling.comparison import FILE, Comparison, RowResult, tables
from pipelines.evaluation.settings import Settings
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.summary import report

FULL = Settings(images=0)
FOUR = Settings(images=4, nll_replicates=1, nelbo_replicates=1, samples=0)
REFERENCE = Reference(data="spiral", size=200, features="raw", key="0" * 16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        train("toy2d_spiral", *TINY_2D, "--name", name, "--train.seed", str(ord(name)), out=root)
    return [root / "a", root / "b"]


@pytest.fixture
def runs(trained: list[Path]) -> Iterator[list[Weights]]:
    yield [Weights(run=run) for run in trained]
    for run in trained:
        for file in (
            *run.glob("evaluation*.json"),
            *run.glob("evaluations/*"),
            *run.glob("compar*/*.json"),
            run / FILE,
        ):
            file.unlink(missing_ok=True)


def distances(n: int, value: float, sampling: Sampling = Sampling()) -> DistancesResult:
    frechet = FrechetResult(value=value, se=0.1, n=n, at_infinity=value, at_infinity_se=0.1)
    both = Compared(frechet=frechet, kernel=KernelResult(value=value, se=0.1, n=n))
    return DistancesResult(distances=both, reference=REFERENCE, sampling=sampling, evaluations=9.0)


def measured(runs: list[Weights], settings: Settings, value: float, images: int = 40) -> Evaluation:
    """All figures have one value."""
    estimate = Estimate(mean=value, se=0.1, se_images=0.2)
    results = (NllResult(after=estimate), NelboResult(after=estimate), GapResult(after=estimate))
    made = (distances(settings.samples, value, settings.sampling),) if settings.samples else ()
    first, *others = [run.name for run in runs]
    both = {"nll": NllResult(after=estimate), "nelbo": NelboResult(after=estimate)}
    return Evaluation(
        unit="nats/dim",
        data="spiral",
        images=settings.images or images,
        settings=settings,
        weights={run.name: digest(run) for run in runs},
        runs={run.name: Figures(parameters=1, evaluations={}, results=(*results, *made)) for run in runs},
        results=tuple(DifferenceResult(first=first, second=other, **both) for other in others),
        seconds=1.0,
    )


def kept(*documents: Evaluation, runs: list[Weights]) -> None:
    """Written one after the other."""
    for number, document in enumerate(documents):
        for run in (run for run in runs if run.name in document.runs):
            put(run, document)
            for file in (run / "evaluations").iterdir():
                if file.stem == key(document):
                    os.utime(file, ns=(number, number))


def shown(runs: list[Weights], out: Path) -> str:
    report(runs, ReportOptions(images=0, samples=0, out=str(out)))
    return (out / "report.md").read_text()


def test_a_smaller_measurement_does_not_take_the_place_of_a_full_one(runs, tmp_path):
    a, _ = runs
    full, four = measured([a], FULL, 1.0), measured([a], FOUR, 4.0)
    for order in ((full, four), (four, full)):
        kept(*order, runs=runs)
        assert repr(Evaluation.read(a / "evaluation.json")) == repr(full)
        assert {file.stem for file in (a / "evaluations").iterdir()} == {key(full), key(four)}
        text = shown([a], tmp_path)
        assert "1.0000 ± 0.1000; ± 0.2000 over rows; total 2.00 nats; 40 test rows x 8, rtol 1e-05 |" in text
        assert "1.0000 ± 0.1000; ± 0.2000 over rows; total 2.00 nats; 40 test rows x 8 x 64 draws |" in text
        assert "1.0000 ± 0.1000; n = 5,000" in text
        assert "4.0000" not in text


def test_of_each_figure_the_most_precise_is_taken(runs):
    a, _ = runs
    one, two = measured([a], replace(FULL, nll_replicates=16, samples=100), 1.0), measured([a], FULL, 2.0)
    three = measured([a], replace(FULL, nelbo_draws=128, rtol=1e-3, atol=1e-3, samples=0), 3.0)
    kept(one, two, three, runs=runs)
    documents = present(a)
    values = {kind: best("a", documents, kind).result.after.mean for kind in (NllResult, NelboResult)}
    assert values == {NllResult: 1.0, NelboResult: 3.0}
    assert best("a", documents, DistancesResult).result.distances.frechet.value == 2.0
    assert best("a", documents, DifferenceResult) is None
    assert [type(result) for result in best_figures("a", documents)] == [
        NllResult,
        NelboResult,
        GapResult,
        DistancesResult,
    ]


def test_of_equally_precise_ones_the_newest_is_taken_and_the_one_of_more_runs(runs):
    a, _ = runs
    first, second = measured([a], FULL, 1.0), measured([a], replace(FULL, seed=1), 2.0)
    kept(first, second, runs=runs)
    assert best("a", present(a), NllResult).result.after.mean == 2.0
    kept(measured(runs, FULL, 3.0), first, runs=runs)
    assert Evaluation.read(a / "evaluation.json").runs.keys() == {"a", "b"}


def test_the_same_settings_again_are_one_measurement(runs):
    a, _ = runs
    kept(measured([a], FULL, 1.0), measured([a], replace(FULL, actors=3), 2.0), runs=runs)
    assert [document.runs["a"].of(NllResult).after.mean for document in present(a)] == [2.0]
    assert Evaluation.read(a / "evaluation.json").runs["a"].of(NllResult).after.mean == 2.0


def test_differences_survive_a_measurement_of_one_run_alone(runs, tmp_path):
    a, b = runs
    brief = replace(FULL, images=8)
    kept(
        measured(runs, brief, 5.0),
        measured(runs, FULL, 1.0),
        measured([a], FULL, 2.0),
        measured([b], FULL, 3.0),
        runs=runs,
    )
    for shown_runs in (runs, [a], [b]):
        text = shown(shown_runs, tmp_path)
        assert "| a - b | 1.0000 ± 0.2000 | 1.0000 ± 0.2000 | 40 |" in text
        assert text.count("| a - b |") == 1
    weights = {"a": digest(a), "b": "0" * 64}
    assert differences(present(a), weights) == []
    assert len(differences(present(a), {run.name: digest(run) for run in runs})) == 1


def test_a_measurement_of_earlier_weights_is_not_shown(runs, tmp_path):
    _, b = runs
    together = measured(runs, FULL, 1.0)
    kept(replace(together, weights=together.weights | {"b": "0" * 64}), runs=runs)
    assert present(b) == []
    assert not (b / "evaluation.json").is_file()
    text = shown(runs, tmp_path)
    assert "| a - b |" not in text
    assert "not measured on these weights" in text


def test_files_of_earlier_versions_are_read_and_kept(runs):
    a, _ = runs
    brief, full = measured(runs, replace(FULL, images=8, samples=0), 8.0), measured(runs, replace(FULL, samples=0), 1.0)
    brief.write(a / "evaluation-brief.json")
    full.write(a / "evaluation.json")
    assert best("a", present(a), NllResult).result.after.mean == 1.0
    assert repr(measured_so(runs, brief.settings)) == repr(brief)
    assert measured_so(runs[:1], brief.settings) is None
    four = measured([a], FOUR, 4.0)
    put(a, four)
    assert {file.stem for file in (a / "evaluations").iterdir()} == {key(brief), key(full), key(four)}
    assert repr(Evaluation.read(a / "evaluation.json")) == repr(full)


def test_what_is_no_measurement_costs_no_measurement(runs):
    a, _ = runs
    (a / "evaluation.json").write_text("{")
    full = measured([a], FULL, 1.0)
    put(a, full)
    assert repr(Evaluation.read(a / "evaluation.json")) == repr(full)
    (a / "evaluations" / "other.json").write_text("{}")
    assert len(present(a)) == 1
    with pytest.raises(ValueError, match=r"other.json: no measurement of runs .* remove it, or measure again"):
        present(a, strict=True)


def test_settings_that_change_figures_are_told_apart(runs):
    a, _ = runs
    others = [replace(FULL, **change) for change in ({"seed": 1}, {"chunk": 8}, {"sampling": Sampling(rtol=1e-3)})]
    keys = {key(measured([a], settings, 1.0)) for settings in (FULL, *others)}
    assert len(keys) == 4
    assert key(measured([a], FULL, 1.0)) == key(measured([a], replace(FULL, actors=2), 7.0))
    assert key(measured([a], FULL, 1.0)) != key(measured(runs, FULL, 1.0))
    assert archive.BEST == "evaluation.json"


def table(run: Weights, num: int, *rows: str, features: str = "k", weights: str = "w") -> Comparison:
    found = tuple(RowResult(row=row, seconds=1.0, result=distances(num, 1.0)) for row in rows)
    comparison = Comparison(num_samples=num, key=features, reference=REFERENCE, weights="", runs={run.name: found})
    return comparison.with_earlier(run, weights)


def test_a_table_of_fewer_samples_does_not_take_the_place_of_one_of_more(runs):
    a, _ = runs
    table(a, 50, "em:5", "ode").write(a / FILE)  # by an earlier version
    table(a, 5000, "em:5").put(a)
    table(a, 50, "em:9").put(a)
    assert Comparison.read(a / FILE).num_samples == 5000
    few, many = sorted(tables(a, "w"), key=lambda found: found.num_samples)
    assert [row.row for row in few.runs["a"]] == ["em:5", "ode", "em:9"]
    assert [row.row for row in many.runs["a"]] == ["em:5"]
    table(a, 5000, "ode").put(a)
    assert [row.row for row in Comparison.read(a / FILE).runs["a"]] == ["em:5", "ode"]
    table(a, 60, "em:5", weights="others").put(a)
    assert json.loads((a / FILE).read_text())["num_samples"] == 60
    table(a, 60, "em:6", features="inception", weights="others").put(a)
    assert len(tables(a, "others")) == 2


def test_a_checkpoint_has_measurements_of_its_own(runs, tmp_path):
    a, _ = runs
    last = Weights.of(f"{a}@last")
    kept(measured([a], FULL, 1.0), runs=runs)
    put(last, measured([last], FOUR, 4.0))
    assert last / "evaluation.json" == a.run / "@6" / "evaluation.json"
    assert [document.runs.keys() for document in (*present(a), *present(last))] == [{"a"}, {"a@6"}]
    assert Evaluation.read(a / "evaluation.json").settings == FULL
    assert repr(measured_so([last], FOUR)) == repr(measured([last], FOUR, 4.0))
    together = measured([a, last], FULL, 2.0)
    put(a, together)
    assert "| a - a@6 | 2.0000 ± 0.2000 |" in shown([a], tmp_path)
    assert "4.0000 ± 0.1000" in shown([last], tmp_path)
    table(last, 50, "em:5").put(last)
    assert Comparison.read(last / FILE).num_samples == 50
    assert not (a / FILE).exists()
