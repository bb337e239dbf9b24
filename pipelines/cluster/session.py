"""A Ray session: the cluster that is there, else one on this machine."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

__all__ = ["check_resources", "connect"]

LEAST_LOGICAL_CPUS = 4
LOCAL_OBJECT_STORE = 1 << 30


def connect(workers: int, cpus_per_worker: float) -> str:
    """Joins the running cluster (RAY_ADDRESS, or one begun here by `ray start`), else starts one; says which.

    On one machine the logical CPUs are at least four, so that Ray Data and the evaluation have some beside the workers'.
    """
    if ray.is_initialized():
        return "the running Ray session"
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    clone = str(Path(__file__).resolve().parents[2])
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [clone, os.environ.get("PYTHONPATH")]))}
    if "INDM_MODULES" in os.environ:  # files of the user's own that recipes are made of
        variables["INDM_MODULES"] = os.environ["INDM_MODULES"]
    runtime_env = {"env_vars": variables}
    try:
        if not _address():
            raise ConnectionError
        ray.init(address=_address(), runtime_env=runtime_env, **quiet)
    except ConnectionError as error:
        if os.environ.get("RAY_ADDRESS"):
            raise ValueError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no cluster answers there; mend or unset it"
            ) from error
        cpus = max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1, int(workers * cpus_per_worker) + 2)
        ray.init(
            address="local", num_cpus=cpus, object_store_memory=LOCAL_OBJECT_STORE, runtime_env=runtime_env, **quiet
        )
        return f"a Ray session on this machine ({os.cpu_count()} cores, {cpus} logical)"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return f"the Ray cluster of {len(nodes)} node{'s' if len(nodes) > 1 else ''}"


def _address() -> str:
    """RAY_ADDRESS, else what `ray start` left on this machine; a session that another program started for itself is not
    joined, because it ends with that program."""
    started = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (started.read_text(encoding="utf-8").strip() if started.is_file() else "")


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
            f"workers={workers} need {need:g} CPUs (with {data_cpus:g} for Ray Data), the cluster has {cpus:g} "
            f"({' + '.join(f'{node:g}' for node in nodes)}): take --workers {fit} or smaller --cpus-per-worker"
        )
    if use_gpu and workers > gpus:
        raise ValueError(f"workers={workers} need {workers} GPUs, the cluster has {gpus:g}: take --workers {int(gpus)}")
