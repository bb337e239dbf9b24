"""Draws what `indm_core.diagnostics` measures of trained runs: the INDM paper's Figures 1, 2, 4, 6, 7, the ladder of a path,
and the norms of Table 2. A run is a (name, model) pair; all are drawn into one figure where that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm_core.diagnostics import (
    along_times,
    discretisation_error,
    hessian_norm,
    induced_norm_ratio,
    induced_sde,
    mean_and_error,
    path_cosine,
    score_rate,
    squared_norms,
)
from indm_core.draw import forward_path, generative_path
from indm_core.model import GenerativeModel
from indm_core.sample import power_times, sample_ode
from indm_core.sde import LinearSDE
from pipelines.data.spec import DataSpec
from pipelines.reporting.page.parts import Drawing
from pipelines.reporting.stages import Stages
from pipelines.runs.pictures import figure_of, image_grid, pixels, put

__all__ = ["Model", "diagnose", "ladder", "norms"]

Model = tuple[str, GenerativeModel]
RUNGS = (0.0, 0.25, 0.5, 0.75, 1.0)


def diagnose(
    models: Sequence[Model], x: Tensor, spec: DataSpec, out: Path, stages: Stages, seed: int = 0
) -> list[Drawing]:
    """Draws every figure that the data allow (the induced SDE needs two dimensions) into a directory.

    Args:
        models: Names and models, on the same data.
        x: Data (b, *shape), dequantised; 32 to 128 of them are enough for the curves.
        stages: Told of each figure and model as work at it begins.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawings = [_smoothness(models, x, out, stages, seed), _cosine(models, x, out, stages, seed)]
    linear = [sde for _, model in models if (sde := model.sde.linear) is not None]
    if linear:
        stages.say("sensitivity to discretisation")
        drawings.append(_discretisation(linear[0], x, out))
    if spec.shape == (2,) and len(linear) == len(models):
        stages.say("induced diffusion of the data, nonlinearity of the drift")
        drawings.append(_induced(models, x, out))
        if all(sde.prior_cov().shape[-1] == 1 for sde in linear):  # else noise does not reach x directly
            drawings.append(_ratio(models, x, out, seed))
    for name, model in models:
        stages.say(f"path of {name}")
        drawings.append(ladder(name, model, x[:12] if len(spec.shape) > 1 else x, spec, out, seed))
    return drawings


def norms(models: Sequence[Model], x: Tensor, seed: int = 0) -> dict[str, dict[str, tuple[float, float]]]:
    """Table 2: mean squared norms of data, latent and prior, with standard errors, by model."""
    found = {}
    for name, model in models:
        measured = squared_norms(model, x, generator=torch.Generator().manual_seed(seed))
        estimates = {key: mean_and_error(value) for key, value in measured._asdict().items()}
        found[name] = {key: (float(e.mean), float(e.error)) for key, e in estimates.items()}
    return found


def _times(model: GenerativeModel, num: int) -> Tensor:
    return torch.logspace(np.log10(max(model.sde.t_min, 1e-4)), np.log10(model.t_start), num, dtype=torch.float64)


def _band(axes: Any, ts: Tensor, values: Tensor, label: str) -> None:
    """The mean over samples against time, with a band of two standard errors."""
    mean, error = (v.double().numpy() for v in mean_and_error(values))
    (line,) = axes.plot(ts.numpy(), mean, label=label, linewidth=1.3)
    axes.fill_between(ts.numpy(), mean - 2 * error, mean + 2 * error, color=line.get_color(), alpha=0.2, linewidth=0)


def _finish(figure: Any, file: Path, title: str, caption: str) -> Drawing:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    put(file, partial(figure.savefig, dpi=110, bbox_inches="tight"))
    return Drawing(file, title, caption)


