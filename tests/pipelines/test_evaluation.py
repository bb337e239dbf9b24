"""Measurements without Ray: what they ask of actors, their results as documents of now and then, and one more of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, final

import pytest
import torch
from ray_session import TINY_2D, one_line, train
from torch import Tensor

from indm_core.metrics import Moments, frechet_distance, frechet_infinity
from indm_core.sampling import Sampling
from indm_core.training import step_seed
from pipelines.config.weights import Weights
from pipelines.evaluation import measure
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measure import Keep
from pipelines.evaluation.measurement import Bench, Done, Measurement, Result, Task
from pipelines.evaluation.measurements import MEASUREMENTS
from pipelines.evaluation.measurements.baselines import BaselinesResult
from pipelines.evaluation.measurements.distances import Compared, Distances, DistancesResult, KernelResult, ScoreResult
from pipelines.evaluation.measurements.likelihood import (
    DifferenceResult,
    Differences,
    Gap,
    GapResult,
    Likelihood,
    Nelbo,
    NelboResult,
    NllResult,
    PartnerNll,
    PartnerResult,
)
from pipelines.evaluation.plan import Plan, subjects_of
from pipelines.evaluation.results.document import Evaluation, Figures
from pipelines.evaluation.results.estimates import Estimate, FrechetResult, ReferenceFeatures, frechet, gap
from pipelines.evaluation.results.table import table
from pipelines.evaluation.sampling.comparison import Comparison, RowResult
from pipelines.evaluation.settings import Settings

SETTINGS = Settings(
    images=10,
    nll_replicates=2,
    rtol=1e-2,
    atol=1e-2,
    nelbo_replicates=2,
    nelbo_draws=2,
    samples=40,
    sampling=Sampling(rtol=1e-2, atol=1e-2),
    chunk=4,
    uncorrected=True,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs on the spiral."""
    out = tmp_path_factory.mktemp("runs")
    train("toy2d_spiral", *TINY_2D, out=out)
    train("toy2d_linear", "--backbone.width", "16", *TINY_2D[6:], out=out)
    return [out / name for name in ("toy2d_spiral", "toy2d_linear")]


@pytest.fixture
def plan(runs) -> Plan:
    names = tuple(run.name for run in runs)
    return Plan(names=names, subjects=tuple(subjects_of(runs)), settings=SETTINGS, root=runs[0].parent)


def here(plan: Plan, tasks: Sequence[Task]) -> Done:
    """What the tasks give, in this process, the last one first."""
    bench = Evaluator([], plan.extractor.make, 1, "cpu")
    bench.models = {i: (subject.build(), subject.spec) for i, subject in enumerate(plan.subjects)}
    each = reversed(list(dict.fromkeys(tasks)))
    return {task: bench.run(task, *(plan.rows(span).numpy() for span in task.needs())) for task in each}


def carried_out_here(plan: Plan, tasks: Sequence[Task], keep: Keep, *where: Any) -> None:
    for task, outcome in here(plan, tasks).items():
        keep(task, outcome, 0.0)


@pytest.fixture
def local(monkeypatch) -> None:
    """Evaluations without Ray."""
    monkeypatch.setattr(measure, "carry_out", carried_out_here)
    monkeypatch.setattr(measure, "places", lambda actors, device: (1, "cpu"))


# Estimates.


def test_an_estimate_s_errors_are_those_of_its_replicates_and_images():
    """v_ri = a_r + b_i: se is the spread of a over sqrt R, se_images that of b over sqrt n."""
    a, b = torch.tensor([1.0, 2.0, 6.0]).double(), torch.arange(5).double()
    found = Estimate.of(a[:, None] + b)
    assert found.mean == pytest.approx(5.0)
    assert found.se == pytest.approx(float(a.std()) / math.sqrt(3))
    assert found.se_images == pytest.approx(float(b.std()) / math.sqrt(5))
    one = Estimate.of(b.unsqueeze(0))
    assert math.isnan(one.se)
    assert one.error == one.se_images
    difference = gap(a[:, None] + b, b.unsqueeze(0).expand(2, -1))
    assert difference.mean == pytest.approx(3.0)
    assert difference.se == pytest.approx(found.se)


