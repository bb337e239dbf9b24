"""Mosaics of labelled images whose neighbours depend by a rule, so that the law of a canvas of any size is known.

A mosaic has R x C cells. Its classes are a field over {0, ..., K - 1} ("steps add up"):

    c_ij = (a_i + b_j) mod K,        a_{i+1} = a_i + s,   b_{j+1} = b_j + s',
    s, s' = 0 with probability 1/4, 1 with probability 3/4, all independent,   a_0 + b_0 uniform over the classes.

The image of a cell is drawn uniformly from those of its class, independently given the classes. So each cell is uniform over
the classes, each row and each column is a stationary Markov chain, and

    lag k      c_{i,j+k} - c_ij = c_{i+k,j} - c_ij in law = Binomial(k, 3/4) mod K,   close to uniform for large k
    blocks     c_ij + c_{i+1,j+1} = c_{i,j+1} + c_{i+1,j}  (mod K), always

Pieces determine the whole. Let w be the law of a step. On a rectangle r of cells the field has the marginal
q(c_r) = (1/K) prod w(row steps of r) prod w(column steps of r) where all blocks close, and 0 elsewhere. The Kikuchi form
prod_r q(c_r)^{n_r} is the joint law itself, exactly, on strips (one axis is cut) and on grids (both are):

    An axis is cut into pieces, intervals I that cover it, each overlapping the next in at least one cell; n_I = 1 of a piece
    and -1 of an overlap of neighbours. The regions are r = I x J with n_r = n_I n_J: pieces +1, strips between two of them -1,
    corners where strips cross +1. Along an axis the sum of n_I is 1: of all intervals, and of those that hold a given step,
    which are one piece more than overlaps. So w(a_{i+1} - a_i) has the exponent (sum of n_I that hold it) (sum of n_J) = 1,
    each step of b likewise, 1/K has (sum of n_I) (sum of n_J) = 1, and all blocks close where those of the pieces do.

Pieces of 1 x 2 do for strips and of 2 x 2 for grids; a strip of one row is a Markov chain. For images the same holds where an
image tells its class (no image of the base has two classes): each cell is counted once, and so is p(image | class).
"""

from __future__ import annotations

import numpy as np

__all__ = ["RULE", "STEP", "classes_of_mosaics", "mosaics", "step_law"]

STEP = 0.75
"""Probability that the class goes up by 1 from a row or column to the next."""
RULE = (
    "the class of cell (i, j) is a_i + b_j modulo the number of classes; from one row or column to the next, a or b goes up by "
    "1 with probability 3/4 and stays with 1/4; a mosaic's label is the class of its first cell"
)
"""In a sentence, for cards."""


def step_law(lag: int, num_classes: int) -> np.ndarray:
    """The law of the difference of two classes that lie `lag` cells apart along an axis.

    Args:
        lag: k >= 0.
        num_classes: K >= 1.

    Returns:
        P(Binomial(k, 3/4) = d mod K) for d = 0, ..., K - 1, (K,) float64.

    Raises:
        ValueError: a negative lag, or no class.
    """
    if lag < 0 or num_classes < 1:
        raise ValueError(f"lag={lag}, num_classes={num_classes}: a lag is at least 0, and there is a class")
    law = np.zeros(num_classes)
    law[0] = 1.0
    for _ in range(lag):
        law = (1 - STEP) * law + STEP * np.roll(law, 1)
    return law


def classes_of_mosaics(num: int, rows: int, cols: int, num_classes: int, generator: np.random.Generator) -> np.ndarray:
    """Draws fields of classes; to draw m and then n of them with one generator is to draw m + n.

    Args:
        num: Mosaics.
        rows, cols: R and C, their cells down and across.
        num_classes: K.

    Returns:
        (num, R, C) int64.

    Raises:
        ValueError: no row, no column or no class.
    """
    if min(rows, cols, num_classes) < 1 or num < 0:
        raise ValueError(
            f"num={num}, rows={rows}, cols={cols}, num_classes={num_classes}: a mosaic has at least one of each"
        )
    uniform = generator.random((num, rows + cols - 1))
    first = np.floor(num_classes * uniform[:, 0]).astype(np.int64)
    steps = (uniform < STEP).astype(np.int64)
    steps[:, 0] = 0
    a = np.cumsum(steps[:, :rows], axis=1)
    b = np.cumsum(steps[:, [0, *range(rows, rows + cols - 1)]], axis=1)
    return (first[:, None, None] + a[:, :, None] + b[:, None, :]) % num_classes


def mosaics(images: np.ndarray, labels: np.ndarray, classes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draws the images of fields of classes; to draw those of m and then of n fields is to draw those of m + n.

    Args:
        images: (n, c, h, w), of which cells are made.
        labels: (n,), their classes.
        classes: (m, R, C), of the cells.

    Returns:
        (m, c, R h, C w), of the images' type.

    Raises:
        ValueError: a class without an image.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=int(classes.max(initial=-1)) + 1)
    if not counts[classes].all():
        missing = int(classes[counts[classes] == 0].flat[0])
        raise ValueError(f"images: none of the {len(images)} is of class {missing}, which a mosaic needs")
    starts = np.cumsum(counts) - counts
    drawn = np.floor(counts[classes] * generator.random(classes.shape)).astype(np.int64)
    cells = images[order[starts[classes] + drawn]]
    m, rows, cols, c, h, w = cells.shape
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(m, c, rows * h, cols * w)
