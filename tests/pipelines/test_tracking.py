"""A tracking store that does not answer: said before training, and no reason to stop it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray_session import TINY_2D, one_line, train

from pipelines.recipes import RECIPES
from pipelines.runs import tracking
from pipelines.runs.job import Job, read_metrics
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    train("toy2d_spiral", *TINY_2D, out=tmp_path)
    (job,) = jobs_for(RECIPES["toy2d_spiral"](), Launch(name="fresh"), tmp_path)
    return job


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_a_store_that_does_not_answer_is_refused_before_training(job, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI") as caught:
        tracking.open_run(job, tmp_path)
    one_line(str(caught.value), NOWHERE, "mend or unset it")


def test_a_store_that_stops_answering_is_said_once(job, tmp_path, capsys):
    with tracking.OpenLogs(NOWHERE) as logs:
        for record in read_metrics(tmp_path / "toy2d_spiral"):
            logs.write(job.directory, lambda log, record=record: log.record(record))
    shown = capsys.readouterr().out
    assert shown.count(f"not logged to {NOWHERE}") == 1
