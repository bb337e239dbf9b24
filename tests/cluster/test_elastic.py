"""Runs that lose their driver or a machine: each needs a Ray session of its own, and minutes."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
import torch
from ray_session import TINY, command, environment, later_wins, main_of, processes, run_script, train
from safetensors.torch import load_file

from pipelines.runs.job import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]
DIGITS = ("digits_vp_nll", *TINY, "--batch-size", "64", "--log-every", "1", "--checkpoint-every", "10")
TITLE = "ray::RayTrainWorker"


def wait_for(due: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not due():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_a_killed_driver_goes_on_to_the_end_of_a_local_run(tmp_path):
    """One worker draws what one process draws: with or without a kill, on Ray or not, the weights are equal to the bit."""
    words = later_wins([*DIGITS, "--steps", "400", "--pretrain-steps", "15"])
    train(*words, out=tmp_path / "local")
    words += ["--threads", "1", "--evaluate", "false", "--out", str(tmp_path)]
    run = tmp_path / "digits_vp_nll"
    driver = subprocess.Popen(command("train", *words), env=environment(), stdout=subprocess.DEVNULL)
    try:
        wait_for((run / "checkpoints" / "step-00000020" / "state.json").is_file)
    finally:
        workers = processes(TITLE, driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert workers
    assert not (run / "model.safetensors").exists()
    wait_for(lambda: not any(os.path.exists(f"/proc/{number}") for number in workers), 60)  # nobody else writes there
    done = run_script("train", *words)
    assert done.returncode == 0, done.stderr
    assert "goes on after step" in done.stdout
    assert [record.step for record in read_metrics(run)] == list(range(1, 401))
    mine, theirs = (load_file(place / "model.safetensors") for place in (run, tmp_path / "local" / "digits_vp_nll"))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of nodes on this machine; each has room for one worker."""
    import ray
    from ray.cluster_utils import Cluster

    for name, value in {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_AUTH_MODE": "disabled",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 1 << 28})
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_workers_leave_and_come_back(cluster, tmp_path, monkeypatch):
    """Two workers, one when a node dies, two when a node joins: each time from the last checkpoint, to the last step."""
    import ray.train

    quick = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=5)
    monkeypatch.setattr(ray.train, "ScalingConfig", quick)
    second = cluster.add_node(num_cpus=2, object_store_memory=1 << 28)
    words = later_wins([*DIGITS, "--steps", "900", "--nf", "16", "--pretrain-steps", "15", "--max-failures", "5"])
    words += ["--workers", "2", "--min-workers", "1", "--cpus-per-worker", "1.5", "--threads", "1"]
    statuses: list[int] = []
    arguments = [*words, "--evaluate", "false", "--out", str(tmp_path)]
    run = tmp_path / "digits_vp_nll"
    thread = threading.Thread(target=lambda: statuses.append(main_of("train")(arguments)), daemon=True)
    thread.start()

    def training_with(workers: int, after: int) -> Callable[[], bool]:
        """Whether so many workers have taken a step beyond `after`."""
        return lambda: len(processes(TITLE, os.getpid())) == workers and last_step() > after

    def last_step() -> int:
        records = read_metrics(run)
        return records[-1].step if records else 0

    wait_for(training_with(2, 20))
    cluster.remove_node(second, allow_graceful=False)
    lost = last_step()
    wait_for(training_with(1, lost + 5))
    cluster.add_node(num_cpus=2, object_store_memory=1 << 28)
    grown = last_step()
    wait_for(training_with(2, grown + 5))
    assert last_step() < 900, "it ended before it grew"
    thread.join(timeout=400)
    assert statuses == [0]
    assert [record.step for record in read_metrics(run)] == list(range(1, 901))
    assert (run / "model.safetensors").is_file()
