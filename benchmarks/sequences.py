r"""Long sequences of which each piece has a label: Table 4.3 of the thesis (motions by texts), on sequences with a known rule.

    python pipelines/train.py sequences_conditional --local
    python benchmarks/sequences.py RUN [NUM] [GUIDANCE]

Pieces are (8, 24): the pixel columns of three digits in a row, whose class stays (1/4) or goes up by one from one to the next.
NUM canvases of 8 pieces with an overlap of one digit (17 digits, 136 positions) are drawn, `EACH` for each of NUM / `EACH` rows
of labels, which are those of true sequences: a piece's label is the class of its first digit. In place of texts' R-precision:

    accuracy   share of labelled pieces whose first digit a classifier takes for their label; it was trained on single digits
               alone, and independently of the model
    diversity  mean distance |f - f'| of the features of two random pieces (Guo et al. 2022), here of canvases with different
               labels and over all such pairs; features are the logits of the three digits of a piece. As in data is best
    FD+        Frechet distance of 4 random pieces of each canvas to training pieces, in the same features
    allowed    share of neighbouring digits whose classes the rule allows

Ways to join: tiles (independent pieces side by side, each with its label), replacement (one piece after the other from left to
right, each with its label and what it shares with the one before as noised points), and the collage, whose separators have no
label. `evaluations` are sequential ones, `s` processor seconds of a canvas; errors are over rows of labels.

References: Zhang 2023 (thesis), section 4.5.3, Table 4.3. Guo et al. 2022, "Generating diverse and natural 3D human motions
from text", section 5 (diversity).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.strips import CELL, DDIM, GRAPH, Judge
from indm_core.collage import Pixels, chain, random_pieces, replacement
from indm_core.draw import Drawn, Join, canvas, draw_canvases
from indm_core.model import GenerativeModel
from indm_core.noise import seeded
from indm_core.sampling import Sampling
from pipelines.config.store import load
from pipelines.config.weights import Weights
from pipelines.data.mosaic_rule import rule_statistics
from pipelines.data.mosaics import classes_of_mosaics, mosaics
from pipelines.evaluation.results.estimates import frechet
from pipelines.evaluation.sampling.shown import shown

EACH, CROPS = 4, 4
"""Canvases of a row of labels; random pieces of a canvas."""
PIECE = 24
PIECES, TILES = range(0, 16, 2), range(0, 17, 3)
"""The first digits of the pieces of a chain with overlaps, and of tiles."""
Draw = Callable[[GenerativeModel, Tensor, range, float], Drawn]
"""(model, classes of all digits of a canvas, seeds, guidance) -> canvases."""


class Way(NamedTuple):
    """A way to join pieces: its name and sampler, the first digits of the pieces that have labels, and what draws."""

    name: str
    sampling: Sampling
    first: range
    draw: Draw


def joined(join: Join, sampling: Sampling, first: range) -> Way:
    """Of all pieces at once."""

    def draw(model: GenerativeModel, classes: Tensor, seeds: range, guidance: float) -> Drawn:
        on = canvas(model, GRAPH, join=join, condition=classes[list(first)], guidance=guidance)
        return draw_canvases(on, seeds, sampling)

    return Way(join, sampling, first, draw)


def in_turn(model: GenerativeModel, classes: Tensor, seeds: range, guidance: float) -> Drawn:
    """One piece after the other, from left to right, each given the last digit of the one before."""
    x, evaluations = torch.zeros(len(seeds), CELL, 0), 0.0
    for k, first in enumerate(PIECES):
        on = canvas(model, chain(1, PIECE, CELL), condition=classes[[first]], guidance=guidance)
        if k:
            known = torch.arange(PIECE) < CELL
            before = torch.cat([x[..., -CELL:], x.new_zeros(len(x), CELL, PIECE - CELL)], -1)
            on = on.given(replacement, Pixels(known), before)
        made = draw_canvases(on, [1000 * k + seed for seed in seeds], DDIM)
        x = torch.cat([x, made.x[..., CELL * bool(k) :]], -1)
        evaluations += made.evaluations
    return Drawn(x, evaluations)


WAYS = [
    joined("tiles", DDIM, TILES),
    Way("replacement", DDIM, PIECES, in_turn),
    joined("collage", DDIM, PIECES),
    joined("collage", Sampling(sampler="collage", steps=25), PIECES),
    joined("collage", Sampling(sampler="collage", steps=50), PIECES),
]


def accuracy(found: np.ndarray, wanted: np.ndarray, first: range) -> str:
    """Of classes (n, digits), in rows of labels."""
    right = (found[:, list(first)] == wanted[:, list(first)]).mean(1).reshape(-1, EACH).mean(1)
    return f"{right.mean():.3f} +- {right.std(ddof=1) / len(right) ** 0.5:.3f}"


def diversity(features: Tensor) -> str:
    """Of features (rows of labels, pieces, d): the mean distance of pieces of different rows, with its jackknife error."""
    far = torch.cdist(features.flatten(0, 1).double(), features.flatten(0, 1).double())
    num, pieces = features.shape[:2]
    between = far.reshape(num, pieces, num, pieces).mean((1, 3)) * (1 - torch.eye(num))
    without = torch.tensor([(between.sum() - 2 * between[i].sum()) / ((num - 1) * (num - 2)) for i in range(num)])
    error = float(((num - 1) / num * (without - without.mean()).square().sum()).sqrt())
    return f"{float(between.sum() / (num * (num - 1))):.2f} +- {error:.2f}"


def line(judge: Judge, x: Tensor, wanted: np.ndarray, first: range) -> str:
    """The figures of canvases of levels (n, 8, 136), whose digits were wanted of some classes (n, 17)."""
    found = judge.classes(x)
    crops = [random_pieces(x, (PIECE,), CELL, seeded([CROPS * i + k for i in range(len(x))])) for k in range(CROPS)]
    features = judge.features(torch.cat(crops))
    plus, rule = frechet(features, judge.real), rule_statistics(found, 10)
    of_rows = features.unflatten(0, (CROPS, -1, EACH)).movedim(0, 1).flatten(1, 2)
    return (
        f"{accuracy(found[:, 0], wanted, first):<18}{diversity(of_rows):<17}{plus.value:6.1f} {plus.at_infinity:6.1f} +- "
        f"{plus.at_infinity_se:<5.1f} {rule.allowed.value:.3f} +- {rule.allowed.error:.3f}"
    )


def table(run: Weights, num: int, guidance: float) -> None:
    """Table 4.3."""
    judge, model = Judge(run), load(run)
    print(f"guidance {guidance:g}, {num} canvases")
    head = f"{'join':<14}{'sampler':<30}{'evaluations':>11}{'s':>7}  {'accuracy':<18}{'diversity':<17}"
    print(f"{head}FD+, at infinity       allowed")
    generator = np.random.default_rng(0)
    true = classes_of_mosaics(num, 1, GRAPH.shape[0] // CELL, 10, generator)
    x = torch.from_numpy(mosaics(*judge.cells, true, generator))[:, 0]
    print(f"{'true sequences of test digits':<44}{'':>18}  {line(judge, x, true[:, 0], PIECES)}", flush=True)
    wanted = classes_of_mosaics(num // EACH, 1, GRAPH.shape[0] // CELL, 10, generator)[:, 0]
    for way in WAYS:
        began, made = time.process_time(), []
        for i, classes in enumerate(torch.from_numpy(wanted)):
            made.append(way.draw(model, classes, range(EACH * i, EACH * i + EACH), guidance))
        seconds = (time.process_time() - began) / num
        values = shown(torch.cat([each.x for each in made]), judge.spec).values
        figures = line(judge, values, wanted.repeat(EACH, axis=0), way.first)
        print(f"{way.name:<14}{way.sampling!s:<30}{made[0].evaluations:>11g}{seconds:>7.2f}  {figures}", flush=True)


def main() -> int:
    """Prints the table."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    torch.set_num_threads(1)
    num = int(sys.argv[2]) if len(sys.argv) > 2 else 48
    if num < 3 * EACH or num % EACH:
        print(f"NUM={num}: give a multiple of {EACH}, at least {3 * EACH}")
        return 2
    table(Weights.named(sys.argv[1]), num, float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
