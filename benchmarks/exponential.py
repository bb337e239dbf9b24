"""What the exponential integrators promise, in figures: orders, exactness on one point, identities, the law of gDDIM, time.

    python benchmarks/exponential.py

The problems are those of tests/core/test_exponential.py and test_cld_bdm.py, which hold every figure to its bound.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[:0] = [
        str(Path(__file__).resolve().parents[1]),
        str(Path(__file__).resolve().parents[1] / "tests" / "core"),
    ]

import numpy as np
import torch
from test_exponential import DEIS, FIVE, Modes, event, slope

from indm_core.exponential import Basis, noise_factor, sample_deis
from indm_core.exponential.coefficients import plan
from indm_core.sample import power_times
from indm_core.sde import CLD, VP, LinearSDE, apply


def orders() -> None:
    print("slopes of the mean error, quadratic grid, three modes of standard deviation 0.3, 16 starts, float64")
    for t_min in (1e-3, 1e-5):
        sde = VP(t_min=t_min)
        t_ab = [slope(sde, (160, 320), order=order, warmup="exact") for order in range(4)]
        rk = [slope(sde, (160, 320), order=order, method="rho-RK") for order in (1, 2, 3)]
        print(f"  VP t_min {t_min:g} N 160->320: t-AB 0-3 {_list(t_ab)}; rho-RK 1-3 {_list(rk)}")
    for sde in (replace(sde, t_min=1e-3) for sde in FIVE[1:]):
        found = [slope(sde, (320, 640), order=order, warmup="exact") for order in (0, 1)]
        print(f"  {_name(sde)} t_min 0.001 N 320->640: t-AB 0-1 {_list(found)}")


def one_point() -> None:
    print("one order-0 step from t = 0.9 to 0.2 on data in one point, largest error")
    bases: list[tuple[LinearSDE, Basis]] = [*((sde, "R") for sde in FIVE), (CLD(), "L")]
    for sde, basis in bases:
        law, u_0 = Modes(sde, std=0.0, means=(0.7,)), _point(sde, 8)
        ts = torch.tensor([0.9, 0.2], dtype=torch.float64)
        eps = torch.randn(u_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        u = sample_deis(sde, law.score, sde.perturb(u_0, ts[0], eps), ts, order=0, basis=basis)
        print(f"  {_name(sde)} basis {basis}: {float((u - sde.perturb(u_0, ts[1], eps)).abs().max()):.1e}")


def identities() -> None:
    print(
        "identities, largest relative errors: psi(t,t) = I; psi(t,s) psi(s,r) = psi(t,r); |L^-1 R R^T L^-T - I|, 200 times"
    )
    for sde in FIVE:
        t, s, r = (torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.4, 0.1))
        eye = torch.eye(sde.prior_cov().shape[-1], dtype=torch.float64)
        same = float((sde.psi(t, t) - eye).abs().max())
        whole = sde.psi(t, r)
        chain = float(((sde.psi(t, s) @ sde.psi(s, r) - whole).abs() / whole.abs().clamp(min=1e-300)).max())
        times = torch.logspace(np.log10(sde.t_min), 0, 200, dtype=torch.float64).reshape(-1, 1, 1, 1)
        L, R = torch.linalg.cholesky(sde.cov(times)), sde.R(times)
        white = torch.linalg.solve_triangular(L, R, upper=False)
        print(f"  {_name(sde)} {same:.0e} {chain:.0e} {float((white @ white.mT - eye).abs().max()):.0e}")


def gddim() -> None:
    print(
        "stochastic gDDIM on one point, t = 0.2: largest |z| of the mean, of the covariance (standard errors, 4,000 draws)"
    )
    num = 4000
    for sde in FIVE:
        law, u_0, cells = Modes(sde, std=0.0, means=(0.7,)), _point(sde, num), []
        for lam in (0.0, 0.3, 1.0):
            for num_steps in (1, 10):
                ts = torch.linspace(0.9, 0.2, num_steps + 1, dtype=torch.float64)
                generator = torch.Generator().manual_seed(5)
                eps = torch.randn(u_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
                start = sde.perturb(u_0, ts[0], eps)
                u = sample_deis(sde, law.score, start, ts, order=0, lam=lam, generator=generator)
                mean, cov = apply(sde.psi0(ts[-1]), u_0[:1])[0], sde.cov(ts[-1])
                var = cov.diagonal(dim1=-2, dim2=-1).expand(mean.shape)
                centred = u - mean
                found = torch.einsum("b...i,b...j->...ij", centred, centred) / num
                bound = ((var.unsqueeze(-1) * var.unsqueeze(-2) + cov.square()) / num).sqrt()
                of_mean = float(((u.mean(0) - mean).abs() / (var / num).sqrt()).max())
                cells.append(
                    f"lam {lam:g} x{num_steps}: {of_mean:.1f} {float(((found - cov).abs() / bound).max()):.1f}"
                )
        t = torch.tensor([0.9, 0.5, 0.9, 1e-3], dtype=torch.float64)
        s = torch.tensor([0.2, 0.499, 1e-5, 1e-5], dtype=torch.float64)
        least = 0.0
        for lam in (0.3, 1.0):
            W, R = noise_factor(sde, t, s, lam), sde.R(s.reshape(-1, 1, 1))
            P = R @ (torch.eye(W.shape[-1]).double() - W @ W.mT) @ R.mT
            trace = sde.cov(s.reshape(-1, 1, 1)).diagonal(dim1=-2, dim2=-1).sum(-1)
            least = min(least, float((torch.linalg.eigvalsh(P).amin(-1) / trace).min()))
        print(f"  {_name(sde)} {'; '.join(cells)}; smallest eigenvalue / trace {least:.0e}")


def coefficients() -> None:
    print("coefficients of 50 steps, milliseconds, median of 20")
    for sde in FIVE:
        ts, took = power_times(sde, 50, 2.0), []
        for _ in range(20):
            began = time.perf_counter()
            plan.__wrapped__(sde, tuple(ts.tolist()), DEIS)
            took.append(1e3 * (time.perf_counter() - began))
        print(f"  {_name(sde)} {np.median(took):.1f}")


def _point(sde: LinearSDE, num: int) -> torch.Tensor:
    x = torch.full((num, *event(sde)), 0.7, dtype=torch.float64)
    return torch.stack([x, torch.zeros_like(x)], -1) if isinstance(sde, CLD) else x.unsqueeze(-1)


def _name(sde: LinearSDE) -> str:
    return type(sde).__name__


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    for part in (orders, one_point, identities, gddim, coefficients):
        part()
