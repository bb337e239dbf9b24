"""A Ray session: the cluster that is there, else one on this machine.

A cluster is joined where RAY_ADDRESS names one, or where the user (or root) has begun one on this machine by `ray start`. It is
asked for a few seconds whether it answers: the address of a cluster that has died is refused, or passed over, at once.

A session of this machine's own listens on the loopback, so that nobody else reaches it. Its processes inherit their environment
from this one, as far as this module sets it: with a runtime environment of Ray's each would be started twice. It has no
dashboard, and no watcher of machines that are to leave, since there is one machine; a training starts the sooner.

The session's processes are told its address (RAY_ADDRESS). What Ray Train leaves to give back the CPUs of workers whose
controller has ended, as that of a trial that a scheduler stops, asks for it, and where several sessions are on a machine would
not find its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # at Ray's own 15, any other program on the machine lets its workers starve

import ray
from ray._private import ray_constants, services, utils, worker

from pipelines.cluster.address import address_to_join, record
from pipelines.cluster.entry import refusal, show_token

__all__ = ["check_resources", "connect", "logical_cpus", "uses_gpus"]

LEAST_LOGICAL_CPUS = 4
LOCAL_OBJECT_STORE = 1 << 30
ANSWER_SECONDS = 5.0
NO_WORKERS_AHEAD = {"RAY_prestart_worker_first_driver": "0"}
"""Ray would start as many workers as CPUs before it lets the driver go on; those of Ray Train have an environment of their own,
and take none of them."""
ALONE = "or give RAY_ADDRESS=local for a session of this command's own"
REMEDY = "where it is busy or short of memory or disk, end other programs or wait, and give the same command again"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a gRPC client says first, with an empty frame of settings; a server answers with its own settings, a frame of type 4."""


def connect(workers: int, cpus_per_worker: float) -> str:
    """Joins the running cluster (RAY_ADDRESS, or one begun here by `ray start`), else starts one; says which.

    On one machine the logical CPUs are at least four, so that the reading of data and the evaluation have some beside the
    workers'.

    Raises:
        ValueError: RAY_ADDRESS names no cluster that answers, one cannot be joined, or Ray does not start here.
    """
    if ray.is_initialized():
        return "the running Ray session"
    clone = str(Path(__file__).resolve().parents[2])
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [clone, os.environ.get("PYTHONPATH")]))}
    if "INDM_MODULES" in os.environ:  # files of the user's own that recipes are made of
        variables["INDM_MODULES"] = os.environ["INDM_MODULES"]
    given, address = os.environ.get("RAY_ADDRESS", ""), address_to_join()
    if address and _answers(address):
        if address != given:  # begun here
            show_token()
        if why := refusal(address, ANSWER_SECONDS):
            raise ValueError(f"the Ray cluster at {address} cannot be joined: {why}; {ALONE}")
        _check_way(address)
        try:
            _begin(variables | ({} if "://" in address else {"RAY_ADDRESS": address}), address=address)
        except ConnectionError:
            pass
        except Exception as error:  # of another version of Ray or Python, say; nothing more special is raised
            raise ValueError(
                f"the Ray cluster at {address} cannot be joined ({error}; here is Ray {ray.__version__}); mend that, {ALONE}"
            ) from error
        else:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            return f"the Ray cluster of {len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    if given and given != "local":
        raise ValueError(f"RAY_ADDRESS={given}: no cluster answers there; mend or unset it")
    if address:
        print(f"{record()}: the Ray cluster at {address} does not answer, `ray stop` forgets it", flush=True)
    cpus = max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1, int(workers * cpus_per_worker) + 2)
    port = _free_port()
    own = _loopback() | NO_WORKERS_AHEAD | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    own[ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE] = str(port)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this process tells Ray Train's controller of it
    with _within(variables | own):
        try:
            _begin({}, address="local", num_cpus=cpus, object_store_memory=LOCAL_OBJECT_STORE, include_dashboard=False)
        except Exception as error:  # Ray raises nothing more special where a process of its own does not start
            raise ValueError(f"Ray did not start on this machine ({error}); {REMEDY}") from error
    atexit.register(_end)
    return f"a Ray session on this machine ({os.cpu_count()} cores, {cpus} logical)"