def test_a_frechet_distance_is_that_of_the_moments():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 60))
    reference = ReferenceFeatures(b)
    found = frechet(a, reference)
    m = Moments().update(a)
    exact = frechet_distance(m.mean, m.cov, reference.moments.mean, reference.moments.cov)
    assert found.value == pytest.approx(float(exact), rel=1e-12)
    assert found.n == 40
    assert found.se > 0
    limit = frechet_infinity(a, reference.moments.mean, reference.moments.cov)
    assert (found.at_infinity, found.at_infinity_se) == (limit.value, limit.standard_error)
    few = frechet(a[:7], reference)
    assert few.se > 0
    assert math.isnan(few.at_infinity)  # fewer than 1.1 d + 4
    for features, real, culprit in ((a[:2], b, "2 samples"), (a, b[:1], "1 rows of the reference")):
        with pytest.raises(ValueError, match=culprit) as caught:
            frechet(features, ReferenceFeatures(real))
        one_line(str(caught.value), "a Frechet distance with its error needs at least", "give more of them")


# Tasks.


def test_models_are_measured_on_the_same_draws(plan):
    first, second = Likelihood.asked(plan)
    for mine, theirs in zip(first.tasks(), second.tasks(), strict=True):
        assert (mine.seed, mine.images, mine.estimator) == (theirs.seed, theirs.images, theirs.estimator)
        assert mine != theirs
    seeds = [task.seed for task in first.parts[0].tasks()]
    assert seeds == [step_seed(0, r, c) for r in range(2) for c in (0, 4, 8)]
    assert [task.seed for task in first.parts[1].tasks()] == seeds  # before correction: the same images and noise


def test_equal_tasks_are_done_once(plan):
    """Gap and differences ask for nothing that NLL and NELBO do not; distances share the reference."""
    asked = {kind: {t for m in kind.asked(plan) for t in m.tasks()} for kind in MEASUREMENTS}
    assert asked[Gap] == asked[Differences] == asked[Likelihood] | asked[Nelbo]
    assert len(asked[Likelihood]) == 2 * 2 * 2 * 3  # models, with and without the residual, replicates, chunks
    assert not asked[PartnerNll]
    assert len(asked[Distances]) == 2 * 1 + 1  # 40 samples of each model, 200 rows of the reference


def test_figures_do_not_depend_on_the_order_of_the_tasks(plan):
    """And the gap is the difference of the means."""
    nll, nelbo, gaps = (kind.asked(plan)[1] for kind in (Likelihood, Nelbo, Gap))
    tasks = gaps.tasks()
    done, again = here(plan, tasks), here(plan, tasks[::-1])
    assert nll.values(done)[0].shape == (2, 10)
    assert nll.reduce(done) == nll.reduce(again)
    assert nelbo.reduce(done) == nelbo.reduce(again)
    for part in ("after", "before"):
        means = [getattr(measurement.reduce(done), part).mean for measurement in (gaps, nelbo, nll)]
        assert means[0] == pytest.approx(means[1] - means[2])


def test_few_dimensions_take_the_exact_divergence(plan):
    """Without a draw at t_min the NLL of a vector has no noise left; by probes it has, and the result says which it was."""
    for exact_dims, said in ((8, "exact"), (2, "exact"), (1, "probes")):
        (nll, _) = Likelihood.asked(replace(plan, settings=replace(SETTINGS, exact_dims=exact_dims)))
        assert nll.parts[0].tasks()[0].estimator.exact == (said == "exact")
        if exact_dims == 8:
            continue
        found = nll.reduce(here(plan, nll.tasks()))
        assert found.divergence == said
        assert (found.before.se < 1e-5) == (said == "exact")
        assert found.after.se > 1e-4


# One more measurement, as a file of its own would define it.


