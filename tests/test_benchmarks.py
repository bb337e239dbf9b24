"""`python -m benchmarks`: figures are found by their function, and what they say is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import Figure, figures, measure
from benchmarks.card import Size
from benchmarks.figure import AT_LEAST, AT_MOST, Bound, Pairs, in_turn
from benchmarks.gpu import main
from benchmarks.growth import slope
from indm_core.model import Objective
from indm_core.sde import VP
from pipelines.config.flows import ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.data.spec import DataSpec
from pipelines.recipes import find

ROOT = Path(__file__).parent.parent
OWN = '''
from benchmarks.figure import Absent, Pairs


def figure(quick):
    """Of a user's own."""
    yield Pairs((1.0, 2.0, 4.0), (3.0, 4.0, 4.0)).row("one", "another")
    yield Absent(what="two", reason="it is not there")
    {last}
'''


def test_a_figure_is_a_function_of_a_file_and_is_found_without_importing_it(tmp_path):
    (tmp_path / "my_own.py").write_text(OWN.format(last="raise ValueError('never imported')"))
    (tmp_path / "none.py").write_text("raise ValueError('never imported')")
    assert figures(tmp_path) == {"my-own": Figure("my-own", "Of a user's own.")}


def test_every_figure_of_the_folder_says_what_it_is():
    found = figures()
    assert {"training-step", "inverse", "sampler-overhead", "growth", "startup", "workers", "reading"} <= found.keys()
    assert all(len(figure.says) > 20 for figure in found.values())


def test_pairs_take_turns_and_the_ratio_is_the_median_of_theirs():
    order, clock = [], iter(range(100))
    pairs = in_turn(lambda: order.append("a"), lambda: order.append("b"), num_pairs=3, clock=lambda: float(next(clock)))
    assert "".join(order) == "ab" + "ba" + "ab" + "ba"  # the first pair does not count
    assert pairs == Pairs((1.0,) * 3, (1.0,) * 3)
    row = Pairs((1.0, 2.0, 4.0), (3.0, 4.0, 4.0)).row("one", "another", per=2.0)
    assert (row.ours, row.theirs, row.unit) == (1000.0, 2000.0, "ms")
    assert (row.ratio, row.low, row.high) == (2.0, 1.0, 3.0)
    cost = Pairs((1.0, 2.0, 4.0), (3.0, 4.0, 4.0)).row("one", "another", faster=False)
    assert (cost.ratio, cost.low, cost.high) == pytest.approx((1 / 2, 1 / 3, 1.0))


def test_a_bound_is_met_on_its_own_side():
    assert [Bound(AT_LEAST, 2.0).met(ratio) for ratio in (1.9, 2.0, 2.1)] == [False, True, True]
    assert [Bound(AT_MOST, 1.03).met(ratio) for ratio in (1.0, 1.03, 1.1)] == [True, True, False]


def test_the_slope_of_a_power_is_its_exponent():
    assert slope((1, 2, 4, 8), [3.0 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_rows_are_kept_as_they_are_measured_and_a_failure_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__path__", [str(tmp_path)])
    (tmp_path / "breaks.py").write_text(OWN.format(last="raise ValueError('in the middle')"))
    threads = torch.get_num_threads()
    try:
        assert measure([Figure("breaks", "")], quick=True, file=tmp_path / "rows.json") == 1
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [each["row"].get("ratio") for each in rows] == [2.0, None]
    said = capsys.readouterr()
    assert "not measured: it is not there" in said.out
    assert "failed: breaks" in said.out
    assert "in the middle" in said.err


def test_what_is_measured_on_a_gpu_is_the_recipe():
    size, recipe = Size(), find("cifar10_vp_nll")().model
    backbone = UNetConfig(nf=size.nf, ch_mult=size.ch_mult, num_res_blocks=size.num_res_blocks)
    assert recipe == INDMConfig(
        sde=VP(),
        backbone=backbone,
        flow=ResFlowConfig(blocks=size.blocks, width=size.width, constraint="infinity"),
        objective=Objective(pretrain_steps=500_000),
    )


@pytest.mark.slow
def test_the_model_that_is_measured_has_the_weights_of_the_recipe():
    spec = DataSpec(name="", shape=(3, 32, 32), levels=256, low=-1.0, high=1.0, num_classes=0)
    with torch.device("meta"):
        recipe = find("cifar10_vp_nll")().model.build(spec)
        measured = Size().model()
    assert str(measured) == str(recipe)
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (measured, recipe)]
    assert shapes[0] == shapes[1]


def test_without_a_gpu_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.jsonl")])
    assert main() == 2
    assert "no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_part_of_the_gpu_script_runs_at_a_tiny_size(tmp_path):
    file = tmp_path / "gpu.jsonl"
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--rehearse", "--out", str(file)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["part"] for row in rows} == {"machine", "roofline", "unet", "step", "sampling", "syncs", "compiled"}
    assert not [row for row in rows if row["what"] in ("failed", "left out", "out of memory")]
