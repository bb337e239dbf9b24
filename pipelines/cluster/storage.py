"""Whether every machine of a cluster sees the output directory, found out before the first step by reading a token there."""

from __future__ import annotations

import secrets
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["check_storage"]

ANSWER_SECONDS = 60.0


def check_storage(root: Path) -> None:
    """Refuses an output directory that some machine of the running session does not see; of one machine nothing is asked.

    Raises:
        ValueError: a machine reads there what was not written, nothing, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]
    if len(nodes) < 2:
        return
    file, token = root / f".storage-{secrets.token_hex(4)}", secrets.token_hex(16)
    file.write_text(token, encoding="utf-8")
    try:
        ask = ray.remote(num_cpus=0)(_read)
        asked = {
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(file)
            ): node
            for node in nodes
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        blind = [node["NodeManagerAddress"] for ref, node in asked.items() if ref not in ready or ray.get(ref) != token]
    finally:
        file.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"out={root}: {', '.join(blind)} of {len(nodes)} machines do not see what is written there; give an --out that all "
            "of them see (NFS), or RAY_ADDRESS=local for a session of this command's own"
        )


def _read(file: str) -> str:
    """What a machine reads there; '' for nothing."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
