"""What an evaluation needs is found out before the first step of a training, and before an evaluation begins."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray_session import TINY_2D, main_of, one_line, train

from indm_core.sampling import Sampling
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card, write_card
from pipelines.data.shards import read_labels
from pipelines.evaluation.needs import attainable, check_needs
from pipelines.evaluation.plan import check
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rtol": 0.0}, "rtol=0.0 must be positive"),
        ({"atol": math.inf}, "atol=inf must be positive and finite"),
        ({"actors": -1}, "actors=-1 must not be negative"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"seed": 2**32}, "seed=4294967296 must be at most 4,294,967,295"),
        ({"nll_nfe": 20}, "nll_nfe=20 is of solver='exponential', to be given with it"),
        ({"nll_solver": "exponential", "nll_nfe": 1}, "nll_nfe=1 must be at least 2"),
        ({"nll_solver": "exponential", "nll_nfe": 10**9}, "nll_nfe=1000000000 must be at most"),
        ({"nll_tolerance": 0.1}, "nll_tolerance=0.1 is of --nll-solver exponential without --nll-nfe"),
        ({"nll_solver": "exponential", "nll_nfe": 20, "nll_tolerance": 0.1}, "nll_tolerance=0.1 is of --nll-solver"),
    ],
)
def test_settings_out_of_range_are_refused(given, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Settings(**given)
    if "actors" in given:
        with pytest.raises(ValueError, match=re.escape(said)):
            CompareOptions(**given)


def test_what_a_model_does_not_allow_is_refused_before_a_session(tmp_path):
    tiny = (
        "--width",
        "8",
        "--num-steps",
        "2",
        "--steps",
        "1",
        "--rows",
        "64",
        "--batch-size",
        "16",
        "--evaluate",
        "false",
    )
    train(
        "toy2d_spiral_ffjord", *tiny, "--sample-every", "0", "--validate-every", "0", "--name", "learned", out=tmp_path
    )
    runs = [Weights.named("learned", tmp_path)]
    for given, said in (
        (
            {"sampling": Sampling(sampler="deis", nfe=10)},
            "deis:nfe=10 on learned: sampler=deis needs a linear diffusion",
        ),
        (
            {"sampling": Sampling(sampler="auto", grid="fitted")},
            "auto:grid=fitted on learned: grid=fitted needs a linear",
        ),
        ({"nll_solver": "exponential"}, "the SDE of learned is learned; give --nll-solver rk45"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check(runs, Settings(**given), tmp_path)
    check(runs, Settings(samples=0, sampling=Sampling(sampler="deis", nfe=10)), tmp_path)


def test_a_model_that_does_not_fit_the_data_is_refused_before_workers_are_started(tmp_path, capsys, monkeypatch):
    def no_machine(*_: object) -> None:
        raise AssertionError("workers are started")

    monkeypatch.setattr("pipelines.train.check_machine", no_machine)
    words = ("--source", "toy2d:moons", "--rows", "64", "--batch-size", "16", "--out", str(tmp_path))
    assert main_of("train")(["toy2d_linear", *words, "--model.sde", "BDM"]) == 2
    one_line(capsys.readouterr().err, "BDM blurs images (c, h, w); BDM is for images")
    assert not (tmp_path / "toy2d_linear").exists()
    assert main_of("train")(["toy2d_linear", *words, "--ema-decay", "1"]) == 2
    one_line(capsys.readouterr().err, "ema_decay=1.0 must lie in [0, 1)")
    assert main_of("train")(["toy2d_linear", *words, "--train.seed", str(2**63)]) == 2
    one_line(capsys.readouterr().err, "seed=9223372036854775808 must lie below 2^63")
