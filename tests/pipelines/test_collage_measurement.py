"""Canvases of a run are measured: by tasks, whatever else is measured; in documents, tables and the report; and refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ray_session import TINY, TINY_2D, main_of, one_line, train
from torch import Tensor, nn

from indm_core.collage import joints, jump_ratio, jumps, lag_correlations, pieces_at, real_jumps
from indm_core.draw import draw_canvases
from indm_core.flow import Glow, Identity
from indm_core.model import INDM
from indm_core.sampling import Sampling
from indm_core.sde import VP
from pipelines.config.codec import to_json
from pipelines.config.terminal.cli import override
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation import measure
from pipelines.evaluation.collages.canvases import canvas_of, check_canvases, remark_of, unseen_regions
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.collages.tasks import Canvases, places
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.measure import Keep
from pipelines.evaluation.measurement import Done, Task
from pipelines.evaluation.measurements.collages import CollageResult, Collages, lags_of
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.plan import Plan, check, subjects_of
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.estimates import ReferenceFeatures, frechet
from pipelines.evaluation.results.legend import legend
from pipelines.evaluation.results.table import table
from pipelines.evaluation.sampling import shown
from pipelines.evaluation.settings import Settings
from pipelines.reporting.collages import collages
from pipelines.reporting.page.parts import Table
from pipelines.reporting.tables import Run

LINEAR = (*TINY[:6], *TINY[10:])
FAST = Sampling(sampler="deis", steps=2, order=0)
LOOP = Layout(collage="loop", num_factors=4, overlap=4)
SETTINGS = Settings(
    images=4,
    nll_replicates=1,
    rtol=1e-1,
    atol=1e-1,
    nelbo_replicates=1,
    nelbo_draws=2,
    samples=20,
    sampling=FAST,
    layout=LOOP,
    canvases=24,
    canvas_sampling=FAST,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on digits, of six steps, without a flow."""
    out = tmp_path_factory.mktemp("runs")
    train("digits_linear_nll", *LINEAR, out=out)
    return out / "digits_linear_nll"


def planned(run: Path, settings: Settings = SETTINGS) -> Plan:
    return Plan(names=(run.name,), subjects=tuple(subjects_of([Weights(run=run)])), settings=settings, root=run.parent)


def bench_of(plan: Plan) -> Evaluator:
    bench = Evaluator([], plan.extractor.make, 1, "cpu")
    bench.models = {i: (subject.build(), subject.spec) for i, subject in enumerate(plan.subjects)}
    return bench


def here(plan: Plan, tasks: Sequence[Task], bench: Evaluator | None = None) -> Done:
    """What tasks give in this process, the last one first, as it comes back from the journal."""
    bench = bench or bench_of(plan)
    each = reversed(list(dict.fromkeys(tasks)))
    found = {task: bench.run(task, *(plan.rows(span).numpy() for span in task.needs())) for task in each}
    return {task: task.unpack(task.pack(outcome)) for task, outcome in found.items()}


@pytest.fixture
def local(monkeypatch) -> None:
    """Evaluations without Ray."""

    def carry_out(plan: Plan, tasks: Sequence[Task], keep: Keep, *where: Any) -> None:
        for task, outcome in here(plan, tasks).items():
            keep(task, outcome, 0.0)

    monkeypatch.setattr(measure, "carry_out", carry_out)
    monkeypatch.setattr(measure, "places", lambda actors, device: (1, "cpu"))


