"""Files that canvases are drawn under: pictures by the rules of training data (`readers.images`), and arrays in .npy files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.readers.images.decode import DEEP, has_alpha, header, opaque, upright
from pipelines.data.source import Options
from pipelines.storage.messages import one_line
from pipelines.storage.paths import local_path

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MODES", "array", "is_array", "levels", "mask_of_picture", "picture"]

MODES = {1: "L", 3: "RGB"}
"""Of pictures, by their channels."""
NUMPY = b"\x93NUMPY"
"""What a .npy file begins with."""
LOSSY = ("JPEG", "WEBP")
"""Formats that change grey levels, or may."""


def is_array(word: str) -> bool:
    """Whether a file is an array by its name."""
    return word.lower().endswith((".npy", ".npz"))


def picture(option: str, word: str, channels: int, options: Options) -> np.ndarray:
    """The pixels of a picture, (c, h, w) of 8 bits.

    Args:
        option: The name of its option.
        word: A file.
        channels: 1 or 3.
        options: How the training data were read: `orient` and `background`.

    Raises:
        ValueError: it cannot be read, or cannot be seen on the background.
    """
    encoded = _read(option, word, "picture")
    try:
        image = opaque(upright(encoded, options)[0], options.background, [])
    except ValueError as error:
        said = str(error).removesuffix("; give --background")
        raise ValueError(f"{option}={word}: is no picture that can be read ({said}); give another file") from None
    pixels = np.asarray(image.convert(MODES[channels]), np.uint8).reshape(image.height, image.width, channels)
    return np.moveaxis(pixels, -1, 0)


def mask_of_picture(word: str, options: Options) -> np.ndarray:
    """Where a picture is at least half white, (h, w).

    Raises:
        ValueError: it cannot be read, or has transparent pixels, which are neither white nor black.
    """
    return np.asarray(_solid("mask", word, options, "a mask, white where something is known").convert("L")) >= 128


def levels(option: str, word: str) -> np.ndarray:
    """The grey levels of a picture, (h, w) of 8 bits.

    Raises:
        ValueError: it cannot be read, has transparent pixels, has colours that are not grey, or may hold other levels than
            were meant: of 1 or 16 bits, or of a format that changes them.
    """
    image = _solid(option, word, Options(), "a picture whose grey levels are classes", exact=True)
    if image.mode == "L":
        return np.asarray(image)
    rgb = np.asarray(image)
    if (rgb != rgb[..., :1]).any():
        raise ValueError(f"{option}={word}: has colours; give a picture whose grey levels are classes")
    return rgb[..., 0]


def _solid(option: str, word: str, options: Options, what: str, *, exact: bool = False) -> Image:
    """A picture without transparent pixels, grey or RGB.

    Args:
        exact: Whether each level counts, so that what may have changed them is refused.
    """
    encoded = _read(option, word, "picture")
    try:
        changed = _changed(header(encoded)) if exact else ""
        image, _ = upright(encoded, options)
    except ValueError as error:
        raise ValueError(f"{option}={word}: is no picture that can be read ({error}); give another file") from None
    if changed:
        raise ValueError(f"{option}={word}: {changed}; give a PNG of 8 bits, or a .npy file")
    if has_alpha(image):
        image = image.convert("RGBA")
        if image.getchannel(3).getextrema() != (255, 255):
            raise ValueError(f"{option}={word}: some of its pixels are transparent; give {what}, without transparency")
    return image if image.mode == "L" else image.convert("RGB")


def _changed(image: Image) -> str:
    """Why the levels of a picture may be others than those that were meant; '' where they are not."""
    if image.format in LOSSY:
        return f"{image.format} does not keep grey levels as they are"
    if image.mode == "1":
        return "is of 1 bit, whose white is no grey level"
    return "is of 16 bits, and grey levels are of 8" if image.mode in DEEP else ""


def array(option: str, word: str) -> np.ndarray:
    """The numbers of a .npy file; nothing is unpickled.

    Raises:
        ValueError: it is none, is damaged, or holds no numbers.
    """
    if word.lower().endswith(".npz"):
        raise ValueError(
            f"{option}={word}: an .npz file holds several arrays; save the one that is meant as a .npy file"
        )
    encoded = _read(option, word, "array")
    if not encoded.startswith(NUMPY):
        raise ValueError(
            f"{option}={word}: is no array that can be read (it does not begin as .npy files do); give a .npy file"
        )
    try:
        found = np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # numpy's parser of damaged headers raises almost anything
        why = "it holds objects" if "allow_pickle" in str(error) else one_line(error, 200)
        raise ValueError(
            f"{option}={word}: is no array that can be read ({why}); give a .npy file of numbers"
        ) from None
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{option}={word}: is no array of numbers; give a .npy file of them")
    return found


def _read(option: str, word: str, what: str) -> bytes:
    path = local_path(word, option)
    try:
        if path.is_file():
            return path.read_bytes()
        why = _kind(path)
    except OSError as error:
        why = one_line(error)
    raise ValueError(f"{option}={word}: is no {what} that can be read ({why}); give a file")


def _kind(path: Path) -> str:
    """What a path is that is no plain file; reading a pipe would wait for ever."""
    if path.is_dir():
        return "it is a folder"
    return "it is a pipe or a device" if path.exists() else "there is no such file"
