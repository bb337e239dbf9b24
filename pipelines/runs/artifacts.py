"""Files that a command made of runs, into their MLflow runs; a run without one, as of `--local`, needs no MLflow for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.config.weights import Weights
from pipelines.storage.outputs import output_root

__all__ = ["log_files"]


def log_files(runs: Sequence[Weights], files: Sequence[Path]) -> None:
    """Logs the files into the MLflow run of each run that has one; a store that does not answer is told, and no error."""
    known = [run for run in runs if (run.run / "mlflow.json").is_file()]
    if not known:
        return
    from pipelines.runs.tracking import Made, deliver, post

    for run in known:
        post(run, Made(files=tuple(str(file.resolve()) for file in files)))
    deliver([run.run for run in known], output_root(None))
