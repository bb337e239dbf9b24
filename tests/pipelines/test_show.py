"""The lists of runs, of checkpoints and of recipes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from ray_session import ROOT, TINY_2D, environment, later_wins, main_of, one_line, train

from pipelines.data.spec import DataSpec
from pipelines.recipes import RECIPES
from pipelines.recipes.overview import Overview
from pipelines.runs.job import read_metrics
from pipelines.runs.overview import checkpoints_of, runs_below
from pipelines.storage import checkpoint
from pipelines.storage.outputs import writing


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run, one that a kill left, one that is damaged and one that is none."""
    out = tmp_path_factory.mktemp("show")
    train(*later_wins(["toy2d_spiral", *TINY_2D, "--validate-every", "2", "--name", "done"]), out=out)
    for name in ("killed", "damaged"):
        shutil.copytree(out / "done", out / name)
    for file in ("model.safetensors", "model.json"):
        (out / "killed" / file).unlink()
    shutil.rmtree(out / "killed" / "checkpoints" / "step-00000006")
    (out / "damaged" / "config.json").write_text("{")
    (out / "none").mkdir()
    return out


def test_runs_have_their_state_and_their_last_figures(root):
    found = {run.name: run for run in runs_below(root)}
    assert {name: run.state for name, run in found.items()} == {
        "damaged": "damaged",
        "done": "finished",
        "killed": "stopped",
    }
    done, last = found["done"], read_metrics(root / "done")[-1]
    assert (done.step, done.steps, done.recipe, done.last) == (6, 6, "toy2d_spiral", last)
    assert done.held_out is not None
    assert done.held_out.held_out == last.held_out
    assert done.checkpoints == len(checkpoint.kept(root / "done"))
    files = [path for path in (root / "done").rglob("*") if path.is_file()]
    assert done.size == sum(path.stat().st_size for path in files)
    with writing(root / "killed"):
        assert {run.name: run.state for run in runs_below(root)}["killed"] == "training"


def test_checkpoints_have_their_names_and_figures(root):
    found = checkpoints_of(root / "done")
    kept = checkpoint.kept(root / "done")
    assert [c.name for c in found] == [f"done@{step}" for step in sorted(kept)]
    assert found[-1].remarks[:1] == ("last",)
    held_out = {r.step: r.held_out for r in read_metrics(root / "done")}
    measured = {step: held_out[step] for step in kept if held_out.get(step)}
    best = min(measured, key=lambda step: measured[step].nelbo)
    assert [c.name for c in found if "best" in c.remarks] == [f"done@{best}"]
    assert (found[-1].held_out, found[-1].se) == (held_out[6].nelbo, held_out[6].se)
    assert [c.remarks for c in found if "end of the pre-training" in c.remarks]


def test_the_command_prints_them(root, capsys):
    assert main_of("show")(["runs", "--out", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert "stopped" in shown
    assert main_of("show")(["done", "--out", str(root)]) == 0
    assert "done@6" in capsys.readouterr().out
    assert main_of("show")(["recipes", "digits_linear"]) == 0
    assert "0.40M" in capsys.readouterr().out
    for words, parts in ((["nothing"], ["nothing: no run here"]), (["a", "b"], ["one thing at a time"])):
        assert main_of("show")([*words, "--out", str(root)]) == 2
        one_line(capsys.readouterr().err, "error: ", *parts)
    assert main_of("show")(["recipes", "no_such"]) == 2
    one_line(capsys.readouterr().err, "no recipe has 'no_such'")


def test_runs_are_listed_without_torch(root):
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'ray', 'mlflow', 'pyarrow']))"
    main = "__import__('importlib').import_module('pipelines.show').main"
    code = f"{block}; sys.exit({main}(['runs', '--out', {str(root)!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout


@pytest.mark.parametrize("name", ["digits_linear_nll", "digits_diffflow", "toy2d_dinof"])
def test_a_recipe_has_the_size_of_its_model(name):
    overview, run = Overview.of(name, RECIPES[name]), RECIPES[name]()
    levels = 17 if name.startswith("digits") else 0
    model = run.model.build(DataSpec(name="", shape=overview.shape, levels=levels, low=-1.0, high=1.0, num_classes=0))
    assert overview.parameters == sum(p.numel() for p in model.parameters())
    assert overview.evaluations == model.evaluations()
    assert (overview.steps, overview.batch_size) == (run.train.steps, run.train.batch_size)
