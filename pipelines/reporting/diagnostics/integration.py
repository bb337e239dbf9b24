"""Draws what `indm_core.diagnostics.integration` measures of a run: Figures 6.2-6.4, 7.1 and 7.2 of Zhang's thesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm_core.diagnostics import mean_and_error
from indm_core.diagnostics.integration import (
    ODEPath,
    Solver,
    at_positions,
    eps_along,
    extrapolation_error,
    fitting_error,
    ode_path,
    pixel_difference,
    points_score,
    refined_times,
    relative_change,
)
from indm_core.exponential import Basis, sample_deis
from indm_core.model import GenerativeModel
from indm_core.sample import sample_em
from indm_core.sde import LinearSDE
from indm_core.times import power_times, uniform_times
from pipelines.data.spec import DataSpec
from pipelines.reporting.page.parts import Drawing
from pipelines.reporting.stages import Stages
from pipelines.runs.pictures import figure_of, put

__all__ = ["draw_integration"]

STEPS = (5, 10, 20, 50, 100)
SOLVERS: dict[str, Solver] = {
    "Euler": partial(sample_em, lam=0.0),
    "EI, score constant (Eq. 6.8)": partial(sample_deis, order=0, basis="score"),
    "EI, eps constant (DDIM)": partial(sample_deis, order=0),
    "EI, eps of degree 1": partial(sample_deis, order=1),
    "EI, eps of degree 2": partial(sample_deis, order=2),
    "EI, eps of degree 3": partial(sample_deis, order=3),
}


@dataclass(frozen=True)
class Subject:
    """A model with a linear diffusion, and states at its t_start that every figure begins from."""

    name: str
    model: GenerativeModel
    sde: LinearSDE
    start: Tensor


def draw_integration(
    name: str, model: GenerativeModel, x: Tensor, spec: DataSpec, out: Path, stages: Stages, seed: int = 0
) -> list[Drawing]:
    """Draws every figure that the model allows into a directory; [] where its drift is learned.

    Args:
        x: Data (b, *shape), dequantised: as many solutions are drawn, and they are the points of Figure 7.2.
        stages: Told of each figure as work at it begins.
    """
    sde = model.sde.linear
    if sde is None:
        return []
    out.mkdir(parents=True, exist_ok=True)
    start = model.sample_start(model.state_like(len(x), x), torch.Generator().manual_seed(seed))
    subject = Subject(name, model, sde, start)
    figures: list[tuple[str, Callable[[], Drawing]]] = [
        ("error of N steps", partial(_difference, subject, out)),
        ("error of holding the score or eps", partial(_held, subject, out)),
        ("error of extrapolating eps", partial(_extrapolated, subject, out)),
    ]
    if start.shape[-1] == 2:
        figures.append(("trajectories of position and velocity", partial(_trajectories, subject, out)))
    figures.append(("scores at points of the data", partial(_points, subject, x, out)))
    if spec.shape == (2,):
        figures.append(("fitting error", partial(_fitting, subject, x, out, seed)))
    drawings = []
    for what, draw in figures:
        stages.say(f"{what}, {name}")
        drawings.append(draw())
    return drawings


def _difference(subject: Subject, out: Path) -> Drawing:
    """Figures 6.3a, 6.3c, 6.4c: Delta_p against N, on the uniform and on the quadratic grid."""
    model, sde = subject.model, subject.sde
    figure = figure_of(10, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    grids: dict[str, Callable[[int], Tensor]] = {
        "uniform grid": lambda n: uniform_times(sde, n, high=model.t_start),
        "quadratic grid": lambda n: power_times(sde, n, 2.0, high=model.t_start),
    }
    for axes, (title, grid) in zip(panels, grids.items(), strict=True):
        found = pixel_difference(
            sde,
            model.score,
            subject.start,
            [grid(n) for n in STEPS],
            list(SOLVERS.values()),
            decode=model.decode,
            rtol=1e-5,
            atol=1e-5,
        )
        for label, values in zip(SOLVERS, found, strict=True):
            mean, error = (part.double().numpy() for part in mean_and_error(values))
            axes.errorbar(STEPS, mean, 2 * error, label=label, marker="o", markersize=3, linewidth=1.2, capsize=2)
        axes.set_title(title)
        _logarithmic(axes, "N", "mean |x - x*|")
    panels[1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    caption = (
        "Average difference to the exact solution of the probability-flow ODE from the same start (thesis, Figures 6.3a, c and "
        "6.4c); bars: two standard errors over samples."
    )
    return _finish(figure, out, subject, "difference", "Error of N steps", caption)


def _held(subject: Subject, out: Path) -> Drawing:
    """Figures 6.3b, 6.3d, 6.4a: what changes along the exact solution while a step holds it constant."""
    model, sde, every = subject.model, subject.sde, 8
    figure = figure_of(10, 3.6)
    left, right = figure.subplots(1, 2)
    path = _path(subject, refined_times(power_times(sde, 10, 2.0, high=model.t_start), every))
    ts = path.ts[1:].numpy()
    held: dict[Basis, str] = {"score": "score held constant", "R": "eps held constant"}
    for basis, label in held.items():
        error = extrapolation_error(sde, path, every, basis=basis)
        left.plot(ts, error.score.mean(1).numpy(), label=label, linewidth=1.2)
    _logarithmic(left, "t", "error of the score, N = 10")
    left.legend()
    fine = _path(subject, power_times(sde, 200, 2.0, high=model.t_start))
    moving: dict[Basis, str] = {"score": "score", "R": "eps"}
    for basis, label in moving.items():
        change = relative_change(sde, fine, basis) / -fine.ts.diff().unsqueeze(1)
        right.plot(fine.ts[1:].numpy(), change.mean(1).numpy(), label=label, linewidth=1.2)
    _logarithmic(right, "t", "relative change per unit of time")
    right.legend()
    caption = "What a step neglects that holds the score, or eps, constant (thesis, Figures 6.3b, 6.3d and 6.4a)."
    return _finish(figure, out, subject, "held", "Score and eps along a solution", caption)


def _extrapolated(subject: Subject, out: Path) -> Drawing:
    """Figure 6.4b: the extrapolation error of eps by polynomials of degree 0 to 3, N = 10."""
    sde, every = subject.sde, 8
    path = _path(subject, refined_times(power_times(sde, 10, 2.0, high=subject.model.t_start), every))
    figure = figure_of(6, 3.6)
    axes = figure.subplots()
    for degree in range(4):
        error = extrapolation_error(sde, path, every, degree=degree).eps.mean(1)
        axes.plot(path.ts[1:].numpy(), error.numpy(), label=f"degree {degree}", linewidth=1.2)
    _logarithmic(axes, "t", "|error of eps|")
    axes.legend()
    caption = "Polynomials through the last values of eps, N = 10 on the quadratic grid (thesis, Figure 6.4b)."
    return _finish(figure, out, subject, "extrapolation", "Extrapolation of eps", caption)


def _trajectories(subject: Subject, out: Path) -> Drawing:
    """Figure 7.1: pixels and velocities along a solution, and eps in the bases L and R."""
    sde = subject.sde
    path = _path(subject, power_times(sde, 100, 2.0, high=subject.model.t_start))
    num = path.u[0, 0].numel() // 2
    where = np.linspace(0, num - 1, 6).round().astype(int).tolist()
    figure = figure_of(12, 5.6)
    grid = figure.subplots(2, 3)
    shown = {"u": path.u, "eps, basis L": eps_along(sde, path, "L"), "eps, basis R": eps_along(sde, path, "R")}
    for column, (title, values) in enumerate(shown.items()):
        curves = at_positions(values, where)[:, 0]
        for row, channel in enumerate(("x", "v")):
            axes = grid[row][column]
            axes.plot(path.ts.numpy(), curves[..., row].numpy(), linewidth=1.0)
            axes.set_title(f"{title}, channel {channel}")
            axes.set_xlabel("t")
    figure.tight_layout()
    caption = (
        "Six positions of one solution, and what the network says there in the bases L and R (thesis, Figure 7.1)."
    )
    return _finish(figure, out, subject, "trajectories", "Why the basis R", caption)


def _points(subject: Subject, x: Tensor, out: Path) -> Drawing:
    """Figure 7.2: eps of the exact score of the points x along solutions, relative to its value at the end."""
    sde = subject.sde
    with torch.no_grad():
        u_0, _ = subject.model.encode(x)
    score = points_score(sde, sde.project(u_0)[:64].double())
    ts = power_times(sde, 60, 2.0, high=subject.model.t_start)
    path = ode_path(sde, score, subject.start[:8].double(), ts, rtol=1e-9, atol=1e-9)
    eps = eps_along(sde, path).flatten(2)
    change = (eps - eps[-1]).norm(dim=2) / eps[-1].norm(dim=1)
    figure = figure_of(6, 3.6)
    axes = figure.subplots()
    axes.plot(ts.numpy(), change.numpy(), linewidth=1.0)
    axes.set_xlabel("t")
    axes.set_ylabel("|eps(t) - eps(t_min)| / |eps(t_min)|")
    caption = (
        f"eps of the exact score of {min(64, len(x))} data points along eight solutions, against its last value: constant "
        "where one point's weight is 1 (thesis, Figure 7.2)."
    )
    return _finish(figure, out, subject, "points", "Data as points", caption)


def _fitting(subject: Subject, x: Tensor, out: Path, seed: int) -> Drawing:
    """Figure 6.2: where in the plane the learned score is wrong."""
    model, sde = subject.model, subject.sde
    with torch.no_grad():
        u_0, _ = model.encode(x)
    points = sde.project(u_0)
    t = torch.tensor(0.1 * model.t_start, dtype=torch.float64)
    side = torch.linspace(-2.5, 2.5, 60)
    places = torch.cartesian_prod(side, side).to(x)
    u = sde.embed(places)
    error = fitting_error(sde, model.score, points_score(sde, points), u, t).reshape(60, 60)
    figure = figure_of(9, 4.0)
    left, right = figure.subplots(1, 2)
    diffused = sde.project(sde.perturb(u_0, t, torch.randn(u_0.shape, generator=torch.Generator().manual_seed(seed))))
    left.hist2d(*diffused.numpy().T, bins=60, range=[[-2.5, 2.5]] * 2, cmap="Blues")
    left.set_title("draws of p_t")
    shown = right.imshow(error.T.numpy(), origin="lower", extent=(-2.5, 2.5, -2.5, 2.5), cmap="magma", norm="log")
    right.set_title("|eps - eps of the data points|")
    figure.colorbar(shown, ax=right)
    for axes in (left, right):
        axes.set_aspect("equal")
    caption = (
        f"t = {float(t):g}: the score is right where there are data and wrong elsewhere (thesis, Figure 6.2); the exact score "
        f"is that of {len(x)} data points."
    )
    return _finish(figure, out, subject, "fitting", "Fitting error", caption)


def _path(subject: Subject, ts: Tensor) -> ODEPath:
    return ode_path(subject.sde, subject.model.score, subject.start, ts, rtol=1e-4, atol=1e-4)


def _logarithmic(axes: Any, across: str, up: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _finish(figure: Any, out: Path, subject: Subject, stem: str, title: str, caption: str) -> Drawing:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    file = out / f"{stem}-{subject.name.replace(':', '-')}.png"
    put(file, partial(figure.savefig, dpi=110, bbox_inches="tight"))
    return Drawing(file, f"{title} of {subject.name}", caption)