def _check_way(address: str) -> None:
    """Refuses a cluster on the loopback that Ray, which takes the loopback for this machine's address in its network, would
    look for in vain, for minutes.

    Raises:
        ValueError: nothing answers at that address.
    """
    host, _, port = address.rpartition(":")
    there = f"{services.resolve_ip_for_localhost(host)}:{port}" if host else address
    if there != address and not _answers(there):
        raise ValueError(
            f"the Ray cluster at {address} cannot be joined: Ray looks for it at {there}, and nothing answers there; let this "
            "machine reach that address, or put RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in front of the command where the cluster "
            f"listens on the loopback alone; {ALONE}"
        )


def _answers(address: str) -> bool:
    """Whether a gRPC server answers at host:port or ray://host:port; Ray would try for minutes whether one does."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as there:
            there.settimeout(ANSWER_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") != "0":  # what follows is encrypted
                return True
            there.sendall(GREETING)
            return there.recv(9, socket.MSG_WAITALL)[3:4] == b"\x04"
    except (OSError, ValueError, OverflowError):
        return False


def _begin(variables: dict[str, str], **where: Any) -> None:
    """Starts or joins. Signals stay the command's, and Ray's processes do not take those that are sent to all of a group:
    workers end when the command tells them to."""
    with _signals_of_the_command():
        runtime_env = {"env_vars": variables} if variables else None
        ray.init(**where, runtime_env=runtime_env, log_to_driver=False, logging_level="ERROR")  # pyright: ignore[reportArgumentType]


@contextmanager
def _signals_of_the_command() -> Iterator[None]:
    """Ray's handlers of SIGTERM, in Python and in C++, would end the driver in the middle of its work: the command's own stays.
    The processes that are started have the signal blocked."""
    theirs, blocked = utils.set_sigterm_handler, signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end() -> None:
    """Ends this machine's own session: its processes, in which SIGTERM is blocked, and the workers that those have started."""
    node: Any = getattr(worker, "_global_node", None)
    if node is None:
        return
    started = {info.process.pid for infos in node.all_processes.values() for info in infos}
    left = [process for process, parent in _processes().items() if parent in started]
    node.kill_all_processes = partial(_kill, node.kill_all_processes)
    ray.shutdown()
    for number, began in left:
        if (number, began) in _processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _kill(kill_all_processes: Callable[..., None], **given: Any) -> None:
    """Ray's own way without the second that it waits for each process after SIGTERM."""
    kill_all_processes(**given | {"allow_graceful": False})


def _processes() -> dict[tuple[int, str], int]:
    """The parents of this machine's processes by their numbers and when they began, where /proc tells of them."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = place.read_text().rpartition(")")[2].split()
            found[int(place.parent.name), fields[19]] = int(fields[1])
    return found


def _loopback() -> dict[str, str]:
    """What makes the processes of Ray, by the first variable, and of PyTorch, by the second, listen on the loopback alone."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | ({"GLOO_SOCKET_IFNAME": names[0]} if names else {})


def _free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _within(variables: dict[str, str]) -> Iterator[None]:
    """The block in which a session of this machine's own is started: the processes inherit the variables, and this one has read
    Ray's before."""
    kept = ray_constants.ENABLE_RAY_CLUSTER, dict(os.environ)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(variables)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, before = kept
        for name in variables:
            del os.environ[name]
        os.environ.update({name: before[name] for name in variables if name in before})


def logical_cpus() -> int:
    """Of the session that is there, on all its machines; at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 0.0)))


def uses_gpus(device: str, workers: int) -> bool:
    """Whether each worker gets a GPU: as `device` says, or, for auto, where the cluster has enough of them."""
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= workers)


def check_resources(workers: int, cpus_per_worker: float, data_cpus: float, use_gpu: bool) -> None:
    """Refuses what the cluster cannot give, instead of waiting for it for ever.

    Raises:
        ValueError: more workers than CPUs or GPUs; the message says what there is.
    """
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    need = workers * cpus_per_worker + data_cpus
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    room = sum(int(node / cpus_per_worker + 1e-9) for node in nodes)  # a worker is on one node
    if need > cpus or workers > room:
        fit = max(0, min(room, int((cpus - data_cpus) / cpus_per_worker)))
        raise ValueError(
            f"workers={workers} need {need:g} CPUs (with {data_cpus:g} for reading), the cluster has {cpus:g} "
            f"({' + '.join(f'{node:g}' for node in nodes)}): take --workers {fit} or smaller --cpus-per-worker"
        )
    if use_gpu and workers > gpus:
        remedy = f"take --workers {int(gpus)}, or --device cpu" if gpus >= 1 else "give --device cpu"
        raise ValueError(f"workers={workers} on --device cuda need {workers} GPUs, the cluster has {gpus:g}: {remedy}")