def test_the_figures_are_those_of_the_canvases(run):
    """Of the same seeds, drawn at once; two tasks of 20 and 4 canvases."""
    plan = planned(run)
    (measurement,) = Collages.asked(plan)
    bench = bench_of(plan)
    result = measurement.reduce(here(plan, measurement.tasks(), bench))
    model, spec = bench.model(0)
    canvas = canvas_of(model, LOOP)
    x = shown(draw_canvases(canvas, range(24), FAST).x, spec).values
    assert (result.canvases, result.shape, result.evaluations) == (24, (1, 8, 16), 3.0)
    data = ReferenceFeatures(bench.seen(plan.train)[0])
    for place, pieces in zip(result.places, pieces_at(x, canvas.graph), strict=True):
        found = frechet(bench.seen(pieces)[0], data)
        assert place.frechet.value == pytest.approx(found.value, rel=1e-4)
    kinds, real = joints(canvas.graph), real_jumps(plan.train.double(), 1)
    for name in ("seam", "inside", "closing"):
        kind = getattr(kinds, name)
        ratio = jump_ratio(jumps(x, canvas.graph, kind), real, kind)
        assert getattr(result, name).value == pytest.approx(ratio.value, rel=1e-6)
        assert getattr(result, name).se == pytest.approx(ratio.standard_error, rel=1e-6)
    assert [lag.lag for lag in result.lags] == [1, 2, 4, 6, 8, 12]
    exact = lag_correlations(x, [lag.lag for lag in result.lags]).values.tolist()
    assert [lag.value for lag in result.lags] == pytest.approx(exact, rel=1e-6)
    of_data = lag_correlations(plan.train, [1, 2, 4, 6]).values.tolist()
    assert [lag.of_data for lag in result.lags[:4]] == pytest.approx(of_data)
    assert all(lag.of_data != lag.of_data for lag in result.lags[4:])


def test_fd_plus_is_of_one_piece_of_each_canvas_wherever_it_is_drawn(run):
    """A canvas of one piece has one place, so that FD+ is its FD, and both are those of samples by the same seeds."""
    plan = planned(run, replace(SETTINGS, layout=Layout(collage="chain", num_factors=1, overlap=4)))
    (measurement,) = Collages.asked(plan)
    result = measurement.reduce(here(plan, measurement.tasks()))
    assert result.plus == result.places[0].frechet
    assert not result.unseen
    whole, part = (Canvases(model=0, seeds=s, layout=LOOP, sampling=FAST) for s in (range(6), range(4, 6)))
    found = here(planned(run), [whole, part])
    assert torch.allclose(found[whole].features[4:], found[part].features, atol=1e-5)
    assert torch.allclose(found[whole].jumps[4:], found[part].jumps)


def test_the_same_comes_out_alone_and_beside_likelihoods(run, local, capsys):
    beside = measure.evaluate([Weights(run=run)], SETTINGS, run.parent)
    alone = measure.evaluate([Weights(run=run)], replace(SETTINGS, samples=0, images=2), run.parent)
    results = [found for each in (beside, alone) if (found := each.runs[run.name].of(CollageResult))]
    assert repr(replace(results[0], seconds=0.0)) == repr(replace(results[1], seconds=0.0))
    assert alone.runs[run.name].of(DistancesResult) is None
    assert repr(Evaluation.read(run / "evaluation.json").runs[run.name].of(CollageResult)) in map(repr, results)
    with Image.open(run / "canvases.png") as picture:
        assert picture.size == (5 * (4 * 17 + 1), 5 * (2 * 9 + 1))
    said = table(beside) + legend(beside)
    for part in (
        "24 canvases of 1 x 8 x 16: loop of 4 pieces, overlap 4, join collage, by deis",
        "remark: the score was not trained on separators of 8 x 4",
        "FD+: ",
        "FD by place: factor 0: ",
        "closing: ",
        "correlation at lag 1: ",
    ):
        assert part in said, part
    section = collages([Run.read(Weights(run=run))])
    assert [len(part.rows) for part in section.parts if isinstance(part, Table)] == [1]
    metrics = results[0].metrics()
    assert {"collage/frechet", "collage/seam", "collage/seam_se", "collage/lag_8", "collage/diverged"} <= metrics.keys()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(collage="grid", rows=2, cols=2, overlap=4),
        Layout(collage="corners", rows=2, cols=2),
        Layout(collage="chain", num_factors=3, join="tiles"),
        Layout(collage="chain", num_factors=3, join="replacement"),
    ],
    ids=str,
)
def test_every_layout_and_join_is_measured(run, layout):
    plan = planned(run, replace(SETTINGS, layout=layout, canvases=4))
    (measurement,) = Collages.asked(plan)
    result = measurement.reduce(here(plan, measurement.tasks()))
    assert result.seam.value > 0
    assert result.inside.se > 0
    assert bool(result.unseen) == (layout.join == "collage")
    assert len(result.lines()) == 5 + bool(result.unseen)


