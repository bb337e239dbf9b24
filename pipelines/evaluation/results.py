"""The document of an evaluation: as text, and in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from pipelines.evaluation.settings import BRIEF, FULL
from pipelines.runs import tracking

__all__ = ["KINDS", "log", "table"]


KINDS = {
    "nll": "NLL",
    "nelbo": "NELBO",
    "nll_before": "NLL before correction",
    "nelbo_before": "NELBO without the residual",
    "partner": "NLL of the second data set under the flow",
}
"""What is taken of each test image."""


def table(document: dict[str, Any]) -> str:
    """The figures as text, laid out as Table 4 of the INDM paper; every figure with its standard error."""
    settings, unit = document["settings"], document["unit"]
    lines = [
        f"{'model':<24} {'params':>8} {'cost':>6}  {f'NLL {unit}':<22} {f'NELBO {unit}':<22} {'gap':<22} "
        f"FD({document['features']})",
    ]
    for name, figures in document["runs"].items():
        cells = [_cell(figures[kind]) for kind in ("nll", "nelbo", "gap")]
        frechet = figures.get("frechet")
        distance = f"{frechet['mean']:.3f} +- {frechet['se']:.3f}" if frechet else "-"
        if figures.get("diverged"):
            distance += f" ({figures['diverged']} diverged)"
        params = f"{figures['parameters'] / 1e6:.2f}M"
        cost = sum(figures.get("evaluations", {}).values()) or "-"
        lines.append(f"{name:<24} {params:>8} {cost:>6}  {cells[0]:<22} {cells[1]:<22} {cells[2]:<22} {distance}")
        for kind, label in (KINDS | {"gap_before": "gap before correction"}).items():
            if kind in figures and kind not in ("nll", "nelbo"):
                lines.append(f"  {label}: {_cell(figures[kind])}")
    for name, estimate in document.get("baselines", {}).items():
        lines.append(f"{name}: NLL {estimate['mean']:+.4f} +- {estimate['se_images']:.4f} {unit} (over test rows)")
    for pair, kinds in document["differences"].items():
        shown = ", ".join(f"{KINDS[kind]} {_cell(d | {'se': d['se_images']})}" for kind, d in kinds.items())
        lines.append(f"{pair}, paired per image on the same draws: {shown}")
    one = settings["nll_replicates"] == 1
    lines.append(
        f"{document['images']} test {'images' if unit.startswith('bits') else 'rows'} of {document['data']}; "
        f"NLL: probability-flow ODE at rtol {settings['rtol']:g}, atol {settings['atol']:g}, "
        f"x{settings['nll_replicates']}; NELBO: {settings['nelbo_draws']} draws, x{settings['nelbo_replicates']}; "
        f"+- is the estimator's standard error on these images"
        + (" (of NLL and gap: over images)" if one else "")
        + "; cost: evaluations of networks per training step"
        + f"; FD: {settings['samples']} samples, {settings['sampling']['sampler']}, bootstrap; {document['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _cell(estimate: dict[str, Any]) -> str:
    """Mean and standard error; what is not finite, or could not be had, is n/a."""
    mean, se = estimate["mean"], estimate["se_images"] if estimate["se"] is None else estimate["se"]
    return f"{'n/a' if mean is None else f'{mean:+.4f}'} +- {'n/a' if se is None else f'{se:.4f}'}"


def log(document: dict[str, Any], runs: Sequence[Path], root: Path) -> None:
    """Writes each run's figures, table and samples into its MLflow run."""
    tracking.log_quietly(partial(_log, document, runs, root), root)


def _log(document: dict[str, Any], runs: Sequence[Path], root: Path) -> None:
    client = MlflowClient(tracking.tracking_uri(root))
    for run in runs:
        run_id = tracking.run_id(run)
        if not run_id:
            continue
        for name, estimate in document["runs"][run.name].items():
            values = estimate.items() if isinstance(estimate, dict) else [("mean", estimate)]
            for part, value in values:
                if value is not None:
                    client.log_metric(run_id, f"test/{name}" if part == "mean" else f"test/{name}/{part}", value)
        for file in (FULL, BRIEF, "samples.png"):
            if (run / file).is_file():
                client.log_artifact(run_id, str(run / file))
