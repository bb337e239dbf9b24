"""`ray up` and `ray submit` for real: a head, a worker's machine, and the machine that the commands are given on.

`make cluster-test` runs it, as root; see `hosts`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, missing
from ray_session import TINY, later_wins

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]
DIGITS = ("digits_vp_nll", *TINY, "--batch-size", "64", "--log-every", "5", "--checkpoint-every", "10")
TITLE = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts on which `ray up` has begun a cluster."""
    assert not missing()
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as found:
        found.ray("up", "-y", "--no-config-cache", str(found.cluster_yaml()))
        deadline = time.monotonic() + 180
        while "2 local.cluster.node" not in exec_on(found, "ray status"):
            assert time.monotonic() < deadline, "the second machine did not join"
            time.sleep(3)
        yield found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that both hosts see."""
    return tmp_path_factory.mktemp("shared")


def exec_on(hosts: Hosts, command: str) -> str:
    return hosts.ray("exec", "--no-config-cache", str(hosts.place / "cluster.yaml"), command, check=False).stdout


def submit(hosts: Hosts, script: str, *words: str) -> tuple[int, str]:
    """What a user types; the status and what is said."""
    done = hosts.ray(
        "submit", "--no-config-cache", str(hosts.place / "cluster.yaml"), script, "--", *words, check=False
    )
    return done.returncode, done.stdout


def test_storage_that_one_machine_does_not_see_is_refused(hosts):
    private = str(Path.home() / "private")
    status, said = submit(hosts, "pipelines/train.py", *later_wins(DIGITS), "--workers", "2", "--out", private)
    assert status, said
    assert f"out={private}: the machine 10.77.0.11 of the cluster does not see what is written there" in said
    assert "--out, or $INDM_RUNS" in said
    assert not re.search(r"digits_vp_nll +(pretraining|joint)", said)


def test_both_machines_train_and_measure(hosts, out):
    words = later_wins([*DIGITS, "--steps", "60", "--pretrain-steps", "20"])
    found: list[tuple[int, str]] = []
    options = ("--workers", "2", "--cpus-per-worker", "1.5", "--network-interface", "eth0", "--out", str(out))
    training = threading.Thread(target=lambda: found.append(submit(hosts, "pipelines/train.py", *words, *options)))
    training.start()
    workers: set[str] = set()
    while training.is_alive():
        workers |= {name for name in hosts.names if not hosts.on(name, f"pgrep -f {TITLE}", check=False).returncode}
        time.sleep(2)
    (status, said) = found[0]
    assert status == 0, said
    assert "training in the Ray cluster of 2 nodes" in said
    assert workers == {"host0", "host1"}
    assert re.search(r"digits_vp_nll +joint +60/60", said)
    assert re.search(r"digits_vp_nll .*\+- .*\+- .*\+-", said), "the table"
    hardware = json.loads((out / "digits_vp_nll" / "hardware.json").read_text())
    assert hardware[-1]["processes"] == 2


def test_actors_of_both_machines_score_a_collage(hosts, out):
    words = ("digits_vp_nll", "--actors", "2", "--num-samples", "8", "--sampler", "em", "--steps", "4", "--out")
    status, said = submit(hosts, "pipelines/sample.py", str(out / words[0]), *words[1:], str(out / "samples"))
    assert status == 0, said
    assert len(list((out / "samples").glob("sample-*.png"))) == 8


def test_an_error_is_the_command_s_status(hosts, out):
    status, said = submit(hosts, "pipelines/train.py", "nonsense", "--out", str(out))
    assert status
    assert "nonsense" in said
