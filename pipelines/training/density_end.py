"""What is left at the end of a path integral sampler: weighted samples, their figures, and the row of the table."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipelines.config.pis import load_control
from pipelines.config.store import CONFIG, WEIGHTS
from pipelines.config.terminal.device import device_of
from pipelines.config.weights import Weights
from pipelines.evaluation.weighted import (
    FIGURES,
    PICTURE,
    SAMPLES,
    Drawing,
    Figures,
    draw_weighted,
    kept_figures,
    table,
)
from pipelines.runs.job import PISJob
from pipelines.storage.files import sha256_of
from pipelines.training.leave import draw_curves
from pipelines.training.watch.summary import seconds_taken

__all__ = ["conclude"]


def conclude(job: PISJob, drawing: Drawing, root: Path, device: str) -> None:
    """Draws the samples, where they are not there yet, prints the row, and logs it where the run has an MLflow run.

    Args:
        job: Trained.
        root: The output directory.
        device: That is drawn on, as the command names it.
    """
    run, directory = job.run, job.directory
    figures, target = _drawn(job, drawing, device), run.target.build()
    evaluations = run.evaluations_per_path() * run.train.batch_size * run.train.steps
    seconds = seconds_taken(job.training)
    draw_curves([directory])
    method = f"PIS-{run.control.upper() if run.control == 'nn' else 'Grad'} ({run.loss}, N = {run.num_steps})"
    lines = table(
        run.recipe,
        target.dim,
        method,
        figures,
        evaluations=evaluations,
        steps=run.train.steps,
        seconds=seconds,
    )
    print("\n" + "\n".join(lines), flush=True)
    print(
        f"{directory}: {SAMPLES} (x, log_w), {FIGURES}, {PICTURE}, learning_curve.png, model.safetensors, metrics.jsonl"
    )
    if (directory / "mlflow.json").is_file():
        _log(job, figures, root, {"evaluations/training": evaluations, "seconds/training": seconds})
        print(f"experiments: make ui OUT={shlex.quote(str(root))}")


def _drawn(job: PISJob, drawing: Drawing, device: str) -> Figures:
    """The figures of the drawing: those that are there, else new ones."""
    file = job.directory / WEIGHTS
    weights = sha256_of(file)
    if there := kept_figures(job.directory, drawing, weights):
        return there
    target = job.run.target.build()
    sampler = load_control(job.run.build(target), file).to(device_of(device))  # with its target
    return draw_weighted(sampler, target, job.directory, drawing, weights)


def _log(job: PISJob, figures: Figures, root: Path, training: dict[str, float]) -> None:
    from pipelines.runs.tracking import Made, deliver, open_missed, post  # MLflow from here on

    open_missed([job], root)
    files = (FIGURES, PICTURE, "learning_curve.png", CONFIG)
    made = Made(figures=figures.metrics() | training, files=tuple(str(job.directory / file) for file in files))
    post(Weights(run=job.directory), made)
    deliver([job.directory], root)
