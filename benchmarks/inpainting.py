r"""Gaps of a long canvas filled in: as one collage, or split into pieces that are filled apart (Figure 4.7 of the thesis).

    python pipelines/train.py strips_linear --local
    python benchmarks/inpainting.py RUN [NUM] [--out FILE.png]

NUM true strips of 17 test digits lose the cells 3, 6-8 and 12-15, which is 8 of 17; some gaps cross the borders of the pieces
into which a split cuts (every third cell). What comes is judged as the strips of `benchmarks/strips.py` are:

    allowed   share of the neighbours of which one at least was filled in and whose classes the rule allows; of the strips
              themselves, by the same classifier, in the first row
    border    mean square of the step in value from what was given to what was filled in, over real pieces' (1 is as in data)
    given     root mean square by which what was given has changed, in units of the data, [-1, 1]
    FD        Frechet distance of the pieces around the gaps to training pieces

`evaluations` are of the score, for a canvas; `s` processor seconds for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.strips import CELL, DDIM, GRAPH, Judge
from indm_core.collage import Pixels, reconstruction, replacement
from indm_core.draw import Join, canvas, draw_canvases
from indm_core.model import GenerativeModel
from indm_core.sampling import Sampling
from pipelines.config.store import load
from pipelines.config.weights import Weights
from pipelines.data.mosaics import classes_of_mosaics, mosaics
from pipelines.evaluation.results.estimates import frechet
from pipelines.evaluation.sampling.shown import shown
from pipelines.runs.pictures import image_grid, pixels

CELLS = GRAPH.shape[0] // CELL
GAPS = (2, 5, 6, 7, 11, 12, 13, 14)
"""Cells, counted from 0, that are not known."""
CORRECTED = Sampling(sampler="collage", steps=25)
WAYS: list[tuple[str, Join, str, float, Sampling]] = [
    ("split", "tiles", "reconstruction", 1.0, DDIM),
    ("split", "tiles", "replacement", 1.0, DDIM),
    ("naive", "naive", "reconstruction", 1.0, DDIM),
    ("collage", "collage", "reconstruction", 1.0, DDIM),
    ("collage", "collage", "replacement", 1.0, DDIM),
    ("split", "tiles", "replacement", 1.0, CORRECTED),
    ("collage", "collage", "reconstruction", 1.0, CORRECTED),
    ("collage", "collage", "replacement", 1.0, CORRECTED),
]


class Gaps:
    """True strips, what is known of them, and how well what was filled in fits."""

    def __init__(self, run: Weights, num: int) -> None:
        self.judge, generator = Judge(run), np.random.default_rng(0)
        self.classes = classes_of_mosaics(num, 1, CELLS, 10, generator)
        self.k = torch.from_numpy(mosaics(*self.judge.cells, self.classes, generator))
        self.known = torch.ones(GRAPH.shape[0], dtype=torch.bool)
        for cell in GAPS:
            self.known[cell * CELL : (cell + 1) * CELL] = False
        self.x, self.evaluations = self.judge.spec.to_model(self.k, torch.Generator().manual_seed(0)), 0.0

    def filled(self, model: GenerativeModel, join: Join, guide: str, weight: float, sampling: Sampling) -> Tensor:
        """Strips with their gaps filled, as levels (n, 1, 8, 136); `evaluations` is then the number of each."""
        plain = canvas(model, GRAPH, join=join)
        way = replacement if guide == "replacement" else partial(reconstruction, weight=weight)
        made: list[Tensor] = []
        evaluations = 0.0
        for i, x in enumerate(self.x):
            on = plain.given(way, Pixels(self.known), x[None])
            drawn = draw_canvases(on, [i], sampling)
            made.append(drawn.x)
            evaluations += drawn.evaluations
        self.evaluations = evaluations / len(self.x)
        return shown(torch.cat(made), self.judge.spec).values

    def line(self, filled: Tensor) -> str:
        """The figures of strips of levels (n, 1, 8, 136)."""
        judge, classes = self.judge, self.judge.classes(filled)[:, 0]
        step = (classes[:, 1:] - classes[:, :-1]) % 10
        gap = np.isin(np.arange(CELLS), GAPS)
        touched = gap[1:] | gap[:-1]
        allowed = (step[:, touched] <= 1).mean(1)
        crossing = self.known[1:] != self.known[:-1]
        jump = filled.double().diff(dim=-1)[..., crossing].square().mean((1, 2, 3))
        border = jump / judge.real_jumps[:, -1, 0].mean()
        x = judge.spec.to_model(filled.to(self.k.dtype), torch.Generator().manual_seed(0))
        changed = (x - self.x)[..., self.known].square().mean().sqrt()
        starts = [cell for cell in range(CELLS - 2) if gap[cell : cell + 3].any()]
        around = torch.cat([filled[..., cell * CELL : (cell + 3) * CELL] for cell in starts])
        distance = frechet(judge.features(around), judge.real)
        n = len(filled) ** 0.5
        return (
            f"{allowed.mean():.3f} +- {allowed.std(ddof=1) / n:.3f}  {float(border.mean()):6.2f} +- "
            f"{float(border.std()) / n:.2f}  {float(changed):.3f}  {distance.value:6.1f} {distance.at_infinity:6.1f} "
            f"+- {distance.at_infinity_se:.1f}"
        )


def main() -> int:
    """Prints the table, and draws the first two strips of each way."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("run")
    parser.add_argument("num", nargs="?", type=int, default=32)
    parser.add_argument("--out", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run = Weights.named(asked.run)
    gaps, model = Gaps(run, asked.num), load(run).requires_grad_(False)
    head = f"{'way':<9}{'guide':<16}{'sampler':<28}{'evaluations':>11}{'s':>7}"
    print(f"{head}  allowed          border         given  FD, at infinity")
    print(f"{'strips themselves':<71}  {gaps.line(gaps.k)}", flush=True)
    seen = torch.where(gaps.known, gaps.k, torch.full_like(gaps.k, int(gaps.judge.spec.levels) // 2))
    rows = [gaps.k[:2], seen[:2]]
    for name, join, guide, weight, sampling in WAYS:
        began = time.process_time()
        filled = gaps.filled(model, join, guide, weight, sampling)
        seconds = (time.process_time() - began) / len(filled)
        cost = f"{gaps.evaluations:>11.0f}{seconds:>7.2f}"
        print(f"{name:<9}{guide:<16}{sampling!s:<28}{cost}  {gaps.line(filled)}", flush=True)
        rows.append(filled[:2].to(gaps.k.dtype))
    if asked.out:
        image_grid(pixels(torch.cat(rows), gaps.judge.spec), columns=1).save(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
