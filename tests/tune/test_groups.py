"""Groups of runs in MLflow: runs below one of the group, and the best model in the registry, as safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray_session import TINY, train

from pipelines.config import load
from pipelines.config.history import Command
from pipelines.runs.groups import Member, close_group, log_members, open_group, register
from pipelines.runs.kept import run_id
from pipelines.runs.store import tracking_uri
from pipelines.runs.tracking import close_runs, deliver, open_run
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch

pytestmark = pytest.mark.filterwarnings("default")


def test_runs_stand_below_their_group_and_the_best_is_registered(tmp_path, monkeypatch, capsys):
    from pipelines.config.terminal.cli import override, split_arguments
    from pipelines.recipes import RECIPES

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    group = tmp_path / "sweep"
    group.mkdir()
    parent = open_group(group, tmp_path, Command(), {"search": "grid"})
    client = MlflowClient(tracking_uri(tmp_path))
    _, given = split_arguments(TINY)
    run = override(RECIPES["digits_vp_nll"](), given)
    runs = []
    for name in ("sweep-000", "sweep-001"):
        (job,) = jobs_for(run, Launch(name=name), tmp_path)
        job.directory.mkdir()
        runs.append(job.directory)
        assert open_run(job, tmp_path, parent=parent) == run_id(job.directory)
        assert client.get_run(run_id(job.directory)).data.tags["mlflow.parentRunId"] == parent
    train("digits_vp_nll", *TINY, "--name", "sweep-000", out=tmp_path)
    assert register(runs[1], tmp_path, "sweep", "best") == ""  # it has no model
    assert "no model is registered" in capsys.readouterr().out
    deliver(runs[:1], tmp_path)
    for _ in range(2):  # the same command goes on
        assert register(runs[0], tmp_path, "sweep", "best") == "models:/sweep@best"
    version = client.get_model_version_by_alias("sweep", "best")
    assert (int(version.version), version.run_id) == (1, run_id(runs[0]))
    folder = Path(str(version.source).removeprefix("file://"))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.json", "model.safetensors"]
    assert load(folder).networks().keys() == {"score", "flow"}
    member = Member(name="sweep-002", parameters={"snr": "0.1"}, figures={"test/fd": 3.0, "test/fd_se": float("nan")})
    for _ in range(2):
        log_members(group, tmp_path, [member])
    below = client.search_runs([client.get_run(parent).info.experiment_id], "attributes.run_name = 'sweep-002'")
    (found,) = below
    assert (found.data.tags["mlflow.parentRunId"], found.info.status) == (parent, "FINISHED")
    assert (found.data.params, found.data.metrics) == ({"snr": "0.1"}, {"test/fd": 3.0})
    close_runs([group], tmp_path, "KILLED", "terminated")
    assert client.get_run(parent).info.status == "KILLED"
    assert open_group(group, tmp_path, Command(), {}) == parent
    assert client.get_run(parent).info.status == "RUNNING"
    (group / "sweep.json").write_text("{}")
    close_group(
        group, tmp_path, "FINISHED", {"best/nll": 2.0, "best/fd": float("nan")}, [group / "sweep.json", group / "x"]
    )
    found = client.get_run(parent)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"best/nll": 2.0})
    assert [file.path for file in client.list_artifacts(parent)] == ["sweep.json"]


def test_a_store_that_is_away_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"MLflow at http://127\.0\.0\.1:1"):
        open_group(tmp_path, tmp_path, Command(), {})
    close_group(tmp_path, tmp_path, "FINISHED", {}, [])
    assert "is not logged to MLflow" in capsys.readouterr().out
