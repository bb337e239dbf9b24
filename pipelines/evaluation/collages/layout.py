"""How canvases are laid out of pieces, as commands take it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from indm_core.collage import FactorGraph, chain, corners, cube_map, grid, loop
from indm_core.draw import Join
from indm_core.sampling import Sampling

__all__ = ["Layout", "changed", "sampling_of_canvases"]

READ = {
    "chain": ("num_factors", "overlap"),
    "loop": ("num_factors", "overlap"),
    "grid": ("rows", "cols", "overlap"),
    "corners": ("rows", "cols", "overlap"),
    "cube": (),
}
"""Options that not every collage reads."""
MOST_PIECES, MOST_VALUES = 2**16, 2**26
"""Of a canvas: pieces, and values of all of them together. A graph of more takes minutes to make, and gigabytes."""
STEPS = 50
"""Of the corrected sampler, where none are given: 250 evaluations of the score."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a canvas is made of pieces of the model's shape.

    Args:
        collage: none, or the graph: chain, loop (both along the width), grid, corners (pieces that share quarters), cube (six
            faces; a piece is two or four faces side by side).
        num_factors: Pieces of a chain or loop.
        rows: Pieces of a grid, or of corners, one below the other.
        cols: Pieces of a grid, or of corners, side by side.
        overlap: What neighbours share, in pixels; 0 takes half a piece, or the nearest that training has seen.
        join: How pieces are joined: collage, or what it is compared with: tiles (independent), naive (the network on the whole
            canvas), shifted (tiles moved at every step), replacement and reconstruction (one piece after the other).
    """

    collage: Literal["none", "chain", "loop", "grid", "corners", "cube"] = "none"
    num_factors: int = 8
    rows: int = 3
    cols: int = 3
    overlap: int = 0
    join: Join = "collage"

    def __post_init__(self) -> None:
        for name in ("num_factors", "rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.overlap < 0:
            raise ValueError(f"overlap={self.overlap} must not be negative; 0 takes half a piece")
        if self.collage == "none" and (given := changed(self)):
            raise ValueError(f"{given[0]}: it is of canvases; give --collage, for instance --collage chain")
        for name in ("num_factors", "rows", "cols", "overlap"):
            value, default = getattr(self, name), getattr(Layout, name)
            if self.collage != "none" and value != default and name not in READ[self.collage]:
                raise ValueError(
                    f"{name}={value}: collage={self.collage} does not read it; do not give --{name.replace('_', '-')}"
                )

    @property
    def num_pieces(self) -> int:
        """Pieces of a canvas; of a cube its loops of four faces."""
        return {
            "none": 0,
            "grid": self.rows * self.cols,
            "corners": self.rows * self.cols + (self.rows - 1) * (self.cols - 1),
            "cube": 3,
        }.get(self.collage, self.num_factors)

    @property
    def name(self) -> str:
        """As the beginning of a folder's name: chain64, grid3x4-overlap2, loop8-join-tiles; '' where there is no canvas."""
        if self.collage == "none":
            return ""
        sides = {"grid": f"{self.rows}x{self.cols}", "corners": f"{self.rows}x{self.cols}", "cube": ""}
        parts = [f"{self.collage}{sides.get(self.collage, str(self.num_factors))}"]
        parts += [f"overlap{self.overlap}"] * bool(self.overlap) + [f"join-{self.join}"] * (self.join != "collage")
        return "-".join(parts)

    def __str__(self) -> str:
        pieces = f"{self.rows} x {self.cols}" if self.collage in ("grid", "corners") else str(self.num_factors)
        number = "" if self.collage == "cube" else f" of {pieces} pieces"
        shared = f", overlap {self.overlap}" if self.overlap else ""
        return f"{self.collage}{number}{shared}, join {self.join}"

    def graph(self, shape: tuple[int, ...], step: int = 1) -> FactorGraph:
        """The graph of pieces of a shape, (c, h, w), (c, l) or (d,).

        Args:
            step: Overlaps that training has seen are its multiples.

        Raises:
            ValueError: a shape that the graph cannot be made of, or a canvas that is too large.
        """
        self._check_size(shape)
        width = shape[-1]
        overlap = self.overlap or max(step, width // 2 // step * step)
        if self.collage in ("chain", "loop"):
            return (chain if self.collage == "chain" else loop)(self.num_factors, width, overlap)
        if len(shape) != 3:
            raise ValueError(
                f"collage={self.collage}: it is of images, and pieces have the shape {shape}; take chain or loop"
            )
        if self.collage == "cube":
            return _cube(shape)
        if shape[1] != width:
            raise ValueError(
                f"collage={self.collage}: its pieces are squares, and this run's are {shape}; take chain or loop"
            )
        if self.collage == "grid":
            return grid(self.rows, self.cols, width, overlap)
        return corners(self.rows, self.cols, width, self.overlap or None)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        values = self.num_pieces * math.prod(shape)
        if self.num_pieces > MOST_PIECES or values > MOST_VALUES:
            fewer = {"num_factors": "--num-factors", "rows": "--rows or --cols"}
            less = next((said for name, said in fewer.items() if name in READ[self.collage]), "pieces")
            raise ValueError(
                f"collage={self.collage}: {self.num_pieces:,} pieces of {math.prod(shape):,} values are more than a canvas may "
                f"have, {MOST_PIECES:,} pieces and {MOST_VALUES:,} values; give smaller {less}"
            )


def _cube(shape: tuple[int, ...]) -> FactorGraph:
    """Of pieces of four faces, or of two, of which each loop around the cube is then made."""
    _, face, width = shape
    if width == 4 * face:
        return cube_map(face)
    if width == 2 * face:
        return cube_map(face).refine(loop(4, width, face).of_height(face))
    raise ValueError(
        f"collage=cube: a piece is two or four faces side by side, (c, s, 2 s) or (c, s, 4 s), and this run's are {shape}; "
        "train on such"
    )


def changed(config: Any) -> list[str]:
    """The fields of a dataclass that are not at their defaults, as name=value."""
    shown = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return [f"{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in shown.items()]


def sampling_of_canvases(layout: Layout) -> Sampling:
    """The sampler of canvases where none was asked for: the corrected one, and of shifted tiles steps of DDIM."""
    if layout.join == "shifted":
        return Sampling(sampler="deis", steps=STEPS, order=0)
    return Sampling(sampler="collage", steps=STEPS)
