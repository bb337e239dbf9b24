"""The command that samples densities: trained by the one loop, gone on with to the bit, refused in one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ray_session import main_of, one_line

from indm_core.pis import Estimate, ess, log_z, log_z_bound
from pipelines.config import load
from pipelines.config.pis import PISRun, from_document, read_pis_run, to_document
from pipelines.config.terminal.cli import override
from pipelines.evaluation import weighted
from pipelines.evaluation.weighted import Drawing, Figures, Spread, table
from pipelines.recipes.densities import DENSITIES, find_density
from pipelines.runs.job import Training, read_metrics
from pipelines.runs.pictures import save_weighted
from pipelines.runs.record import HeldOut, Record
from pipelines.storage import checkpoint
from pipelines.training import local

MINE = '''
import math

import torch

from indm_core.pis import Target


class Gauss(Target):
    """3 N(1, 1/4)."""

    dim, log_z, exact = 2, math.log(3), True

    def log_prob(self, x):
        return -2 * (x - 1).square().sum(1) - math.log(math.pi / 2) + self.log_z

    def sample(self, num, generator=None):
        return 1 + 0.5 * torch.randn(num, 2, generator=generator)


class Nan(Gauss):
    def log_prob(self, x):
        return super().log_prob(x) + torch.where(x[:, 0] > 1, math.nan, 0.0)


class Shape(Gauss):
    def log_prob(self, x):
        return super().log_prob(x)[:, None]


class Box(Gauss):
    """A black box."""

    def log_prob(self, x):
        return super().log_prob(x.detach())


class Reached(Gauss):
    """N(0, I), which uncontrolled paths of variance 1 reach: all weights are the same."""

    log_z, exact = math.log(2 * math.pi), False

    def log_prob(self, x):
        return -0.5 * x.square().sum(1)


class Needy(Gauss):
    def __init__(self, scale):
        super().__init__()


number = 3


def three():
    return 3
'''
TINY = ("--num-steps", "3", "--width", "8", "--depth", "1", "--batch-size", "16", "--steps", "6", "--log-every", "2")
TINY += ("--checkpoint-every", "2", "--validate-every", "3", "--sample-every", "3", "--num-samples", "20")


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(MINE)
    return file


def sample(*words: str, out: Path, status: int = 0) -> None:
    assert main_of("pis")([*words, "--local", "--threads", "1", "--out", str(out)]) == status


@pytest.fixture(scope="module")
def whole(mine, tmp_path_factory) -> Path:
    """An uninterrupted run of two repetitions."""
    out = tmp_path_factory.mktemp("whole")
    sample(f"{mine}:Gauss", *TINY, "--repetitions", "2", out=out)
    return out / "Gauss"


def test_a_run_leaves_what_it_promises(whole):
    records = read_metrics(whole)
    assert [record.step for record in records] == [0, 2, 3, 4, 6]
    assert {record.unit for record in records} == {"nats"}
    assert all({"cost", "control", "end"} == set(record.terms) for record in records[1:])
    for record in records:
        assert (record.held_out is None) == (record.step in (2, 4))
    names = {"validation/nelbo", "validation/nelbo_se", "validation/log_z", "validation/log_z_se", "validation/ess"}
    assert names < records[-1].metrics().keys()
    assert Record.from_json(records[-1].to_json()) == records[-1]
    there = {path.name for path in whole.iterdir()}
    assert {"samples.parquet", "samples.png", "log_z.json", "learning_curve.png", "model.safetensors"} < there
    assert [path.name for path in (whole / "samples").iterdir()] != []
    assert not list(whole.rglob("*.partial"))


def test_the_figures_are_those_of_the_samples(whole):
    samples = pq.read_table(whole / "samples.parquet")
    assert samples.num_rows == 40
    log_w = torch.tensor(samples["log_w"].to_numpy())
    halves = [log_w[torch.tensor(samples["repetition"].to_numpy()) == repetition] for repetition in (0, 1)]
    assert [len(half) for half in halves] == [20, 20]
    assert len(samples["x"][0]) == 2
    figures = json.loads((whole / "log_z.json").read_text())
    values = [log_z(half).value for half in halves]
    assert figures["log_z"]["mean"] == pytest.approx(sum(values) / 2)
    assert figures["log_z"]["bias"] == pytest.approx(sum(values) / 2 - math.log(3))
    assert figures["log_z"]["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert figures["bound"]["mean"] == pytest.approx(sum(log_z_bound(half).value for half in halves) / 2)
    assert figures["ess"] == pytest.approx(sum(map(ess, halves)) / 2)
    assert figures["evaluations"] == 40 * (3 + 1)  # a gradient at each of 3 steps, and the end
    x = torch.tensor(samples["x"].to_pylist())
    assert not torch.equal(x[:20], x[20:])


class Stop(Exception):
    """Ends a run where a test wants it to."""


@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_ended_anywhere_goes_on_to_the_same_end(step, whole, mine, tmp_path, monkeypatch):
    def publish(training: Training, record: Record) -> None:
        if record.step == step:
            raise Stop

    words = [f"{mine}:Gauss", *TINY, "--repetitions", "2"]
    monkeypatch.setattr(local, "show", publish)
    with pytest.raises(Stop):
        sample(*words, out=tmp_path)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path / "Gauss").name == "step-00000002"
    sample(*words, out=tmp_path)
    for file in ("model.safetensors", "samples.parquet"):
        assert (tmp_path / "Gauss" / file).read_bytes() == (whole / file).read_bytes()


def test_a_complete_run_prints_its_row_again(whole, mine, capsys):
    before = (whole / "samples.parquet").stat().st_mtime_ns
    sample(f"{mine}:Gauss", *TINY, "--repetitions", "2", out=whole.parent)
    said = capsys.readouterr().out
    assert "Gauss: complete, 6 steps" in said
    assert "errors against log Z = 1.0986" in said
    assert (whole / "samples.parquet").stat().st_mtime_ns == before


def test_a_drawing_that_ended_anywhere_is_drawn_again(whole, mine, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "Gauss")
    words = [f"{mine}:Gauss", *TINY, "--repetitions"]

    def stopped(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(weighted, "save_weighted", stopped)
    with pytest.raises(Stop):
        sample(*words, "1", out=tmp_path)
    monkeypatch.undo()
    assert (run / "samples.parquet").read_bytes() != (whole / "samples.parquet").read_bytes()
    sample(*words, "2", out=tmp_path)
    for file in ("samples.parquet", "samples.png"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:99] + b"\1" + b[100:], lambda b: b""])
def test_samples_that_are_not_those_of_the_figures_are_named_and_drawn_again(damage, whole, mine, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "Gauss")
    samples = run / "samples.parquet"
    samples.write_bytes(damage(samples.read_bytes()))
    assert samples.read_bytes() != (whole / "samples.parquet").read_bytes()
    sample(f"{mine}:Gauss", *TINY, "--repetitions", "2", out=tmp_path)
    assert f"{samples}: not the file that log_z.json is of" in capsys.readouterr().out
    assert samples.read_bytes() == (whole / "samples.parquet").read_bytes()


REFUSALS = {
    "nan": (["Nan"], ["Nan: log_prob is nan at x="]),
    "a wrong shape": (["Shape"], ["Shape: log_prob gave the shape (64, 1)", "it gives (64,)"]),
    "no gradient": (["Box"], ["Box: log_prob has no gradient", "--control nn --loss log-variance"]),
    "no gradient for kl": (["Box", "--control", "nn"], ["no gradient", "--loss log-variance"]),
    "no such name": (["Gaus"], ["the file has no function or class 'Gaus'", "Gauss"]),
    "no name": ([""], ["which function?"]),
    "a number": (["number"], ["no function or class 'number'"]),
    "no target": (["three"], ["three gives int, not a Target"]),
    "an argument": (["Needy"], ["TypeError", "scale", "correct the file"]),
    "no steps": (["Gauss", "--steps", "0"], ["steps=0 must be at least 1"]),
    "no steps of a path": (["Gauss", "--num-steps", "0"], ["num_steps=0"]),
    "no variance": (["Gauss", "--variance", "0"], ["variance=0"]),
    "one particle": (["Gauss", "--batch-size", "1"], ["batch_size=1", "two at least"]),
    "exploration": (["Gauss", "--exploration", "2"], ["exploration=2.0", "--loss log-variance"]),
    "one sample": (["Gauss", "--num-samples", "1"], ["num_samples=1"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_sampled_is_refused_before_any_work(case, mine, tmp_path, capsys):
    (name, *words), parts = REFUSALS[case]
    sample(f"{mine}:{name}" if name else str(mine), *words, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", *parts)
    assert not list(tmp_path.glob("*/config.json"))


@pytest.mark.parametrize(("word", "part"), [("/nowhere.py:f", "no such Python file"), ("funel", "funnel")])
def test_a_target_that_is_not_there_is_refused(word, part, tmp_path, capsys):
    sample(word, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", word.partition(":")[0], part)


def test_a_black_box_is_sampled_without_its_gradient(mine, tmp_path):
    sample(f"{mine}:Box", *TINY, "--control", "nn", "--loss", "log-variance", out=tmp_path)
    assert "log_variance" in read_metrics(tmp_path / "Box")[-1].terms
    assert json.loads((tmp_path / "Box" / "log_z.json").read_text())["evaluations"] == 20


def test_a_density_that_is_reached_exactly_has_its_row(mine, tmp_path, capsys):
    sample(f"{mine}:Reached", *TINY, out=tmp_path)
    assert "bound bias" in capsys.readouterr().out
    assert (tmp_path / "Reached" / "samples.png").is_file()
    assert (tmp_path / "Reached" / "samples" / "step-00000003.png").is_file()


@pytest.mark.parametrize("log_w", [0.0, -math.inf, math.inf, math.nan, 1e9])
@pytest.mark.parametrize("dim", [1, 2])
def test_any_log_weights_are_drawn(log_w, dim, tmp_path):
    weights = torch.tensor([log_w, log_w, 0.0]).double()
    for file, these in (("same.png", weights[:2]), ("one.png", weights)):
        save_weighted(torch.full((3, dim), log_w), these, None, tmp_path / file)
        assert (tmp_path / file).is_file()


def test_a_directory_of_another_run_is_refused(whole, mine, capsys):
    sample(f"{mine}:Gauss", *TINY, "--variance", "2", out=whole.parent, status=2)
    one_line(capsys.readouterr().err, "error: ", "variance=1.0, not 2.0", "--name")


@pytest.mark.parametrize("script", ["evaluate", "report", "sample"])
def test_commands_that_are_of_data_say_what_the_run_is(script, whole, capsys):
    assert main_of(script)([str(whole)]) == 2
    one_line(capsys.readouterr().err, "error: ", "a path integral sampler", "python pipelines/pis.py")


def test_the_run_is_listed(whole, capsys):
    assert main_of("show")(["runs", "--out", str(whole.parent)]) == 0
    assert "Gauss  finished  6/6" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a path integral sampler"):
        load(whole)


def test_the_file_of_a_target_is_never_run_because_a_run_names_it(whole, mine, monkeypatch):
    run = read_pis_run(whole / "config.json")
    assert json.loads((whole / "config.json").read_text())["modules"][0]["file"] == str(mine)
    monkeypatch.delenv("INDM_MODULES")
    with pytest.raises(ValueError, match="was not named by the command"):
        run.target.build()
    with pytest.raises(ValueError, match="was not named by the command"):
        read_pis_run(whole / "config.json")


@pytest.mark.parametrize("name", DENSITIES)
def test_a_recipe_survives_its_document(name):
    run = find_density(name)()
    assert run.recipe == name
    assert from_document(json.loads(json.dumps(to_document(run)))) == run
    rebuild, arguments = run.__reduce__()
    assert rebuild(*arguments) == run


def test_the_file_of_a_table_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text("a,label\n1.5,0\n2,1\n0.5,0\n")
    monkeypatch.chdir(tmp_path)
    target = override(find_density("logistic")(), {"target.file": "table.csv"}).target.settled()
    monkeypatch.chdir("/")
    assert target.build().dim == 2


def test_a_run_knows_its_table_again(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("a,label\n1.5,0\n2,1\n0.5,0\n")
    words = ("logistic", *TINY, "--target.file", str(tmp_path / "table.csv"))
    sample(*words, out=tmp_path)
    (tmp_path / "table.csv").write_text("a,label\n1.5,0\n2,1\n0.7,0\n")
    sample(*words, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", "target.sha256", "--name")
    with pytest.raises(ValueError, match="not sha256=0; leave"):
        override(find_density("logistic")(), {"target.file": words[-1], "sha256": "0"}).target.settled()


def test_the_volatility_is_given_or_follows_from_the_variance():
    run = find_density("nine_modes")()
    assert run.volatility**2 * run.t_max == pytest.approx(25)
    assert override(run, {"g": "2"}).volatility == 2
    assert override(run, {"t_max": "1"}).volatility == pytest.approx(5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, 5 + 4),  # a gradient at each step and the end; all but the first anew in the backward pass
        ({"gradient": "autograd"}, 5),
        ({"control": "nn"}, 1 + 1),
        ({"control": "nn", "gradient": "autograd"}, 1),
        ({"control": "nn", "loss": "log-variance"}, 1),
    ],
)
def test_evaluations_of_a_training_step_are_counted(words, expected):
    run = override(PISRun(recipe="funnel", target=find_density("funnel_unit")().target), {"num_steps": "4", **words})
    assert run.evaluations_per_path() == expected


def test_a_spread_is_over_repetitions_and_one_has_the_error_of_its_paths():
    spread = Spread.of([Estimate(v, 0.1) for v in (1.0, 2.0, 3.0)], truth=1.0)
    assert (spread.mean, spread.bias, spread.sd) == (2.0, 1.0, 1.0)
    assert spread.se == pytest.approx(1 / math.sqrt(3))
    assert spread.rms == pytest.approx(math.sqrt(5 / 3))
    alone = Spread.of([Estimate(1.5, 0.1)], truth=math.nan)
    assert (alone.mean, alone.se) == (1.5, 0.1)
    assert math.isnan(alone.bias)


@pytest.mark.parametrize("share", [0.005, 0.5, math.nan])
def test_few_paths_that_count_are_warned_of(share):
    spread = Spread.of([Estimate(0.5, 0.1)], truth=math.nan)
    drawing = Drawing(num_samples=2000, repetitions=1, seed=0)
    given = {"truth": math.nan, "seconds": 1.0, "log_z": spread, "bound": spread}
    figures = Figures(weights="", drawing=drawing, **given, ess=share, evaluations=1)
    lines = table("mog40", 2, "PIS-NN", figures, evaluations=1e6, steps=10, seconds=1.0)
    assert any("warning" in line and "--variance (T g^2)" in line for line in lines) == (share < 0.01)
    assert any("warning" in line and "log_prob" in line for line in lines) == math.isnan(share)
    assert not any("errors against" in line for line in lines)
    assert "bias" not in figures.metrics()


def test_figures_of_paths_survive_the_record():
    held_out = HeldOut(nelbo=1.0, se=0.1, others={"log_z": -0.5, "ess": 0.3})
    record = Record(step=3, unit="nats", terms={"cost": 1.0}, held_out=held_out)
    assert Record.from_json(record.to_json()) == record
    assert record.measured == "paths 1.000 +- 0.100 nats, log_z -0.500, ess 0.300"
