"""Sequences (c, l): read, standardised by channel, trained on, sampled, joined and measured; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import later_wins, main_of, one_line, train
from sources import pixels, refused, stored

from indm_core.sampling import Sampling
from pipelines.config.weights import Weights
from pipelines.data.card import Card, load_card
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation import measure
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.measure import Keep
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.measurements.collages import CollageResult
from pipelines.evaluation.measurements.distances import DistancesResult
from pipelines.evaluation.measurements.likelihood import NelboResult
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.settings import Settings
from pipelines.runs.pictures import save_levels

SEQUENCES = Options(test_fraction=0, as_sequences=True)
STANDARD = Options(test_fraction=0, as_sequences=True, standardise=True)
SCHEDULE = (
    "--steps",
    "4",
    "--log-every",
    "4",
    "--checkpoint-every",
    "4",
    "--sample-every",
    "4",
    "--validate-every",
    "4",
)


def waves(num: int = 60, channels: int = 2, length: int = 16) -> np.ndarray:
    """Channels of different means and scales, (num, channels, length)."""
    generator = np.random.default_rng(0)
    scale = 10.0 ** np.arange(channels)[:, None]
    return scale * (3 + np.arange(length) / length + generator.standard_normal((num, channels, length)))


def test_floats_are_sequences_where_it_is_said(tmp_path: Path) -> None:
    x = waves()
    np.savez(tmp_path / "a.npz", x_train=x[:40], x_test=x[40:], y_train=np.arange(40) % 3, y_test=np.arange(20) % 3)
    card = prepare(tmp_path / "a.npz", tmp_path / "out", SEQUENCES)
    assert (card.kind, card.shape, card.levels, card.num_classes) == ("sequence", (2, 16), 0, 3)
    for split, rows in (("train", slice(40)), ("test", slice(40, None))):
        k, label = stored(tmp_path / "out", split)
        np.testing.assert_array_equal(k, x[rows].astype(np.float32))
        np.testing.assert_array_equal(label, np.arange(len(k)) % 3)
    np.save(tmp_path / "b.npy", x)
    refused(tmp_path / "b.npy", tmp_path / "b", str(tmp_path / "b.npy"), "(60, 2, 16)", "--as-sequences true")


def test_channels_are_standardised_with_their_jacobian(tmp_path: Path) -> None:
    x = waves()
    np.save(tmp_path / "a.npy", x)
    spec = DataSpec.of(prepare(tmp_path / "a.npy", tmp_path / "out", STANDARD))
    np.testing.assert_allclose(spec.mean, x.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(spec.std, x.std((0, 2)), rtol=1e-5)
    k = torch.from_numpy(stored(tmp_path / "out")[0])
    seen = spec.to_model(k)
    np.testing.assert_allclose(seen.std((0, 2), correction=0), 1, rtol=1e-5)
    torch.testing.assert_close(spec.from_model(seen), k, rtol=1e-5, atol=1e-4)
    # a Gaussian of the data, seen by the model as the standard one: log N(k; m, s) = log N(seen) - sum log s
    law = torch.distributions.Normal(torch.tensor(spec.mean)[:, None], torch.tensor(spec.std)[:, None])
    nats = 0.5 * (seen**2 + math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(spec.in_unit(nats), -law.log_prob(k).mean((1, 2)), rtol=1e-4, atol=1e-4)
    features = raw(32, spec.mean, spec.std)(k)
    torch.testing.assert_close(features, seen.flatten(1), rtol=1e-4, atol=1e-4)


def test_columns_of_strips_are_sequences_of_their_levels(tmp_path: Path) -> None:
    strips, columns = (Options(rows=10, as_sequences=flag) for flag in (False, True))
    images = prepare("mosaic:digits:1x3", tmp_path / "images", strips)
    card = prepare("mosaic:digits:1x3", tmp_path / "columns", columns)
    assert (images.shape, card.shape, card.kind, card.levels) == ((1, 8, 24), (8, 24), "sequence", 17)
    for split in ("train", "test"):
        (k, label), (of_images, of_image) = (stored(tmp_path / name, split) for name in ("columns", "images"))
        np.testing.assert_array_equal(k, of_images[:, 0])
        np.testing.assert_array_equal(label, of_image)
    assert DataSpec.of(card).unit == "bits/dim"


def test_vectors_are_sequences_of_one_channel(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(channels=1)[:, 0])
    card = prepare(tmp_path / "a.npy", tmp_path / "out", STANDARD)
    assert (card.shape, card.columns, len(card.std)) == ((1, 16), (), 1)


def test_bad_sequences_are_refused(tmp_path: Path) -> None:
    file, out, x = tmp_path / "a.npy", tmp_path / "out", waves()

    def saved(x: np.ndarray) -> Path:
        np.save(file, x, allow_pickle=True)
        return file

    refused(saved(x[0, 0]), out, str(file), "(16,)", "(n, c, l)", options=SEQUENCES)
    refused(saved(x[None]), out, str(file), "(1, 60, 2, 16)", "(n, c, l)", options=SEQUENCES)
    refused(saved(x.astype(object)), out, str(file), "nothing is unpickled", options=SEQUENCES)
    refused(saved(pixels(9, 6, 5, 3)), out, "as_sequences", "(3, 6, 5)", "leave it out", options=SEQUENCES)
    refused(saved(pixels(9, 6, 5)), out, str(file), "256 levels", "--standardise false", options=STANDARD)
    for option in ({"size": 8}, {"crop": 8}):
        said = ",".join(f"{name}={value}" for name, value in option.items())
        refused(saved(x), out, said, "leave that out", options=Options(as_sequences=True, **option))
    refused(saved(x), out, str(file), "fit=common", "sequences", options=Options(as_sequences=True, fit="common"))
    x[7, 1, 3] = np.nan
    refused(saved(x), out, f"{file} row 7 channel 1 position 3", "nan", "finite", options=SEQUENCES)
    x[:, 1, 3] = 2
    refused(saved(x), out, f"{file} channel 1 position 3", "constant 2", options=SEQUENCES)
    np.savez(tmp_path / "b.npz", x=waves(), y=np.zeros(59, int))
    refused(tmp_path / "b.npz", out, "b.npz:y", "59", "60 rows", options=SEQUENCES)


def test_cards_of_sequences_are_checked(tmp_path: Path) -> None:
    def card(**changed: object) -> Card:
        given = {"name": "s", "source": "s", "kind": "sequence", "shape": (2, 4), "levels": 0} | changed
        return Card(**given)  # pyright: ignore[reportArgumentType]

    card(mean=(0.0, 1.0), std=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"\(c, l\)"):
        card(shape=(2, 4, 1))
    with pytest.raises(ValueError, match="levels=1"):
        card(levels=1)
    for wrong in ({"mean": (0.0,) * 8, "std": (1.0,) * 8}, {"levels": 8, "mean": (0.0, 1.0), "std": (1.0, 2.0)}):
        with pytest.raises(ValueError, match="2 columns of vectors or channels"):
            card(**wrong)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear diffusion of labelled sequences of the user's own."""
    root = tmp_path_factory.mktemp("runs")
    np.savez(root / "own.npz", x=waves(120), labels=np.arange(120) % 3)
    windows = ("--smallest-window", "4", "--window-step", "4")
    train(
        "sequences_linear",
        *("--source", str(root / "own.npz"), "--conditional", "true", "--name", "own", *windows),
        *("--size-of-model", "small", *SCHEDULE, "--batch-size", "16"),
        out=root,
    )
    return root


