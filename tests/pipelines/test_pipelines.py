"""Training, measuring and sampling on one Ray session: two workers, one of them killed on the way."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.artifacts import download_artifacts
from PIL import Image
from ray_session import TINY, TINY_2D, kill_when, later_wins, main_of, one_line, processes, train
from safetensors.torch import load_file
from sources import pixels, png

from indm_core.sampling import Sampling
from pipelines.config import load
from pipelines.config.store import read_run
from pipelines.config.terminal.cli import options, override
from pipelines.config.weights import Weights
from pipelines.data import ingest
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.spec import DataSpec
from pipelines.evaluation.measure import evaluate
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import DifferenceResult, GapResult, NelboResult, NllResult
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.table import table
from pipelines.evaluation.sampling import draw_by
from pipelines.evaluation.sampling.comparison import Comparison
from pipelines.evaluation.settings import Settings
from pipelines.recipes import RECIPES
from pipelines.reporting.options import ReportOptions
from pipelines.reporting.summary import report
from pipelines.runs.job import Job, read_metrics
from pipelines.runs.kept import Kept
from pipelines.storage import checkpoint
from pipelines.storage.files import sha256_of
from pipelines.storage.signals import Stop
from pipelines.training import stream
from pipelines.training.launch import Launch
from pipelines.training.local import train_local
from pipelines.training.stream import local_rows

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
MAIN = later_wins(
    [
        *("digits_vp_nll", *TINY, "--steps", "40", "--pretrain-steps", "15", "--log-every", "1"),
        *("--checkpoint-every", "10", "--batch-size", "64", "--sample-every", "20", "--validate-every", "0"),
    ]
)
SETTINGS = Settings(
    images=12,
    nll_replicates=2,
    rtol=1e-2,
    atol=1e-2,
    nelbo_replicates=3,
    nelbo_draws=4,
    samples=60,
    sampling=Sampling(rtol=1e-2, atol=1e-2),
    chunk=4,
    actors=2,
    uncorrected=True,
)
BRIEF = replace(SETTINGS, nll_replicates=1, uncorrected=False)
"""What the main job measures here."""


@pytest.fixture(scope="module")
def session():
    """A Ray session of this module, started as a command would start it."""
    import ray

    from pipelines.cluster.session import connect

    assert not ray.is_initialized()
    kept = dict(os.environ)
    os.environ |= {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("RAY_ADDRESS", None)
    assert "a Ray session on this machine" in connect(2, 1.0)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ |= kept


@pytest.fixture(scope="module")
def out(session, tmp_path_factory):
    """The main job with two workers, one of which was killed after its checkpoint at step 20."""
    root = tmp_path_factory.mktemp("runs")
    due = root / "digits_vp_nll" / "checkpoints" / "step-00000020" / "state.json"
    killer = kill_when(due.is_file, "ray::RayTrainWorker")
    words = [*MAIN, "--baseline", "digits_linear_nll", "--workers", "2", "--threads", "1", "--out", str(root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.training.brief.BRIEF_SETTINGS", BRIEF)
        assert main_of("train")(words) == 0
    assert not killer.is_alive()
    return root


def test_training_went_on_after_a_worker_was_killed(out):
    for name, first in (("digits_vp_nll", 1), ("digits_linear_nll", 16)):
        run = out / name
        assert [record.step for record in read_metrics(run)] == list(range(first, 41))
        assert read_metrics(run)[-1].skipped == 0
        assert {path.name for path in checkpoint.checkpoints(run)} <= {f"step-{n:08d}" for n in (10, 15, 20, 30, 40)}
        assert len(checkpoint.checkpoints(run)) <= 3
        assert checkpoint.latest(run).name == "step-00000040"
        load(run)
    assert checkpoint.read(out / "digits_vp_nll" / "pretrained")[1]["step"] == 15


def test_everything_that_was_promised_is_there(out):
    for name in ("digits_vp_nll", "digits_linear_nll"):
        files = {str(file.relative_to(out / name)) for file in (out / name).rglob("*") if file.is_file()}
        promised = {"config.json", "metrics.jsonl", "model.safetensors", "evaluation.json", "samples.png"}
        promised |= {"learning_curve.png", "samples/step-00000020.png", "samples/step-00000040.png", "mlflow.json"}
        assert promised <= files
        for picture in (file for file in promised if file.endswith(".png")):
            with Image.open(out / name / picture) as image:
                assert min(image.size) > 100


def test_two_workers_train_like_one(out, tmp_path):
    """Their noise differs (it belongs to a rank), the rows of a step do not: the mean bounds agree within 5 errors."""
    train(*MAIN, out=tmp_path)
    runs = [read_metrics(root / "digits_vp_nll") for root in (tmp_path, out)]
    one, two = (np.array([record.terms["nelbo"] for record in records]) for records in runs)
    difference = one - two
    assert abs(difference.mean()) < 5 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert np.abs(difference).max() > 0
    assert one[-1] < one[0] - 2
    assert two[-1] < two[0] - 2


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def test_mlflow_holds_the_run(out):
    for name in ("digits_vp_nll", "digits_linear_nll"):
        run_id = json.loads((out / name / "mlflow.json").read_text())["run_id"]
        run = client(out).get_run(run_id)
        config, _ = read_run(out / name / "config.json")
        assert run.info.status == "FINISHED"
        assert run.info.run_name == name
        assert run.data.params == {option.path: option.shown[:500] for option in options(config)}
        trained = ("nelbo", "denoising", "prior", "images_per_s", "data_wait", "skipped", "parameters")
        assert {f"train/{metric}" for metric in trained} <= run.data.metrics.keys()
        measured = ("nll", "nll_se", "nelbo", "nelbo_se", "gap", "gap_se", "frechet", "frechet_se")
        assert {f"test/{metric}" for metric in measured} <= run.data.metrics.keys()
        assert {metric.partition("/")[0] for metric in run.data.metrics} <= {"train", "validation", "test", "system"}
        steps = {metric.step for metric in client(out).get_metric_history(run_id, "train/nelbo")}
        assert steps == {record.step for record in read_metrics(out / name)}
        files = {file.path for file in client(out).list_artifacts(run_id)}
        assert {"learning_curve.png", "evaluation.json", "samples.png", "samples"} <= files
        kept = Kept.read(out / name).models
        assert max(kept) == config.train.steps
        assert {client(out).get_logged_model(model).source_run_id for model in kept.values()} == {run_id}
    first = json.loads((out / "digits_vp_nll" / "mlflow.json").read_text())["run_id"]
    assert {"system/cpu_utilization_percentage"} <= client(out).get_run(first).data.metrics.keys()
    second = json.loads((out / "digits_linear_nll" / "mlflow.json").read_text())["run_id"]
    ended, started = client(out).get_run(first).info.end_time, client(out).get_run(second).info.start_time
    assert ended is not None
    assert ended <= started  # it is trained after the first
    assert len(client(out).search_runs(["1"])) == 2  # a restarted worker goes on in the same run


def test_the_model_in_mlflow_is_the_run_s(out, tmp_path):
    kept = Kept.read(out / "digits_vp_nll").models
    address = client(out).get_logged_model(kept[max(kept)]).artifact_location
    copied = Path(download_artifacts(address, dst_path=str(tmp_path)))
    assert sorted(file.name for file in copied.iterdir()) == ["config.json", "model.json", "model.safetensors"]
    mine, theirs = (load_file(place / "model.safetensors") for place in (out / "digits_vp_nll", copied))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    load(copied)


def test_the_same_command_says_that_the_run_is_complete(out, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.training.brief.BRIEF_SETTINGS", BRIEF)
    words = [*MAIN, "--baseline", "digits_linear_nll", "--workers", "2", "--out", str(out)]
    before = (out / "digits_vp_nll" / "evaluation.json").read_bytes()
    assert main_of("train")(words) == 0
    shown = capsys.readouterr().out
    for name in ("digits_vp_nll", "digits_linear_nll"):
        assert f"{name}: complete, 40 steps" in shown
    assert "NELBO bits/dim" in shown
    assert (out / "digits_vp_nll" / "evaluation.json").read_bytes() == before


def test_more_workers_than_the_cluster_has(out, tmp_path, capsys):
    words = later_wins([*MAIN, "--batch-size", "64", "--workers", "16", "--out", str(tmp_path)])
    assert main_of("train")(words) == 2
    one_line(capsys.readouterr().err, "error: workers=16 need 16.5 CPUs", "the cluster has 4", "--workers 3")


@pytest.fixture(scope="module")
def measured(out):
    """The two runs measured together, an actor having been killed."""
    runs = [out / name for name in ("digits_vp_nll", "digits_linear_nll")]
    killer = kill_when(lambda: bool(processes("ray::Evaluator.", os.getpid())), "ray::Evaluator.")  # at work
    document = evaluate([Weights(run=run) for run in runs], SETTINGS, out)
    killer.join(timeout=1)
    assert not killer.is_alive()
    return document


LIKELIHOODS = (NllResult, NelboResult, GapResult)


def test_the_document_has_every_figure_with_its_standard_error(measured, out):
    assert (measured.unit, measured.data, measured.images) == ("bits/dim", "digits", 12)
    assert list(measured.runs) == ["digits_vp_nll", "digits_linear_nll"]
    for figures in measured.runs.values():
        for kind in LIKELIHOODS:
            for estimate in (figures.of(kind).after, figures.of(kind).before):
                assert np.isfinite(estimate.mean)
                assert estimate.se > 0
                assert estimate.se_images > 0
        found = figures.of(DistancesResult)
        for distance in (found.distances.frechet, found.distances.kernel):
            assert distance.se > 0
            assert distance.n == 60
        assert figures.parameters > 1000
    more, less = (figures.parameters for figures in measured.runs.values())
    assert more > less
    (pair,) = measured.results
    assert (pair.first, pair.second) == tuple(measured.runs)
    for kind, difference in ((NllResult, pair.nll.after), (NelboResult, pair.nelbo.after)):
        means = [figures.of(kind).after.mean for figures in measured.runs.values()]
        assert difference.mean == pytest.approx(means[0] - means[1])
        assert 0 < difference.se < 1
    for name in measured.runs:
        assert repr(Evaluation.read(out / name / "evaluation.json")) == repr(measured)  # a nan is not equal to itself
    shown = table(measured)
    assert shown.count("NLL before correction") == shown.count("NELBO without the residual") == 3
    assert all(f"{figures.of(NelboResult).after.mean:+.4f}" in shown for figures in measured.runs.values())


def test_a_distance_says_what_it_takes_to_have_it_again(measured):
    """Samples, sampler and evaluations, weights, and the reference with the hash of its features: stored and printed."""
    shown = table(measured)
    for figures in measured.runs.values():
        found = figures.of(DistancesResult)
        assert found.sampling == SETTINGS.sampling
        assert found.evaluations > 6
        reference = found.reference
        assert (reference.data, reference.split, reference.size) == ("digits", "train", 1438)
        assert (reference.features, len(reference.key)) == ("digits-cnn", 16)
        said = f"60 samples by ode:rtol=0.01,atol=0.01, {found.evaluations:.1f} evaluations of the score each, averaged weights"
        assert f"{said}; compared with {reference}" in shown
        assert str(reference) == f"1,438 rows of digits, split train, features digits-cnn ({reference.key})"
    assert len({figures.of(DistancesResult).reference for figures in measured.runs.values()}) == 1


@pytest.mark.slow
def test_a_killed_actor_changes_nothing_and_neither_do_the_others(measured, out, tmp_path):
    """One run alone, with one actor and other chunks of work: the same figures; equal models differ by nothing."""
    run = out / "digits_vp_nll"
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("config.json", "model.safetensors"):
        (twin / name).write_bytes((run / name).read_bytes())
    likelihoods = replace(SETTINGS, samples=0, actors=1)
    document = evaluate([Weights(run=twin), Weights(run=run)], likelihoods, out)
    for kind in LIKELIHOODS:
        mine, theirs = (of.runs[name].of(kind) for of, name in ((document, "twin"), (measured, "digits_vp_nll")))
        for part in ("after", "before"):
            assert asdict(getattr(mine, part)) == pytest.approx(asdict(getattr(theirs, part)), rel=1e-5)
        assert mine == document.runs["digits_vp_nll"].of(kind)
    pair = document.of(DifferenceResult)
    for difference in (pair.nll.after, pair.nelbo.after, pair.nll.before, pair.nelbo.before):
        assert asdict(difference) == {"mean": 0.0, "se": 0.0, "se_images": 0.0}


def grey(directory: Path) -> np.ndarray:
    files = sorted(directory.glob("sample-*.png"))
    return np.stack([np.asarray(Image.open(file), dtype=np.int64) for file in files])


def test_samples_are_the_same_for_any_batch_and_number_of_actors(out, tmp_path):
    run, pictures, grids = str(out / "digits_vp_nll"), [], []
    for actors, batch in (("0", "10"), ("0", "3"), ("1", "4"), ("2", "3")):
        place = tmp_path / f"{actors}-{batch}"
        words = ["--num-samples", "10", "--batch", batch, "--actors", actors, "--out", str(place)]
        assert main_of("sample")([run, *words]) == 0
        pictures.append(grey(place))
        grids.append(np.asarray(Image.open(place / "grid.png"), dtype=np.int64))
    assert pictures[0].shape == (10, 8, 8)
    assert np.abs(pictures[0][0] - pictures[0][1]).max() > 16  # another seed, another sample
    for other, grid in zip(pictures[1:], grids[1:], strict=True):
        assert np.abs(other - pictures[0]).max() <= 16  # one of the 17 levels, at a rounding border
        assert (other != pictures[0]).mean() < 0.01
        assert (np.abs(grid - grids[0]) > 16).mean() == 0


@pytest.mark.parametrize(
    "sampling", [Sampling(rtol=1e-5, atol=1e-5), Sampling(sampler="pc", steps=20)], ids=["ode", "pc"]
)
def test_samples_do_not_depend_on_their_neighbours(sampling, out):
    model = load(out / "digits_vp_nll")
    together = draw_by(model, range(6), sampling)
    apart = [draw_by(model, [seed], sampling) for seed in range(6)]
    torch.testing.assert_close(together.x, torch.cat([one.x for one in apart]), rtol=2e-6, atol=1e-4)  # wild samples
    evaluations = sum(one.evaluations for one in apart) / 6
    assert together.evaluations == pytest.approx(evaluations) == pytest.approx(41) or sampling.sampler == "ode"


def test_samples_from_data_are_near_them(out, tmp_path):
    """Sampling that starts from the latents of images and stops at once gives them back, noise and all."""
    words = [str(out / "digits_vp_nll"), "--num-samples", "6", "--start", "data", "--sampler", "em", "--steps", "1"]
    assert main_of("sample")([*words, "--out", str(tmp_path / "a")]) == 0
    assert main_of("sample")([*words, "--start-temperature", "0.5", "--out", str(tmp_path / "b")]) == 0
    assert grey(tmp_path / "a").shape == (6, 8, 8)
    assert (grey(tmp_path / "a") != grey(tmp_path / "b")).any()


@pytest.mark.slow
def test_compared_samplers_are_kept_and_gone_on_with(out, capsys):
    runs = [str(out / name) for name in ("digits_vp_nll", "digits_linear_nll")]
    words = [*runs, "--rows", "em:2 em:2:start=data ode:rtol=1e-2,atol=1e-2", "--actors", "2", "--out", str(out)]
    assert main_of("compare")([*words, "--num-samples", "60"]) == 0
    assert "pieces are there already" not in capsys.readouterr().out
    first = Comparison.read(out / "digits_vp_nll" / "compare.json")
    assert [row.row for row in first.runs["digits_vp_nll"]] == words[3].split()
    for rows in first.runs.values():
        assert [row.result.start for row in rows] == ["prior", "data", "prior"]
        assert rows[0].result.evaluations == 3  # two steps and the last denoising
        assert rows[0].result.distances.frechet.value != rows[1].result.distances.frechet.value
        for row in rows:
            assert all(d.se > 0 and d.n == 60 for d in (row.result.distances.frechet, row.result.distances.kernel))
    (lost, _) = (out / "digits_vp_nll" / "compare").glob("em-*/000000-000060.safetensors")
    lost.write_bytes(lost.read_bytes()[:100])  # as a kill leaves it
    assert main_of("compare")([*words, "--num-samples", "60"]) == 0
    assert "5 of 6 pieces are there already" in capsys.readouterr().out
    again = Comparison.read(out / "digits_vp_nll" / "compare.json")
    for name, rows in again.runs.items():
        for a, b in zip(rows, first.runs[name], strict=True):
            mine, theirs = (row.result.distances.frechet for row in (a, b))
            assert mine.value == pytest.approx(theirs.value, rel=1e-3)
    assert (out / "digits_linear_nll" / "compare.png").is_file()


def test_a_report_is_one_page_with_everything_in_it(measured, out, tmp_path):
    runs = [out / name for name in ("digits_vp_nll", "digits_linear_nll")]
    page = report([Weights(run=run) for run in runs], ReportOptions(images=4, out=str(tmp_path)))
    text = page.read_text()
    assert "src='data:image/png;base64," in text
    assert all(word not in text for word in ("http://", "https://", "<script", "src='/", "<link"))
    for run in runs:
        assert f"Configuration of {run.name}" in text
        assert f"{measured.runs[run.name].of(NelboResult).after.mean:.4f}" in text
    table = (tmp_path / "report.md").read_text()
    assert "Kim et al. 2022, Table 4" in table
    assert "Mean squared norms" in table
    for picture in ("smoothness.png", "cosine.png", "discretisation.png", "ladder-digits_vp_nll.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 100


def test_a_report_escapes_what_files_say(out, tmp_path):
    run = tmp_path / "<b>run"
    run.mkdir()
    text = (out / "digits_vp_nll" / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"name": "digits"', '"name": "<script>alert(1)</script>"'))
    page = report([Weights(run=run)], ReportOptions(images=0, out=str(tmp_path / "out"))).read_text()
    assert "<script" not in page
    assert "<b>" not in page


def order_job(root: Path, *words: str) -> Job:
    given = dict(zip(words[::2], words[1::2], strict=True))
    run = override(RECIPES["toy2d_spiral"](), {"rows": "200", "batch_size": "16", "train.steps": "30"} | given)
    data = ensure(run.data.source, root / "data", run.data.options)
    return Job(run=run, spec=DataSpec.of(load_card(data)), directory=root / "run", data=data)


def test_samplers_of_vectors_are_compared(session, tmp_path):
    """Their features are the samples themselves, and their picture is a cloud of points."""
    train_local([order_job(tmp_path)], Launch(), Stop(""))
    words = [str(tmp_path / "run"), "--rows", "em:2", "--num-samples", "60", "--actors", "1", "--out", str(tmp_path)]
    assert main_of("compare")(words) == 0
    (row,) = Comparison.read(tmp_path / "run" / "compare.json").runs["run"]
    assert row.result.distances.frechet.n == 60
    assert len(list((tmp_path / "run" / "compare").glob("em-*/samples.png"))) == 1


@pytest.mark.parametrize(("task_rows", "step"), [(16, 0), (250, 7), (32_768, 29), (250, 30)])
def test_the_stream_of_a_worker_is_the_order_of_the_run(task_rows, step, session, tmp_path, monkeypatch):
    from pipelines.training.on_ray.stream import ray_rows

    monkeypatch.setattr(stream, "TASK_ROWS", task_rows)
    job = order_job(tmp_path)
    expected = list(local_rows(job, step * 16))
    assert len(expected) == 30 - step
    got = list(ray_rows(job, step * 16, 0, 1))
    for mine, theirs in zip(got, expected, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in ("x", "label", "row"))
    ranks = [list(ray_rows(job, step * 16, rank, 2)) for rank in (0, 1)]
    for first, second, theirs in zip(*ranks, expected, strict=True):
        assert len(first["row"]) == len(second["row"]) == 8
        assert [*first["row"], *second["row"]] == [*theirs["row"]]


def test_many_small_tasks_make_the_same_batches(session, tmp_path, monkeypatch):
    """Row groups of eight rows, one a task, in data sets of eight tasks, for two workers."""
    from pipelines.cluster import ordered
    from pipelines.training.on_ray.stream import ray_rows

    monkeypatch.setattr(ingest, "group_rows", lambda row_bytes: 8)
    monkeypatch.setattr(stream, "TASK_ROWS", 1)
    monkeypatch.setattr(ordered, "SEGMENT", 8)
    job = order_job(tmp_path, "train.steps", "6")
    ranks = [list(ray_rows(job, 0, rank, 2)) for rank in range(2)]
    for *parts, whole in zip(*ranks, local_rows(job, 0), strict=True):
        assert [row for part in parts for row in part["row"]] == [*whole["row"]]


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_tasks_prepare_the_same_shards_as_this_process(session, tmp_path, capsys, monkeypatch, form):
    """Images of several kinds, one of them broken, in pieces of eight: every file to the byte, and the same refusal."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for reader in ("folder", "parquet"):
        monkeypatch.setattr(f"pipelines.data.readers.images.{reader}.piece_rows", lambda row_bytes: 8)
    encoded = [png(pixels(3 if row % 2 else 1, 6 + row % 3, 7, seed=row)) for row in range(100)]
    encoded[70] = encoded[70][:40]
    source = tmp_path / "images"
    for row, image in enumerate(encoded if form == "folder" else []):
        (source / f"class{row % 2}").mkdir(parents=True, exist_ok=True)
        (source / f"class{row % 2}" / f"{row:03d}.png").write_bytes(image)
    if form == "parquet":
        source.mkdir()
        cells = pa.array([{"bytes": image, "path": None} for image in encoded])
        labels = [row % 2 for row in range(100)]
        pq.write_table(pa.table({"image": cells, "label": labels}), source / "train.parquet", row_group_size=5)

    def prepared(out: str, *words: str) -> dict[str, str]:
        assert main_of("prepare")([str(source), "--size", "4", "--out", str(tmp_path / out), *words]) == 0
        return {file.name: sha256_of(file) for file in (tmp_path / out).iterdir()}

    here, there = prepared("here"), prepared("there", "--workers", "2")
    assert here == there
    assert here.keys() == {"card.json", "train-00000.parquet", "test-00000.parquet"}
    capsys.readouterr()
    refusals = []
    for words in ([], ["--workers", "2"]):
        assert (
            main_of("prepare")([str(source), "--out", str(tmp_path / "no"), "--max-skip", "0", "--size", "4", *words])
            == 2
        )
        refusals.append(capsys.readouterr().err.splitlines()[-1])
    assert refusals[0] == refusals[1]
    assert ("070.png" if form == "folder" else "train.parquet row 70") in refusals[0]


