"""An encoded image becomes an array (c, h, w) of 8 bits, the same way for all images of a data set: `Fit`, `fit_to`, `decoded`.

    channels      c = 1 when all images are grey, else 3, or as `channels` says; a palette is as grey as its entries in use
    depth         of 16 bits the upper 8 are taken
    orientation   photographs are turned as their EXIF says, unless `orient` is false (Pillow turns a TIFF always)
    alpha         transparent pixels are laid on `background`; a picture that cannot be seen there, because it is of its colour
                  or lies in alpha alone, is a bad row
    size          `crop` cuts the centre square of that side, `size` resizes by an antialiased bicubic filter and rounds to
                  8 bits again (CelebA: crop 140, size 64); without them the most frequent size of 16 images is that of all,
                  or with `fit` common a side that fits them

An image that does not decode, is larger than Pillow's safety limit, or has another shape than the others is a bad row; only a
folder of images of different sizes without `size` is an error at once. What else is done to an image (turned, laid on the
background, made grey, cut to its first frame) is counted.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipelines.data.card import one_line
from pipelines.data.source import Chunk, Options

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DEEP",
    "PROBED",
    "SUFFIXES",
    "Fit",
    "Picture",
    "WrongSize",
    "decoded",
    "fit_to",
    "has_alpha",
    "header",
    "opaque",
    "upright",
]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
"""Decoders that hostile bytes may reach: none of them starts another program, as EPS would."""
SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
"""Of files that are taken for images."""

DEEP = {"I;16", "I;16B", "I;16L"}
"""Pillow's modes of grey images of 16 bits; of colours it decodes the upper 8 by itself."""
GREY = {"1", "L", "LA"} | DEEP
COLOUR = {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}
PROBED = 16
"""Images whose sizes are compared."""
LARGEST = 64
"""Side of images that are brought to a common size."""
ORIENTATION = 0x0112
"""EXIF's tag; 1 is upright."""


class Picture(NamedTuple):
    """An encoded image that is not read yet, and its name."""

    read: Callable[[], bytes]
    name: str


class WrongSize(ValueError):
    """An image whose size is not the data set's."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an encoded image becomes an array, the same for every image of a data set.

    Args:
        channels: 1 or 3.
        height, width: of the result.
        options: crop, size, orient and background.
        reference: name of an image that has this size, for messages.
    """

    channels: int
    height: int
    width: int
    options: Options
    reference: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        return self.channels, self.height, self.width

    def decode(self, encoded: bytes) -> tuple[np.ndarray, list[str]]:
        """The image as uint8 (c, h, w), and what was done to it.

        Raises:
            ValueError: it does not decode or does not fit; `WrongSize` when only `size` is missing.
        """
        image, done = upright(encoded, self.options)
        image = opaque(image, self.options.background, done)
        if self.channels == 1 and image.mode != "L":
            done.append("made grey")
        if self.options.fit == "common" and image.size != (self.width, self.height):
            done.append(
                f"cut to a square and resized to {_sides((self.width, self.height))} (--size sets another side)"
            )
        image = _cut(image.convert("L" if self.channels == 1 else "RGB"), self.options)
        if image.size != (self.width, self.height):
            turned = " (turned as its EXIF says)" if "turned as EXIF says" in done else ""
            raise WrongSize(
                f"{_sides(image.size)}{turned} where {self.reference} is {_sides((self.width, self.height))}; give --size"
            )
        pixels = np.asarray(image, np.uint8).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), done


def fit_to(pictures: Iterable[Picture], options: Options) -> Fit:
    """How the images of a data set become arrays: the most frequent size of those read first, and whether all are grey.

    Args:
        pictures: All of them, some perhaps twice; they are read until nothing is left to find out.
        options: Those of images.

    Raises:
        ValueError: none can be read, or a background that is no colour.
    """
    _pillow()
    background = _colour(options.background)
    sizes: dict[str, tuple[int, int]] = {}
    grey, reason = options.channels != "colour", ""
    for picture in pictures:
        try:
            if len(sizes) < PROBED:
                image, _ = upright(picture.read(), options)
                sizes[picture.name] = _cut(image, options).size
            else:
                image = header(picture.read())
            if options.channels == "auto":
                grey = grey and _is_grey(image) and (not has_alpha(image) or len({*background}) == 1)
        except (ValueError, OSError) as error:
            reason = reason or f"{picture.name}: {one_line(error)}"
        if len(sizes) == PROBED and (not grey or options.channels != "auto"):
            break
    if not sizes:
        raise ValueError(f"{reason or 'no images'}; none of the images can be read")
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]
    reference = next(name for name, size in sizes.items() if size == (width, height))
    if options.fit == "common" and not options.size and (side := _common_side({*sizes.values()})):
        options, height, width = replace(options, size=side), side, side
    return Fit(channels=1 if grey else 3, height=height, width=width, options=options, reference=reference)


def _common_side(sizes: Collection[tuple[int, int]]) -> int:
    """The side that images of these sizes are brought to; 0 where they are equal and small and stay as they are."""
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= LARGEST:
        return size[0] if size[0] == size[1] else 0
    return min(LARGEST, 1 << int(median(map(min, sizes))).bit_length() - 1)


@dataclass
class _Attempt:
    """An image, or the reason why there is none, and what was done to it."""

    pixels: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    reason: str = ""
    done: list[str] = field(default_factory=list)


