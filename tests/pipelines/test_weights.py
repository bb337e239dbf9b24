"""Which weights of which run: any checkpoint of any run, by step, last or best, averaged or raw, while it trains and after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ray_session import TINY_2D, later_wins, main_of, one_line, train

from indm_core.training import network_tensors
from pipelines.config import load
from pipelines.config.store import check_data, configuration, digest, identity, read_run
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.evaluation.plan import subjects_of
from pipelines.runs.job import read_metrics
from pipelines.storage import checkpoint

WORDS = later_wins(["toy2d_spiral", *TINY_2D, "--checkpoint-every", "1", "--validate-every", "1"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with the checkpoints 2 (the pre-training's end is at 3), ..., of which some were pruned."""
    out = tmp_path_factory.mktemp("weights")
    train(*WORDS, "--name", "r", out=out)
    return out / "r"


@pytest.fixture
def unfinished(trained, tmp_path):
    """The run as a kill before its last step leaves it."""
    shutil.copytree(trained, tmp_path / "r")
    for name in ("model.safetensors", "model.json", "checkpoints/step-00000006"):
        place = tmp_path / "r" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return tmp_path / "r"


def tensors_of(place: Path, part: str) -> dict[str, torch.Tensor]:
    found, _ = checkpoint.read(place)
    return {name.removeprefix(part): tensor for name, tensor in found.items() if name.startswith(part)}


