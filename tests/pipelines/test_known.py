"""Pictures of what is known of a canvas: read as data are stored, and refused where they are no such thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import one_line
from torch import Tensor

from indm_core.collage import BlockMeans, Grey, Pixels, chain
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.known import Known, known_of

GRAPH = chain(2, 8, 4)
COLOURS = DataSpec(name="colours", shape=(3, 8, 8), levels=256, low=-1.0, high=1.0, num_classes=0)
SEQUENCES = DataSpec(name="sequences", shape=(2, 8), levels=0, low=-1.0, high=1.0, num_classes=0)


def rows_of(spec: DataSpec) -> Tensor:
    return torch.arange(3 * spec.num_dims).reshape(3, *spec.shape) % 256


def known(spec: DataSpec = COLOURS, **conditions) -> Known:
    found = known_of(Conditions(**conditions), GRAPH, (*spec.shape[:-1], 12), spec, Options(), lambda: rows_of(spec))
    assert found is not None
    return found


@pytest.fixture
def picture(tmp_path: Path) -> tuple[str, np.ndarray]:
    """A picture of a canvas of 8 x 12, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    return str(tmp_path / "colours.png"), pixels


def test_a_picture_is_read_channel_by_channel(picture, tmp_path):
    file, pixels = picture
    found = known(known=file, colourise=True)
    assert torch.equal(found.k[0], torch.from_numpy(pixels).permute(2, 0, 1).long())
    assert found.observation == Grey(3)
    small = known(known=file, super_resolve=4)
    assert small.observation == BlockMeans(4)
    assert torch.equal(small.k, found.k)
    np.save(tmp_path / "colours.npy", pixels.transpose(2, 0, 1))
    again = known(known=str(tmp_path / "colours.npy"), colourise=True)
    assert torch.equal(again.k, found.k)
    assert again.digest == found.digest


def test_a_mask_is_white_where_something_is_known(picture, tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 7:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask > 0)
    found = [known(known=picture[0], mask=str(tmp_path / name)) for name in ("mask.png", "mask.npy")]
    for one in found:
        assert isinstance(one.observation, Pixels)
        assert torch.equal(one.observation.known, torch.from_numpy(mask > 0))
    assert found[0].digest == found[1].digest != known(known=picture[0], super_resolve=2).digest


def test_sequences_are_joined_from_arrays(tmp_path):
    ends = [np.random.default_rng(i).normal(size=(2, 8)).astype(np.float32) for i in range(2)]
    for i, end in enumerate(ends):
        np.save(tmp_path / f"{i}.npy", end)
    words = tuple(str(tmp_path / f"{i}.npy") for i in range(2))
    found = known_of(
        Conditions(between=words), chain(3, 8, 4), (2, 16), SEQUENCES, Options(), lambda: rows_of(SEQUENCES)
    )
    assert found is not None
    assert isinstance(found.observation, Pixels)
    assert found.observation.known.all()
    assert torch.equal(found.k[0], torch.from_numpy(np.concatenate(ends, 1)))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((3, 8, 12), 256), ("holds what is no level", "0 to 255")),
        (np.full((3, 8, 12), 0.5), ("holds what is no level",)),
        (np.full((3, 8, 12), np.nan), ("holds what is no number",)),
        (np.zeros((3, 12, 8)), ("its shape is 3x12x8, and the canvas is 3x8x12",)),
        (np.zeros((8, 12)), ("its shape is 8x12",)),
        (np.array(["a"]), ("no array of numbers",)),
    ],
    ids=["too large", "between levels", "nan", "turned", "without channels", "text"],
)
def test_an_array_that_is_no_canvas_is_refused(array, said, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        known(known=str(tmp_path / "a.npy"), colourise=True)
    one_line(str(caught.value), f"known={tmp_path / 'a.npy'}: ", *said)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="no array that can be read"):
        known(known=str(tmp_path / "a.npy"), colourise=True)


def test_masks_that_say_nothing_are_refused(picture, tmp_path):
    for name, mask, said in (
        ("a", np.zeros((8, 12)), "nothing in it is white"),
        ("b", np.ones((8, 11)), "its shape is 8x11"),
    ):
        np.save(tmp_path / f"{name}.npy", mask)
        with pytest.raises(ValueError, match=f"mask=.*{said}"):
            known(known=picture[0], mask=str(tmp_path / f"{name}.npy"))
    with pytest.raises(ValueError, match="no picture that can be read"):
        known(known=picture[0], mask=str(tmp_path / "absent.png"))
