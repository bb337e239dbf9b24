"""Recipes of files outside the repository, with classes of their own: trained, read again, and never run unasked."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_session import ROOT, SCHEDULE, environment, main_of, one_line, run_script, train

from indm_core.sde import VP, LinearSDE
from pipelines.config.codec import subclasses
from pipelines.config.flows import FlowConfig
from pipelines.config.modules import VARIABLE, defining, split_word, use
from pipelines.config.store import read_run
from pipelines.recipes import RECIPES, chosen, find
from pipelines.runs.job import read_metrics

MINE = '''
"""An SDE and a flow of its own, and recipes made of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from indm_core.flow import Flow
from indm_core.sde.isotropic import LinearBeta
from pipelines.config.flows import FlowConfig
from pipelines.recipes import RECIPES

if os.environ.get("MARK"):
    Path(os.environ["MARK"]).touch()


@dataclass(frozen=True, kw_only=True)
class Halved(LinearBeta):
    """Variance preserving with half the noise.

    Args:
        share: Of the noise.
    """

    share: float = 0.5

    def g2(self, t: Tensor) -> Tensor:
        return self.share * self.beta(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-self.share * torch.expm1(-self.B(t)))

    def prior_cov(self) -> Tensor:
        return self.share * super().prior_cov()


class Stretch(Flow):
    """x -> a x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.log_a = torch.nn.Parameter(torch.tensor(factor).log())

    def forward(self, x: Tensor, generator: object = None) -> tuple[Tensor, Tensor]:
        return x * self.log_a.exp(), self.log_a * x[0].numel() * torch.ones_like(x[:, 0])

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_a).exp()


@dataclass(frozen=True, kw_only=True)
class StretchConfig(FlowConfig):
    """A factor.

    Args:
        factor: a at the start.
    """

    factor: float = 1.0

    @property
    def starts_at_identity(self) -> bool:
        return self.factor == 1.0

    def build(self, shape: tuple[int, ...]) -> Flow:
        return Stretch(self.factor)


def mine():
    """An INDM with a factor for its flow, and half the noise."""
    base = RECIPES["toy2d_spiral"]()
    return replace(base, model=replace(base.model, sde=Halved(), flow=StretchConfig()))


def plain():
    base = RECIPES["toy2d_linear"]()
    return replace(base, train=replace(base.train, log_every=7))


def broken():
    return replace(RECIPES["toy2d_spiral"](), modle=None)


def nothing():
    return None


toy2d_spiral = lambda: RECIPES["toy2d_spiral"]()
number = 3
'''
OPTIONS = ("--backbone.width", "16", "--batch-size", "16", "--rows", "200", "--sample-every", "0", *SCHEDULE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the file, and of its trained run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "")
        train(f"{folder / 'mine.py'}:mine", *OPTIONS, "--share", "0.25", out=folder)
    return folder


@pytest.fixture(autouse=True)
def _trusting_nobody(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_run_is_named_after_its_function_and_names_its_file(place):
    file = place / "mine.py"
    document = json.loads((place / "mine" / "config.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert document["modules"] == [{"import": str(file), "file": str(file), "sha256": digest}]
    assert document["run"]["model"]["flow"]["type"] == "StretchConfig"
    run, _ = read_run(place / "mine" / "config.json")
    assert (run.recipe, run.model.sde.share) == ("mine", 0.25)
    assert read_metrics(place / "mine")[-1].step == 6
    find(f"{file}:mine")
    assert os.environ[VARIABLE] == str(file)
    assert find("mine")() == find(f"{file}:mine")()


def test_a_run_goes_on_and_takes_a_baseline_of_the_same_file(place, capsys):
    word = f"{place / 'mine.py'}:mine"
    train("--recipe", word, *OPTIONS, "--share", "0.25", "--baseline", f"{place / 'mine.py'}:plain", out=place)
    assert "mine: complete" in capsys.readouterr().out
    run, _ = read_run(place / "plain" / "config.json")
    assert run.model.backbone == read_run(place / "mine" / "config.json")[0].model.backbone
    assert "modules" not in json.loads((place / "plain" / "config.json").read_text())


READ = """
import os, pickle, sys
from pathlib import Path
from pipelines.config import load
from pipelines.config.store import read_run
run, file, mark = sys.argv[1:]
def said(action):
    try:
        return action()
    except ValueError as error:
        return str(error)
refusal = said(lambda: load(run))
assert isinstance(refusal, str) and "\\n" not in refusal, refusal
print(refusal)
assert not Path(mark).exists()
os.environ["INDM_MODULES"] = file + "x"
assert "no such Python file" in said(lambda: load(run)) and not Path(mark).exists()
os.environ["INDM_MODULES"] = ""
model = load(run, module=file)
assert Path(mark).exists()
assert type(model.flow).__name__ == "Stretch"
config, spec = read_run(Path(run) / "config.json")
Path(mark).with_suffix(".pickle").write_bytes(pickle.dumps(config))
"""
UNPICKLE = """
import pickle, sys
from pathlib import Path
try:
    print(type(pickle.loads(Path(sys.argv[1]).read_bytes()).model.flow).__name__)
