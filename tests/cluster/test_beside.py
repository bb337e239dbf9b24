"""Checkpoints measured beside a training by an actor: through the actor's death, and as they are measured in one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from ray_session import TINY_2D, kill_when, later_wins, main_of, train

from pipelines.storage.along import read_measured

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]
WORDS = (
    *TINY_2D,
    *("--measure-every", "2", "--keep", "1", "--keep-by", "nll"),
    *("--along.images", "8", "--along.samples", "20", "--along.sampler", "em:4"),
)


def test_an_actor_measures_what_one_process_does_and_may_die(tmp_path, monkeypatch, capsys):
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    own, other = tmp_path / "own", tmp_path / "other"
    words = later_wins(["toy2d_spiral", *WORDS, "--log-every", "1"])
    train(*words, out=other)
    killer = kill_when(lambda: (own / "toy2d_spiral" / "checkpoints").is_dir(), "ray::Aside")
    assert main_of("train")([*words, "--threads", "1", "--evaluate", "false", "--out", str(own)]) == 0
    killer.join(timeout=1)
    assert not killer.is_alive()  # it has killed one
    mine, theirs = ([replace(r, seconds=0) for r in read_measured(out / "toy2d_spiral")] for out in (own, other))
    assert [record.step for record in mine] == [2, 4, 6]
    assert mine == theirs
    before = (own / "toy2d_spiral" / "along.jsonl").read_bytes()
    _series_is_in_mlflow(own)
    (own / "toy2d_spiral" / "along.jsonl").write_text("".join(before.decode().splitlines(keepends=True)[:2]))
    assert main_of("train")([*words, "--threads", "1", "--evaluate", "false", "--out", str(own)]) == 0
    assert [record.step for record in read_measured(own / "toy2d_spiral")] == [2, 4, 6]
    assert "measuring 1 checkpoint more" in capsys.readouterr().out


def _series_is_in_mlflow(out: Path) -> None:
    from mlflow.tracking import MlflowClient

    from pipelines.runs.kept import run_id
    from pipelines.runs.store import tracking_uri

    assert "MLFLOW_TRACKING_URI" not in os.environ
    history = MlflowClient(tracking_uri(out)).get_metric_history(run_id(out / "toy2d_spiral"), "along/fd")
    assert [metric.step for metric in history] == [2, 4, 6]
