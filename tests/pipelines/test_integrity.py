"""A run is one thing, and every bit of it is what was written: damage is found and recovered from, changes are refused.

The runs are of six steps, with a checkpoint after steps 2, 3 (the end of the pre-training), 4 and 6.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray_session import TINY_2D, later_wins, main_of, one_line, train
from safetensors.torch import load_file

from pipelines.config import load, provenance
from pipelines.config.store import read_weights_state
from pipelines.data.card import load_card
from pipelines.evaluation.features.classifier import SmallClassifier, cached_classifier
from pipelines.storage import checkpoint
from pipelines.storage.manifest import DamagedError, read_manifest, write_manifest

OLD = Path(__file__).parent / "old_runs"
WORDS = ("toy2d_spiral", *TINY_2D, "--name", "r")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(*WORDS, out=out)
    return out


@pytest.fixture
def out(trained, tmp_path) -> Path:
    """A copy of the output directory of a finished run."""
    return shutil.copytree(trained, tmp_path / "out")


@pytest.fixture(autouse=True)
def _fresh_sayings() -> Iterator[None]:
    """What is said once in a process is said once in a test."""
    provenance.say_unverified.cache_clear()
    return


def flip(file: Path, at: float = 0.5) -> None:
    """Turns one bit of a file."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same(run: Path, other: Path) -> None:
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    load(run)


def unfinish(run: Path) -> None:
    """The run as a kill before its last files leaves it."""
    (run / "model.safetensors").unlink()
    (run / "model.json").unlink()