def _smoothness(models: Sequence[Model], x: Tensor, out: Path, stages: Stages, seed: int) -> Drawing:
    figure = figure_of(9, 3.4)
    left, right = figure.subplots(1, 2)
    for name, model in models:
        stages.say(f"smoothness of the score, {name}")
        ts = _times(model, 12)
        probes = torch.Generator().manual_seed(seed + 1)
        for axes, measure in ((left, partial(hessian_norm, num_probes=2, generator=probes)), (right, score_rate)):
            values = along_times(model, x, ts, measure, generator=torch.Generator().manual_seed(seed))
            _band(axes, ts, values, name)
    for axes, label in ((left, "|Hessian of log p_t|"), (right, "|d score/dt| / |z|")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("t")
        axes.set_ylabel(label)
    left.legend()
    caption = "Smoothness of the score (Kim et al. 2022, Figure 7a, b); bands: two standard errors over images."
    return _finish(figure, out / "smoothness.png", "Smoothness of the score", caption)


def _cosine(models: Sequence[Model], x: Tensor, out: Path, stages: Stages, seed: int) -> Drawing:
    figure = figure_of(6, 3.4)
    axes = figure.subplots()
    for name, model in models:
        stages.say(f"straightness of trajectories, {name}")
        first = max(1e-3 * model.t_start, model.sde.t_min)
        ts = torch.linspace(first, model.t_start, 21, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            u_0, _ = model.encode(x, generator)
            u = model.sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), generator)
        _band(axes, ts, path_cosine(model.sde, model.score, u, ts, rtol=1e-3, atol=1e-3), name)
    axes.set_xlabel("t")
    axes.set_ylabel("cosine")
    axes.legend()
    caption = "Cosine of the ODE's velocity with the chord of its path (Figure 7c): 1 on a straight line."
    return _finish(figure, out / "cosine.png", "Straightness of trajectories", caption)


def _discretisation(sde: LinearSDE, x: Tensor, out: Path) -> Drawing:
    """Figure 6 for Gaussian data with the variances of x in the SDE's basis."""
    u = sde.embed(x.double())
    centred = u - u.mean(0)
    cov = torch.einsum("b...i,b...j->...ij", centred, centred) / (len(x) - 1)
    figure = figure_of(6, 3.4)
    axes = figure.subplots()
    scales = np.geomspace(0.1, 10, 25)
    for num_steps in (10, 20, 50, 100):
        ts = power_times(sde, num_steps, 2.0)
        w2 = [float(discretisation_error(sde, float(a), ts, u.mean(0), cov).w2) for a in scales]
        axes.plot(scales, w2, label=f"{num_steps} steps")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("a")
    axes.set_ylabel("Wasserstein-2 distance")
    axes.legend()
    caption = (
        "Error of Euler-Maruyama (quadratic grid) under the flow h(x) = a x on Gaussian data with the data's variances and the "
        "exact score (Figure 6), in closed form."
    )
    return _finish(figure, out / "discretisation.png", "Sensitivity to discretisation", caption)


def _induced(models: Sequence[Model], x: Tensor, out: Path) -> Drawing:
    from matplotlib.patches import Ellipse

    figure = figure_of(4.2 * len(models), 4.2)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    shown = x[:150]
    for axes, (name, model) in zip(panels, models, strict=True):
        with torch.no_grad():
            u, _ = model.encode(shown)
        induced = induced_sde(model, u, torch.tensor(0.1, dtype=torch.float64))
        points, drift = induced.x.numpy(), induced.drift.numpy()
        axes.quiver(points[:, 0], points[:, 1], drift[:, 0], drift[:, 1], width=0.004, color="tab:blue")
        cov = (induced.volatility @ induced.volatility.mT).double()
        values, vectors = torch.linalg.eigh(cov)
        for (px, py), (small, large), v in zip(points, values.sqrt().tolist(), vectors.numpy(), strict=True):
            angle = float(np.degrees(np.arctan2(v[1, 1], v[0, 1])))
            size = 0.08
            axes.add_patch(Ellipse((px, py), size * large, size * small, angle=angle, fill=False, color="tab:orange"))
        axes.set_aspect("equal")
        axes.set_title(name)
    caption = "Drift (arrows) and covariance per unit time (ellipses) of the data SDE at t = 0.1 (Figures 1 and 2)."
    return _finish(figure, out / "induced.png", "Induced diffusion of the data", caption)


