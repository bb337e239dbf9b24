"""What a canvas is drawn under, as commands take it: labels of its pieces, and pictures of which something is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipelines.evaluation.collages.layout import Layout, changed

__all__ = ["Conditions"]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is known of a canvas.

    Args:
        factor_labels: A class for each piece, in their order, where -1 is none: 0,-1,-1,-1,5 leads from class 0 to class 5.
        class_map: A segmentation of the canvas in place of them: a picture whose grey levels are classes (255: none), or a .npy
            file of classes (-1: none), of the canvas's size or of a divisor of it.
        between: The two ends of a chain: pictures of a piece, FILE,FILE, or test images by their numbers, test:0,test:17.
        known: A picture of the canvas: a file that is read as training data are, a .npy file (c, h, w) as data are stored, or
            test:17 where the canvas has a test image's size. A chain of m pieces of width p that share o has the width
            m p - (m - 1) o. What is known of it is said by one of the three options that follow; with --start data it is also
            where sampling starts.
        mask: A picture of the canvas, white where `known` holds (inpainting): from half of white on; or a .npy file, (h, w), of
            true or 1 there and false or 0 elsewhere.
        super_resolve: The side of a block of pixels of which the mean is what is known; 0: none. `known` may then have a pixel
            for each block.
        colourise: Whether the mean of the channels of `known` is what is known.
        guide: How the rest follows from what is known: replacement (by noised points), or reconstruction (by the gradient of
            how well the expected picture agrees; an evaluation then also takes a backward pass).
        guide_weight: Of reconstruction, the factor of its gradient; 0 leaves what is known without effect.
    """

    factor_labels: tuple[int, ...] = ()
    class_map: str = ""
    between: tuple[str, ...] = ()
    known: str = ""
    mask: str = ""
    super_resolve: int = 0
    colourise: bool = False
    guide: Literal["replacement", "reconstruction"] = "replacement"
    guide_weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.between) not in (0, 2):
            raise ValueError(
                f"between={','.join(self.between)}: give two pictures, --between FILE,FILE or test:0,test:17"
            )
        if self.super_resolve < 0 or self.super_resolve == 1:
            raise ValueError(
                f"super_resolve={self.super_resolve} must be at least 2, the side of a block of pixels; or 0"
            )
        if not 0 <= self.guide_weight < math.inf:
            raise ValueError(f"guide_weight={self.guide_weight} must be finite and not negative")
        seen = self._seen()
        if len(seen) > 1:
            raise ValueError(f"{' and '.join(seen)}: each says what is known; give one of them")
        if seen and not self.known:
            raise ValueError(f"{seen[0]}: nothing is known of the canvas; give its picture, --known FILE")
        if self.known and self.between:
            raise ValueError(f"between={','.join(self.between)} and known={self.known}: give one of them")
        if self.factor_labels and self.class_map:
            raise ValueError(f"class_map={self.class_map}: pieces have factor_labels; give one of them")
        if (self.guide, self.guide_weight) != ("replacement", 1.0) and not self.observes:
            raise ValueError(f"guide={self.guide}: nothing is known that it could follow; give --between or --known")
        if self.guide == "replacement" and self.guide_weight != 1:
            raise ValueError(f"guide_weight={self.guide_weight:g} is of --guide reconstruction; remove it")

    @property
    def observes(self) -> bool:
        """Whether anything is known of pixels while a canvas is drawn."""
        return bool(self.between or self._seen())

    @property
    def labelled(self) -> bool:
        """Whether pieces have classes of their own."""
        return bool(self.factor_labels or self.class_map)

    def name(self) -> str:
        """As the end of a folder's name; '' where nothing is known."""
        parts = ["labels" + "-".join("n" if y < 0 else str(y) for y in self.factor_labels)] * bool(self.factor_labels)
        files = {"map": _short(self.class_map), "between": "-".join(map(_short, self.between))}
        files |= {"known": _short(self.known), "mask": _short(self.mask)}
        parts += [f"{name}-{said}" for name, said in files.items() if said]
        parts += [f"super{self.super_resolve}"] * bool(self.super_resolve) + ["grey"] * self.colourise
        parts += [f"reconstruction{self.guide_weight:g}"] * (self.guide == "reconstruction")
        return "-".join(parts)

    def check(self, layout: Layout, start: str) -> None:
        """Refuses what does not go with a layout, or with where sampling starts.

        Raises:
            ValueError: as __post_init__ does.
        """
        if layout.collage == "none" and (given := changed(self)):
            raise ValueError(f"{given[0]}: it is of canvases; give --collage, for instance --collage chain")
        if layout.collage == "none":
            return
        if self.between and layout.collage != "chain":
            raise ValueError(
                f"between: it is of the ends of a chain, and collage={layout.collage}; give --collage chain"
            )
        if self.labelled and layout.join != "collage":
            labels = ",".join(map(str, self.factor_labels))
            given = f"class_map={self.class_map}" if self.class_map else f"factor_labels={labels}"
            raise ValueError(
                f"{given}: join={layout.join} takes no class for each piece; give --label for the whole canvas"
            )
        if self.observes and layout.join not in ("collage", "tiles", "naive"):
            raise ValueError(f"join={layout.join}: its pieces do not see what is known; remove --join")
        if start == "data" and not self.known:
            raise ValueError("start=data: a canvas starts from a picture of its size; give it as --known FILE")
        if start == "data" and layout.join in ("replacement", "reconstruction"):
            raise ValueError(
                f"start=data: join={layout.join} starts each piece from what is known of it; remove one of them"
            )
        if self.known and not self._seen() and start != "data":
            raise ValueError(
                f"known={self.known}: what is known of it? give --mask FILE, --super-resolve or --colourise true, or let "
                "sampling start from it, --start data"
            )

    def _seen(self) -> list[str]:
        """What says which part of `known` is known."""
        seen = [f"mask={self.mask}"] * bool(self.mask) + [f"super_resolve={self.super_resolve}"] * bool(
            self.super_resolve
        )
        return seen + ["colourise=true"] * self.colourise


def _short(word: str) -> str:
    """A file without its folder."""
    return word.rpartition("/")[2]
