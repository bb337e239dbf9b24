"""Data of one's own with no other option than the source: images of odd sizes, vectors with units."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import environment, main_of, one_line, train

from indm_core.likelihood import nll
from pipelines.config.flows import ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.config.sized import SizedINDMConfig
from pipelines.config.store import load, read_run
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.shards import read_all
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec

QUICK = ("--steps", "6", "--batch-size", "8", "--log-every", "3", "--checkpoint-every", "6", "--sample-every", "0")


def sizes_of(config: INDMConfig) -> tuple[UNetConfig, ResFlowConfig]:
    assert isinstance(config.backbone, UNetConfig)
    assert isinstance(config.flow, ResFlowConfig)
    return config.backbone, config.flow


def pictures(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        shape = (height, width) if mode == "L" else (height, width, 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(40, 30), (25, 50), (33, 33)], (3, 16, 16)),
        ([(300, 200), (90, 100), (70, 71)], (3, 64, 64)),
        ([(28, 28)], (3, 28, 28)),
        ([(20, 12)], (3, 12, 20)),
        ([(178, 218)], (3, 64, 64)),
    ],
)
def test_images_of_odd_sizes_are_brought_to_one(sizes, shape, tmp_path):
    card = prepare(pictures(tmp_path / "in", sizes * 8), tmp_path / "out", Options(fit="common"))
    assert card.shape == shape
    assert sum(split.count for split in card.splits.values()) == 8 * len(sizes)
    resized = any("resized" in note for note in card.notes)
    assert resized == (sizes not in ([(28, 28)], [(20, 12)]))


def test_a_stray_among_equal_images_is_resized_too(tmp_path):
    card = prepare(pictures(tmp_path / "in", [(32, 32)] * 30 + [(50, 40)]), tmp_path / "out", Options(fit="common"))
    assert card.shape == (3, 32, 32)
    assert any(note.startswith("1 image cut to a square and resized to 32 x 32") for note in card.notes)


def test_equal_sizes_are_demanded_where_nothing_else_is_said(tmp_path):
    with pytest.raises(ValueError, match="--size"):
        prepare(pictures(tmp_path / "in", [(40, 30), (25, 50)] * 10), tmp_path / "out", Options())


@pytest.mark.parametrize(
    ("shape", "ch_mult", "blocks"),
    [
        ((1, 28, 28), (1, 2, 2), (0, 4)),
        ((3, 32, 32), (1, 2, 2, 2), (0, 4)),
        ((3, 64, 64), (1, 2, 2, 2), (0, 4)),
        ((3, 12, 20), (1, 2), (0, 4)),
        ((1, 9, 9), (1,), (4,)),
    ],
)
def test_networks_follow_from_the_shape(shape, ch_mult, blocks):
    backbone, flow = sizes_of(SizedINDMConfig().for_shape(shape))
    assert backbone.ch_mult == ch_mult
    assert flow.blocks == blocks
    spec = DataSpec(name="x", shape=shape, levels=256, low=-1.0, high=1.0, num_classes=0)
    model = SizedINDMConfig().build(spec)
    x = torch.rand(2, *shape) * 2 - 1
    u, _ = model.encode(x)
    assert model.score(u, torch.tensor(0.5)).shape == u.shape
    torch.testing.assert_close(model.eval().decode(model.encode(x)[0]), x, atol=1e-4, rtol=1e-4)


def test_the_dial_sets_every_size_and_large_is_as_published():
    dials = ("small", "medium", "large")
    networks = [sizes_of(SizedINDMConfig(size_of_model=dial).for_shape((3, 32, 32))) for dial in dials]
    assert [backbone.nf for backbone, _ in networks] == [32, 64, 128]
    assert [flow.width for _, flow in networks] == [32, 128, 512]
    assert networks[-1][0] == UNetConfig(dropout=0.0, time="log-snr")


def table(file: Path, num: int = 300) -> Path:
    """Age, height and weight: a Gaussian whose columns have units of their own."""
    draw = np.random.default_rng(0)
    age = draw.normal(40, 12, num)
    height = draw.normal(1.72, 0.09, num)
    weight = 72000 + 45000 * (height - 1.72) + draw.normal(0, 9000, num)
    lines = [",".join(f"{value:.6g}" for value in row) for row in zip(age, height, weight, strict=True)]
    file.write_text("age,height,weight\n" + "\n".join(lines) + "\n")
    return file


def test_vectors_are_standardised_by_their_training_rows(tmp_path):
    card = prepare(table(tmp_path / "x.csv"), tmp_path / "out", Options(standardise=True))
    rows = {name: torch.from_numpy(read_all(tmp_path / "out", card, name)["x"]) for name in ("train", "test")}
    spec = DataSpec.of(load_card(tmp_path / "out"))
    seen = spec.to_model(rows["train"])
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(spec.from_model(spec.to_model(rows["test"])), rows["test"])
    assert rows["train"][:, 2].mean() > 60_000  # stored as they are


def test_no_training_rows_no_standardisation(tmp_path):
    with pytest.raises(ValueError, match=r"standardise=true: .*splits=test"):
        prepare(table(tmp_path / "x.csv"), tmp_path / "out", Options(standardise=True, splits=("test",)))


def test_the_jacobian_is_in_the_likelihood(tmp_path):
    """A Gaussian of the table in its own units has the same NLL whether it sees the rows as they are or standardised."""
    source = table(tmp_path / "x.csv")
    prepare(source, tmp_path / "raw", Options())
    card = prepare(source, tmp_path / "std", Options(standardise=True))
    k = torch.from_numpy(read_all(tmp_path / "std", card, "test")["x"])
    raw, std = DataSpec.of(load_card(tmp_path / "raw")), DataSpec.of(card)
    train = torch.from_numpy(read_all(tmp_path / "std", card, "train")["x"])

    def nats(spec: DataSpec) -> torch.Tensor:
        seen, fitted = spec.to_model(k).double(), spec.to_model(train).double()
        law = torch.distributions.MultivariateNormal(fitted.mean(0), fitted.T.cov())
        return spec.in_unit(-law.log_prob(seen))

    torch.testing.assert_close(nats(raw), nats(std), atol=1e-4, rtol=1e-5)


def test_a_table_trains_and_its_samples_have_its_units(tmp_path):
    source = table(tmp_path / "x.csv")
    words = ("vectors", "--source", str(source), *QUICK, "--width", "16")
    with pytest.raises(AssertionError):  # the dial sets the sizes
        train(*words, out=tmp_path / "refused")
    train(*words[:-2], out=tmp_path)
    run = tmp_path / "vectors"
    model, (_, spec) = load(run), read_run(run / "config.json")
    assert len(spec.std) == 3
    assert main_of("sample")([str(run), "--num-samples", "50", "--out", str(tmp_path / "drawn")]) == 0
    drawn = np.load(tmp_path / "drawn" / "samples.npy")
    spread = (np.quantile(drawn, 0.75, axis=0) - np.quantile(drawn, 0.25, axis=0)) / np.array(spec.std)
    assert spread.max() < 5 * spread.min()  # in the units of each column, though nothing is learned yet
    x = torch.randn(8, 3)
    shift = sum(map(math.log, spec.std)) / 3
    bits = nll(model, x, rtol=1e-2, atol=1e-2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spec.in_unit(bits), bits / 3 + shift)


def test_a_run_of_own_data_is_loaded_where_nothing_else_is_imported(tmp_path):
    """As in a script of the user's: no recipe has been imported there, which defines the model's class."""
    train("vectors", "--source", str(table(tmp_path / "x.csv")), *QUICK, out=tmp_path)
    script = f"from pipelines import load; print(load({str(tmp_path / 'vectors')!r}).shape)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("(3,)\n", 0), done.stderr


def test_images_train_with_no_other_option_than_the_source(tmp_path):
    source = pictures(tmp_path / "in", [(17, 21), (30, 16), (16, 16)] * 10)
    train(
        "images", "--source", str(source), "--baseline", "images_linear", *QUICK, "--pretrain-steps", "3", out=tmp_path
    )
    for name in ("images", "images_linear"):
        assert load(tmp_path / name).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("recipe", "remedy"),
    [
        ("digits_vp_nll", "recipe vectors"),
        ("digits_bdm_nll", "recipe vectors"),
        ("cifar10_vp_nll", "recipe vectors"),
        ("images", "recipe vectors"),
        ("images_linear", "recipe vectors"),
        ("toy2d_spiral", "recipe images"),
        ("vectors", "recipe images"),
    ],
)
def test_a_model_that_cannot_take_the_data_says_which_recipe_can(recipe, remedy, tmp_path, capsys):
    rows = remedy.endswith("vectors")
    source = table(tmp_path / "x.csv") if rows else pictures(tmp_path / "in", [(8, 8)] * 40)
    assert main_of("train")([recipe, "--source", str(source), "--local", *QUICK, "--out", str(tmp_path)]) == 2
    one_line(capsys.readouterr().err.splitlines()[-1], remedy)


def test_data_prepared_for_another_recipe_are_refused(tmp_path, capsys):
    prepare(table(tmp_path / "x.csv"), tmp_path / "table", Options())
    for recipe, remedy in (("images", "recipe vectors"), ("vectors", "--standardise true")):
        words = [recipe, "--source", str(tmp_path / "table"), "--local", *QUICK, "--out", str(tmp_path)]
        assert main_of("train")(words) == 2
        one_line(capsys.readouterr().err.splitlines()[-1], remedy)


def test_folders_that_are_no_classes_are_no_hindrance(tmp_path):
    """Images at every depth, or a folder for each: only who asks for classes is told to sort them."""
    pictures(tmp_path / "in", [(8, 8)] * 12)
    pictures(tmp_path / "in" / "a", [(8, 8)] * 8)
    pictures(tmp_path / "in" / "a" / "b", [(8, 8)] * 6)
    with pytest.raises(ValueError, match=r"both beside and inside folders such as .a.; .*--labels ignore"):
        prepare(tmp_path / "in", tmp_path / "out", Options())
    for number in range(12):
        pictures(tmp_path / "each" / f"{number}", [(8, 8)])
    for name, rows in (("in", 26), ("each", 12)):
        for labels in ("ignore", "optional"):
            card = prepare(tmp_path / name, tmp_path / "out", Options(labels=labels, test_fraction=0))
            assert (card.split("train").count, card.num_classes) == (rows, 0)
        assert any("no classes" in note for note in card.notes)
    (tmp_path / "in" / "a").rename(tmp_path / "in" / "test")
    with pytest.raises(ValueError, match="both beside and inside"):
        prepare(tmp_path / "in", tmp_path / "out", Options(labels="ignore"))