def decoded(batches: Iterable[list[Picture]], fit: Fit, *, strict: bool, first: int, threads: int) -> Iterator[Chunk]:
    """Consecutive rows of a split, decoded in parallel.

    Args:
        batches: Images, as many at a time as `piece_rows` says.
        fit: How they become arrays.
        strict: Whether an image of another size is an error.
        first: The row of the first image.
        threads: That decode.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for pictures in batches:
            parts = [
                pictures[start : start + 32] for start in range(0, len(pictures), 32)
            ]  # one task per tiny image is slower
            tried = pool.map(lambda part: [_attempt(fit, picture, strict) for picture in part], parts)
            found = list(chain.from_iterable(tried))
            good = np.array([not attempt.reason for attempt in found], bool)
            x = np.array([attempt.pixels for attempt in found if not attempt.reason], np.uint8).reshape(-1, *fit.shape)
            bad = tuple((first + index, attempt.reason) for index, attempt in enumerate(found) if attempt.reason)
            done = tuple(chain.from_iterable(attempt.done for attempt in found if not attempt.reason))
            yield Chunk(x, first + np.flatnonzero(good), bad, done)
            first += len(pictures)


def _attempt(fit: Fit, picture: Picture, strict: bool) -> _Attempt:
    try:
        pixels, done = fit.decode(picture.read())
        return _Attempt(pixels, done=done)
    except WrongSize as error:
        if strict:
            raise ValueError(f"{picture.name}: {error} to resize them all") from None
        return _Attempt(reason=str(error))
    except (ValueError, OSError) as error:
        return _Attempt(reason=one_line(error))


def _pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ValueError("image files are decoded by Pillow: pip install pillow") from None


def _colour(name: str) -> tuple[int, int, int]:
    """The background's colour."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(f"background={name!r}: give a colour's name, such as white or black, or #rrggbb") from None


def header(encoded: bytes) -> Image:
    """An image whose mode and size are known, and whose pixels are decoded when they are asked for."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 2**27):
            raise ValueError(f"{_sides(image.size)}, above Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels")
    except UnidentifiedImageError:
        what = f"{len(encoded)} bytes that are none of {', '.join(FORMATS)}" if encoded else "it is empty"
        raise ValueError(f"not a readable image ({what})") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ValueError(f"not a readable image ({one_line(error)[:200]})") from None
    if image.mode not in GREY | COLOUR:
        raise ValueError(f"mode {image.mode}, neither of 8 bits nor grey of 16")
    return image


def _open(encoded: bytes) -> Image:
    image = header(encoded)
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"not a readable image ({one_line(error)[:200]})") from None
    return image


def upright(encoded: bytes, options: Options) -> tuple[Image, list[str]]:
    """An image of 8 bits as it is meant to be looked at, and what was done.

    Raises:
        ValueError: it does not decode, or is neither of 8 bits nor grey of 16.
    """
    from PIL import ImageOps

    image = _open(encoded)
    frames = getattr(image, "n_frames", 1)
    done = ["cut to the first frame"] if frames > 1 and image.format in ("GIF", "PNG", "WEBP", "TIFF") else []
    try:
        turn = options.orient and image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block says nothing
        turn = False
    if turn:
        image, done = ImageOps.exif_transpose(image), [*done, "turned as EXIF says"]
    return (_upper_bits(image), [*done, "of 16 bits: the upper 8 are taken"]) if image.mode in DEEP else (image, done)


def _upper_bits(image: Image) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _is_grey(image: Image) -> bool:
    """Whether an image has no colours: by its mode, or by the entries of its palette that are used."""
    if image.mode not in ("P", "PA"):
        return image.mode in GREY
    used = np.unique(np.asarray(image.getchannel(0) if image.mode == "PA" else image))
    palette = np.array(image.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
    entries = palette[used[used < len(palette)]]
    return bool((entries == entries[:, :1]).all())


def has_alpha(image: Image) -> bool:
    """Whether an image says how transparent its pixels are."""
    return image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info


def opaque(image: Image, background: str, done: list[str]) -> Image:
    """An image as L or RGB, laid on the background where it is transparent.

    Raises:
        ValueError: what is in it cannot be seen on the background.
    """
    from PIL import Image as Pillow

    mode = "L" if _is_grey(image) else "RGB"
    if not has_alpha(image):
        return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)
    layers = image.convert("RGBA")
    if layers.getchannel(3).getextrema() == (255, 255):
        return layers.convert("RGB").convert(mode)
    colour = _colour(background)
    laid = Pillow.alpha_composite(Pillow.new("RGBA", image.size, (*colour, 255)), layers).convert("RGB")
    if _constant(laid) and not _constant(layers):
        raise ValueError(
            f"cannot be seen on background={background}: its picture is transparent or of that colour; give --background"
        )
    done.append(f"laid on background={background}")
    return laid.convert("L") if mode == "L" and len({*colour}) == 1 else laid


def _constant(image: Image) -> bool:
    """Whether all pixels are equal."""
    return all(low == high for low, high in np.array(image.getextrema()).reshape(-1, 2))


def _cut(image: Image, options: Options) -> Image:
    """The centre square of side `crop` (or the largest, when only `size` is given), resized to `size`."""
    from PIL import Image as Pillow

    crop, size = options.crop, options.size
    side = crop or (min(image.size) if size else 0)
    if side > min(image.size):
        raise ValueError(f"{_sides(image.size)} is smaller than crop={crop}")
    if side:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Pillow.Resampling.BICUBIC) if size and image.size != (size, size) else image


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
