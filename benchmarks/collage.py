r"""Collages of a Gaussian chain, exactly: how far their score is from the joint one, and what each sampler samples.

    python benchmarks/collage.py

AR(1), rho = .8, about 64 variables, VP; the pieces' scores are exact. Every score is linear, so that the covariance of what a
sampler samples follows from a recursion: nothing here is drawn. `error` is |C - C_chain| / |C_chain| (Frobenius), lags are
means along the diagonals; the chain has .8, .64 and .107 at 1, 2 and 10.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.collage import FactorGraph, chain
from indm_core.sample import power_times
from indm_core.sde import VP

RHO, SDE = 0.8, VP()
PIECES = {1: 2, 2: 4, 4: 8, 6: 8}
"""overlap: piece"""
EVALUATIONS = (50, 100, 250, 500, 1000)
Precision = Callable[[Tensor], Tensor]


def covariance(d: int) -> Tensor:
    at = torch.arange(d, dtype=torch.float64)
    return RHO ** (at[:, None] - at).abs()


def noised(d: int, t: Tensor) -> Tensor:
    return SDE.psi0(t).square().squeeze() * covariance(d) + SDE.cov(t).squeeze() * torch.eye(d, dtype=torch.float64)


def precision(graph: FactorGraph, t: Tensor) -> Tensor:
    """A of the collage's score -A u."""
    total = torch.zeros(2 * graph.shape, dtype=torch.float64)
    inverse = {len(r.index): torch.linalg.inv(noised(len(r.index), t)) for r in graph.regions}
    for region in graph.regions:
        total[region.index[:, None], region.index] += region.count * inverse[len(region.index)]
    return total


def graph_of(overlap: int) -> FactorGraph:
    piece = PIECES[overlap]
    return chain((64 - overlap) // (piece - overlap), piece, overlap)


def ddim(graph: FactorGraph, C: Tensor, t: Tensor, s: Tensor) -> Tensor:
    R_t, R_s, psi = (float(v) for v in (SDE.R(t), SDE.R(s), SDE.psi(s, t)))
    M = psi * torch.eye(len(C), dtype=torch.float64) + (R_s - psi * R_t) * R_t * precision(graph, t)
    return M @ C @ M.T


def reverse_sde(graph: FactorGraph, C: Tensor, t: Tensor, s: Tensor) -> Tensor:
    h, F, GG, eye = float(t - s), float(SDE.F(t)), float(SDE.GG(t)), torch.eye(len(C), dtype=torch.float64)
    M = (1 - h * F) * eye - h * GG * precision(graph, t)
    return M @ C @ M.T + h * GG * eye


def langevin(graph: FactorGraph, C: Tensor, s: Tensor, steps: int, h: float) -> Tensor:
    var, eye = float(SDE.cov(s)), torch.eye(len(C), dtype=torch.float64)
    M = eye - h * var * precision(graph, s)
    for _ in range(steps):
        C = M @ C @ M.T + 2 * h * var * eye
    return C


def up(C: Tensor, t: Tensor, s: Tensor) -> Tensor:
    psi = SDE.psi(t, s).squeeze()
    return psi**2 * C + (SDE.cov(t).squeeze() - psi**2 * SDE.cov(s).squeeze()) * torch.eye(len(C), dtype=torch.float64)


def sampled(graph: FactorGraph, sampler: str, evaluations: int) -> Tensor:
    """The covariance at t_min."""
    each = {"DDIM": 1, "reverse SDE": 1, "resampling x5": 5, "collage 4 x .5": 5, "collage 9 x .5": 10}[sampler]
    C = torch.eye(graph.shape[0], dtype=torch.float64)
    for t, s in pairwise(power_times(SDE, max(1, evaluations // each), 2.0)):
        if sampler == "reverse SDE":
            C = reverse_sde(graph, C, t, s)
            continue
        C = ddim(graph, C, t, s)
        if sampler.startswith("resampling"):
            for _ in range(each - 1):
                C = ddim(graph, up(C, t, s), t, s)
        elif sampler.startswith("collage"):
            C = langevin(graph, C, s, each - 1, 0.5)
    return C


def main() -> int:
    """Prints both tables."""
    times = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0)
    print("distance of the collage's score from the joint one, |A - A_joint| / |A_joint|\n")
    print(f"{'overlap':>8}{'piece':>7}" + "".join(f"  t = {t:<6g}" for t in times))
    for overlap, piece in PIECES.items():
        graph, cells = graph_of(overlap), []
        for t in times:
            joint = torch.linalg.inv(noised(graph.shape[0], torch.tensor(t, dtype=torch.float64)))
            there = precision(graph, torch.tensor(t, dtype=torch.float64))
            cells.append(f"  {float((there - joint).norm() / joint.norm()):<10.1e}")
        print(f"{overlap:>8}{piece:>7}" + "".join(cells), flush=True)
    print("\nerror of the covariance (lag 10), by evaluations of the score\n")
    print(f"{'overlap':>8}  {'sampler':<16}" + "".join(f"{n:>15}" for n in EVALUATIONS))
    for overlap in PIECES:
        graph = graph_of(overlap)
        wanted = covariance(graph.shape[0])
        for sampler in ("DDIM", "reverse SDE", "resampling x5", "collage 4 x .5", "collage 9 x .5"):
            cells = []
            for n in EVALUATIONS:
                C = sampled(graph, sampler, n)
                cells.append(f"{float((C - wanted).norm() / wanted.norm()):.3f} ({float(C.diagonal(10).mean()):.3f})")
            print(f"{overlap:>8}  {sampler:<16}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
