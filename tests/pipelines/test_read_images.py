"""Encoded images come back pixel by pixel; damaged ones are counted, misfits named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sources import WHOLE, pixels, png, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.source import Options


def hub(file: Path, images: list[bytes | None], label: list[int], image: str = "img", name: str = "label") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [None if encoded is None else {"bytes": encoded, "path": None} for encoded in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({image: pa.array(cells, kind), name: label}), file, row_group_size=7)


@pytest.mark.parametrize(("image", "name", "channels"), [("img", "label", 3), ("image", "fine_label", 1)])
def test_hub_parquet_round_trip(tmp_path: Path, image: str, name: str, channels: int) -> None:
    x, label = pixels(30, channels, 6, 5), [int(value) for value in np.arange(30) % 4]
    images = [png(row) for row in x]
    hub(tmp_path / "hf" / "data" / "train-00000-of-00002.parquet", images[:9], label[:9], image, name)
    hub(tmp_path / "hf" / "data" / "train-00001-of-00002.parquet", images[9:20], label[9:20], image, name)
    hub(tmp_path / "hf" / "data" / "test-00000-of-00001.parquet", images[20:], label[20:], image, name)
    card = prepare(tmp_path / "hf", tmp_path / "out")
    assert (card.shape, card.num_classes, list(card.splits)) == ((channels, 6, 5), 4, ["train", "test"])
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        np.testing.assert_array_equal(stored(tmp_path / "out", split)[0], x[part])
        np.testing.assert_array_equal(stored(tmp_path / "out", split)[1], label[part])


def test_corrupt_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    x = pixels(200, 3, 6, 5)
    images: list[bytes | None] = [png(row) for row in x]
    images[17], images[100] = images[17][:60], png(pixels(3, 7, 5))  # pyright: ignore[reportOptionalSubscript]
    file = tmp_path / "hf" / "train-0.parquet"
    hub(file, images, [0] * 200)
    card = prepare(file, tmp_path / "out", WHOLE)
    assert (card.split("train").count, card.split("train").skipped) == (198, 2)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], np.delete(x, [17, 100], axis=0))
    held = prepare(file, tmp_path / "held", Options(test_fraction=0.5))
    assert sum(split.skipped for split in held.splits.values()) == 2
    assert sum(split.count for split in held.splits.values()) == 198
    images[150] = None
    hub(file, images, [0] * 200)
    refused(file, tmp_path / "out", f"{file} row 17", "3 of 200 rows", "max_skip=0.01")
    prepare(file, tmp_path / "out", Options(test_fraction=0, max_skip=0.02))


def test_strange_hub_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"pixels": [1], "label": [0]}), file)
    refused(file, tmp_path / "out", str(file), "pixels, label", "img or image")
    hub(file, [png(pixels(3, 4, 4))] * 4, [0, 1, -7, 0])
    refused(file, tmp_path / "out", f"{file} row 2", "label -7")
    file.write_bytes(file.read_bytes()[:-20])
    refused(file, tmp_path / "out", str(file), "not a readable Parquet")


def put(file: Path, x: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(x))


def test_class_folders_round_trip(tmp_path: Path) -> None:
    x = pixels(12, 3, 5, 4)
    for index, row in enumerate(x):
        split, kind = ("train", "valid")[index // 8], ("cat", "ant", "bee", "dog")[index % 4]
        put(tmp_path / "in" / split / kind / f"{index:02d}.png", row)
    (tmp_path / "in" / "readme.txt").touch()
    card = prepare(tmp_path / "in", tmp_path / "out")
    assert (list(card.splits), card.num_classes) == (["train", "test"], 4)
    order = [1, 5, 2, 6, 0, 4, 3, 7]
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], x[order])
    np.testing.assert_array_equal(stored(tmp_path / "out")[1], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(stored(tmp_path / "out", "test")[0], x[[9, 10, 8, 11]])


def test_crop_and_resize(tmp_path: Path) -> None:
    """An image that is constant on blocks of the reduction survives; what lies outside the crop does not matter."""
    small = pixels(10, 3, 4, 4)
    for index, row in enumerate(small):
        wide = pixels(3, 30, 20 + index, seed=index)
        left, top = (20 + index - 12) // 2, 9
        wide[:, top : top + 12, left : left + 12] = (row[:, :1, :1] // 2).repeat(12, 1).repeat(12, 2)
        put(tmp_path / "in" / f"{index}.png", wide)
    card = prepare(tmp_path / "in", tmp_path / "out", Options(crop=12, size=4, test_fraction=0))
    assert (card.shape, card.num_classes) == ((3, 4, 4), 0)
    x, label = stored(tmp_path / "out")
    assert (label == -1).all()
    np.testing.assert_array_equal(x, np.broadcast_to(small[:, :, :1, :1] // 2, x.shape))
    cropped = prepare(tmp_path / "in", tmp_path / "crop", Options(crop=12, test_fraction=0))
    assert cropped.shape == (3, 12, 12)
    refused(tmp_path / "in", tmp_path / "no", "smaller than crop=25", options=Options(crop=25))


def test_reducing_averages(tmp_path: Path) -> None:
    """Antialiasing: a fine checkerboard reduced eightfold is grey, not black or white."""
    board = (255 * (np.indices((64, 64)).sum(axis=0) % 2)).astype(np.uint8)[None]
    for index in range(3):
        put(tmp_path / "in" / f"{index}.png", board)
    prepare(tmp_path / "in", tmp_path / "out", Options(size=8, test_fraction=0))
    x, _ = stored(tmp_path / "out")
    assert x.shape == (3, 1, 8, 8)
    assert (np.abs(x.astype(int) - 127.5) < 12).all()


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        put(tmp_path / "in" / f"{index}.png", pixels(3, 6, 5 + (index == 3)))
    refused(tmp_path / "in", tmp_path / "out", "3.png: 6 x 6", "0.png is 5 x 6", "--size")
    put(tmp_path / "in" / "class" / "9.png", pixels(3, 6, 5))
    refused(tmp_path / "in", tmp_path / "out", "'class'", "beside and inside")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "out", "empty", "IDX")
    refused(tmp_path / "nothing", tmp_path / "out", "no such file or directory", "digits")


def test_kinds_of_images(tmp_path: Path) -> None:
    """Palette, alpha and grey images join a colour set, and grey ones of 16 bits; those of 32, decompression bombs and
    damage are corrupt rows."""
    x = pixels(3, 6, 5)
    for index in range(4):
        put(tmp_path / "in" / f"a{index}.png", x)
    image = Image.open(io.BytesIO(png(x)))
    image.convert("P").save(tmp_path / "in" / "b0.png", transparency=0)
    image.convert("RGBA").save(tmp_path / "in" / "b1.png")
    image.convert("L").save(tmp_path / "in" / "b2.png")
    Image.fromarray(pixels(6, 5).astype(np.uint16) * 256 + 77).save(tmp_path / "in" / "b3.png")
    Image.fromarray(pixels(6, 5).astype(np.float32)).save(tmp_path / "in" / "c0.tif")
    (tmp_path / "in" / "c1.png").write_bytes(b"\x89PNG\r\n")
    Image.new("1", (20_000, 9_000)).save(tmp_path / "in" / "c2.png")
    options = Options(test_fraction=0, max_skip=0.5)
    card = prepare(tmp_path / "in", tmp_path / "out", options)
    assert (card.split("train").count, card.split("train").skipped) == (8, 3)
    assert any(note.startswith("1 image of 16 bits") for note in card.notes)
    found, _ = stored(tmp_path / "out")
    np.testing.assert_array_equal(found[5], x)
    np.testing.assert_array_equal(found[6], np.broadcast_to(np.array(image.convert("L")), (3, 6, 5)))
    np.testing.assert_array_equal(found[7], np.broadcast_to(pixels(6, 5), (3, 6, 5)))
    refused(tmp_path / "in", tmp_path / "no", "c0.tif", "mode F", options=Options(test_fraction=0, max_skip=0.05))
