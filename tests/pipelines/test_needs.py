"""What an evaluation needs is found out before the first step of a training, and before an evaluation begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray_session import TINY_2D, main_of, one_line, train

from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card, write_card
from pipelines.data.shards import read_labels
from pipelines.evaluation.needs import attainable, check_needs
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.evaluation.settings import Settings


def prepared(tmp_path: Path, side: int, labels: bool = False) -> tuple[Path, Card]:
    rng = np.random.default_rng(0)
    columns = {"x": rng.integers(0, 256, (60, side, side), dtype=np.uint8)}
    columns |= {"y": np.arange(60) % 3} if labels else {}
    np.savez(tmp_path / "set.npz", **columns)
    data = ensure(tmp_path / "set.npz", tmp_path / "data")
    return data, load_card(data)


def test_large_images_without_labels_are_measured_without_distances_and_that_is_said(tmp_path, capsys):
    data, card = prepared(tmp_path, 36)
    wanted = Settings(samples=100)
    with pytest.raises(ValueError, match="no labels to train a feature network with and 1296 raw values") as caught:
        check_needs(data, card, wanted)
    one_line(str(caught.value), "--inception-weights FILE", "--samples 0")
    assert attainable(data, card, wanted) == replace(wanted, samples=0)
    said = capsys.readouterr().out
    one_line(said, "no distances of samples: ", card.name)
    check_needs(data, card, replace(wanted, samples=0))


def test_small_images_without_labels_are_compared_as_they_are(tmp_path, capsys):
    data, card = prepared(tmp_path, 32)
    assert attainable(data, card, Settings(samples=100)) == Settings(samples=100)
    assert capsys.readouterr().out == ""


def test_rows_without_labels_are_found_before_a_classifier_is_trained(tmp_path):
    data, card = prepared(tmp_path, 8, labels=True)
    assert sorted(set(read_labels(data, card, "train"))) == [0, 1, 2]
    check_needs(data, card, Settings())
    fewer = replace(card, num_classes=2)
    wrong = int((read_labels(data, card, "train") == 2).sum())
    with pytest.raises(
        ValueError, match=f"{wrong} of {card.split('train').count} training rows have no label in"
    ) as caught:
        check_needs(data, fewer, Settings())
    one_line(str(caught.value), card.name, "--samples 0")
    check_needs(data, fewer, Settings(samples=0))


def test_a_set_without_a_test_split(tmp_path):
    data, card = prepared(tmp_path, 8)
    bare = replace(card, splits={"train": card.split("train")})
    for first, partner in ((bare, None), (card, bare)):
        with pytest.raises(
            ValueError, match="has no test split to measure on; prepare one, or train with --evaluate false"
        ):
            attainable(data, first, Settings(), partner)


def test_what_inception_does_not_take(tmp_path):
    data, card = prepared(tmp_path, 8)
    wanted = Settings(inception_weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match="no such file; download"):
        check_needs(data, card, wanted)
    points = ensure("toy2d:moons", tmp_path / "data")
    with pytest.raises(ValueError, match="Inception takes images of 1 or 3 channels; leave the option out"):
        check_needs(points, load_card(points), wanted)


@pytest.mark.parametrize("samples", [3, 10, 19])
def test_an_inception_score_needs_twenty_samples(samples):
    with pytest.raises(ValueError, match=f"samples={samples}: an Inception Score with its error needs 20") as caught:
        Settings(samples=samples, inception_weights="weights.pth")
    one_line(str(caught.value), "--samples 20 or more")
    with pytest.raises(ValueError, match="an Inception Score needs 20"):
        CompareOptions(num_samples=samples, inception_weights="weights.pth")
    Settings(samples=samples)
    CompareOptions(num_samples=samples)


def test_a_training_without_a_test_split_is_refused_before_its_first_step(tmp_path, capsys):
    data = ensure("toy2d:moons", tmp_path / "data")
    card = load_card(data)
    write_card(data, replace(card, splits={"train": card.split("train")}))
    words = ["toy2d_moons", *TINY_2D, "--rows", "4000", "--source", str(data), "--out", str(tmp_path / "runs")]
    words = [word for pair in zip(words[1::2], words[2::2], strict=True) if pair[0] != "--rows" for word in pair]
    assert main_of("train")(["toy2d_moons", *words]) == 2
    one_line(capsys.readouterr().err, "error: ", "no test split", "--evaluate false")
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_an_evaluation_is_refused_before_a_session_is_started(tmp_path, capsys, monkeypatch):
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    monkeypatch.setattr("ray.init", lambda *a, **k: pytest.fail("a session was started"))
    words = [str(tmp_path / "toy2d_spiral"), "--out", str(tmp_path), "--inception-weights", str(tmp_path / "w.pth")]
    assert main_of("evaluate")(words) == 2
    one_line(capsys.readouterr().err, "error: inception_weights=", "Inception takes images")
