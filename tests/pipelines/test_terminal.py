"""What a command says on the terminal of where it works, how far it is, and what its figures mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ray_session import TINY_2D, later_wins, main_of, one_line, train

from pipelines.config.terminal.device import check_device, check_device_of_workers, device_of
from pipelines.evaluation.measurements.likelihood import NllResult
from pipelines.evaluation.results.legend import legend
from pipelines.evaluation.settings import EvaluateOptions, SampleOptions
from pipelines.training.launch import Launch


def test_a_local_training_says_what_is_trained_where_and_leaves_its_curve(tmp_path, capsys):
    train("toy2d_spiral", *later_wins(["", *TINY_2D, "--validate-every", "6"])[1:], "--device", "cpu", out=tmp_path)
    said, run = capsys.readouterr().out, tmp_path / "toy2d_spiral"
    begun = f"M parameters on cpu (1 thread); outputs in {run}"
    assert said.count(begun) == 1  # not again where a phase begins
    assert said.index(begun) < said.index("held out")
    assert "rows/s" in said
    assert f"report: python pipelines/report.py {run}" in said
    assert f"full measurement: python pipelines/evaluate.py {run}" in said
    assert (run / "learning_curve.png").stat().st_size > 1000


def test_tf32_is_of_cuda_devices(tmp_path, capsys):
    train("toy2d_spiral", *TINY_2D, "--device", "cpu", "--precision", "tf32", out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "precision=tf32", "cpu", "--precision fp32 or bf16")


@pytest.mark.parametrize("num", [0, 2])
def test_a_device_is_one_that_is_there(num, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
    assert device_of("auto").type == ("cuda" if num else "cpu")
    assert device_of("cpu").type == "cpu"
    absent = "cuda:2" if num else "cuda"
    with pytest.raises(ValueError, match=f"device={absent}") as caught:
        device_of(absent)
    remedy = "cuda:0 to cuda:1; give --device cuda:0" if num else "no GPU on this machine; give --device cpu"
    one_line(str(caught.value), remedy)
    if num:
        assert device_of("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "", "mps"])
def test_a_word_that_is_no_device_is_refused(word):
    with pytest.raises(ValueError, match="none of auto, cpu, cuda"):
        check_device(word)


def test_a_gpu_by_its_number_is_for_one_process():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1"):
        check_device_of_workers("cuda:1")
    assert Launch(local=True, device="cuda:1").device == SampleOptions(device="cuda:1").device
    for make in (
        lambda: Launch(device="cuda:1"),
        lambda: EvaluateOptions(device="cuda:1"),
        lambda: SampleOptions(device="cuda:1", actors=2),
    ):
        with pytest.raises(ValueError, match="--device cuda"):
            make()


def test_the_legend_has_a_line_for_each_kind_of_figure_that_is_there():
    some = SimpleNamespace(of=lambda kind: object() if kind is NllResult else None)
    lines = legend(SimpleNamespace(runs={"a": some})).splitlines()
    assert [line.split(":")[0] for line in lines] == ["NLL", "cost"]
    every = legend(SimpleNamespace(runs={"a": SimpleNamespace(of=lambda kind: object())})).splitlines()
    assert [line.split(":")[0] for line in every] == [
        *("NLL", "NELBO", "gap", "FD", "FD+", "seam", "correlation at lag l", "cost")
    ]


@pytest.mark.parametrize("script", ["evaluate", "sample", "compare", "report", "diagnose"])
def test_a_wrong_run_gets_the_nearest_names(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    for name in ("digits_vp_nll", "toy2d_spiral", *(f"other-{i}" for i in range(20))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert main_of(script)(["digits_vp_nl"]) == 2
    one_line(capsys.readouterr().err, "error: digits_vp_nl: no run here", str(tmp_path), "did you mean digits_vp_nll")
    assert main_of(script)(["zzz"]) == 2
    one_line(capsys.readouterr().err, "there are 22, which `python pipelines/show.py runs` lists")
