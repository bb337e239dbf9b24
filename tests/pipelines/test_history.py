"""How a run came about, as config.json keeps it: it survives JSON, what is not known is absent, nothing is decided by it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import TINY_2D, main_of, train

import pipelines
from indm_core.training import network_tensors
from pipelines.config import history
from pipelines.config.history import Command, DataRead, History
from pipelines.config.store import read_run, write_run
from pipelines.data.card import load_card

OLD = Path(__file__).parent / "old_runs"
COMMAND = Command(line="train.py it --out '/a b'", commit="c" * 40, changed=False, versions={"torch": "2.13.0"})
DATA = DataRead(name="rings", digest="0123456789abcdef", rows={"train": 160, "test": 40})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    train("toy2d_spiral", *TINY_2D, out=root)
    return root / "toy2d_spiral"


@pytest.mark.parametrize(
    "kept",
    [
        History(),
        History(commands=(Command(),), data=(DATA,)),
        History(commands=(COMMAND, replace(COMMAND, changed=True)), data=(DATA, replace(DATA, name="spiral"))),
    ],
)
def test_a_history_survives_json(kept, tmp_path):
    config, spec = read_run(OLD / "indm" / "config.json")
    write_run(tmp_path / "config.json", config, spec, kept)
    assert History.read(tmp_path / "config.json") == kept
    assert read_run(tmp_path / "config.json") == (config, spec)


def test_a_run_of_an_earlier_version_has_none(tmp_path):
    assert History.read(OLD / "indm" / "config.json") == History()
    assert History.read(tmp_path / "config.json") == History()
    (tmp_path / "config.json").write_text('{"history": {"commands": 3}}')
    with pytest.raises(ValueError, match=r"config.json: history.*restore it, or remove history from the file"):
        History.read(tmp_path / "config.json")


def test_a_run_says_what_trained_it_on_what(run):
    kept, (config, _) = History.read(run / "config.json"), read_run(run / "config.json")
    (command,), (data,) = kept.commands, kept.data
    assert command == Command.of_this_process()
    assert {"indm", "python", "torch"} <= command.versions.keys()
    (prepared,) = (run.parent / "data").glob("*/card.json")
    card = load_card(prepared)
    assert data == DataRead(name=card.name, digest=card.digest, rows={"train": card.split("train").count, **data.rows})
    assert config.recipe == "toy2d_spiral"


def test_a_command_that_goes_on_is_added_and_a_worker_that_starts_again_is_not(run):
    card = load_card(next((run.parent / "data").glob("*/card.json")))
    once = History().with_command(COMMAND, [card])
    assert once.with_command(COMMAND, [card]) == once
    other = replace(COMMAND, commit="d" * 40, changed=True)
    twice = once.with_command(other, [card])
    assert twice.commands == (COMMAND, other)
    assert twice.codes == ["c" * 40, f"{'d' * 40} and changes that were not committed"]
    assert twice.with_command(COMMAND, [card]).codes == twice.codes


def test_a_configuration_is_trained_again_to_the_same_weights_whatever_its_history(run, tmp_path):
    document = json.loads((run / "config.json").read_text())
    document["history"]["commands"][0]["line"] = "train.py of somebody else"
    (tmp_path / "config.json").write_text(json.dumps(document))
    words = ["--config", str(tmp_path / "config.json"), "--local", "--threads", "1", "--out", str(tmp_path)]
    assert main_of("train")(words) == 0
    mine, theirs = (network_tensors(pipelines.load(place)) for place in (run, tmp_path / "toy2d_spiral"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert History.read(tmp_path / "toy2d_spiral" / "config.json").commands == (Command.of_this_process(),)


def test_the_card_of_an_export_names_the_code_of_the_training(run, tmp_path):
    document = json.loads((run / "config.json").read_text())
    document["history"]["commands"] = [{"line": "train.py secret", "commit": "c" * 40, "changed": True}]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.json", "model.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "config.json").write_text(json.dumps(document))
    words = ["--sampler", "deis", "--nfe", "4", "--num-samples", "4"]
    assert main_of("export")([str(copy), "--to", str(tmp_path / "out"), *words]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| code of the training | commit {'c' * 40} and changes that were not committed |" in card
    exported = History.read(tmp_path / "out" / "config.json")
    assert exported == replace(History.read(copy / "config.json"), commands=(Command(commit="c" * 40, changed=True),))
    assert b"secret" not in (tmp_path / "out" / "config.json").read_bytes()


def git(place: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, "-C", str(place), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_clone(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is not the commit")
    monkeypatch.setattr(history, "CLONE", tmp_path)
    head = git(tmp_path, "rev-parse", "HEAD")
    assert history._commit() == (head, False)
    (tmp_path / "file").write_text("2")
    assert history._commit() == (head, True)
    copy = tmp_path / "installed"  # below somebody's repository
    copy.mkdir()
    monkeypatch.setattr(history, "CLONE", copy)
    assert history._commit() == ("", None)


@pytest.mark.parametrize("absent", ["git", "commits"])
def test_without_git_there_is_no_commit_and_no_error(absent, tmp_path, monkeypatch):
    git(tmp_path, "init")
    monkeypatch.setattr(history, "CLONE", tmp_path)
    if absent == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert history._commit() == ("", None)
    document = History(commands=(Command(line="x"),)).to_document()
    assert document == {"history": {"commands": [{"line": "x", "versions": {}}], "data": []}}
