"""Files of class maps that would be read as other classes than those that were meant are refused, and what is said."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines.config.terminal.help import describe
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.labels import condition_of
from pipelines.evaluation.collages.layout import Layout
from pipelines.evaluation.settings import SampleOptions

MODEL = SimpleNamespace(shape=(1, 8, 8), num_classes=2)
GRAPH = Layout(collage="grid", rows=1, cols=2, overlap=4).graph(MODEL.shape)
CLASSES = np.random.default_rng(0).integers(0, 2, (8, 12))


def told(file: Path, guidance: float = 0.0) -> np.ndarray:
    found = condition_of("a run", MODEL, Conditions(class_map=str(file)), GRAPH, guidance)  # pyright: ignore[reportArgumentType]
    assert found is not None
    return found.numpy()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", ">i4", "uint64", "float16", "float32", "longdouble"])
def test_classes_are_read_of_every_kind_of_number(dtype, tmp_path):
    np.save(tmp_path / "plain.npy", CLASSES)
    np.save(tmp_path / "map.npy", CLASSES.astype(dtype))
    np.testing.assert_array_equal(told(tmp_path / "map.npy"), told(tmp_path / "plain.npy"))


@pytest.mark.parametrize("number", [np.uint64(2**64 - 1), np.float64(1e300), np.float64(2.0**64), np.int64(-(2**63))])
def test_a_number_beyond_every_class_is_named_and_not_wrapped(number, tmp_path):
    classes = CLASSES.astype(number.dtype)
    classes[3, 4] = number
    np.save(tmp_path / "map.npy", classes)
    with pytest.raises(ValueError, match=r"class_map=.* is no class") as refusal:
        told(tmp_path / "map.npy")
    assert str(number) in str(refusal.value)


def test_a_single_number_has_a_size_that_can_be_said(tmp_path):
    np.save(tmp_path / "map.npy", np.array(1))
    with pytest.raises(ValueError, match="its size is a number, and the canvas is 8x12"):
        told(tmp_path / "map.npy")


@pytest.mark.parametrize(
    ("name", "levels", "why"),
    [
        ("deep.png", CLASSES.astype(np.uint16), "16 bits"),
        ("deep.tif", CLASSES.astype(np.uint16), "16 bits"),
        ("two.png", CLASSES.astype(bool), "1 bit"),
        ("photo.jpg", CLASSES.astype(np.uint8), "JPEG"),
        ("web.webp", CLASSES.astype(np.uint8), "WEBP"),
    ],
)
def test_pictures_whose_levels_may_have_changed_are_refused(name, levels, why, tmp_path):
    Image.fromarray(levels).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"class_map=.*{why}.*; give a PNG of 8 bits, or a .npy file"):
        told(tmp_path / name)


def test_guidance_towards_a_map_of_none_is_refused(tmp_path):
    np.save(tmp_path / "map.npy", np.full((8, 12), -1))
    assert (told(tmp_path / "map.npy") == [1, 0, 0]).all()
    with pytest.raises(ValueError, match=r"guidance=2: it leads nowhere, because class_map=.* holds no class"):
        told(tmp_path / "map.npy", 2.0)


def test_the_help_says_of_every_condition_what_it_is():
    lines = describe(SampleOptions(), "conditions").splitlines()
    for field in fields(Conditions):
        (line,) = (line for line in lines if line.split()[0] == f"--{field.name.replace('_', '-')}")
        assert len(line.split()) > 2, line
