"""Frechet distance of n samples and at infinite n, with their standard errors, against the truth on Gaussian laws.

    python benchmarks/frechet.py

A row is the mean over independent sets of n samples: bias, true standard deviation `sd` (over the sets), mean standard error
`se` over sd. `line` is a straight line in 1/n through the distances of subsets (Chong and Forsyth 2020), for comparison.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.frechet import fewest_samples, frechet_distance, frechet_from_samples, frechet_infinity


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Samples of N(mean, factor factor^T) and a Gaussian reference law."""

    mean: Tensor
    factor: Tensor
    mean_ref: Tensor
    cov_ref: Tensor

    @property
    def distance(self) -> float:
        return float(frechet_distance(self.mean, self.factor @ self.factor.T, self.mean_ref, self.cov_ref))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.mean), dtype=torch.float64, generator=generator)
        return noise @ self.factor.T + self.mean


def problem(d: int, power: float, change: float) -> Problem:
    """A reference with the spectrum j^-power, j = 1..d, and samples whose law is turned, stretched and shifted by `change`."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -power
    basis = torch.linalg.qr(randn(d, d)).Q
    turned = torch.linalg.qr(basis + change * randn(d, d) / d**0.5)
    factor = turned.Q * turned.R.diagonal().sign() * (spectrum * (change * randn(d)).exp()).sqrt()
    return Problem(
        mean=change * factor @ randn(d) / d**0.5,
        factor=factor,
        mean_ref=torch.zeros(d, dtype=torch.float64),
        cov_ref=basis * spectrum @ basis.T,
    )


def line(law: Problem, x: Tensor, generator: torch.Generator) -> float:
    """The value at 1/n = 0 of a least-squares line through the distances of five subsets of n/4 to n samples."""
    sizes = [round(len(x) * share) for share in (0.25, 0.4375, 0.625, 0.8125, 1.0)]
    distances = []
    for size in sizes:
        part = x[torch.randperm(len(x), generator=generator)[:size]]
        moments = part.mean(dim=0), torch.cov(part.T)
        distances.append(frechet_distance(*moments, law.mean_ref, law.cov_ref))
    design = torch.stack([torch.ones(5, dtype=torch.float64), 1 / torch.tensor(sizes, dtype=torch.float64)], dim=1)
    return float(torch.linalg.lstsq(design, torch.stack(distances).unsqueeze(1)).solution[0, 0])


def row(law: Problem, n: int, num_sets: int) -> str:
    generator = torch.Generator().manual_seed(n)
    plug_in, infinity, lines = [], [], []
    for _ in range(num_sets):
        x = law.draw(n, generator)
        plug_in.append(frechet_from_samples(x, law.mean_ref, law.cov_ref))
        if n >= fewest_samples(len(law.mean)):
            infinity.append(frechet_infinity(x, law.mean_ref, law.cov_ref))
            lines.append(line(law, x, generator))
    cells = [_cell([f.value for f in plug_in], law.distance, [f.standard_error for f in plug_in])]
    if infinity:
        cells.append(_cell([f.value for f in infinity], law.distance, [f.standard_error for f in infinity]))
        cells.append(_cell(lines, law.distance, []))
    return "  ".join(cells) if infinity else f"{cells[0]}  refused"


def _cell(values: list[float], truth: float, errors: list[float]) -> str:
    value = torch.tensor(values, dtype=torch.float64)
    ratio = f"{float(torch.tensor(errors).mean() / value.std()):7.2f}" if errors else ""
    return f"{float(value.mean()) - truth:10.4f} {float(value.std()):9.4f}{ratio}"


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    print(f"{'':47}{'D_n':^26}  {'infinite n':^26}  {'line in 1/n':^20}")
    titles = f"{'bias':>10} {'sd':>9}{'se/sd':>7}"
    print(
        f"{'d':>3} {'spectrum':>8} {'change':>6} {'D':>8} {'n':>6} {'sets':>4} {'s':>4}  {titles}  {titles}  {titles[:20]}"
    )
    for d in (8, 64, 200):
        for power, change in ((0.0, 0.0), (0.0, 0.3), (1.0, 0.0), (1.0, 0.3)):
            law = problem(d, power, change)
            for n in (d // 2, d, fewest_samples(d), 2 * d, 5 * d, 20 * d, 200 * d):
                num_sets = {8: 400, 64: 200, 200: 100}[d] if n < 100 * d else {8: 200, 64: 50, 200: 20}[d]
                figures = row(law, n, num_sets)
                seconds = time.process_time() - began
                head = (
                    f"{d:>3} {f'j^-{power:g}':>8} {change:>6} {law.distance:>8.4f} {n:>6} {num_sets:>4} {seconds:>4.0f}"
                )
                print(f"{head}  {figures}", flush=True)


if __name__ == "__main__":
    main()
