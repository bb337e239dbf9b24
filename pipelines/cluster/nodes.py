"""What all machines of a cluster must have in common, found out before any work: the output directory, the data, the code."""

from __future__ import annotations

import hashlib
import os
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["check_nodes"]

CLONE = Path(__file__).resolve().parents[2]
PACKAGES = ("indm_core", "pipelines", "tune")
ANSWER_SECONDS = 60.0
SEEN_SECONDS = 10.0
"""That a file may take to be seen elsewhere: network file systems remember for seconds that there was none."""


@dataclass(frozen=True)
class Answer:
    """What a machine says of itself.

    Args:
        token: That it has read; '' where it did not see it.
        unseen: Of the directories of data, those that it does not see.
        torch: The version.
        code: A digest of the package at the place where it lies here; '' where there is none.
    """

    token: str
    unseen: tuple[str, ...]
    torch: str
    code: str


def check_nodes(root: Path | None, data: Iterable[Path] = ()) -> None:
    """Refuses a cluster whose machines do not all see the output directory and the data, or run other code than this.

    A token is written here and read by a task on every other machine, which writes it once more for this one to read.

    Args:
        root: The output directory; None where only this machine writes.
        data: Directories of prepared data sets, or files and folders that are prepared.

    Raises:
        ValueError: the machine, what it lacks and the remedy.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    places, here = [str(place) for place in data], _description()(str(CLONE))
    with _token(root) as file:
        token = file.name if file else ""
        ask = ray.remote(num_cpus=0, max_retries=0)(_question(str(file or ""), token, places, str(CLONE)))
        asked = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                node["NodeID"]
            )
            for node in nodes
        ]
        for node, reference in zip(nodes, asked, strict=True):
            address = f"the machine {node['NodeManagerAddress']} of the cluster"
            answer = _answer(address, reference)
            reply = _read(file.with_name(f"{file.name}-{node['NodeID']}")) if file else ""
            _check(address, answer, root, token, reply, here)


@contextmanager
def _token(root: Path | None) -> Iterator[Path | None]:
    """A file in the output directory that holds its own name; gone, with those of the other machines, when the block ends."""
    if root is None:
        yield None
        return
    root.mkdir(parents=True, exist_ok=True)
    file = root / f".token-{uuid.uuid4().hex}"
    file.write_text(file.name)
    try:
        yield file
    finally:
        for left in root.glob(f"{file.name}*"):
            with suppress(OSError):
                left.unlink()


def _question(file: str, token: str, places: Sequence[str], clone: str) -> Callable[[str], dict[str, Any]]:
    """What a machine is asked; a closure, which travels as a whole, so that a machine without the package answers too."""
    describe, seconds = _description(), SEEN_SECONDS

    def ask(node: str) -> dict[str, Any]:
        deadline, seen = time.monotonic() + seconds, ""
        while file and not seen and time.monotonic() < deadline:
            try:
                seen = Path(file).read_text()
                Path(f"{file}-{node}").write_text(token)
            except OSError:
                time.sleep(0.2)
        unseen = tuple(place for place in places if not Path(place).exists())
        return {"token": seen, "unseen": unseen} | describe(clone)

    return ask


def _description() -> Callable[[str], dict[str, Any]]:
    """What a machine says of its software; a closure too."""
    packages = PACKAGES

    def describe(clone: str) -> dict[str, Any]:
        sources = sorted(source for package in packages for source in Path(clone, package).rglob("*.py"))
        sha = hashlib.sha256()
        for source in sources:
            sha.update(str(source.relative_to(clone)).encode() + b"\0" + source.read_bytes() + b"\0")
        return {"torch": metadata.version("torch"), "code": sha.hexdigest() if sources else ""}

    return describe


def _answer(address: str, reference: Any) -> Answer:
    try:
        answered: Any = ray.get(reference, timeout=ANSWER_SECONDS)
        return Answer(**answered)
    except GetTimeoutError:
        why = f"it did not answer in {ANSWER_SECONDS:.0f} s"
    except RayError as error:
        why = textwrap.shorten(str(error), 300)
    raise ValueError(f"{address} cannot work: {why}; mend it, or take it out of the cluster")


def _check(address: str, answer: Answer, root: Path | None, token: str, reply: str, here: dict[str, Any]) -> None:
    """Compares what a machine answered with what this one is, `here`."""
    if {answer.token, reply} != {token}:
        raise ValueError(
            f"out={root}: {address} does not see what is written there; give --out, or $INDM_RUNS, a directory that all "
            "machines share"
        )
    if answer.unseen:
        raise ValueError(
            f"data={answer.unseen[0]}: {address} does not see it; prepare it in a directory that all machines share"
        )
    if answer.torch != here["torch"]:
        raise ValueError(f"{address} has torch {answer.torch}, and this one {here['torch']}; install the same on all")
    if answer.code != here["code"]:
        what = "other code" if answer.code else "no code"
        raise ValueError(f"{address} has {what} in {CLONE}; copy this one there, as `ray up` does")


def _read(file: Path) -> str:
    """What another machine has written, as soon as this one sees it; '' where it does not."""
    deadline = time.monotonic() + SEEN_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(file.parent)  # a network file system then looks again
            if said := file.read_text():
                return said
        time.sleep(0.1)
    return ""