@final
@dataclass(frozen=True, kw_only=True)
class Squares(Task[Tensor]):
    """Of some seeds, times the time at which a model starts."""

    model: int
    seeds: range

    def run(self, bench: Bench) -> Tensor:
        model, _ = bench.model(self.model)
        return model.t_start * torch.tensor(self.seeds).double().square()


@final
@dataclass(frozen=True, kw_only=True)
class SquaresResult(Result):
    """Their mean."""

    mean_square: Estimate

    def lines(self) -> list[str]:
        return [f"mean of squares: {self.mean_square}"]

    def metrics(self) -> dict[str, float]:
        return self.mean_square.metrics("mean_square")


@final
class MeanSquare(Measurement[SquaresResult]):
    """The mean of squares."""

    def __init__(self, model: int) -> None:
        self.model = model

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(i) for i in range(len(plan.subjects))]

    def tasks(self) -> list[Squares]:
        return [Squares(model=self.model, seeds=range(a, a + 2)) for a in (0, 2)]

    def reduce(self, done: Done) -> SquaresResult:
        return SquaresResult(mean_square=Estimate.of(torch.cat([task.of(done) for task in self.tasks()]).unsqueeze(0)))


def test_a_new_measurement_needs_its_class_and_its_name_in_the_list(runs, local, monkeypatch):
    monkeypatch.setattr(measure, "MEASUREMENTS", (*MEASUREMENTS, MeanSquare))
    document = measure.evaluate([Weights(run=run) for run in runs], SETTINGS, runs[0].parent)
    for run in runs:
        read = Evaluation.read(run / "evaluation.json")
        assert repr(read) == repr(document)
        assert read.runs[run.name].of(SquaresResult).mean_square.mean == pytest.approx((0 + 1 + 4 + 9) / 4)
        assert (run / "samples.png").is_file()
    shown = table(document)
    assert shown.count("  mean of squares: +3.5000") == 2
    assert "Gaussian: NLL" in shown
    assert shown.count("paired per image on the same draws") == 1


def test_what_is_not_asked_for_is_not_measured(runs, local):
    settings = replace(SETTINGS, samples=0, baselines=False, uncorrected=False, nll_replicates=1)
    document = measure.evaluate([Weights(run=runs[0])], settings, runs[0].parent)
    (figures,) = document.runs.values()
    assert figures.of(DistancesResult) is None
    assert figures.of(PartnerResult) is None
    assert figures.of(NllResult).before is None
    assert document.results == ()
    shown = table(document)
    assert shown.splitlines()[0].endswith(" FD")
    assert "(of NLL and gap: over rows)" in shown
    assert "exact divergence, x1" in shown


# Documents.


def whole() -> Evaluation:
    """Every kind of result, some of it unknown."""
    known, unknown = Estimate(mean=1.5, se=0.25, se_images=0.5), Estimate(mean=-2.0)
    reference = Reference(data="digits", size=1438, features="inception-v3", key="ab" * 8)
    compared = Compared(
        frechet=FrechetResult(value=3.25, se=0.5, n=60, at_infinity=3.0, at_infinity_se=0.625),
        kernel=KernelResult(value=math.nan, se=math.nan, n=60),
        inception_score=ScoreResult(value=2.5, se=0.125),
    )
    sampling = Sampling(sampler="deis", nfe=10, method="iPNDM", grid="edm", power=5.0)
    distances = DistancesResult(distances=compared, reference=reference, sampling=sampling, evaluations=9.5, diverged=2)
    results = (NllResult(after=known, before=unknown), NelboResult(after=unknown), GapResult(after=known))
    pair = DifferenceResult(first="a", second="b", nll=NllResult(after=known), nelbo=NelboResult(after=unknown))
    figures = Figures(parameters=7, evaluations={"score": 1}, results=(*results, PartnerResult(nll=unknown), distances))
    return Evaluation(
        unit="bits/dim",
        data="digits",
        images=12,
        settings=SETTINGS,
        weights={"a": "0" * 64},
        runs={"a": figures},
        results=(pair,),
        seconds=1.25,
    )


