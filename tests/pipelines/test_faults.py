"""Bad input: one line that names the culprit and the remedy, a status that is not zero, and nothing lost.

Data preparation's own faults are in test_prepare.py and the readers' tests, those of a Ray session in test_pipelines.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray_session import SCHEDULE, TINY, TINY_2D, later_wins, main_of, one_line, run_script, train
from safetensors.torch import load_file

from pipelines.runs.job import read_metrics
from pipelines.storage import checkpoint
from pipelines.storage.outputs import only_one


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    """The output directory of a complete run."""
    out = tmp_path_factory.mktemp("spiral")
    train("toy2d_spiral", *TINY_2D, out=out)
    return out


def contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}


FAULTS = {
    "unknown recipe": (["toy2d_spira"], ["unknown recipe 'toy2d_spira'", "did you mean toy2d_spiral"]),
    "unknown option": (["toy2d_spiral", "--batchsize", "3"], ["unknown option --batchsize", "--batch-size"]),
    "unknown launch option": (
        ["toy2d_spiral", "--worker", "3"],
        ["unknown option --worker", "did you mean", "workers"],
    ),
    "two recipes": (["toy2d_spiral", "toy2d_rings"], ["one recipe at a time", "toy2d_spiral toy2d_rings"]),
    "an option twice": (["toy2d_spiral", "--steps", "1", "--steps", "2"], ["--steps is given twice"]),
    "a bad value": (["toy2d_spiral", "--steps", "many"], ["--steps: 'many' does not fit", "whole number"]),
    "a bad launch value": (["toy2d_spiral", "--device", "2"], ["device='2'", "auto, cpu, cuda"]),
    "no data given": (["mnist_vp_nll"], ["mnist_vp_nll needs data", "--source PATH"]),
    "a missing data path": (["mnist_vp_nll", "--source", "/nowhere/mnist"], ["/nowhere/mnist", "no such file"]),
    "a batch that workers cannot share": (
        ["toy2d_spiral", *TINY_2D, "--workers", "3"],
        ["batch_size=16 is not divisible by workers=3", "change one of them"],
    ),
    "a batch that fewer workers cannot share": (
        ["toy2d_spiral", *TINY_2D, "--workers", "4", "--min-workers", "2"],
        ["batch_size=16 is not divisible by workers=3"],
    ),
    "a batch that micro-batches cannot share": (
        ["toy2d_spiral", *TINY_2D, "--accumulate", "3"],
        ["batch_size=16 is not divisible", "accumulate=3"],
    ),
    "a batch larger than the data": (
        ["toy2d_spiral", *TINY_2D, "--batch-size", "512"],
        ["batch_size=512 is larger than the 200 training rows"],
    ),
    "several local workers": (["toy2d_spiral", *TINY_2D, "--workers", "2"], ["--local is one process"]),
    "no GPU": (["toy2d_spiral", *TINY_2D, "--device", "cuda"], ["device=cuda", "no GPU", "--device cpu"]),
    "nothing to start from": (
        ["toy2d_spiral", *TINY_2D, "--name", "n", "--start-from", "/nowhere"],
        ["/nowhere: no run here", "there are toy2d_spiral"],
    ),
    "unknown baseline": (["toy2d_spiral", *TINY_2D, "--baseline", "digits"], ["unknown baseline 'digits'"]),
    "another recipe's run": (["toy2d_rings", *TINY_2D, "--name", "toy2d_spiral"], ["not toy2d_rings", "--name"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_training_is_refused_before_any_work(fault, spiral, capsys):
    words, parts = FAULTS[fault]
    if "GPU" in fault and torch.cuda.is_available():
        pytest.skip("there is one")
    before = contents(spiral)
    given = words if "twice" in fault or words[1:2] == ["toy2d_rings"] else later_wins(words)
    train(*given, out=spiral, status=2)
    shown = capsys.readouterr()
    one_line(shown.err, "error: ", *parts)
    assert before.items() <= contents(spiral).items()


def test_no_stack_trace_unless_asked(tmp_path, capsys):
    words = ["mnist_vp_nll", "--source", "/nowhere/mnist"]
    train(*words, "--traceback", out=tmp_path, status=2)
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    one_line(shown.splitlines()[-1], "error: ", "/nowhere/mnist")


def test_the_status_and_the_line_of_a_started_script(tmp_path):
    done = run_script("train", "toy2d_spira", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    one_line(done.stderr, "error: unknown recipe")


@pytest.mark.parametrize("below", ["x", "x/runs"])
def test_an_output_that_cannot_be_written(below, tmp_path, capsys):
    (tmp_path / "x").write_text("a file")
    train("toy2d_spiral", *TINY_2D, out=tmp_path / below, status=2)
    one_line(capsys.readouterr().err, "error: ", str(tmp_path / below), "cannot be written", "--out DIR")


def test_a_run_whose_directory_is_a_file(tmp_path, capsys):
    (tmp_path / "toy2d_spiral").write_text("a file")
    train("toy2d_spiral", *TINY_2D, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", str(tmp_path / "toy2d_spiral"), "is a file", "--name")


def test_a_checkpoint_of_another_architecture(tmp_path, capsys):
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    start = tmp_path / "toy2d_spiral" / "pretrained"
    wider = later_wins(["toy2d_spiral", *TINY_2D, "--backbone.width", "24", "--name", "wide"])
    train(*wider, "--start-from", str(start), out=tmp_path, status=2)
    said = capsys.readouterr().err
    one_line(said, "error: ", str(start), "another architecture", "score.", "shape")
    assert said.endswith("give the options that it was written with: --model.backbone.width 16\n")


def test_a_checkpoint_of_another_recipe(tmp_path, capsys):
    """A linear run's score network is a part of an INDM; a network for vectors is none of one for images."""
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    start = tmp_path / "toy2d_spiral" / "pretrained"
    train("digits_vp_nll", *TINY, "--start-from", str(start), out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", str(start), "another architecture", "options that it was written with")


@pytest.mark.parametrize("damaged", ["training.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(damaged, tmp_path, capsys):
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    run = tmp_path / "toy2d_spiral"
    whole = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    file = checkpoint.latest(run) / damaged
    file.write_bytes(file.read_bytes()[:20])
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    assert f"{file.parent}: damaged, going on from an earlier checkpoint" in capsys.readouterr().out
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_damaged_start(tmp_path, capsys):
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    start = tmp_path / "toy2d_spiral" / "pretrained"
    (start / "training.safetensors").write_bytes(b"short")
    train("toy2d_spiral", *TINY_2D, "--start-from", str(start), "--name", "b", out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", str(start), "no complete checkpoint", "remove it")


def test_two_commands_in_one_directory(tmp_path, capsys):
    with only_one(tmp_path / "toy2d_spiral"):
        train("toy2d_spiral", *TINY_2D, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", str(tmp_path / "toy2d_spiral"), "another command", "another --name")
    train("toy2d_spiral", *TINY_2D, out=tmp_path)


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    """A learning rate that blows the weights up: ten steps in a row, then it stops; what was good is kept."""
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    good = tmp_path / "toy2d_spiral" / "pretrained"
    words = later_wins(["toy2d_spiral", *TINY_2D, "--score.lr", "1e30", "--name", "hot", "--steps", "40"])
    train(*words, "--start-from", str(good), out=tmp_path, status=1)
    shown = capsys.readouterr()
    one_line(shown.err, "error: ", "not finite 10 steps in a row", "has diverged at step", "--score.lr (1e+30)")
    assert "no finite step" in shown.out
    assert "skipped" in shown.out
    assert read_metrics(tmp_path / "hot")[-1].skipped > 0
    assert not (tmp_path / "hot" / "model.safetensors").exists()
    for kept in checkpoint.checkpoints(tmp_path / "hot"):
        assert checkpoint.read(kept)[1]["skipped"] == 0


def test_a_corrupt_shard_met_during_the_run(tmp_path, capsys):
    words = [*TINY_2D[: -len(SCHEDULE)], "--steps", "30", "--pretrain-steps", "3", "--checkpoint-every", "5"]
    words = later_wins(["toy2d_spiral", *words, "--rows", "70000", "--batch-size", "4096"])
    train(*later_wins([*words, "--steps", "10"]), out=tmp_path)
    before = load_file(tmp_path / "toy2d_spiral" / "checkpoints" / "step-00000010" / "training.safetensors")
    (data,) = (path for path in (tmp_path / "data").iterdir())
    shard = data / "train-00002.parquet"
    text = bytearray(shard.read_bytes())
    text[len(text) // 2 : len(text) // 2 + 64] = bytes(64)
    shard.write_bytes(bytes(text))
    train(*words, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", str(shard), "prepare the data set again")
    after = load_file(tmp_path / "toy2d_spiral" / "checkpoints" / "step-00000010" / "training.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("main", [main_of("evaluate"), main_of("sample")], ids=["evaluate", "sample"])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere"], ["nowhere", "no run here"]),
        (["toy2d_spiral", "--samplez", "3"], ["unknown option --samplez", "did you mean"]),
        (["toy2d_spiral", "--seed", "1", "--seed", "2"], ["--seed is given twice"]),
        (["toy2d_spiral", "--sampler", "rk"], ["'rk' does not fit", "ode, em, pc"]),
        (["toy2d_spiral", "--steps", "0"], ["steps=0"]),
    ],
    ids=["no run", "unknown option", "twice", "a bad choice", "a bad value"],
)
def test_evaluation_and_sampling_refuse(main, words, parts, spiral, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(spiral))
    assert main(words) == 2
    one_line(capsys.readouterr().err, "error: ", *parts)


def test_a_run_without_weights_is_not_measured(tmp_path, monkeypatch, capsys):
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    (tmp_path / "toy2d_spiral" / "model.safetensors").unlink()
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    for main in (main_of("evaluate"), main_of("sample")):
        assert main(["toy2d_spiral"]) == 2
        one_line(capsys.readouterr().err, "error: ", "model.safetensors", "no trained weights yet")


def test_samples_into_a_place_that_cannot_be_written(spiral, tmp_path, capsys):
    (tmp_path / "x").write_text("a file")
    assert main_of("sample")([str(spiral / "toy2d_spiral"), "--out", str(tmp_path / "x" / "y")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(tmp_path / "x" / "y"), "cannot be written", "--out DIR")


def test_two_runs_of_one_name_are_not_measured_together(spiral, capsys):
    run = str(spiral / "toy2d_spiral")
    assert main_of("evaluate")([run, run, "--out", str(spiral)]) == 2
    one_line(capsys.readouterr().err, "error: ", "same name")


def test_runs_on_other_data_are_not_measured_together(spiral, tmp_path, capsys):
    train("toy2d_moons", *TINY_2D, out=spiral)
    runs = [str(spiral / name) for name in ("toy2d_spiral", "toy2d_moons")]
    assert main_of("evaluate")([*runs, "--out", str(spiral)]) == 2
    one_line(capsys.readouterr().err, "error: ", "toy2d_moons", "other data", "measure them apart")
