"""Pictures that canvases are drawn under are read by the rules of training data, and what is broken is said in one sentence."""

from __future__ import annotations

import io
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import one_line

from indm_core.collage import Pixels, chain
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.known import Known, known_of

COLOURS = DataSpec(name="colours", shape=(3, 8, 8), levels=256, low=-1.0, high=1.0, num_classes=0)
GREYS = DataSpec(name="greys", shape=(1, 8, 8), levels=256, low=-1.0, high=1.0, num_classes=0)
VALUES = DataSpec(name="values", shape=(1, 8, 8), levels=0, low=-1.0, high=1.0, num_classes=0)
RNG = np.random.default_rng(0)


def known(spec: DataSpec = GREYS, options: Options | None = None, **conditions) -> Known:
    rows = torch.zeros(3, *spec.shape, dtype=torch.long)
    graph, shape = chain(2, 8, 4), (*spec.shape[:-1], 12)
    found = known_of(Conditions(**conditions), graph, shape, spec, options or Options(), lambda: rows)
    assert found is not None
    return found


def refusal(*, spec: DataSpec = GREYS, **conditions) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        known(spec, **conditions)
    assert "allow_pickle" not in str(caught.value)
    return str(caught.value)


def seen(found: Known) -> np.ndarray:
    assert isinstance(found.observation, Pixels)
    return found.observation.known.numpy()


@pytest.fixture
def grey(tmp_path: Path) -> str:
    """A picture of the canvas."""
    Image.fromarray(RNG.integers(0, 256, (8, 12)).astype(np.uint8)).save(tmp_path / "grey.png")
    return str(tmp_path / "grey.png")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_taken(suffix, grey, tmp_path):
    deep = RNG.integers(0, 1 << 16, (8, 12)).astype(np.uint16)
    file = str(tmp_path / f"deep.{suffix}")
    Image.fromarray(deep).save(file)
    assert (known(known=file, super_resolve=2).k[0, 0].numpy() == deep >> 8).all()
    assert (seen(known(known=grey, mask=file)) == (deep >= 1 << 15)).all()