def test_a_document_survives_its_file(tmp_path):
    whole().write(tmp_path / "evaluation.json")
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["version"] == 2
    assert repr(Evaluation.read(tmp_path / "evaluation.json")) == repr(whole())
    assert repr(Evaluation.from_json(whole().to_json())) == repr(whole())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["not JSON"]),
        ("[]", ["no measurement of runs", "reads version 2"]),
        ('{"version": 3}', ["no measurement of runs", "reads version 2"]),
        ('{"runs": {}}', ["no measurement of runs"]),
        ('{"version": 2, "type": "Evaluation"}', ["no measurement of runs"]),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(content, parts, tmp_path):
    file = tmp_path / "evaluation.json"
    file.write_text(content)
    for kind in (Evaluation, Comparison):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            kind.read(file)
        one_line(str(caught.value), str(file), *parts, "remove it, or measure again")


def test_a_result_that_is_not_known_is_named():
    document = whole().to_json()
    document["runs"]["a"]["results"][0]["type"] = "Wavelet"
    with pytest.raises(ValueError, match="Wavelet") as caught:
        Evaluation.from_json(document, "evaluation.json")
    one_line(str(caught.value), "evaluation.json", "remove it, or measure again")


EARLIER = {
    "unit": "bits/dim",
    "data": "digits",
    "features": "digits-cnn",
    "images": 24,
    "settings": {
        "images": 24,
        "rtol": 0.01,
        "samples": 60,
        "sampling": {"sampler": "ode", "rtol": 0.01, "steps": 1000},
    },
    "weights": {"a": "11", "b - c": "22"},
    "runs": {
        name: {
            "parameters": 9,
            "evaluations": {"score": 1},
            "nelbo": {"mean": 5.5, "se": 0.25, "se_images": 0.5},
            "nll": {"mean": 6.5, "se": None, "se_images": 0.5},
            "nll_before": {"mean": 6.0, "se": None, "se_images": 0.5},
            "nelbo_before": {"mean": 5.0, "se": 0.25, "se_images": 0.5},
            "partner": {"mean": 4.5, "se": 0.25, "se_images": 0.5},
            "gap": {"mean": -1.0, "se": None, "se_images": 0.5},
            "gap_before": {"mean": -1.25, "se": None, "se_images": 0.5},
            "frechet": {"mean": 3.5, "se": 0.5, "samples": 60},
            "kernel": {"mean": None, "se": None, "samples": 60},
            "reference_samples": 1438,
            "inception_score": {"mean": 2.5, "se": 0.125},
            "diverged": 3,
        }
        for name in ("a", "b - c")
    },
    "differences": {
        "a - b - c": {
            "nll": {"mean": 0.5, "se": 0.25, "se_images": 0.5},
            "nelbo": {"mean": 0.75, "se": 0.25, "se_images": 0.5},
        }
    },
    "baselines": {"Gaussian": {"mean": 1.5, "se_images": 0.25}},
    "seconds": 2.5,
}


def test_documents_from_before_there_were_versions_are_read():
    document = Evaluation.from_json(EARLIER)
    assert (document.unit, document.data, document.images, document.seconds) == ("bits/dim", "digits", 24, 2.5)
    assert document.settings == Settings(images=24, rtol=0.01, samples=60, sampling=Sampling(rtol=0.01))
    assert document.weights == EARLIER["weights"]
    figures = document.runs["a"]
    assert (figures.parameters, figures.evaluations) == (9, {"score": 1})
    nll, nelbo = figures.of(NllResult), figures.of(NelboResult)
    assert (nll.after.mean, nll.after.se_images, nll.before.mean) == (6.5, 0.5, 6.0)
    assert math.isnan(nll.after.se)
    assert nll.divergence == "probes"
    assert "1 Hutchinson probe, x" in table(document)
    assert nelbo == NelboResult(
        after=Estimate(mean=5.5, se=0.25, se_images=0.5), before=Estimate(mean=5.0, se=0.25, se_images=0.5)
    )
    assert (figures.of(GapResult).after.mean, figures.of(GapResult).before.mean) == (-1.0, -1.25)
    assert figures.of(PartnerResult).nll.mean == 4.5
    found = figures.of(DistancesResult)
    assert (found.distances.frechet.value, found.distances.frechet.se, found.distances.frechet.n) == (3.5, 0.5, 60)
    assert math.isnan(found.distances.kernel.value)
    assert found.distances.inception_score == ScoreResult(value=2.5, se=0.125)
    assert (found.diverged, found.sampling, found.weights) == (3, Sampling(rtol=0.01), "averaged")
    assert found.reference == Reference(data="digits", size=1438, features="digits-cnn")
    pair = document.of(DifferenceResult)
    assert (pair.first, pair.second, pair.nll.after.mean, pair.nelbo.after.mean) == ("a", "b - c", 0.5, 0.75)
    (law,) = document.of(BaselinesResult).laws
    assert (law.name, law.nll.mean, law.nll.se_images) == ("Gaussian", 1.5, 0.25)
    assert repr(Evaluation.from_json(document.to_json())) == repr(document)
    assert "3.500 +- 0.500 (n = 60) (3 diverged)" in table(document)