@pytest.mark.slow
def test_a_corrupt_shard_met_by_the_workers(session, tmp_path, capsys):
    """The first task of rows is whole, the second is not: what was trained until then is kept."""
    words = later_wins(["toy2d_spiral", *TINY_2D, "--rows", "140000", "--batch-size", "2048", "--steps", "64"])
    words = [*later_wins([*words, "--checkpoint-every", "4", "--log-every", "4"]), "--out", str(tmp_path)]
    train(*later_wins([*words[:-2], "--steps", "4"]), out=tmp_path)
    (data,) = (tmp_path / "data").iterdir()
    for shard in sorted(data.glob("train-*.parquet"))[4:]:
        text = bytearray(shard.read_bytes())
        text[len(text) // 2 : len(text) // 2 + 64] = bytes(64)
        shard.write_bytes(bytes(text))
    assert main_of("train")([*words, "--workers", "2", "--threads", "1", "--evaluate", "false"]) == 2
    error = capsys.readouterr().err
    one_line(error, "error: ", str(data), ".parquet: cannot read the shard", "prepare the data set again")
    assert len(error) < 400
    checkpoint.read(checkpoint.latest(tmp_path / "toy2d_spiral"))


@pytest.mark.slow
def test_a_fault_of_one_worker_ends_the_others(session, tmp_path, capsys):
    """Only rank 0 writes; the other one must not wait for it for ever."""
    run = tmp_path / "digits_vp_nll"
    run.mkdir()
    (run / "checkpoints").write_text("a file where the directory would be")
    words = [*MAIN, "--workers", "2", "--threads", "1", "--evaluate", "false", "--out", str(tmp_path)]
    assert main_of("train")(words) == 2
    one_line(capsys.readouterr().err, "error: training stopped", str(run / "checkpoints"), "the same command goes on")
    (run / "checkpoints").unlink()
    assert main_of("train")(words) == 0
    assert [record.step for record in read_metrics(run)] == list(range(1, 41))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_workers(session, tmp_path, capsys):
    words = later_wins([*MAIN, "--score.lr", "1e30", "--workers", "2", "--threads", "1", "--out", str(tmp_path)])
    assert main_of("train")(words) == 1
    one_line(
        capsys.readouterr().err, "error: ", "not finite 10 steps in a row", "has diverged at step", "--score.lr (1e+30)"
    )
    run = tmp_path / "digits_vp_nll"
    assert not (run / "model.safetensors").exists()
    assert all(checkpoint.read(kept)[1]["skipped"] == 0 for kept in checkpoint.checkpoints(run))
