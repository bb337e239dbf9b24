"""Classes of the regions of a canvas from a map of its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from indm_core import INDM, VP, Identity, UNet
from indm_core.collage import FactorGraph, chain, grid
from pipelines.config.weights import Weights
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.labels import condition_of
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.settings import SampleOptions

CHAIN, GRID = chain(2, 8, 4), grid(2, 2, 8, 4)
CLASSES = 3


def told(graph: FactorGraph, num_classes: int = CLASSES, **conditions) -> Tensor:
    shape = (1, 8, 8)
    unet = UNet(
        shape,
        time_feature=lambda t: 999 * t,
        nf=8,
        ch_mult=(1,),
        num_res_blocks=1,
        attention=(),
        num_classes=num_classes,
    )
    model = INDM(Identity(), unet, VP(), shape=shape, num_classes=num_classes)
    found = condition_of(Weights(run=Path("runs/r")), model, Conditions(**conditions), graph)
    assert found is not None
    return found


def saved(classes: np.ndarray, folder: Path, kind: str = "npy") -> str:
    if kind == "npy":
        np.save(folder / "map.npy", classes)
    elif kind == "grey":
        Image.fromarray(classes.astype(np.uint8)).save(folder / "map.png")
    else:
        Image.fromarray(np.stack([classes.astype(np.uint8)] * 3, -1)).save(folder / "map.png")
    return str(folder / ("map.npy" if kind == "npy" else "map.png"))


def test_each_region_is_told_the_share_of_each_class(tmp_path):
    classes = np.random.default_rng(0).integers(-1, CLASSES, (12, 12))
    found = told(GRID, class_map=saved(classes, tmp_path))
    assert found.shape == (9, 1 + CLASSES)
    for region, weights in zip(GRID.regions, found, strict=True):
        here = classes.flatten()[region.index.flatten().numpy()]
        share = [np.mean(here == y) for y in range(-1, CLASSES)]
        torch.testing.assert_close(weights, torch.tensor(share, dtype=weights.dtype))


def test_a_chain_is_told_what_its_whole_height_shows(tmp_path):
    classes = np.zeros((8, 12), int)
    classes[:2, :6] = 2
    found = told(CHAIN, class_map=saved(classes, tmp_path))
    at = [(0, 8), (4, 12), (4, 8)]  # two pieces, and what they share
    for weights, (a, b) in zip(found, at, strict=True):
        torch.testing.assert_close(weights[3], torch.tensor(np.mean(classes[:, a:b] == 2), dtype=weights.dtype))
    torch.testing.assert_close(found.sum(-1), torch.ones(3))


@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_a_picture_says_none_by_white(tmp_path, kind):
    small = np.array([[0, 255, 2]])
    found = told(CHAIN, class_map=saved(small, tmp_path, kind))
    whole = np.array([[0, -1, 2]]).repeat(8, 0).repeat(4, 1)
    torch.testing.assert_close(found, told(CHAIN, class_map=saved(whole, tmp_path)))


def test_one_class_everywhere_is_that_class(tmp_path):
    found = told(CHAIN, class_map=saved(np.full((1, 1), 1), tmp_path))
    assert found.tolist() == [[0, 0, 1, 0]] * 3


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (np.zeros((8, 11), int), ("8x11", "8x12", "divisor")),
        (np.zeros(12, int), ("12", "8x12")),
        (np.zeros((0, 12), int), ("0x12",)),
        (np.full((8, 12), 3), ("3 is no class", "0 to 2")),
        (np.full((8, 12), -2), ("-2 is no class",)),
        (np.full((8, 12), 0.5), ("no class", "whole numbers")),
        (np.full((8, 12), np.nan), ("no class", "whole numbers")),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path, classes, words):
    file = saved(classes, tmp_path)
    with pytest.raises(ValueError, match="class_map=") as refusal:
        told(CHAIN, class_map=file)
    assert all(word in str(refusal.value) for word in (file, *words))


def test_colours_and_transparent_pixels_are_no_classes(tmp_path):
    colours = np.zeros((8, 12, 3), np.uint8)
    colours[0, 0, 1] = 1
    Image.fromarray(colours).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"class_map=.*has colours"):
        told(CHAIN, class_map=str(tmp_path / "colours.png"))
    Image.new("LA", (12, 8), (1, 0)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match=r"class_map=.*transparent"):
        told(CHAIN, class_map=str(tmp_path / "clear.png"))


def test_a_model_without_labels_takes_no_map(tmp_path):
    with pytest.raises(ValueError, match=r"class_map=.*without labels"):
        told(CHAIN, 0, class_map=saved(np.zeros((1, 1), int), tmp_path))


def test_a_map_leads_as_labels_do():
    with pytest.raises(ValueError, match="factor_labels"):
        Conditions(factor_labels=(1,), class_map="a.npy")
    with pytest.raises(ValueError, match=r"class_map=a.npy: join=tiles"):
        Conditions(class_map="a.npy").check(Layout(collage="chain", join="tiles"), "prior")
    chained = Layout(collage="chain")
    assert SampleOptions(guidance=1, conditions=Conditions(class_map="a.npy"), layout=chained).guidance == 1
    with pytest.raises(ValueError, match="class_map"):
        SampleOptions(label=(1,), conditions=Conditions(class_map="a.npy"), layout=chained)
    assert Conditions(class_map="/x/a.npy").name() == "map-a.npy"