except ValueError as error:
    print(error)
"""


def test_a_file_is_run_only_where_the_user_names_it(place, tmp_path):
    """In fresh processes. Reading a run alone runs nothing; `module` and INDM_MODULES do, and a worker unpickles by them."""
    file, mark = place / "mine.py", tmp_path / "mark"
    arguments = [str(place / "mine"), str(file), str(mark)]
    done = fresh(f"import sys; sys.argv[1:] = {arguments!r}\n{READ}", MARK=str(mark))
    assert done.returncode == 0, done.stderr
    one_line(done.stdout, "config.json", "'Halved'", str(file), f"--import {file} or {VARIABLE}={file}")
    unpickle = f"import sys; sys.argv[1:] = {[str(tmp_path / 'mark.pickle')]!r}\n{UNPICKLE}"
    assert fresh(unpickle, INDM_MODULES=str(file)).stdout == "StretchConfig\n"
    one_line(fresh(unpickle).stdout, "unknown class 'Halved'", f"{VARIABLE}={file}")


def test_a_command_that_reads_a_run_takes_the_file(place, tmp_path):
    words = (
        str(place / "mine"),
        "--num-samples",
        "4",
        "--rtol",
        "0.1",
        "--atol",
        "0.1",
        "--out",
        str(tmp_path / "out"),
    )
    done = run_script("sample", *words)
    assert done.returncode == 2
    one_line(done.stderr, "error: ", f"--import {place / 'mine.py'}")
    done = run_script("sample", *words, "--import", str(place / "mine.py"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "samples.npy").is_file()


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("{file}:min", ["{file}:min: ", "no function 'min'", "did you mean mine", "give {file}:FUNCTION"]),
        ("{file}:number", ["no function 'number'"]),
        ("{file}:toy2d_spiral", ["toy2d_spiral is a recipe of this project", "another name"]),
        ("{file}:nothing", ["{file}:nothing returns NoneType, not a RunConfig"]),
        ("{file}:broken", ["{file}:broken: TypeError", "'modle'", "correct the function"]),
        ("{folder}/absent.py:mine", ["absent.py: no such Python file", "give the path"]),
        ("{folder}:mine", ["unknown recipe", "path.py:function"]),
        ("{file}", ["{file}: which function?", "there are mine, plain, broken, nothing", "give {file}:FUNCTION"]),
        ("{folder}/wrong.py:mine", ["wrong.py: SyntaxError", "line 2", "correct the file"]),
        ("{folder}/taken.py:mine", ["taken.py: another configuration class is called VP", "rename"]),
        ("{folder}/past.py:mine", ["past.py: another configuration class is called NoFlow", "rename"]),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(word, parts, place, capsys):
    (place / "wrong.py").write_text("\ndef mine(:\n")
    head = "from dataclasses import dataclass\n"
    (place / "taken.py").write_text(
        f"{head}from indm_core.sde.isotropic import LinearBeta\n@dataclass(frozen=True, kw_only=True)\n"
        "class VP(LinearBeta):\n    pass\n"
    )
    (place / "past.py").write_text(
        f"{head}from pipelines.config.flows import FlowConfig\n@dataclass(frozen=True, kw_only=True)\n"
        "class NoFlow(FlowConfig):\n    pass\n"
    )
    names = {"file": place / "mine.py", "folder": place}
    assert main_of("train")([word.format(**names), "--local"]) == 2
    one_line(capsys.readouterr().err, "error: ", *(part.format(**names) for part in parts))
    gc.collect()
    assert subclasses(LinearSDE)["VP"] is VP
    assert "NoFlow" not in subclasses(FlowConfig)


def test_the_word_and_the_option_are_one():
    assert chosen(["a"], {"recipe": "a"}) == "a"
    assert chosen([], {"recipe": "a"}) == "a"
    assert chosen([], {}, "c") == "c"
    with pytest.raises(ValueError, match="one recipe at a time, got a b"):
        chosen(["a"], {"recipe": "b"})


def test_two_recipes_are_refused_in_one_line(capsys):
    assert main_of("train")(["toy2d_spiral", "--recipe", "toy2d_moons", "--local"]) == 2
    one_line(capsys.readouterr().err, "error: one recipe at a time, got toy2d_spiral toy2d_moons")


def test_the_help_shows_the_options_of_the_file_and_says_how_to_read_its_runs(place, capsys):
    assert main_of("train")([f"{place / 'mine.py'}:mine", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("--factor", "--share", "Of the noise.", "Stretch", "path.py:function", "--import MODULE"):
        assert part in shown, part
    assert main_of("report")(["--help"]) == 0
    assert "--import MODULE" in capsys.readouterr().out


def test_a_recipe_of_the_project_needs_no_file():
    assert not [name for name, recipe in RECIPES.items() if defining(recipe())]
    assert split_word("digits_vp_nll") == ("", "digits_vp_nll")
    assert split_word("a:b.py:c") == ("a:b.py", "c")


def test_a_file_is_imported_once(place):
    assert use(place / "mine.py") is use(Path(place / "." / "mine.py"))