def test_tiles_have_their_seams_where_tiles_meet(run):
    """Chains of three pieces that share half have joints at each half; their tiles meet at one in two of these."""
    plan = planned(run, replace(SETTINGS, layout=Layout(collage="chain", num_factors=3, join="tiles"), canvases=12))
    (measurement,) = Collages.asked(plan)
    bench = bench_of(plan)
    result = measurement.reduce(here(plan, measurement.tasks(), bench))
    model, spec = bench.model(0)
    x = shown(draw_canvases(canvas_of(model, plan.settings.layout), range(12), FAST).x, spec).values.double()
    border = (x[..., 8] - x[..., 7]).square().mean()
    assert result.seam.value == pytest.approx(float(border / real_jumps(plan.train.double(), 1).mean()), rel=1e-6)


class Halved(nn.Module):
    """A backbone of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.share * x


class OfPixels(Evaluator):
    """A bench with one model, whose features are the pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__([], lambda: raw(4), 1, "cpu")
        model = INDM(Identity(), Halved(), VP(), shape=shape).eval()
        self.models = {0: (model, DataSpec(name="", shape=shape, levels=0, low=-1.0, high=1.0, num_classes=0))}

    def seen(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.flatten(1), values.new_zeros(len(values), 0)


def test_a_random_piece_of_a_cube_is_one_of_its_loops():
    bench = OfPixels((1, 2, 8))
    task = Canvases(model=0, seeds=range(30), layout=Layout(collage="cube"), sampling=FAST)
    found = task.run(bench)
    same = (found.features.unsqueeze(1) == found.at).all(2)
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) > 0).all()
    assert found.jumps.isfinite().all()
    assert found.shown.shape == (8, 1, 2, 12)


def test_canvases_of_vectors_are_measured_and_lags_are_multiples_of_the_step():
    found = Canvases(
        model=0, seeds=range(3), layout=Layout(collage="chain", num_factors=3, overlap=2), sampling=FAST
    ).run(OfPixels((6,)))
    assert found.at.shape == (3, 3, 6)
    assert found.along.shape == (3, 14)
    assert torch.equal(found.along, found.shown.double())
    assert lags_of(16, 80, 8) == [8, 16, 24, 32, 64]


def test_separators_that_training_has_seen_are_no_remark(run):
    model = planned(run).subjects[0].build()
    for smallest, step, overlap, unseen in (
        ((), 1, 4, ((8, 4),)),
        ((8, 4), 1, 4, ()),
        ((8, 4), 1, 3, ((8, 3),)),
        ((8, 4), 2, 6, ()),
        ((8, 4), 4, 6, ((8, 6),)),
    ):
        model.smallest_window, model.window_step = smallest, step
        assert unseen_regions(model, Layout(collage="chain", overlap=overlap)) == unseen
    model.smallest_window = (4, 4)
    assert not unseen_regions(model, Layout(collage="grid", overlap=4))


def test_tiles_that_training_has_not_seen_are_remarked(run):
    """Three pieces of 8 that share 3 make 18: two tiles and one of 2; shifted tiles begin and end anywhere."""
    model = planned(run).subjects[0].build()
    model.smallest_window, model.window_step = (8, 3), 1
    tiles = Layout(collage="chain", num_factors=3, overlap=3, join="tiles")
    assert unseen_regions(model, tiles) == ((8, 2),)
    assert unseen_regions(model, replace(tiles, num_factors=2, overlap=0)) == ()  # 12: a tile and one of 4
    shifted = replace(tiles, join="shifted")
    assert unseen_regions(model, shifted) == ((8, 1), (8, 2))
    one_line(remark_of(tiles, ((8, 2),)), "not trained on tiles of 8 x 2;", "--smallest-window")
    assert "separators" not in remark_of(shifted, ((8, 1), (8, 2)))
    assert not unseen_regions(model, replace(tiles, join="naive"))


@pytest.mark.parametrize(("num", "expected"), [(1, [0]), (5, [0, 1, 2, 3, 4]), (17, list(range(0, 17, 2)))])
def test_places_are_evenly_spread(num, expected):
    assert places(num) == expected
    for many in range(9, 60):
        found = places(many)
        assert (len(found), found[0], found[-1]) == (9, 0, many - 1)
        assert max(abs(a + b - many + 1) for a, b in zip(found, found[::-1], strict=True)) <= 1


