"""What a training command leaves behind at its end: learning curves, the table, samples, and how to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.cluster.session import connect
from pipelines.config.sampling import Sampling
from pipelines.config.store import digest
from pipelines.evaluation.measure import evaluate
from pipelines.evaluation.results import Evaluation
from pipelines.evaluation.settings import BRIEF, Settings
from pipelines.evaluation.table import log, table
from pipelines.runs import tracking
from pipelines.runs.catalogue import log_models
from pipelines.runs.job import Job, read_metrics
from pipelines.runs.pictures import learning_curve

__all__ = ["BRIEF_SETTINGS", "conclude"]

BRIEF_SETTINGS = Settings(
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
    series = {job.directory.name: [r for r in read_metrics(job.directory) if "nelbo" in r.terms] for job in jobs}
    unit = next((r.unit for records in series.values() for r in records), "")
    for job in jobs:
        learning_curve(series, unit, job.directory / "learning_curve.png")
    runs, uri = [job.directory for job in jobs], tracking.tracking_uri(root)
    for run in runs:  # first, so that the measurement's figures are linked to them
        tracking.log_quietly(partial(log_models, run, uri), root)
    if measure:
        document = _measured_already(runs)
        if document is None:
            connect(1, 1.0)
            document = evaluate(runs, BRIEF_SETTINGS, root, BRIEF, _print)
        else:
            _print(document)
        log(document, runs, root)
    for job in jobs:
        tracking.log_quietly(partial(_keep, job, root), root)
        pictures = "samples.png, learning_curve.png" if measure else "learning_curve.png"
        print(f"{job.directory}: model.safetensors, {pictures}, metrics.jsonl")
    names = " ".join(str(run) for run in runs)
    print(
        f"full measurement: python pipelines/evaluate.py {names}\nexperiments: make ui   ({tracking.tracking_uri(root)})"
    )


def _print(document: Evaluation) -> None:
    print("\n" + table(document), flush=True)


def _keep(job: Job, root: Path) -> None:
    """The learning curve in the job's MLflow run, which is finished by this."""
    run_log = tracking.RunLog(job.directory, tracking.tracking_uri(root))
    run_log.artifact(job.directory / "learning_curve.png")
    run_log.close("FINISHED")


def _measured_already(runs: Sequence[Path]) -> Evaluation | None:
    """The brief measurement of exactly these runs with exactly these weights, where there is one."""
    try:
        document = Evaluation.read(runs[0] / BRIEF)
    except ValueError:
        return None
    same = document.weights == {run.name: digest(run) for run in runs}
    return document if same and document.settings == BRIEF_SETTINGS else None
