"""`ray up` and `ray submit` for real: a head, a worker's machine, and the machine that the commands are given on.

`make cluster-test` runs it, as root, in a quarter of an hour; see `hosts`. The cluster wants a token, as cluster.yaml makes it.
What the commands print is kept beside the hosts' logs (`pytest --basetemp DIR` says where).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Hosts, missing
from ray_session import SCHEDULE, TINY, later_wins, train

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]
DIGITS = ("digits_vp_nll", *TINY, "--batch-size", "64", "--log-every", "5", "--checkpoint-every", "10")
TRIALS = (
    *("--recipe", "digits_vp_nll", *TINY[: TINY.index("--steps")][:-2], "--trial-steps", "12"),
    *("--evaluation.images", "8", "--evaluation.samples", "20", "--evaluation.nelbo-draws", "2"),
    *("--evaluation.nelbo-replicates", "1", "--evaluation.rtol", "0.1", "--evaluation.atol", "0.1"),
    *("--evaluation.sampling.rtol", "0.1", "--evaluation.sampling.atol", "0.1"),
)
BOTH = ("--workers", "2", "--cpus-per-worker", "1.5", "--network-interface", "eth0")
"""Two workers that do not fit on one host."""
AT_ONCE = 60.0
"""Seconds of a refusal, most of which are imports on a machine that does other things."""
TRAINER, SCORER, ARTIST = "RayTrainWorker", "Scorer", "Artist"


@dataclass(frozen=True)
class Submitted:
    """How a command ended.

    Args:
        status: Of the command.
        said: What it printed.
        workers: Hosts on which it had actors of the class that was asked for.
    """

    status: int
    said: str
    workers: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts on which `ray up` has begun a cluster."""
    assert not missing()
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as found:
        found.up()
        yield found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that both hosts see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def linear(out: Path) -> str:
    """A trained run, made here."""
    train("digits_linear_nll", "--nf", "8", "--ch-mult", "1", "--num-res-blocks", "1", *SCHEDULE, out=out)
    return str(out / "digits_linear_nll")


def submit(hosts: Hosts, script: str, *words: str) -> Submitted:
    """What a user types; the status and what is said."""
    given = ("submit", "--no-config-cache", str(hosts.place / "cluster.yaml"), script, "--", *words)
    done = hosts.ray(*given, check=False)
    kept = hosts.place / f"{time.strftime('%H%M%S')}-{Path(script).stem}.txt"
    kept.write_text(
        f"ray submit cluster.yaml {script} -- {' '.join(words)}\n\n{done.stdout}\nstatus {done.returncode}\n"
    )
    return Submitted(done.returncode, done.stdout)


def submit_watched(hosts: Hosts, actor: str, script: str, *words: str) -> Submitted:
    """The same, with the hosts on which it had actors of a class."""
    before = {name: started(hosts, name, actor) for name in hosts.names}
    done = submit(hosts, script, *words)
    workers = frozenset(name for name in hosts.names if started(hosts, name, actor) - before[name])
    return Submitted(done.status, done.said, workers)


def started(hosts: Hosts, name: str, actor: str) -> set[str]:
    """The processes of a class of actors that a host has had, by the logs that Ray keeps of them."""
    logs = "/tmp/ray/session_latest/logs/worker-*.out"
    return set(hosts.on(name, f"grep -ls ':actor_name:{actor}$' {logs}", check=False).stdout.split())


def refused_at_once(hosts: Hosts, name: str, command: str) -> str:
    """What a command on a host says that is refused."""
    began = time.monotonic()
    done = hosts.on(name, command, check=False)
    assert done.returncode, done.stdout
    assert time.monotonic() - began < AT_ONCE
    return done.stderr


def test_storage_that_one_machine_does_not_see_is_refused(hosts):
    private = str(Path.home() / "private")
    done = submit(hosts, "pipelines/train.py", *later_wins(DIGITS), "--workers", "2", "--out", private)
    assert done.status, done.said
    assert f"out={private}: the machine 10.77.0.11 of the cluster does not see what is written there" in done.said
    assert "--out, or $INDM_RUNS" in done.said
    assert not re.search(r"digits_vp_nll +(pretraining|joint)", done.said)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("echo '# other' >> ~/indm/tune/plan.py", f"has other code in {Path.home()}/indm; copy this one there"),
        (
            "mkdir ~/indm/torch-1.0.dist-info && echo 'Version: 1.0' > ~/indm/torch-1.0.dist-info/METADATA",
            "has torch 1.0, and this one",
        ),
    ],
    ids=["code", "torch"],
)
def test_a_machine_with_another_version_is_refused(change, says, hosts, out):
    hosts.on("host1", f"cp -r ~/indm ~/kept && {change}")
    try:
        done = submit(hosts, "pipelines/train.py", *later_wins(DIGITS), "--workers", "2", "--out", str(out / "other"))
    finally:
        hosts.on("host1", "rm -r ~/indm && mv ~/kept ~/indm")
    assert done.status, done.said
    assert f"the machine 10.77.0.11 of the cluster {says}" in done.said
    assert not re.search(r"digits_vp_nll +(pretraining|joint)", done.said)


