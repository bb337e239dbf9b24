"""Images carried over a small trained bridge from digits to inverted digits, and back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import TINY, later_wins, main_of, one_line, train
from sklearn.datasets import load_digits

from indm_core.draw import translate_forward
from indm_core.likelihood import dequantise
from indm_core.metrics import Moments, frechet_distance
from indm_core.noise import seeded
from pipelines.config import load
from pipelines.config.store import read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.evaluation.features.reference import extractor_of, reference_rows, split_rows
from pipelines.evaluation.sampling.translate import translate_run
from pipelines.evaluation.settings import SampleOptions

NUM = 40
ODE = ("--path", "ode", "--rtol", "1e-3", "--atol", "1e-3")


@pytest.fixture(scope="module")
def bridge(tmp_path_factory) -> Path:
    """A run whose second data set is the digits with their ink inverted, labels and all."""
    root = tmp_path_factory.mktemp("runs")
    bunch = load_digits()
    images, order = (16 - bunch.images).astype(np.uint8), np.random.default_rng(0).permutation(len(bunch.images))
    split = {"train": order[:1500], "test": order[1500:]}
    arrays = {f"x_{name}": images[rows] for name, rows in split.items()}
    arrays |= {f"y_{name}": bunch.target[rows] for name, rows in split.items()}
    np.savez(root / "inverted.npz", **arrays)
    prepare(root / "inverted.npz", root / "inverted", Options(levels=17))
    words = ["digits_bridge", *TINY, "--partner", str(root / "inverted"), "--steps", "40", "--pretrain-steps", "5"]
    train(*later_wins([*words, "--batch-size", "32", "--checkpoint-every", "20"]), out=root)
    return root / "digits_bridge"


@pytest.fixture
def translated(bridge, monkeypatch, tmp_path, capsys):
    """What the command prints of a translation, and where its pictures are."""
    monkeypatch.setenv("INDM_RUNS", str(bridge.parent))

    def run(*words: str) -> tuple[str, Path]:
        status = main_of("sample")([str(bridge), "--num-samples", str(NUM), "--out", str(tmp_path), *words])
        shown = capsys.readouterr()
        assert status == 0, shown.err
        return shown.out, tmp_path

    return run


def test_both_ways_leave_pictures_and_distances(translated):
    shown, out = translated("--translate", "--sampler", "deis", "--nfe", "5")
    assert f"{out / 'forward.png'}: 40 images forward by the diffusion, averaged weights" in shown
    assert f"{out / 'backward.png'}: 40 images backward by deis:nfe=5, averaged weights" in shown
    ends = re.findall(
        r"compared with ([\d,]+) rows of (\w+), split train, features (\w+)-cnn \(([0-9a-f]{16})\)", shown
    )
    assert [end[:3] for end in ends] == [("1,500", "inverted", "inverted"), ("1,438", "digits", "digits")]
    assert ends[0][3] != ends[1][3]
    for name in ("translated", "untranslated"):
        assert len(re.findall(rf"  {name} +FD [\d.]+ \+- [\d.]+", shown)) == 2
    for name in ("forward", "backward"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 100


def test_one_way_leaves_the_other(translated):
    shown, out = translated("--translate", "forward", *ODE)
    assert "forward by the ODE at rtol=0.001, atol=0.001" in shown
    assert "backward" not in shown
    assert sorted(file.name for file in out.iterdir()) == ["drawn.json", "forward.png"]


def test_the_ode_draws_nothing_and_batches_change_nothing(translated):
    pictures = []
    for words in (("--batch", "7"), ("--batch", "40")):
        _, out = translated("--translate", "forward", *ODE, *words)
        pictures.append(np.asarray(Image.open(out / "forward.png"), dtype=np.int64))
    assert (np.abs(pictures[0] - pictures[1]) > 16).mean() == 0  # one of the 17 levels, at a rounding border


def test_the_distances_are_those_of_the_target_in_its_own_features(bridge, monkeypatch, tmp_path):
    """Recomputed from the pieces: the model, the test images, and the features of a classifier of the target."""
    monkeypatch.setenv("INDM_RUNS", str(bridge.parent))
    wanted = SampleOptions(num_samples=NUM, seed=3, translate="forward", out=str(tmp_path))
    (found,) = translate_run(bridge, wanted)
    config, spec = read_run(bridge / "config.json")
    source, target = (
        ensure(name, bridge.parent / "data", config.data.options) for name in (config.data.source, config.data.partner)
    )
    k = split_rows(source, load_card(source), "test", NUM)
    x = dequantise(k, 17, spec.low, spec.high, torch.Generator().manual_seed(3))
    y = translate_forward(load(bridge), x, generator=seeded(range(3, 3 + NUM)))
    extractor = extractor_of(load_card(target), target, bridge.parent)
    network = extractor.make()
    real = Moments().update(network(reference_rows(target, load_card(target), 3)))
    levels = ((y - spec.low) / (spec.high - spec.low) * 17).floor().clamp(0, 16).long()
    for values, distance in ((levels, found.translated), (k.long(), found.untranslated)):
        law = Moments().update(network(values))
        expected = float(frechet_distance(law.mean, law.cov, real.mean, real.cov))
        assert distance.value == pytest.approx(expected, rel=1e-3)
        assert distance.n == NUM
        assert distance.se > 0
    assert (found.reference.key, found.reference.size) == (extractor.key, 1500)


def test_what_cannot_be_translated_is_refused_in_one_line(bridge, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INDM_RUNS", str(tmp_path))
    train("digits_vp_nll", *TINY, out=tmp_path)
    assert main_of("sample")(["digits_vp_nll", "--translate", "forward"]) == 2
    one_line(
        capsys.readouterr().err, "digits_vp_nll: no bridge", "one data set", "--partner PATH", "remove --translate"
    )
    for words, parts in (
        (("--translate", "up"), ["--translate: 'up' does not fit", "no, forward, backward, both"]),
        (("--translate", "--actors", "2"), ["actors=2: a translation starts from data, in this process; remove it"]),
        (("--translate", "--start", "data"), ["start=data: a translation starts from data"]),
        (("--translate", "backward", "--path", "ode"), ["path=ode is of --translate forward", "remove it"]),
        (("--path", "ode"), ["path=ode is of --translate forward", "translate=no"]),
        (("--translate", "--num-samples", "2"), ["num_samples=2: a Frechet distance needs", "--num-samples 3"]),
    ):
        assert main_of("sample")([str(bridge), *words]) == 2
        one_line(capsys.readouterr().err, "error: ", *parts)