# Settings and refusals.


def test_settings_without_canvases_are_written_as_before_there_were_any():
    assert not to_json(Settings()).keys() & {"layout", "canvases", "canvas_sampling"}
    assert to_json(SETTINGS)["layout"]["num_factors"] == 4


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        ({"collage": "chain", "canvases": "2"}, "canvases=2"),
        ({"canvases": "100"}, "--collage chain"),
        ({"canvas_sampling.steps": "100"}, "--collage chain"),
        ({"num_factors": "4"}, "--collage chain"),
    ],
)
def test_settings_that_measure_no_canvas_are_refused(given, culprit):
    with pytest.raises(ValueError, match=culprit) as caught:
        override(Settings(), given)
    one_line(str(caught.value))


@pytest.mark.parametrize(
    ("layout", "parts"),
    [
        (Layout(collage="cube"), ["(c, s, 2 s)", "train on such"]),
        (Layout(collage="chain", overlap=8), ["overlap=8", "piece - 1 = 7"]),
        (Layout(collage="loop", num_factors=1), ["num_factors=1", "take num_factors="]),
        (Layout(collage="grid", join="tiles"), ["join=tiles", "take a chain"]),
    ],
    ids=str,
)
def test_layouts_that_do_not_fit_the_run_are_refused(run, layout, parts):
    with pytest.raises(ValueError, match=f"collage={layout.collage} of {run.name}: ") as caught:
        check([Weights(run=run)], replace(SETTINGS, layout=layout), run.parent)
    one_line(str(caught.value), *parts)


def test_a_flow_may_ask_for_sides_that_can_be_halved():
    """Glow of two levels takes multiples of four: eight pieces of 8 that share 4 make 36, such that share 3 make 43."""
    made = INDM(Glow((1, 8, 8), levels=2, steps=1, hidden=4, start="identity"), Halved(), VP(), shape=(1, 8, 8)).eval()
    spec = DataSpec(name="", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=0)
    check_canvases("one", made, spec, Layout(collage="chain", overlap=4), FAST)
    with pytest.raises(ValueError, match="43") as caught:
        check_canvases("one", made, spec, Layout(collage="chain", overlap=3), FAST)
    one_line(str(caught.value), "collage=chain of one", "another overlap")


def test_standardised_columns_have_no_canvas():
    made = INDM(Identity(), Halved(), VP(), shape=(6,)).eval()
    columns = {"mean": (0.0,) * 6, "std": (1.0,) * 6}
    spec = DataSpec(name="table", shape=(6,), levels=0, low=-1.0, high=1.0, num_classes=0, **columns)
    with pytest.raises(ValueError, match="table: its columns are standardised") as caught:
        check_canvases("one", made, spec, Layout(collage="chain"), FAST)
    one_line(str(caught.value), "--standardise false")


def test_runs_that_have_no_canvas_are_refused_before_a_session_is_started(tmp_path, capsys, monkeypatch):
    """Of a nonlinear diffusion of vectors, and of images whose flow has one size."""
    monkeypatch.setattr("pipelines.cluster.session.connect", lambda *_: pytest.fail("a session was started"))
    train("digits_vp_nll", *TINY, out=tmp_path)
    cases = [("digits_vp_nll", ["--collage", "chain"], "makes samples of one size, (1, 8, 8)")]
    few = ("--num-steps", "2,4", "--change-at", "3", "--drift.width", "8", "--score.width", "8")
    words = [word for word in TINY_2D[6:] if word not in ("--pretrain-steps", "3")]
    train("toy2d_spiral_diffflow", *few, *words, out=tmp_path)
    cases += [("toy2d_spiral_diffflow", ["--collage", "chain"], "take an INDM or a linear diffusion")]
    train("toy2d_linear", "--backbone.width", "16", *TINY_2D[6:], out=tmp_path)
    cases += [
        ("toy2d_linear", ["--collage", "grid"], "take chain or loop"),
        ("toy2d_linear", ["--collage", "chain"], "take a network of any size"),
    ]
    for name, words, part in cases:
        assert main_of("evaluate")([str(tmp_path / name), *words, "--out", str(tmp_path)]) == 2
        one_line(capsys.readouterr().err, part)
