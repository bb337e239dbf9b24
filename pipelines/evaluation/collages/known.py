"""Pictures that canvases are drawn under: read, brought to the model's scale, and put in their places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm_core.collage import BlockMeans, FactorGraph, Grey, Observation, Pixels
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.pictures import MODES, array, is_array, mask_of_picture, picture

__all__ = ["Known", "digest", "known_of"]

SPLITS = ("train", "test", "valid", "validation")
"""Words before a colon that are not taken for files."""


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
    conditions: Conditions,
    graph: FactorGraph,
    shape: tuple[int, ...],
    spec: DataSpec,
    options: Options,
    test: Callable[[], Tensor],
) -> Known | None:
    """What is known of a canvas; None where nothing is.

    Args:
        shape: Of the canvas.
        options: How the training data were read.
        test: Reads the test images.

    Raises:
        ValueError: a picture that cannot be read or has another size, or an observation that the canvas does not allow.
    """
    reader = _Reader(spec, options, test)
    if conditions.between:
        return _ends(conditions.between, graph, shape, reader)
    if not conditions.known:
        return None
    _check_seen(conditions, shape)
    k = reader.read("known", conditions.known, shape, "the canvas", max(1, conditions.super_resolve))[None]
    observation = _observation(conditions, shape, reader)
    seen = observation.known if isinstance(observation, Pixels) else torch.tensor([])
    return Known(k, observation, digest(k, seen))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads pictures as data are stored: levels, or values."""

    spec: DataSpec
    options: Options
    test: Callable[[], Tensor]

    def read(self, option: str, word: str, shape: tuple[int, ...], what: str, side: int = 1) -> Tensor:
        """A picture of a shape, (*shape).

        Args:
            option: The name of its option.
            word: A file, or test:17.
            what: How a message calls what has this shape.
            side: Of blocks; a picture of one pixel for each is taken too.
        """
        found = self._test_image(option, word)
        if found is None:
            found = self._stored(option, word, array(option, word)) if is_array(word) else self._levels(option, word)
        if side > 1 and found.ndim == 3 and (found.shape[1] * side, found.shape[2] * side) == shape[1:]:
            found = BlockMeans(side).lift(found)
        if tuple(found.shape) != shape:
            small = (shape[0], *(length // side for length in shape[1:]))
            or_small = f", or of {_said(small)}, a pixel for each block" * (side > 1)
            raise ValueError(
                f"{option}={word}: its shape is {_said(found.shape)}, and {what} is {_said(shape)}; give one of that size"
                f"{or_small}"
            )
        return found

    def mask(self, word: str, shape: tuple[int, ...]) -> Tensor:
        """Where something is known, for all channels; True, 1 or at least half white."""
        sides = shape[1:] or shape
        found = torch.from_numpy(_truths(word) if is_array(word) else mask_of_picture(word, self.options))
        if found.ndim > len(sides):
            raise ValueError(
                f"mask={word}: its shape is {_said(found.shape)}, and a mask has no channels; give one of {_said(sides)}"
            )
        if tuple(found.shape) != sides:
            raise ValueError(
                f"mask={word}: its shape is {_said(found.shape)}, and the canvas is {_said(sides)}; give one of that size"
            )
        if not found.any():
            raise ValueError(f"mask={word}: nothing in it is white; white is what is known")
        return found

    def _levels(self, option: str, word: str) -> Tensor:
        """A picture's channels (c, h, w) in levels."""
        channels = self.spec.shape[0]
        if len(self.spec.shape) != 3 or channels not in MODES or not self.spec.levels:
            of = f"of shape {_said(self.spec.shape)}" if self.spec.levels else "without levels"
            raise ValueError(f"{option}={word}: data {of} are no pictures; give a .npy file")
        pixels = torch.from_numpy(picture(option, word, channels, self.options).copy())
        return (pixels * ((self.spec.levels - 1) / 255)).round().long()

    def _test_image(self, option: str, word: str) -> Tensor | None:
        """The test image that a word names; None where it names a file."""
        split, colon, number = word.partition(":")
        if not colon or split not in SPLITS or Path(word).exists():
            return None
        rows = self.test()
        if split != "test" or not number.isdecimal() or int(number) >= len(rows):
            raise ValueError(f"{option}={word}: there are {len(rows)} test images; give test:0 to test:{len(rows) - 1}")
        return rows[int(number)]

    def _stored(self, option: str, word: str, array: np.ndarray) -> Tensor:
        """An array of levels or values as data are stored."""
        found = torch.from_numpy(array.astype(np.float64))
        levels = self.spec.levels
        if not (found if self.spec.levels else found.float()).isfinite().all():
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
    return Known(k[None], Pixels(known), digest(k, known))


def _check_seen(conditions: Conditions, shape: tuple[int, ...]) -> None:
    """Refuses blocks or greys that a canvas has not."""
    side = conditions.super_resolve
    if side and (len(shape) != 3 or any(length % side for length in shape[1:])):
        raise ValueError(
            f"super_resolve={side}: it must divide the sides of the canvas, {_said(shape)}; give another one"
        )
    if conditions.colourise and (len(shape) != 3 or shape[0] < 2):
        raise ValueError(f"colourise=true: the canvas, {_said(shape)}, has no colours; remove it")


def _observation(conditions: Conditions, shape: tuple[int, ...], reader: _Reader) -> Observation | None:
    if conditions.mask:
        return Pixels(reader.mask(conditions.mask, shape))
    if conditions.super_resolve:
        return BlockMeans(conditions.super_resolve)
    return Grey(shape[0]) if conditions.colourise else None


def _truths(word: str) -> np.ndarray:
    """A mask from a .npy file."""
    found = array("mask", word)
    if found.dtype != bool and not np.isin(found, (0, 1)).all():
        raise ValueError(
            f"mask={word}: holds what is neither 0 nor 1; give 1 where something is known, and 0 elsewhere"
        )
    return found.astype(bool)


def digest(*tensors: Tensor) -> str:
    """A hash of what tensors hold."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(np.ascontiguousarray(tensor.double().numpy()).tobytes())
    return sha.hexdigest()[:12]


def _said(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
