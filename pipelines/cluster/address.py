"""Which Ray cluster a command joins, and what it refuses where it joins none; known without Ray, before it is imported.

A cluster is joined where RAY_ADDRESS names one, or where the user (or root) has begun one on this machine by `ray start`.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

__all__ = ["address_to_join", "check_machine", "record"]


def address_to_join() -> str:
    """The address of the cluster that is to be joined; '' where there is none."""
    given = os.environ.get("RAY_ADDRESS", "")
    return given if given not in ("", "auto", "local") else "" if given == "local" else _started()


def record() -> Path:
    """Where `ray start` leaves its cluster's address. A session that another program started for itself is not there, and is
    not joined, because it ends with that program."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


def _started() -> str:
    """The address that `ray start` has left on this machine, or nothing.

    Whoever answers there runs what it likes with what a driver sends, and anybody can make files below /tmp: the file counts
    if it is this user's, or root's, and nobody else can write to it.
    """
    file, trusted = record(), (0, os.geteuid())
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(descriptor, encoding="utf-8", errors="replace") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return ""
        if found.st_uid not in trusted or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            print(f"{file}: not used, others can write to it; RAY_ADDRESS joins a cluster that you trust", flush=True)
            return ""
        return stream.read(1000).strip()


def check_machine(workers: int, cpus_per_worker: float, device: str) -> None:
    """Refuses what a session of this machine's own cannot give: GPUs, and cores that workers need not share, because together
    they would not be faster. A cluster that is joined, or a session that this process has begun, says later what it has.

    Args:
        workers: 0 of what takes as many as there is room for.
        cpus_per_worker: Logical CPUs of each.
        device: cuda, where each has a GPU.

    Raises:
        ValueError: there are fewer; the message says how many.
    """
    ray: Any = sys.modules.get("ray")
    if address_to_join() or (ray and ray.is_initialized()):
        return
    cores = os.cpu_count() or 1
    if workers * cpus_per_worker > max(cores, cpus_per_worker):
        raise ValueError(
            f"workers={workers} on {cores} cores: take --workers {max(1, int(cores / cpus_per_worker))}, smaller "
            "--cpus-per-worker where they may share cores, or a cluster that RAY_ADDRESS names"
        )
    if device == "cuda":
        _check_gpus(workers)


def _check_gpus(workers: int) -> None:
    import torch

    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num:
        raise ValueError(
            "device=cuda: torch sees no GPU on this machine; give --device cpu, or a cluster that RAY_ADDRESS names"
        )
    if workers > num:
        raise ValueError(
            f"workers={workers} on --device cuda need {workers} GPUs, this machine has {num}: take --workers {num}"
        )
