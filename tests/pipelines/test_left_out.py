"""What a preparation leaves out, skips or changes is said; what only looks strange is read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray_session import main_of
from sources import WHOLE, pixels, png, refused, stored

from pipelines.data.cache import ensure
from pipelines.data.ingest import prepare
from pipelines.data.source import Options


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


def put(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def hub(file: Path, cells: list[dict[str, object] | None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), file)


def test_the_command_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(8):
        put(tmp_path / "in" / "Train" / "ab"[index % 2] / f"{index}.png", png(pixels(3, 4, 4, seed=index)))
        put(tmp_path / "in" / "val" / "a" / f"{index}.png", png(pixels(3, 4, 4, seed=index)))
    put(tmp_path / "in" / "val" / "a" / "3.png", b"")
    put(tmp_path / "in" / "val" / "notes\x1b[2J.txt", b"")
    words = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--max-skip", "0.2"]
    assert main_of("prepare")(words) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("split "))) :]
    assert table[1].split() == ["train", "Train", "8", "2", "0"]
    first = tmp_path / "in" / "val" / "a" / "3.png"
    assert table[2].split(maxsplit=4)[:4] == ["test", "val", "7", "1"]
    assert table[2].endswith(f"1; 1: not a readable image (it is empty) (first {first})")
    assert table[3].startswith("-      .txt (val/notes?[2J.txt)")
    assert any("val serves as test" in line for line in lines)


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    for index in range(6):
        put(tmp_path / "in" / "ab"[index % 2] / f"{index}.png", png(pixels(3, 4, 4)))
    put(tmp_path / "in" / "a" / ".thumb.png", png(pixels(3, 2, 2)))
    put(tmp_path / "in" / ".git" / "objects" / "0.png", png(pixels(3, 2, 2)))
    put(tmp_path / "in" / "__MACOSX" / "a" / "0.png", b"")
    card = prepare(tmp_path / "in", tmp_path / "out", WHOLE)
    assert (card.split("train").count, card.num_classes) == (6, 2)
    assert {item.name: item.files for item in card.left_out} == {".git/": 1, "__MACOSX/": 1, "hidden files": 1}


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    """Also those that lead upwards, into each other or to a folder of the tree; a change behind a link is seen."""
    root, store = tmp_path / "in", tmp_path / "store"
    for index in range(3):
        put(store / "cat" / f"{index}.png", png(pixels(3, 4, 4)))
        put(root / "dog" / f"{index}.png", png(pixels(3, 4, 4)))
    (root / "cat").symlink_to(store / "cat")
    (root / "again").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (store / "cat" / "loop").symlink_to(store / "cat")
    directory = ensure(root, tmp_path / "data", WHOLE)
    card = prepare(root, tmp_path / "out", WHOLE)
    assert (card.split("train").count, card.num_classes) == (6, 2)
    assert {item.name for item in card.left_out} == {"again", "dog/up", "cat/loop"}
    assert all("read already" in item.reason for item in card.left_out)
    put(store / "cat" / "3.png", png(pixels(3, 4, 4)))
    before = (directory / "card.json").read_text()
    ensure(root, tmp_path / "data", WHOLE)
    assert (directory / "card.json").read_text() != before


def test_what_is_no_file_is_a_bad_row(tmp_path: Path) -> None:
    """A dangling link and a pipe, in the first places, among a hundred images."""
    for index in range(100):
        put(tmp_path / "in" / f"{index:03d}.png", png(pixels(3, 4, 4, seed=index)))
    (tmp_path / "in" / "00.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "01.png")
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, max_skip=0.02))
    assert (card.split("train").count, card.split("train").skipped) == (100, 2)
    assert [reason.split(" (first")[0] for reason in card.split("train").reasons] == [
        "1: a link to nowhere, which is not there",
        "1: not a regular file",
    ]


@pytest.mark.parametrize("suffix", ["jpe", "JFIF", "PNM"])
def test_other_endings_are_read(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.moveaxis(pixels(3, 4, 4), 0, -1))
    for index in range(3):
        put(tmp_path / "in" / f"{index}.{suffix}", encoded(image, "PPM" if suffix == "PNM" else "JPEG"))
    put(tmp_path / "in" / "photo.heic", b"")
    card = prepare(tmp_path / "in", tmp_path / "out", WHOLE)
    assert card.split("train").count == 3
    assert [(item.name, item.files) for item in card.left_out] == [(".heic (photo.heic)", 1)]


def test_an_empty_or_unreadable_beginning_does_not_decide(tmp_path: Path) -> None:
    hub(tmp_path / "hub" / "train-0.parquet", [])
    empty: dict[str, object] = {"bytes": b"", "path": None}
    good: dict[str, object] = {"bytes": png(pixels(3, 4, 4)), "path": None}
    hub(tmp_path / "hub" / "train-1.parquet", [*[empty] * 20, *[good] * 30])
    card = prepare(tmp_path / "hub", tmp_path / "out", Options(test_fraction=0, max_skip=0.5))
    assert (card.split("train").count, card.split("train").skipped, card.shape) == (30, 20, (3, 4, 4))
    for index in range(60):
        put(tmp_path / "in" / f"{index:02d}.png", b"no image" if index % 3 == 0 else png(pixels(3, 4, 4)))
    assert prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, max_skip=0.5)).split("train").count == 40


def test_rows_with_a_path_and_no_bytes_are_named(tmp_path: Path) -> None:
    good: list[dict[str, object] | None] = [{"bytes": png(pixels(3, 4, 4)), "path": "a.png"}] * 9
    hub(tmp_path / "train.parquet", [*good, {"bytes": None, "path": "/images/7.png"}, None])
    refused(tmp_path / "train.parquet", tmp_path / "out", "row 9", "a path ('/images/7.png') and no bytes")
    card = prepare(tmp_path / "train.parquet", tmp_path / "out", Options(test_fraction=0, max_skip=0.2))
    assert [reason.split(":")[1].split("(")[0].strip() for reason in card.split("train").reasons] == [
        "the row has a path",
        "the row has no image",
    ]


@pytest.mark.parametrize("at", [20, 39])
def test_one_colour_image_makes_a_set_colour(tmp_path: Path, at: int) -> None:
    for index in range(40):
        put(tmp_path / "in" / f"{index:02d}.png", png(pixels(3 if index == at else 1, 4, 4, seed=index)))
    card = prepare(tmp_path / "in", tmp_path / "out", WHOLE)
    assert (card.shape, card.split("train").skipped) == ((3, 4, 4), 0)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0][at], pixels(3, 4, 4, seed=at))
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, channels="grey"))
    assert (card.shape, card.notes) == ((1, 4, 4), ("1 image made grey",))


def test_grey_in_three_channels_is_said(tmp_path: Path) -> None:
    for index in range(4):
        put(tmp_path / "in" / f"{index}.png", png(np.repeat(pixels(1, 4, 4), 3, axis=0)))
    assert "grey in three equal channels" in prepare(tmp_path / "in", tmp_path / "out", WHOLE).notes[0]
    assert prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, channels="grey")).shape == (1, 4, 4)
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, channels="colour"))
    assert card.shape == (3, 4, 4)


def test_palettes_are_what_they_hold(tmp_path: Path) -> None:
    """A coloured entry that no pixel uses makes no colour; one that is used does; the values are the palette's."""
    index = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for used, channels in ((15, 3), (14, 1)):
        image = Image.fromarray(np.minimum(index, used), "P")
        image.putpalette([level for entry in range(15) for level in (17 * entry,) * 3] + [255, 0, 0])
        for name in "ab":
            put(tmp_path / f"in{channels}" / f"{name}.png", encoded(image))
        card = prepare(tmp_path / f"in{channels}", tmp_path / "out", WHOLE)
        assert card.shape == (channels, 4, 4)
        x = stored(tmp_path / "out")[0][0]
        np.testing.assert_array_equal(x[0].ravel()[:15], 17 * np.arange(15))
        assert x[:, 3, 3].tolist() == ([255, 0, 0] if channels == 3 else [17 * 14])


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("#000000", 0), ("red", 76)])
def test_transparency_is_laid_on_the_background(tmp_path: Path, background: str, level: int) -> None:
    """Grey ink of level 90, of which a row is opaque and a row is half there; also where one colour is declared transparent."""
    alpha = np.zeros((4, 4), np.uint8)
    alpha[0], alpha[1] = 255, 51
    image = Image.merge("LA", [Image.new("L", (4, 4), 90), Image.fromarray(alpha)])
    keyed = Image.fromarray(np.where(alpha == 255, 90, 7).astype(np.uint8))
    put(tmp_path / "in" / "a.png", encoded(image))
    put(tmp_path / "in" / "b.png", encoded(keyed, transparency=7))
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, background=background, channels="grey"))
    a, b = stored(tmp_path / "out")[0][:, 0].astype(int)
    assert card.notes[0] == f"2 images laid on background={background}"
    assert abs(a - np.array([[90] * 4, [round(0.2 * 90 + 0.8 * level)] * 4, [level] * 4, [level] * 4])).max() <= 1
    assert abs(b - np.array([[90] * 4, *[[level] * 4] * 3])).max() <= 1
    if background == "red":
        assert prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, background="red")).shape[0] == 3