def test_tables_of_samplers_from_before_there_were_versions_are_read(tmp_path):
    row = {"row": "em:5", "evaluations": 6.0, "seconds": 1.5, "diverged": 1, "reference_samples": 1438}
    row |= {"frechet": {"mean": 3.5, "se": 0.5, "samples": 60}, "kernel": {"mean": 0.25, "se": 0.125, "samples": 60}}
    nothing = {"mean": None, "se": None, "samples": 60}
    lost = {"row": "pc:3:snr=0.1", "evaluations": None, "seconds": 1.5, "diverged": 60}
    lost |= {"frechet": nothing, "kernel": nothing}
    document = {"features": "digits-cnn", "num_samples": 60, "data": "digits", "key": "ab12 cpu", "weights": "77"}
    (tmp_path / "compare.json").write_text(json.dumps(document | {"runs": {"a": [row, lost]}}))
    read = Comparison.read(tmp_path / "compare.json")
    assert (read.num_samples, read.key, read.weights) == (60, "ab12 cpu", "77")
    assert read.reference == Reference(data="digits", size=1438, features="digits-cnn", key="ab12")
    first, second = read.runs["a"]
    assert (first.row, first.seconds, first.result.evaluations, first.result.diverged) == ("em:5", 1.5, 6.0, 1)
    f = first.result.distances.frechet
    assert (f.value, f.se, f.n) == (3.5, 0.5, 60)
    assert first.result.sampling == Sampling(sampler="em", steps=5)
    assert math.isnan(second.result.evaluations)
    assert second.result.sampling == Sampling(sampler="pc", steps=3, snr=0.1)
    read.write(tmp_path / "compare.json")
    assert repr(Comparison.read(tmp_path / "compare.json")) == repr(read)


def test_rows_of_an_earlier_table_stay_where_they_are_comparable(tmp_path):
    reference = Reference(data="digits", size=1438, features="digits-cnn", key="ab12")
    run = tmp_path / "a"
    run.mkdir()

    def of(*rows: str, num_samples: int = 60) -> Comparison:
        figures = Compared(frechet=FrechetResult.nothing(60), kernel=KernelResult(value=0.5, se=0.25, n=60))
        result = DistancesResult(distances=figures, reference=reference, sampling=Sampling())
        found = tuple(RowResult(row=row, seconds=1.0, result=result) for row in rows)
        return Comparison(num_samples=num_samples, key="k", reference=reference, weights="", runs={"a": found})

    def names(document: Comparison) -> list[str]:
        return [row.row for row in document.runs["a"]]

    assert names(of("em:5").with_earlier(run, "model")) == ["em:5"]  # there is none
    of("em:5", "ode").with_earlier(run, "model").write(run / "compare.json")
    assert names(of("em:9", "em:5").with_earlier(run, "model")) == ["ode", "em:9", "em:5"]
    assert names(of("em:9").with_earlier(run, "other weights")) == ["em:9"]
    assert names(of("em:9", num_samples=80).with_earlier(run, "model")) == ["em:9"]