def test_every_bit_of_a_manifest_counts(tmp_path):
    """A bit of the document that is turned alone is found, wherever it is."""
    file = tmp_path / "state.json"
    (tmp_path / "data").write_bytes(b"rows")
    write_manifest(file, {"step": 3, "nelbo": float("inf")}, {"data": "9" * 64})
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 5):
        turned = bytearray(content)
        turned[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(turned))
        with pytest.raises(DamagedError, match=r"state\.json"):
            read_manifest(file)
    file.write_bytes(content)
    assert read_manifest(file).content == {"step": 3, "nelbo": float("inf")}
    with pytest.raises(DamagedError, match=r"data has SHA-256 .* where 999"):
        read_manifest(file).verify()


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"schema": 1}', '{"files": 3, "sha256": {}}', "[" * 100_000])
def test_what_is_no_manifest_is_damaged(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(DamagedError, match=r"state\.json"):
        read_manifest(tmp_path / "state.json")


def test_a_newer_schema_is_neither_read_nor_passed_over(out, monkeypatch, capsys):
    run = out / "r"
    unfinish(run)
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    state = checkpoint.read_state(run / "checkpoints" / "step-00000006")
    monkeypatch.setattr("pipelines.storage.manifest.SCHEMA", 2)
    write_manifest(state.file, state.content, state.files)
    monkeypatch.undo()
    train(*WORDS, out=out, status=2)
    one_line(capsys.readouterr().err, "error: ", "state.json: schema 2, this code reads 1", "newer version")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["training.safetensors", "state.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, name, trained, out, capsys):
    run = out / "r"
    unfinish(run)
    damage(checkpoint.checkpoints(run)[-1] / name)
    train(*WORDS, out=out)
    shown = capsys.readouterr().out
    if (damage, name) != (Path.unlink, "state.json"):  # without it, there is no checkpoint at all
        assert "step-00000006: damaged, going on from an earlier checkpoint, step-00000004" in shown
    assert " 5/6" in shown
    assert " 4/6" not in shown
    assert_same(run, trained / "r")


def test_a_checkpoint_in_the_directory_of_another_step_is_damaged(trained, out, capsys):
    run = out / "r"
    unfinish(run)
    last, before = (run / "checkpoints" / f"step-0000000{step}" for step in (6, 4))
    shutil.rmtree(last)
    shutil.copytree(before, last)
    train(*WORDS, out=out)
    assert f"{last}: damaged, going on from an earlier checkpoint, step-00000004" in capsys.readouterr().out
    assert_same(run, trained / "r")


def test_where_none_is_whole_the_run_begins_anew_and_says_so(trained, out, capsys):
    run = out / "r"
    unfinish(run)
    for place in [*checkpoint.checkpoints(run), run / "pretrained"]:
        flip(place / "training.safetensors")
    train(*WORDS, out=out)
    shown = capsys.readouterr().out
    assert "no earlier checkpoint is whole: the run begins anew" in shown
    assert "going on from" not in shown
    assert " 1/6" in shown
    assert_same(run, trained / "r")


def test_the_end_of_the_pre_training_is_a_checkpoint_to_fall_back_to(trained, out, capsys):
    run = out / "r"
    unfinish(run)
    for place in checkpoint.checkpoints(run):
        flip(place / "training.safetensors")
    train(*WORDS, out=out)
    shown = capsys.readouterr().out
    assert "going on from an earlier checkpoint, pretrained" in shown
    assert " 4/6" in shown
    assert " 3/6" not in shown
    assert_same(run, trained / "r")


def test_the_last_two_checkpoints_are_kept_whatever_their_figures(tmp_path):
    train(*later_wins([*WORDS, "--checkpoint-every", "1", "--keep", "1", "--steps", "12"]), out=tmp_path)
    steps = [checkpoint.step_of(place) for place in checkpoint.checkpoints(tmp_path / "r")]
    assert steps[-2:] == [11, 12]
    assert len(steps) <= 3


def older(file: Path) -> None:
    """Puts a whole file of the same tensors but other values in the place of the weights, of a later time."""
    from safetensors.torch import save_file

    found = {key: value + 1 for key, value in load_file(file).items()}
    save_file(found, file)


@pytest.mark.parametrize("damage", [flip, cut, older, Path.unlink])
def test_damaged_weights_are_not_the_end_and_are_written_again(damage, trained, out, capsys):
    run = out / "r"
    damage(run / "model.safetensors")
    for main in (main_of("sample"), main_of("report")):
        assert main([str(run), "--out", str(out / "made")]) == 2
        one_line(capsys.readouterr().err, "error: ", "model.safetensors")
    train(*WORDS, out=out)
    assert "r: no whole weights; they are written again from the last checkpoint" in capsys.readouterr().out
    assert_same(run, trained / "r")


@pytest.mark.parametrize("damage", [flip, cut])
def test_what_vouches_for_the_weights_is_vouched_for(damage, trained, out, capsys):
    run = out / "r"
    damage(run / "model.json")
    assert main_of("sample")([str(run), "--out", str(out / "made")]) == 2
    one_line(capsys.readouterr().err, "error: ", "model.json", "training command again")
    train(*WORDS, out=out)
    assert_same(run, trained / "r")


def test_a_finished_run_without_its_checkpoints_is_finished(out, capsys):
    shutil.rmtree(out / "r" / "checkpoints")
    train(*WORDS, out=out)
    assert "r: complete, 6 steps" in capsys.readouterr().out


def test_a_damaged_start_is_refused(out, capsys):
    start = out / "r" / "pretrained"
    flip(start / "training.safetensors")
    words = later_wins([*WORDS, "--name", "b", "--start-from", str(start)])
    train(*words, out=out, status=2)
    one_line(capsys.readouterr().err, "error: ", str(start), "SHA-256")
    flip(start / "state.json")
    train(*words, out=out, status=2)
    one_line(capsys.readouterr().err, "error: ", str(start), "state.json")


def edit_config(run: Path, path: str, value: object) -> None:
    """Changes one field of config.json by hand."""
    document = json.loads((run / "config.json").read_text())
    *above, last = path.split(".")
    place = document
    for name in above:
        place = place[name]
    place[last] = value
    (run / "config.json").write_text(json.dumps(document))


def test_a_run_without_its_configuration_is_not_gone_on_with(out, capsys):
    run = out / "r"
    (run / "config.json").unlink()
    before = sorted(path for path in run.rglob("*"))
    for words in (WORDS, later_wins([*WORDS, "--steps", "9"]), later_wins([*WORDS, "--backbone.width", "24"])):
        train(*words, out=out, status=2)
        one_line(capsys.readouterr().err, "error: ", "config.json is missing", "restore it", "--name")
    assert sorted(path for path in run.rglob("*")) == before
    state = checkpoint.newest_state(run)
    (run / "config.json").write_text(json.dumps(state.content["config"]))  # as the message says
    train(*WORDS, out=out)
    assert "complete" in capsys.readouterr().out


def test_a_configuration_that_was_changed_is_refused_with_the_difference(out, capsys):
    run = out / "r"
    edit_config(run, "run.model.sde.beta_max", 25.0)
    assert main_of("sample")([str(run), "--out", str(out / "made")]) == 2
    said = "model.sde.beta_max=20.0, not 25.0"
    one_line(capsys.readouterr().err, "error: ", f"{run / 'config.json'} has changed", said)
    train(*later_wins([*WORDS, "--beta-max", "25"]), out=out, status=2)
    one_line(capsys.readouterr().err, "error: ", "step-00000006/state.json is of a run with", said, "--name")
    train(*WORDS, out=out, status=2)
    one_line(capsys.readouterr().err, "error: ", "holds a run with model.sde.beta_max=25.0, not 20.0")


def test_how_long_and_how_often_may_change(out, tmp_path, capsys):
    words = later_wins([*WORDS, "--steps", "8", "--log-every", "2", "--checkpoint-every", "3", "--keep", "1"])
    train(*words, out=out)
    train(*words, out=tmp_path)
    assert_same(out / "r", tmp_path / "r")
    assert read_weights_state(out / "r").content["step"] == 8


def rows(file: Path, seed: int, num: int = 120) -> Path:
    x = np.random.default_rng(seed).normal(size=(num, 2)).astype(np.float32)
    np.savez(file, x_train=x[:100], x_test=x[100:])
    return file


@pytest.mark.parametrize(
    ("seed", "num", "said"), [(1, 120, "data.test.sha256="), (0, 130, "data.test.rows=20, not 30")]
)
def test_data_that_were_replaced_are_refused_with_the_difference(seed, num, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    source = rows(tmp_path / "x.npz", 0)
    given = dict(zip(TINY_2D[::2], TINY_2D[1::2], strict=True)) | {"--source": str(source), "--name": "r"}
    given.pop("--rows")
    words = ["toy2d_spiral", *(part for pair in given.items() for part in pair)]
    train(*words, out=tmp_path)
    os.utime(rows(source, 0), (1e9, 1e9))  # another file with the same rows
    train(*words, out=tmp_path)
    assert "complete" in capsys.readouterr().out
    rows(source, seed, num)
    for more in ([], ["--steps", "9"]):
        train(*later_wins([*words, *more]), out=tmp_path, status=2)
        (refusal,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        one_line(refusal, f"{tmp_path / 'r'} was trained on other data", said, "--name")
    for main, more in ((main_of("report"), []), (main_of("sample"), ["--start", "data", "--num-samples", "20"])):
        assert main([str(tmp_path / "r"), *more, "--out", str(tmp_path / "made")]) == 2
        one_line(capsys.readouterr().err, "error: ", "trained on other data", said, str(source))


def without_checksums(run: Path) -> None:
    """The run as earlier versions wrote it."""
    (run / "model.json").unlink()
    for place in [*checkpoint.checkpoints(run), run / "pretrained"]:
        state = json.loads((place / "state.json").read_text())
        kept = {name: state[name] for name in ("step", "skipped", "averaged", "recipe", "nelbo")}
        (place / "state.json").write_text(json.dumps(kept, indent=1) + "\n")
    os.utime(run / "model.safetensors")


def test_a_run_from_before_is_read_and_gone_on_with_in_one_line(trained, out, tmp_path, capsys):
    run = out / "r"
    without_checksums(run)
    said = f"{run}: written before there were checksums; its weights, configuration and data could not be verified\n"
    train(*WORDS, out=out)
    shown = capsys.readouterr().out
    assert "complete" in shown
    assert shown.count(said) == 1
    provenance.say_unverified.cache_clear()
    words = [str(run), "--num-samples", "20", "--start", "data", "--out", str(out / "made")]
    assert main_of("sample")(words) == 0
    assert capsys.readouterr().out.count(said) == 1
    provenance.say_unverified.cache_clear()
    longer = later_wins([*WORDS, "--steps", "8"])
    train(*longer, out=out)
    assert capsys.readouterr().out.count(said) == 1
    train(*longer, out=tmp_path)
    assert_same(run, tmp_path / "r")
    train(*longer, out=out)
    assert "could not be verified" not in capsys.readouterr().out


def test_weights_from_before_are_loaded_and_said(capsys):
    load(OLD / "linear")
    load(OLD / "linear")
    assert capsys.readouterr().out.count("could not be verified") == 1


@pytest.mark.parametrize("name", ["classifier.safetensors", "classifier.json"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_classifier_is_refused(damage, name, tmp_path):
    from pipelines.data.cache import ensure

    card = load_card(ensure("digits", tmp_path / "data"))
    images = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))

    def few() -> tuple[torch.Tensor, torch.Tensor]:
        return images, torch.arange(40) % 10

    made = cached_classifier(tmp_path / "features", card, few)
    (home,) = (tmp_path / "features").iterdir()
    assert isinstance(cached_classifier(tmp_path / "features", card, few), SmallClassifier)
    assert stat.S_IMODE((home / "classifier.safetensors").stat().st_mode) & 0o600 == 0o600
    damage(home / name)
    with pytest.raises(ValueError, match=rf"{home}: not a readable classifier \(.*{name}.*delete it"):
        cached_classifier(tmp_path / "features", card, few)
    assert made.num_classes == 10
