"""What faults of a cluster's machines cost: as faults.py, with two workers on a cluster whose nodes are on this machine.

python benchmarks/fault_clusters.py all --times 3 --out DIR

node        the raylet of a worker's node is killed, and another node joins
drain       `ray drain-node` with a deadline, after which the node is taken away; another one has joined
objects     the object store is filled to several times its size for `FULL_SECONDS`
partition   a host of network namespaces is unplugged for `CUT_SECONDS` (needs root, and what tests/cluster/hosts.py does)
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fault_table import Asked, Row, run
from benchmarks.injection import WORKER, Case, Moment, Running, processes, through

TWO = ("--workers", "2", "--cpus-per-worker", "1.5")
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
}
"""A node that does not answer for ten seconds is lost (for Ray itself: half a minute); workers are as nice as the command."""
STORE, NODE = 96 << 20, 2
DEADLINE_SECONDS, CUT_SECONDS, FULL_SECONDS = 60, 30.0, 20.0
FILL = """
import sys, time, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
held = [ray.put(numpy.zeros(16 << 20, dtype="uint8")) for _ in range(24)]
from ray._private.internal_api import memory_summary
said = memory_summary(sys.argv[1], stats_only=True)
print(next((line for line in said.splitlines() if "pilled" in line), "nothing was moved to the disk"), flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster of two nodes, each with room for a worker."""
    os.environ |= QUICK
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE, "object_store_memory": STORE})
    try:
        yield nodes
    finally:
        nodes.shutdown()


def join(nodes: Any) -> Any:
    """Another node joins."""
    return nodes.add_node(num_cpus=NODE, object_store_memory=STORE)


def trained(kind: str, asked: Asked, nodes: Any, inject: Callable[[Running, Moment], float], longer: int = 1) -> Row:
    """A training through faults of a cluster of a head and a node.

    Args:
        longer: So many times, where steps are taken while the fault is brought about.
    """
    join(nodes)
    case = asked.case(kind, *TWO, "--max-failures", str(asked.times))
    case = replace(case, steps=longer * case.steps, variables=QUICK | {"RAY_ADDRESS": nodes.address})
    costs, _ = through(case, asked.moments(case), inject)
    return Row(kind=kind, injected=asked.times, costs=costs, interval=case.every, equal="trained to the last step")


def node(asked: Asked) -> Row:
    with cluster() as nodes:

        def inject(running: Running, moment: Moment) -> float:
            (lost,) = nodes.worker_nodes
            nodes.remove_node(lost, allow_graceful=False)
            fault = time.monotonic()
            join(nodes)
            return fault

        return trained("node", asked, nodes, inject)


def drain(asked: Asked) -> Row:
    """The fault counts from the notice on; the steps before it are those that the workers took until they left."""
    with cluster() as nodes:

        def inject(running: Running, moment: Moment) -> float:
            running.wait_for(lambda: len(nodes.worker_nodes) == 1, "the end of the machine that was drained before")
            (going,) = nodes.worker_nodes
            join(nodes)
            before = set(processes(WORKER, os.getpid()))
            words = ["drain-node", "--address", nodes.address, "--node-id", going.node_id, "--reason-message", "spot"]
            words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(DEADLINE_SECONDS)]
            subprocess.run([str(Path(sys.executable).parent / "ray"), *words], check=True)
            fault = time.monotonic()
            threading.Timer(DEADLINE_SECONDS, nodes.remove_node, [going], {"allow_graceful": False}).start()
            running.wait_for(lambda: not before & set(processes(WORKER, os.getpid())), "the workers' leave")
            return fault

        return trained("drain", asked, nodes, inject, longer=6)


def objects(asked: Asked) -> Row:
    """The fault counts from when the store is full, and what was moved to the disk by then is printed."""
    said: list[str] = []
    with cluster() as nodes:

        def inject(running: Running, moment: Moment) -> float:
            words = [sys.executable, "-c", FILL, nodes.address, str(FULL_SECONDS)]
            filler = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            assert filler.stdout
            said.append(filler.stdout.readline().strip())
            if not said[-1]:
                raise RuntimeError("the store could not be filled")
            return time.monotonic()

        row = trained("objects", asked, nodes, inject, longer=4)
    return replace(row, equal=f"{row.equal}; {said[0]}")


def partition(asked: Asked) -> Row:
    """The command runs on the head; the other host, which has a worker, is cut off, and comes back."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cluster"))
    from hosts import Hosts

    with Hosts(2, asked.out / "hosts") as hosts:
        hosts.up()
        ray = str(Path(sys.executable).parent / "ray")
        submit = (ray, "submit", "--no-config-cache", str(hosts.place / "cluster.yaml"), "pipelines/train.py", "--")
        words = (*TWO, "--max-failures", str(asked.times), "--network-interface", "eth0")
        case: Case = replace(asked.case("partition", *words), launcher=submit)

        def inject(running: Running, moment: Moment) -> float:
            hosts.unplug("host1")
            threading.Timer(CUT_SECONDS, hosts.unplug, ["host1", True]).start()
            return time.monotonic()

        costs, _ = through(case, asked.moments(case), inject)
    return Row(
        kind="partition", injected=asked.times, costs=costs, interval=case.every, equal="trained to the last step"
    )


if __name__ == "__main__":
    sys.exit(run({each.__name__: each for each in (node, drain, objects, partition)}))