@pytest.fixture
def draw(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Draws of the run; gives the exit status and what was said."""
    monkeypatch.setenv("INDM_RUNS", str(root))

    def run(*words: str) -> tuple[int, str]:
        fast = ("--num-samples", "2", "--sampler", "deis", "--steps", "3")
        status = main_of("sample")(later_wins([str(root / "own"), *fast, *words]))
        shown = capsys.readouterr()
        return status, shown.err if status else shown.out

    return run


def test_samples_and_canvases_are_arrays_and_a_plot_of_lines(root: Path, draw) -> None:
    assert any((root / "own" / "samples").iterdir())
    out = root / "drawn"
    status, said = draw("--label", "0,2", "--out", str(out))
    assert status == 0, said
    assert {file.name for file in out.iterdir()} == {"samples.npy", "grid.png", "drawn.json"}
    assert np.load(out / "samples.npy").shape == (2, 2, 16)
    out = root / "chain"
    chain = ("--collage", "chain", "--num-factors", "3", "--overlap", "4", "--factor-labels", "0,-1,2")
    status, said = draw(*chain, "--between", "test:0,test:1", "--out", str(out))
    assert status == 0, said
    assert "2 canvases of 2x40" in said
    canvases = [f"canvas-00000{i}.npy" for i in range(2)]
    assert {file.name for file in out.iterdir()} == {*canvases, "grid.png", "drawn.json"}
    found, data = np.load(out / canvases[0]), next(root.glob("data/own-*"))
    ends = stored(data, "test")[0][:2]
    scale = np.array(load_card(data).std)[:, None]  # what is known comes back but for the noise at t_min
    np.testing.assert_allclose(found[:, :16] / scale, ends[0] / scale, atol=0.3)
    np.testing.assert_allclose(found[:, -16:] / scale, ends[1] / scale, atol=0.3)


def test_what_is_of_images_is_refused_of_canvases_of_sequences(draw) -> None:
    status, said = draw("--collage", "grid")
    assert status
    one_line(said, "collage=grid", "(2, 16)", "take chain or loop")
    status, said = draw("--collage", "chain", "--num-factors", "3", "--overlap", "4", "--factor-labels", "0,7,1")
    assert status
    one_line(said, "factor_labels=0,7,1", "7 is no class", "0 to 2")


def test_likelihoods_distances_and_canvases_are_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(plan: Plan, tasks: Sequence[Task], keep: Keep, *where: Any) -> None:
        bench = Evaluator([], plan.extractor.make, 1, "cpu")
        bench.models = {i: (subject.build(), subject.spec) for i, subject in enumerate(plan.subjects)}
        for task in tasks:
            keep(task, bench.run(task, *(plan.rows(span).numpy() for span in task.needs())), 0.0)

    monkeypatch.setattr(measure, "carry_out", carry_out)
    monkeypatch.setattr(measure, "places", lambda actors, device: (1, "cpu"))
    fast = Sampling(sampler="deis", steps=2, order=0)
    chain = Layout(collage="chain", num_factors=3, overlap=4)
    few = {"images": 4, "rtol": 1e-1, "atol": 1e-1, "nll_replicates": 1, "nelbo_replicates": 1, "nelbo_draws": 2}
    settings = Settings(**few, samples=80, sampling=fast, layout=chain, canvases=80, canvas_sampling=fast)
    run = Weights(run=root / "own")
    document = measure.evaluate([run], settings, root)
    found = document.runs["own"]
    nelbo, distances, canvases = (found.of(kind) for kind in (NelboResult, DistancesResult, CollageResult))
    assert document.unit == "nats/dim"
    assert nelbo is not None
    assert distances is not None
    assert canvases is not None
    assert (canvases.shape, canvases.canvases) == ((2, 40), 80)
    assert math.isfinite(distances.distances.frechet.value)
    assert math.isfinite(canvases.plus.value)
    assert (run / "samples.png").is_file()
    assert (run / "canvases.png").is_file()


def test_lines_show_every_channel_of_a_few_sequences(tmp_path: Path) -> None:
    spec = DataSpec(name="s", shape=(2, 40), levels=0, low=-1.0, high=1.0, num_classes=0)
    heights = []
    for num in (1, 3, 50):
        save_levels(torch.randn(num, 2, 40), spec, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            heights.append(image.height)
            assert (np.asarray(image.convert("RGB")).reshape(-1, 3) == (31, 119, 180)).all(1).any()  # C0
            assert (np.asarray(image.convert("RGB")).reshape(-1, 3) == (255, 127, 14)).all(1).any()  # C1
    assert heights[0] < heights[1] < heights[2] < 4 * heights[1]
