"""The command: what it refuses at once; and, slow, a sweep with real trainings that is killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_session import ROOT, TINY, environment, main_of, one_line

from tune.named import split_fields
from tune.results import Sweep

CHEAP = (
    *("--evaluation.images", "8", "--evaluation.samples", "20", "--evaluation.nelbo-draws", "2"),
    *("--evaluation.nelbo-replicates", "1", "--evaluation.rtol", "0.1", "--evaluation.atol", "0.1"),
    *("--evaluation.sampling.rtol", "0.1", "--evaluation.sampling.atol", "0.1"),
)
TRIAL = TINY[: TINY.index("--steps")][:-2]  # its steps are --trial-steps, and it is measured on held-out rows


def sweep(*words: str, out: Path) -> int:
    return main_of("sweep")([*words, "--out", str(out)])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("t_m",), "digits_vp_nll has no field model.t_m"),
        (("pretraining", "--steps", "5"), "--trial-steps"),
        (("pretraining", "--scheduler", "pbt"), "one of none, asha, median"),
        (("--space", "score.lr=log:1e-4..1e-2"), "score.lr is a range"),
        (("weighting", "--metric", "fd", "--evaluation.samples", "0"), "metric=fd needs samples"),
        (("weighting", "--workers", "999"), "workers=999"),
        (("weighting", "--num-trials", "3"), "a grid has all its points"),
        (("weighting", "--name", "data"), "--name data"),
        (("weighting", "--samplers", "xx:3"), "xx"),
        (("weighting", "--recipe", "absent"), "unknown recipe 'absent'"),
    ],
)
def test_what_cannot_be_is_refused_at_once(words, named, tmp_path, capsys):
    assert sweep(*words, out=tmp_path) == 2
    one_line(capsys.readouterr().err, named)
    assert not list(tmp_path.glob("*-0*"))


def test_a_dead_address_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert sweep("weighting", "--name", "dead", out=tmp_path) == 2
    one_line(capsys.readouterr().err, "RAY_ADDRESS=127.0.0.1:1: no cluster answers there")
    assert not list(tmp_path.glob("dead-*"))


def test_fields_may_be_given_several_times():
    assert split_fields("a=1,2,b=log:1e-4..1e-2,c=x") == ["a=1,2", "b=log:1e-4..1e-2", "c=x"]
    assert split_fields("") == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_sweep_goes_on(tmp_path):
    """SIGKILL of the driver after the first trial; what is done stays to the last byte."""
    words = [sys.executable, str(ROOT / "tune" / "sweep.py"), "pretraining", "--trial-steps", "8", *TRIAL, *CHEAP]
    words += ["--name", "s", "--concurrent", "1", "--out", str(tmp_path)]
    driver = subprocess.Popen(words, env=environment(RAY_worker_niceness="0"), stdout=subprocess.PIPE, text=True)
    first, deadline = tmp_path / "s" / "trials" / "000.json", time.monotonic() + 600
    while not first.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    before = first.read_bytes()
    done = subprocess.run(words, env=environment(RAY_worker_niceness="0"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "1 done before" in done.stdout
    assert first.read_bytes() == before
    found = Sweep.read(tmp_path / "s")
    assert found is not None
    assert [outcome.state for outcome in found.trials] == ["measured"] * 4
    assert found.shared == {"s-pretrained-2": 2, "s-pretrained-4": 4, "s-pretrained-6": 6}
    assert found.model == "models:/s@best"
    assert (tmp_path / "s" / "sweep.png").is_file()
    assert set(found.trials[0].figures) == {"nll", "nelbo", "fd"}
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["best"] == found.best
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "4 done before" in again.stdout