def _ratio(models: Sequence[Model], x: Tensor, out: Path, seed: int) -> Drawing:
    figure = figure_of(6, 3.4)
    axes = figure.subplots()
    for name, model in models:
        ts, generator = _times(model, 10), torch.Generator().manual_seed(seed)

        def ratio(score: Any, u: Tensor, t: Tensor, model: GenerativeModel = model) -> Tensor:
            return induced_norm_ratio(model, u, t, dt=1e-3)

        _band(axes, ts, along_times(model, x, ts, ratio, generator=generator), name)
    axes.set_xscale("log")
    axes.set_xlabel("t")
    axes.set_ylabel("norm ratio at dt = 0.001")
    axes.legend()
    caption = "What a step owes to the nonlinear drift over what it owes to noise (Figure 4); 0 for a linear diffusion."
    return _finish(figure, out / "ratio.png", "Nonlinearity of the drift", caption)


def ladder(name: str, model: GenerativeModel, x: Tensor, spec: DataSpec, out: Path, seed: int = 0) -> Drawing:
    """The data-space path x_t = h^-1(z_t): left to right t = 0 to 1 of data that diffuse, then t = 1 to 0 of samples."""
    end = model.t_start
    forward = forward_path(
        model, x, end * torch.tensor(RUNGS, dtype=torch.float64), torch.Generator().manual_seed(seed)
    )
    ts = power_times(model.sde, 4 * (len(RUNGS) - 1), 2.0, high=end)
    u = model.sample_start(model.state_like(len(x), x), torch.Generator().manual_seed(seed))

    def sampler(sde: Any, score: Any, u: Tensor, ts: Tensor, generator: Any) -> Tensor:
        return sample_ode(sde, score, u, ts, rtol=1e-3, atol=1e-3)

    backward = generative_path(model, sampler, u, ts, len(RUNGS))
    file = out / f"ladder-{name.replace(':', '-')}.png"
    if len(spec.shape) == 3:
        rows = torch.cat([forward, backward]).transpose(0, 1).flatten(0, 1)
        shown = pixels(spec.from_model(rows), spec)
        put(file, image_grid(shown, columns=2 * len(RUNGS)).save)
    else:
        put(file, partial(_points(forward, backward, end).savefig, dpi=100, bbox_inches="tight"))
    caption = (
        f"h^-1(z_t) for t = {', '.join(f'{end * r:g}' for r in RUNGS)}: data that diffuse, then as many times of the quadratic "
        "grid back from the law at the end."
    )
    return Drawing(file, f"Path of {name}", caption)


def _points(forward: Tensor, backward: Tensor, end: float) -> Any:
    """Both ways of vectors, the first column against the last one, or of the first sequence, in one frame."""
    figure = figure_of(1.9 * len(RUNGS), 4.1)
    grid = figure.subplots(2, len(RUNGS), sharex=True, sharey=True)
    for row, path, rungs in zip(grid, (forward, backward), (RUNGS, RUNGS[::-1]), strict=True):
        for axes, points, rung in zip(row, path, rungs, strict=True):
            if points.ndim == 3:
                axes.plot(points[0].T, linewidth=0.8)
            else:
                axes.scatter(points[:, 0], points[:, -1], s=4, linewidths=0)
            axes.set_title(f"t = {end * rung:g}" if path is forward else "", fontsize=9)
            axes.tick_params(labelsize=7)
    grid[0, 0].set_ylabel("data", fontsize=9)
    grid[1, 0].set_ylabel("samples", fontsize=9)
    return figure
