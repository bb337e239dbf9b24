"""What a training command leaves behind at its end: learning curves, the table, samples, and how to look at them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import evaluate, tracking
from pipelines.config import digest
from pipelines.loop import Job, read_metrics
from pipelines.pictures import learning_curve
from pipelines.sampling import Sampling

__all__ = ["BRIEF", "conclude"]

BRIEF = evaluate.Settings(
    images=128,
    nll_replicates=1,
    rtol=1e-4,
    atol=1e-4,
    nelbo_replicates=4,
    nelbo_draws=16,
    samples=1000,
    sampling=Sampling(sampler="ode", rtol=1e-3, atol=1e-3),
    chunk=32,
)
"""The main job's brief measurement; pipelines/evaluate.py takes the full one."""


def conclude(jobs: Sequence[Job], measure: bool, root: Path) -> None:
    """Draws the learning curves, measures the runs together (once) and prints the table and where everything lies."""
    series = {job.directory.name: read_metrics(job.directory) for job in jobs}
    unit = next((r["unit"] for records in series.values() for r in records if "unit" in r), "")
    shown = {name: [r for r in records if "nelbo" in r] for name, records in series.items()}
    for job in jobs:
        learning_curve(shown, unit, job.directory / "learning_curve.png")
    runs = [job.directory for job in jobs]
    if measure:
        document = _measured_already(runs)
        if document is None:
            evaluate.connect(1, 1.0)
            document = evaluate.evaluate(runs, BRIEF, root, evaluate.BRIEF)
        print("\n" + evaluate.table(document))
        evaluate.log(document, runs, root)
    for job in jobs:
        tracking.log_quietly(partial(_keep, job, root), root)
        pictures = "samples.png, learning_curve.png" if measure else "learning_curve.png"
        print(f"{job.directory}: model.safetensors, {pictures}, metrics.jsonl")
    names = " ".join(str(run) for run in runs)
    print(
        f"full measurement: python pipelines/evaluate.py {names}\nexperiments: make ui   ({tracking.tracking_uri(root)})"
    )


def _keep(job: Job, root: Path) -> None:
    """The learning curve and the model in the job's MLflow run, which is finished by this."""
    log = tracking.RunLog(job, tracking.tracking_uri(root))
    log.artifact(job.directory / "learning_curve.png")
    for file in ("config.json", "model.safetensors"):
        log.artifact(job.directory / file, "model")
    log.close("FINISHED")


def _measured_already(runs: Sequence[Path]) -> dict[str, Any] | None:
    """The brief measurement of exactly these runs with exactly these weights, where there is one."""
    try:
        document = json.loads((runs[0] / evaluate.BRIEF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    weights = {run.name: digest(run) for run in runs}
    return document if document.get("weights") == weights and document["settings"] == asdict(BRIEF) else None