def test_photographs_are_turned_as_their_exif_says(tmp_path):
    stored = RNG.integers(0, 256, (12, 8)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    found = known(known=str(tmp_path / "turned.png"), mask=str(tmp_path / "turned.png"))
    assert (found.k[0, 0].numpy() == np.rot90(stored, -1)).all()
    assert (seen(found) == (np.rot90(stored, -1) >= 128)).all()


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_what_is_transparent_lies_on_the_background_of_the_training_data(background, level, tmp_path):
    pixels = RNG.integers(1, 255, (8, 12, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    pixels[:, :5, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = known(COLOURS, Options(background=background), known=str(tmp_path / "a.png"), super_resolve=2).k[0].numpy()
    assert (found[:, :, :5] == level).all()
    assert (found[:, :, 5:] == pixels[:, 5:, :3].transpose(2, 0, 1)).all()


def test_a_picture_in_alpha_alone_is_refused(tmp_path):
    pixels = np.full((8, 12, 4), 255, np.uint8)
    pixels[:, :5, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    said = refusal(spec=COLOURS, known=str(tmp_path / "a.png"), super_resolve=2)
    one_line(said, "cannot be seen on background=white", "give another file")
    assert "--background" not in said


def test_a_mask_is_white_not_transparent(grey, tmp_path):
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[2:4, :, :3], pixels[..., 3] = 128, 255
    pixels[5:, :, :3] = 127
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    assert (seen(known(known=grey, mask=str(tmp_path / "opaque.png"))) == (pixels[..., 0] >= 128)).all()
    pixels[0, 0, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    one_line(refusal(known=grey, mask=str(tmp_path / "alpha.png")), "mask=", "transparent", "without transparency")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.full((8, 12), np.nan), "neither 0 nor 1"),
        (np.full((8, 12), 255, np.uint8), "neither 0 nor 1"),
        (np.full((8, 12), 0.5), "neither 0 nor 1"),
        (np.ones((1, 8, 12), bool), "its shape is 1x8x12, and a mask has no channels; give one of 8x12"),
        (np.ones(12, bool), "its shape is 12, and the canvas is 8x12"),
        (np.array(True), "its shape is (), and the canvas is 8x12"),
    ],
    ids=["nan", "255", "half", "channels", "columns", "number"],
)
def test_masks_that_are_arrays_are_of_0_and_1(mask, said, grey, tmp_path):
    np.save(tmp_path / "mask.npy", mask)
    one_line(refusal(known=grey, mask=str(tmp_path / "mask.npy")), "mask=", said)


def test_masks_of_numbers_and_of_truths_are_the_same(grey, tmp_path):
    mask = RNG.integers(0, 2, (8, 12))
    for name, array in {"a": mask, "b": mask.astype(bool), "c": mask.astype(np.float32)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert (seen(known(known=grey, mask=str(tmp_path / f"{name}.npy"))) == mask).all()


def array_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def broken_png() -> bytes:
    """A chunk whose checksum is wrong."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(stream, "PNG")
    whole = bytearray(stream.getvalue())
    whole[whole.index(b"IDAT") + 6] ^= 255
    return bytes(whole)


def lying_png() -> bytes:
    """A chunk that is longer than the file."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(stream, "PNG")
    head = b"IHDR" + (b"\0\0\0\x0c\0\0\0\x08") + b"\x63\x07\0\0\0"
    return stream.getvalue()[:8] + b"\0\0\0\x0d" + head + zlib.crc32(head).to_bytes(4, "big") + b"\0\0\0\0oops"


WHOLE = array_file(np.zeros((1, 8, 12)))
BROKEN = {
    "header.npy": WHOLE[:10] + WHOLE[10:].replace(b"}", b"(", 1),
    "bytes.npy": WHOLE[:10] + b"\xff\x00" * 30,
    "short.npy": WHOLE[:-8],
    "cut.npy": WHOLE[:9],
    "empty.npy": b"",
    "text.npy": b"1 2 3\n",
    "pickle.npy": pickle.dumps([1, 2]),
    "float.png": b"",
    "chunk.png": broken_png(),
    "lying.png": lying_png(),
    "text.png": b"no picture",
    "empty.png": b"",
    "two.npz": b"PK",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("option", ["known", "mask"])
def test_broken_files_are_told_in_one_sentence(name, option, grey, tmp_path):
    file = tmp_path / name
    file.write_bytes(BROKEN[name])
    if name == "float.png":
        file = tmp_path / "float.tif"
        Image.fromarray(np.zeros((8, 12), np.float32)).save(file)
    given = {"known": str(file), "super_resolve": 2} if option == "known" else {"known": grey, "mask": str(file)}
    one_line(refusal(**given), f"{option}={file}: ", "give" if name != "two.npz" else "several arrays")


def test_an_array_in_capitals_is_one(tmp_path):
    k = RNG.integers(0, 256, (1, 8, 12))
    (tmp_path / "K.NPY").write_bytes(array_file(k))
    assert (known(known=str(tmp_path / "K.NPY"), super_resolve=2).k[0].numpy() == k).all()


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.npy", "pipe.png"):
        one_line(refusal(known=str(tmp_path / name), super_resolve=2), "it is a pipe or a device", "give a file")
    one_line(refusal(known=str(tmp_path), super_resolve=2), "it is a folder")
    one_line(refusal(known=str(tmp_path / "absent.png"), super_resolve=2), "there is no such file")


def test_values_that_are_too_large_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 8, 12), 1e300))
    one_line(refusal(spec=VALUES, known=str(tmp_path / "a.npy"), super_resolve=2), "no number")


@pytest.mark.parametrize("word", ["test:3", "test:-1", "test:x", "test:", "train:1", "valid:0"])
def test_test_images_are_given_by_their_numbers(word):
    one_line(refusal(known=word, super_resolve=2), f"known={word}: there are 3 test images; give test:0 to test:2")


def test_a_small_picture_has_a_pixel_for_each_block(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "small.png")
    said = refusal(known=str(tmp_path / "small.png"), super_resolve=4)
    one_line(said, "its shape is 1x5x5", "the canvas is 1x8x12", "or of 1x2x3, a pixel for each block")
    one_line(refusal(known=str(tmp_path / "small.png"), super_resolve=3), "super_resolve=3: it must divide the sides")


def test_data_without_levels_take_arrays_alone(grey, tmp_path):
    one_line(
        refusal(spec=VALUES, known=grey, super_resolve=2), "data without levels are no pictures", "give a .npy file"
    )
    k = RNG.normal(size=(1, 8, 12)).astype(np.float32)
    np.save(tmp_path / "k.npy", k)
    assert (known(VALUES, known=str(tmp_path / "k.npy"), mask=grey).k[0].numpy() == k).all()
