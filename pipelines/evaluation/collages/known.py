"""Pictures that canvases are drawn under: read, brought to the model's scale, and put in their places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from indm_core.collage import BlockMeans, FactorGraph, Grey, Observation, Pixels
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.storage.paths import local_path

__all__ = ["Known", "known_of"]

MODES = {1: "L", 3: "RGB"}
"""Of pictures, by their channels."""


@dataclass(frozen=True, eq=False)
class Known:
    """A canvas of which something is known.

    Args:
        k: The canvas as data are stored, (1, *shape).
        observation: What is known of it; None where sampling only starts from it.
        digest: A hash of both.
    """

    k: Tensor
    observation: Observation | None
    digest: str


def known_of(
    conditions: Conditions, graph: FactorGraph, shape: tuple[int, ...], spec: DataSpec, test: Callable[[], Tensor]
) -> Known | None:
    """What is known of a canvas; None where nothing is.

    Args:
        shape: Of the canvas.
        test: Reads the test images.

    Raises:
        ValueError: a picture that cannot be read or has another size, or an observation that the canvas does not allow.
    """
    reader = _Reader(spec, test)
    if conditions.between:
        return _ends(conditions.between, graph, shape, reader)
    if not conditions.known:
        return None
    k = reader.read("known", conditions.known, shape, "the canvas", max(1, conditions.super_resolve))[None]
    observation = _observation(conditions, shape, reader)
    seen = observation.known if isinstance(observation, Pixels) else torch.tensor([])
    return Known(k, observation, _digest(k, seen))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads pictures as data are stored: levels, or values."""

    spec: DataSpec
    test: Callable[[], Tensor]

    def read(self, option: str, word: str, shape: tuple[int, ...], what: str, side: int = 1) -> Tensor:
        """A picture of a shape, (*shape).

        Args:
            option: The name of its option.
            word: A file, or test:17.
            what: How a message calls what has this shape.
            side: Of blocks; a picture of one pixel for each is taken too.
        """
        kind, _, number = word.partition(":")
        if kind == "test" and number.isdecimal():
            rows = self.test()
            if int(number) >= len(rows):
                raise ValueError(
                    f"{option}={word}: there are {len(rows)} test images; give test:0 to test:{len(rows) - 1}"
                )
            found = rows[int(number)]
        elif word.endswith(".npy"):
            found = self._stored(option, word, _array(option, word))
        else:
            found = self._levels(option, word)
        if side > 1 and found.ndim == 3 and (found.shape[1] * side, found.shape[2] * side) == shape[1:]:
            found = BlockMeans(side).lift(found)
        if tuple(found.shape) != shape:
            raise ValueError(
                f"{option}={word}: its shape is {_said(found.shape)}, and {what} is {_said(shape)}; give one of that size"
            )
        return found

    def mask(self, word: str, shape: tuple[int, ...]) -> Tensor:
        """Where a picture is white, for all channels."""
        if word.endswith(".npy"):
            found = torch.from_numpy(_array("mask", word).astype(bool))
        else:
            found = torch.from_numpy(_picture("mask", word, "L") >= 128)
        if tuple(found.shape) != shape[-found.ndim :] or found.ndim not in (1, 2):
            raise ValueError(
                f"mask={word}: its shape is {_said(found.shape)}, and the canvas is {_said(shape)}; give one of that size"
            )
        if not found.any():
            raise ValueError(f"mask={word}: nothing in it is white; white is what is known")
        return found

    def _levels(self, option: str, word: str) -> Tensor:
        """A picture's channels (c, h, w) in levels."""
        channels = self.spec.shape[0]
        if len(self.spec.shape) != 3 or channels not in MODES:
            raise ValueError(
                f"{option}={word}: data of shape {_said(self.spec.shape)} are no pictures; give a .npy file"
            )
        pixels = torch.from_numpy(_picture(option, word, MODES[channels]))
        levels = (pixels * ((self.spec.levels - 1) / 255)).round().long()
        return levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)

    def _stored(self, option: str, word: str, array: np.ndarray) -> Tensor:
        """An array of levels or values as data are stored."""
        found = torch.from_numpy(array.astype(np.float64))
        levels = self.spec.levels
        if not found.isfinite().all():
            raise ValueError(f"{option}={word}: holds what is no number; give finite values")
        if not levels:
            return found.float()
        if (found != found.round()).any() or (found < 0).any() or (found >= levels).any():
            raise ValueError(f"{option}={word}: holds what is no level; give whole numbers from 0 to {levels - 1}")
        return found.long()


def _ends(words: tuple[str, ...], graph: FactorGraph, shape: tuple[int, ...], reader: _Reader) -> Known:
    """A chain of which the first and the last piece are known."""
    first, last = graph.factors[0].index, graph.factors[-1].index
    if set(first.tolist()) & set(last.tolist()):
        raise ValueError(
            f"between={','.join(words)}: the two ends of {len(graph.factors)} pieces share pixels; give more --num-factors, or "
            "a smaller --overlap"
        )
    ends = [reader.read("between", word, reader.spec.shape, "a piece") for word in words]
    k = ends[0].new_zeros(shape)
    known = torch.zeros(graph.shape, dtype=torch.bool)
    for index, end in zip((first, last), ends, strict=True):
        k[..., index], known[index] = end.to(k.dtype), True
    return Known(k[None], Pixels(known), _digest(k, known))


def _observation(conditions: Conditions, shape: tuple[int, ...], reader: _Reader) -> Observation | None:
    if conditions.mask:
        return Pixels(reader.mask(conditions.mask, shape))
    if conditions.super_resolve:
        side = conditions.super_resolve
        if len(shape) != 3 or any(length % side for length in shape[1:]):
            raise ValueError(
                f"super_resolve={side}: it must divide the sides of the canvas, {_said(shape)}; give another one"
            )
        return BlockMeans(side)
    if conditions.colourise:
        if len(shape) != 3 or shape[0] < 2:
            raise ValueError(f"colourise=true: the canvas, {_said(shape)}, has no colours; remove it")
        return Grey(shape[0])
    return None


def _picture(option: str, word: str, mode: str) -> np.ndarray:
    try:
        with Image.open(local_path(word, option)) as image:
            return np.array(image.convert(mode))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{option}={word}: is no picture that can be read ({error}); give a file") from None


def _array(option: str, word: str) -> np.ndarray:
    try:
        array = np.load(local_path(word, option), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{option}={word}: is no array that can be read ({error}); give a .npy file") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(f"{option}={word}: is no array of numbers; give a .npy file")
    return array


def _digest(*tensors: Tensor) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(np.ascontiguousarray(tensor.double().numpy()).tobytes())
    return sha.hexdigest()[:12]


def _said(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
