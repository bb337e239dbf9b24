r"""A trained model of pieces of strips, joined in every way: Table 4.1, Figures 4.4 and 4.5 of the thesis, on data with a rule.

    python pipelines/train.py strips_linear --local
    python benchmarks/strips.py RUN [NUM] [--length]

Pieces are three digits in a row; from a cell to the next the class stays with probability 1/4 or goes up by one (mod 10). NUM
canvases of 8 pieces with an overlap of one cell (17 cells) are drawn by each way to join pieces and each sampler:

    FD+       Frechet distance of 4 random pieces of each canvas to training pieces (n, and extrapolated to infinite n), in the
              logits of a classifier of single digits: 3 x 10 of a piece
    first, middle, last    FD of the pieces there
    seam      mean square of the step across joints, over real pieces' (1 is as in data)
    allowed   share of neighbouring cells whose classes the rule allows; lag k: distance (total variation) of the law of the
              difference of classes k cells apart from the truth, beside what true strips of as many canvases would have

Classes are told by the classifier, which was trained on single digits alone. `evaluations` are sequential ones, `s` processor
seconds for a canvas. `--length` prints evaluations and latency of one canvas against its length instead.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from indm_core.collage import chain, joints, jump_ratio, jumps, pieces_at, random_pieces, real_jumps
from indm_core.draw import Canvas, Join, canvas, draw_canvases
from indm_core.noise import seeded
from indm_core.sampling import Sampling
from pipelines.config.store import configuration, load
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.mosaic_rule import rule_statistics
from pipelines.data.mosaics import classes_of_mosaics, mosaics
from pipelines.data.shards import read_all
from pipelines.evaluation.features.reference import extractor_of, split_rows
from pipelines.evaluation.results.estimates import ReferenceFeatures, frechet
from pipelines.evaluation.sampling.shown import shown
from pipelines.storage.outputs import output_root

CELL, LAGS = 8, (1, 2, 4, 8)
GRAPH = chain(8, 24, CELL)
DDIM = Sampling(sampler="deis", steps=50, order=0)
WAYS: list[tuple[Join, Sampling]] = [
    ("tiles", DDIM),
    ("naive", DDIM),
    ("shifted", DDIM),
    ("replacement", DDIM),
    ("reconstruction", DDIM),
    ("collage", DDIM),
    ("collage", Sampling(sampler="deis", nfe=20)),
    ("collage", Sampling(sampler="em", steps=125, grid="power")),
    ("collage", Sampling(sampler="pc", nfe=126, grid="power")),
    ("collage", Sampling(sampler="resampled", steps=25)),
    ("collage", Sampling(sampler="collage", steps=10)),
    ("collage", Sampling(sampler="collage", steps=25)),
    ("collage", Sampling(sampler="collage", steps=50)),
]


class Judge:
    """What canvases are compared with: training pieces, the rule, and a classifier of single digits."""

    def __init__(self, run: Weights) -> None:
        self.spec = configuration(run)[1]
        of = configuration(run)[0].data
        data = ensure(of.source, output_root(None) / "data", of.options)
        real = split_rows(data, load_card(data), "train", 10_000)
        digits = ensure("digits", output_root(None) / "data")
        card = load_card(digits)
        self.classify = extractor_of(card, digits, output_root(None)).make()
        rows = read_all(digits, card, "test", card.split("test").count)
        self.cells = rows["x"], rows["label"]
        self.real, self.real_jumps = ReferenceFeatures(self.features(real)), real_jumps(real, 1, CELL)

    def features(self, x: Tensor) -> Tensor:
        """The logits of the cells of pieces (n, 1, 8, 24), or sequences (n, 8, 24), (n, 30)."""
        cells = x.unflatten(-1, (-1, CELL)).movedim(-2, 1).reshape(-1, 1, CELL, CELL)
        return torch.cat([self.classify.evaluate(part)[1] for part in cells.split(3000)]).reshape(len(x), -1)

    def classes(self, x: Tensor) -> np.ndarray:
        """(n, 1, cells) of canvases (n, 1, 8, cells 8)."""
        return self.features(x).reshape(len(x), 1, -1, 10).argmax(-1).numpy()

    def line(self, x: Tensor) -> str:
        """The figures of canvases of levels (n, 1, 8, 136)."""
        crops = [random_pieces(x, (24,), CELL, seeded([4 * i + k for i in range(len(x))])) for k in range(4)]
        plus = frechet(self.features(torch.cat(crops)), self.real)
        pieces = pieces_at(x, GRAPH)
        places = [frechet(self.features(pieces[j]), self.real) for j in (0, len(pieces) // 2, len(pieces) - 1)]
        kinds = joints(GRAPH, CELL)
        seam = jump_ratio(jumps(x.float(), GRAPH, kinds.seam), self.real_jumps, kinds.seam)
        rule = rule_statistics(self.classes(x), 10)
        laws = {lag.lag: lag.law for lag in rule.lags if lag.axis == "row"}
        shown_lags = "".join(f"{laws[k].distance:>6.3f} ({laws[k].expected_distance:.3f})" for k in LAGS)
        at = " ".join(f"{place.value:6.1f}" for place in places)
        return (
            f"{plus.value:6.1f} {plus.at_infinity:6.1f} +- {plus.at_infinity_se:<5.1f} {at}  "
            f"{seam.value:5.2f} +- {seam.standard_error:.2f}  {rule.allowed.value:.3f} +- {rule.allowed.error:.3f} {shown_lags}"
        )


def table(run: Weights, num: int) -> None:
    """Table 4.1 and Figure 4.4."""
    judge, model = Judge(run), load(run)
    head = f"{'join':<15}{'sampler':<36}{'evaluations':>11}{'s':>7}  FD+    at infinity     first middle  last"
    print(f"{head}   seam          allowed          lags {LAGS}: distance (of true strips)")
    generator = np.random.default_rng(0)
    true = mosaics(*judge.cells, classes_of_mosaics(num, 1, GRAPH.shape[0] // CELL, 10, generator), generator)
    print(f"{'test digits, by the rule':<51}{'':>18}  {judge.line(torch.from_numpy(true))}", flush=True)
    for join, sampling in WAYS:
        on, began = canvas(model, GRAPH, join=join), time.process_time()
        x = torch.cat([draw_canvases(on, range(a, min(a + 16, num)), sampling).x for a in range(0, num, 16)])
        seconds = (time.process_time() - began) / num
        cost = sequential(on, join, sampling)
        values = shown(x, judge.spec).values
        print(f"{join:<15}{sampling!s:<36}{cost:>11}{seconds:>7.2f}  {judge.line(values)}", flush=True)


def sequential(on: Canvas, join: Join, sampling: Sampling) -> int:
    """Evaluations of one canvas that wait for each other, each of a batch of pieces."""
    times: list[float] = []

    def counted(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        times.append(float(t.flatten()[0]))
        return torch.zeros_like(u)

    again = canvas(on.model, on.graph, join=join, score=counted, max_pieces=1 << 20)
    if join in ("collage", "tiles"):  # the shapes of a canvas's regions are evaluated side by side
        again = replace(again, score=lambda u, t, y=None: counted(u, t))
    times.clear()  # without those that try the network
    draw_canvases(again, [0], sampling)
    return len(dict.fromkeys(times)) if join == "shifted" else len(times)


def by_length(run: Weights) -> None:
    """Figure 4.5."""
    model, sampling = load(run), Sampling(sampler="deis", steps=10, order=0)
    print(f"{'factors':>8}{'width':>7}" + "".join(f"{join:>26}" for join in ("collage", "replacement")))
    for num in (2, 4, 8, 16, 32):
        cells, graph = [], chain(num, 24, CELL)
        for join in ("collage", "replacement"):
            on, seconds = canvas(model, graph, join=join), []
            for _ in range(3):
                began = time.monotonic()
                draw_canvases(on, [0], sampling)
                seconds.append(time.monotonic() - began)
            cells.append(f"{sequential(on, join, sampling):>12} {sorted(seconds)[1]:>10.2f} s")
        print(f"{num:>8}{graph.shape[0]:>7}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def main() -> int:
    """Prints a table."""
    words = [word for word in sys.argv[1:] if word != "--length"]
    if not words:
        print(__doc__)
        return 2
    run = Weights.named(words[0])
    torch.set_num_threads(1)
    if "--length" in sys.argv:
        by_length(run)
    else:
        table(run, int(words[1]) if len(words) > 1 else 128)
    return 0


if __name__ == "__main__":
    sys.exit(main())
