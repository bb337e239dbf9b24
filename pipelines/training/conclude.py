"""What a training command leaves behind at its end: learning curves, the table, samples, and how to look at them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipelines.cluster.session import connect
from pipelines.config.run import RunConfig
from pipelines.config.store import CONFIG
from pipelines.config.weights import Weights
from pipelines.evaluation.measure import evaluate
from pipelines.evaluation.results.archive import measured_so
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.legend import legend
from pipelines.evaluation.results.seeds import seed_lines
from pipelines.evaluation.results.shares import share_lines
from pipelines.evaluation.results.table import log, table
from pipelines.evaluation.settings import Settings
from pipelines.runs.job import Job
from pipelines.runs.tracking import Made, deliver, open_missed, post
from pipelines.training.leave import draw_curves, what_next

__all__ = ["conclude"]


def conclude(jobs: Sequence[Job], settings: Settings | None, root: Path) -> None:
    """Measures the runs together (once), prints the table, draws the learning curves and says where everything lies.

    Args:
        settings: How the runs are measured; None: they are not.
    """
    runs = [Weights(run=job.directory) for job in jobs]
    configs = {job.directory.name: job.run for job in jobs}
    document = _measured(runs, settings, root, partial(_print, configs)) if settings else None
    draw_curves([job.directory for job in jobs])
    open_missed(jobs, root)
    for run in runs:
        post(run, Made(files=tuple(str(run / file) for file in ("learning_curve.png", CONFIG))))
    if document:
        log(document, runs, root)
    else:
        deliver([run.run for run in runs], root)
    for run in runs:
        print(f"{run}: model.safetensors, {'samples.png, ' if document else ''}learning_curve.png, metrics.jsonl")
    print(f"{what_next([job.directory for job in jobs])}\nexperiments: make ui OUT={shlex.quote(str(root))}")


def _print(configs: Mapping[str, RunConfig], document: Evaluation) -> None:
    print("\n" + table(document), flush=True)
    print(seed_lines(document, configs), end="", flush=True)
    print(share_lines(document.shares, document.seconds) + legend(document), flush=True)


def _measured(
    runs: Sequence[Weights], settings: Settings, root: Path, show: Callable[[Evaluation], None]
) -> Evaluation:
    """The brief measurement of exactly these runs with exactly these weights: the one that is there, else a new one."""
    if document := measured_so(runs, settings):
        show(document)
        return document
    connect(1, 1.0)
    return evaluate(runs, settings, root, show)