def test_an_address_where_nothing_answers_and_a_wrong_token_are_refused(hosts, out):
    command = f"python ~/indm/pipelines/train.py digits_vp_nll --out {out / 'other'}"
    said = refused_at_once(hosts, "host0", f"RAY_ADDRESS=10.77.0.99:6379 {command}")
    assert "RAY_ADDRESS=10.77.0.99:6379: no cluster answers there" in said
    join = f"RAY_ADDRESS=10.77.0.10:6379 {command}"
    assert "the one that is here is not shown" in refused_at_once(hosts, "host1", join)
    wrong = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64} {join}"
    assert "it wants another token" in refused_at_once(hosts, "host1", wrong)


def test_both_machines_train_and_measure(hosts, out):
    words = later_wins([*DIGITS, "--steps", "30", "--pretrain-steps", "10"])
    done = submit_watched(hosts, TRAINER, "pipelines/train.py", *words, *BOTH, "--out", str(out))
    assert done.status == 0, done.said
    assert "training in the Ray cluster of 2 nodes" in done.said
    assert done.workers == {"host0", "host1"}
    assert re.search(r"digits_vp_nll +joint +30/30", done.said)
    assert re.search(r"digits_vp_nll .*\+- .*\+- .*\+-", done.said), "the table"
    hardware = json.loads((out / "digits_vp_nll" / "hardware.json").read_text())
    assert hardware[-1]["processes"] == 2


def test_both_machines_train_a_path_integral_sampler(hosts, out):
    words = ("nine_modes", "--steps", "30", "--batch-size", "64", "--num-steps", "10", "--log-every", "10")
    words = (
        *words,
        "--checkpoint-every",
        "10",
        "--sample-every",
        "0",
        "--validate-every",
        "30",
        "--num-samples",
        "200",
    )
    done = submit_watched(hosts, TRAINER, "pipelines/pis.py", *words, *BOTH, "--out", str(out))
    assert done.status == 0, done.said
    assert done.workers == {"host0", "host1"}
    assert re.search(r"nine_modes +2 +PIS-Grad \(kl, N = 10\) .*\+- .*\+- ", done.said), "the row"
    assert (out / "nine_modes" / "samples.parquet").is_file()
    assert json.loads((out / "nine_modes" / "hardware.json").read_text())[-1]["processes"] == 2


def test_both_machines_train_the_trials_of_a_sweep(hosts, out):
    words = ("--space", "model.objective.pretrain_steps=0,6", "--name", "swept", *TRIALS, *BOTH, "--out", str(out))
    done = submit_watched(hosts, TRAINER, "tune/sweep.py", *words)
    assert done.status == 0, done.said
    assert "sweeping in the Ray cluster of 2 nodes" in done.said
    assert done.workers == {"host0", "host1"}
    sweep = json.loads((out / "swept" / "sweep.json").read_text())
    assert {trial["run"] for trial in sweep["trials"]} == {"swept-000", "swept-001"}
    assert sweep["best"] in ("swept-000", "swept-001")
    for trial in ("swept-000", "swept-001"):
        assert json.loads((out / trial / "hardware.json").read_text())[-1]["processes"] == 2


def test_actors_of_both_machines_draw(hosts, out, linear):
    words = (linear, "--actors", "2", "--num-samples", "8", "--sampler", "em", "--steps", "20", "--out")
    done = submit_watched(hosts, ARTIST, "pipelines/sample.py", *words, str(out / "samples"))
    assert done.status == 0, done.said
    assert done.workers == {"host0", "host1"}
    assert len(list((out / "samples").glob("sample-*.png"))) == 8


def test_actors_of_both_machines_score_a_collage(hosts, out, linear):
    words = (linear, "--collage", "chain", "--num-factors", "8", "--actors", "2", "--num-samples", "2", "--out")
    done = submit_watched(hosts, SCORER, "pipelines/sample.py", *words, str(out / "canvases"), "--steps", "20")
    assert done.status == 0, done.said
    assert done.workers == {"host0", "host1"}
    assert len(list((out / "canvases").glob("canvas-*.png"))) == 2


def test_an_error_is_the_command_s_status(hosts, out):
    done = submit(hosts, "pipelines/train.py", "nonsense", "--out", str(out))
    assert done.status
    assert "nonsense" in done.said