def test_a_picture_that_cannot_be_seen_is_a_bad_row(tmp_path: Path) -> None:
    """White ink on white, and colours that are all transparent; on another background the ink is there."""
    alpha = np.zeros((4, 4), np.uint8)
    alpha[1:3] = 255
    for index in range(2):
        ink = Image.merge("LA", [Image.new("L", (4, 4), 255), Image.fromarray(alpha)])
        put(tmp_path / "ink" / f"{index}.png", encoded(ink))
        hidden = Image.fromarray(np.moveaxis(pixels(3, 4, 4), 0, -1)).convert("RGBA")
        hidden.putalpha(0)
        put(tmp_path / "hidden" / f"{index}.png", encoded(hidden))
    for name in ("ink", "hidden"):
        refused(tmp_path / name, tmp_path / "out", "cannot be seen on background=white", "give --background")
    prepare(tmp_path / "ink", tmp_path / "out", Options(test_fraction=0, background="black"))
    np.testing.assert_array_equal(stored(tmp_path / "out")[0][0, 0], alpha)
    refused(tmp_path / "ink", tmp_path / "out", "background='fog'", "#rrggbb", options=Options(background="fog"))


@pytest.mark.parametrize(("orientation", "turns"), [(6, 3), (3, 2), (8, 1)])
def test_photographs_are_turned_as_their_exif_says(tmp_path: Path, orientation: int, turns: int) -> None:
    x = np.zeros((8, 16, 3), np.uint8)
    x[:, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    for index in range(3):
        put(tmp_path / "in" / f"{index}.png", encoded(Image.fromarray(x), exif=exif))
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, channels="colour"))
    np.testing.assert_array_equal(stored(tmp_path / "out")[0][0], np.moveaxis(np.rot90(x, turns), -1, 0))
    assert "3 images turned as EXIF says" in card.notes
    card = prepare(tmp_path / "in", tmp_path / "out", Options(test_fraction=0, orient=False))
    np.testing.assert_array_equal(stored(tmp_path / "out")[0][0], np.moveaxis(x, -1, 0))


def test_the_other_frames_of_an_animation_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(4, 4, seed=seed)) for seed in range(3)]
    for index in range(2):
        put(tmp_path / "in" / f"{index}.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert "2 images cut to the first frame" in prepare(tmp_path / "in", tmp_path / "out", WHOLE).notes