def assert_has(model, expected) -> None:
    found = network_tensors(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_word_names_a_step_the_last_or_the_best(trained):
    kept = checkpoint.kept(trained)
    assert set(kept) >= {3, 5, 6}
    step = min(kept)
    assert Weights.of(f"{trained}@{step}") == Weights(run=trained, step=step)
    assert Weights.of(f"{trained}@last:raw") == Weights(run=trained, step=6, raw=True)
    held_out = {r.step: r.held_out.nelbo for r in read_metrics(trained) if r.step in kept}
    assert Weights.of(f"{trained}@best").step == min(held_out, key=held_out.__getitem__)
    assert Weights.named("r@last", trained.parent) == Weights(run=trained, step=6)
    assert Weights.named("r", trained.parent) == Weights(run=trained)


def test_names_and_places_tell_the_weights_apart(trained):
    finished, averaged, raw = (Weights.of(f"{trained}{ending}") for ending in ("", "@5", "@5:raw"))
    assert [w.name for w in (finished, averaged, raw)] == ["r", "r@5", "r@5:raw"]
    assert finished / "evaluation.json" == trained / "evaluation.json"
    assert averaged / "evaluation.json" == trained / "@5" / "evaluation.json"
    assert raw / "evaluation.json" == trained / "@5-raw" / "evaluation.json"
    assert len({digest(w) for w in (finished, averaged, raw)}) == 3
    assert len({identity(w) for w in (finished, averaged, raw)}) == 3


def test_a_checkpoint_gives_its_averaged_or_its_raw_weights(trained):
    for place in checkpoint.checkpoints(trained):
        word = f"{trained}@{checkpoint.step_of(place)}"
        assert_has(load(word), tensors_of(place, "ema."))
        assert_has(load(f"{word}:raw"), tensors_of(place, "model."))
    assert_has(load(f"{trained}@last"), network_tensors(load(trained)))
    assert configuration(Weights.of(f"{trained}@5"))[0].train.steps == 5


def test_an_unfinished_run_serves_its_checkpoints(unfinished):
    assert_has(load(f"{unfinished}@last"), tensors_of(unfinished / "checkpoints" / "step-00000005", "ema."))
    (subject,) = subjects_of([Weights.of(f"{unfinished}@last")])
    assert not subject.build().training
    with pytest.raises(ValueError, match="no trained weights yet") as caught:
        load(unfinished)
    one_line(str(caught.value), "r@last (step 5)")


def refused(word: str, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(word)
    one_line(str(caught.value), *parts)


def test_what_is_not_there_is_one_line(trained, unfinished, tmp_path):
    refused(f"{trained}@1", "no checkpoint of step 1", "r@6", "r@last")
    refused(f"{trained}@first", "behind @ stands a step, last or best")
    refused(f"{trained}@5:averaged", "behind @ stands")
    refused(f"{tmp_path / 'nothing'}@5", "no readable run here")
    (tmp_path / "empty").mkdir()
    refused(f"{tmp_path / 'empty'}@last", "has no checkpoint")
    for place in checkpoint.kept(unfinished).values():
        state = json.loads((place / "state.json").read_text())
        numbers = {k: v for k, v in state.items() if k not in ("schema", "files", "sha256", "validation_nelbo")}
        tensors, _ = checkpoint.read(place)
        shutil.rmtree(place)
        checkpoint.write(place, tensors, numbers)
    refused(f"{unfinished}@best", "no checkpoint of it was measured on held-out rows", "--validate-every", "r@last")


def test_a_checkpoint_that_is_removed_in_between_is_one_line(unfinished):
    weights = Weights.of(f"{unfinished}@5")
    left = sorted(set(checkpoint.kept(unfinished)) - {5})[-1]
    before = digest(weights)
    shutil.rmtree(unfinished / "checkpoints" / "step-00000005")
    refused(weights, "no checkpoint of step 5", f"r@{left}")
    assert digest(weights) == before  # an evaluation that has begun says what it was of


def test_a_damaged_checkpoint_or_another_configuration_is_refused(unfinished):
    file = unfinished / "checkpoints" / "step-00000005" / "training.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(f"{unfinished}@5", "SHA-256", "take another checkpoint")
    config = unfinished / "config.json"
    config.write_text(config.read_text().replace('"width": 16', '"width": 32', 1))
    refused(f"{unfinished}@3", "config.json has changed since the weights were written")


def test_a_checkpoint_of_an_earlier_version_is_read():
    old = Path(__file__).parent / "old_runs" / "indm"
    model, expected = load(f"{old}@3"), tensors_of(old / "checkpoints" / "step-00000003", "ema.")
    found = network_tensors(model)
    assert all(torch.equal(found[name], expected[name]) for name in found.keys() & expected.keys())
    assert digest(Weights.of(f"{old}@3")) != digest(Weights.of(f"{old}@3:raw"))


def test_other_data_are_refused(trained):
    config, _ = read_run(trained / "config.json")
    card = load_card(ensure("toy2d:moons", trained.parent / "data", config.data.options))
    with pytest.raises(ValueError, match="trained on other data"):
        check_data(Weights.of(f"{trained}@last"), card)


def test_a_name_with_an_at_is_a_run_first(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "r@last")
    assert Weights.of(tmp_path / "r@last") == Weights(run=tmp_path / "r@last")


def test_sample_writes_a_checkpoint_s_samples_beside_the_run_s(unfinished, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(unfinished.parent))
    words = ["--num-samples", "4", "--sampler", "em", "--sampling.steps", "2"]
    assert main_of("sample")(["r@last", *words]) == 0
    (out,) = (unfinished / "@5").glob("samples-*")
    assert (out / "samples.npy").is_file()
    assert main_of("sample")(["r", *words]) == 2
    one_line(capsys.readouterr().err, "error: ", "r@last")


def test_a_run_starts_from_another_one(trained, unfinished, capsys):
    out = unfinished.parent
    for start in ("r", "r@last", "r@5", str(unfinished / "checkpoints" / "step-00000005")):
        shutil.rmtree(out / "on", ignore_errors=True)
        train(*later_wins([*WORDS, "--steps", "7", "--name", "on", "--start-from", start]), out=out)
        assert next(r.step for r in read_metrics(out / "on")) == 5
    for start, parts in (
        ("r@best:raw", ["leave :raw out"]),
        ("r@1", ["no checkpoint of step 1"]),
        ("no", ["no: no run here", "did you mean on?"]),
    ):
        train(*WORDS, "--name", "off", "--start-from", start, out=out, status=2)
        one_line(capsys.readouterr().err, "error: ", *parts)


def test_a_configuration_is_trained_again(trained, tmp_path, capsys):
    train("--config", str(trained / "config.json"), "--name", "again", out=tmp_path)
    assert_has(load(tmp_path / "again"), network_tensors(load(trained)))
    train("--config", str(trained), "--name", "longer", "--steps", "7", out=tmp_path)
    assert read_run(tmp_path / "longer" / "config.json")[0].train.steps == 7
    capsys.readouterr()
    train("longer", out=tmp_path, status=2)
    way = f"--config {tmp_path / 'longer'} --name longer"
    one_line(capsys.readouterr().err, "error: longer is a run and no recipe", way)
    train(*way.split(), out=tmp_path)
    assert "longer: complete, 7 steps" in capsys.readouterr().out
    for words, parts in (
        (
            ["--config", str(trained / "metrics.jsonl")],
            ["metrics.jsonl: no configuration of a run", "give RUN/config.json"],
        ),
        (["--config", str(trained / "model.json")], ["model.json", "no configuration of a run"]),
        (["--config", str(tmp_path / "no.json")], ["no.json: no readable run here (No such file or directory)"]),
        (["toy2d_moons", "--config", str(trained)], ["takes the place of the recipe toy2d_moons"]),
    ):
        train(*words, out=tmp_path, status=2)
        one_line(capsys.readouterr().err, "error: ", *parts)


def test_the_directory_of_a_checkpoint_is_answered_with_its_name(trained):
    place = checkpoint.kept(trained)[6]
    with pytest.raises(ValueError, match="no run") as caught:
        Weights.named(str(place))
    one_line(str(caught.value), str(place), f"give {trained}@6")
    assert Weights.named(f"{trained}@6").checkpoint == place
