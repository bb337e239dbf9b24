"""Seconds from a command to its first step, and what the entry points import.

    python -m benchmarks startup
    python benchmarks/startup.py            the same, with the moments of each command

A training of three steps of toy2d_linear is started by `python pipelines/train.py`, in this process (`--local`) and by one Ray
worker, in turn, in an output directory where the data have been prepared before. The moment of the first step is that of the
first record in metrics.jsonl. An entry point is started with `--help`, which must not import what it does not need.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.figure import AT_MOST, Absent, Bound, Row

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__")
AIM, AIM_OF_HELP = 15.0, 1.5
"""Seconds: with Ray to the first step; of a help."""
RECIPE = "toy2d_linear"
OPTIONS = [
    "--source",
    "toy2d:spiral",
    "--steps",
    "3",
    "--log-every",
    "1",
    "--sample-every",
    "0",
    "--validate-every",
    "0",
]


def words(name: str, out: Path, local: bool) -> list[str]:
    """The command of a training."""
    own = ["--local"] if local else ["--workers", "1", "--evaluate", "false"]
    command = [sys.executable, str(ROOT / "pipelines" / "train.py"), RECIPE, "--name", name, "--out", str(out)]
    return [*command, *OPTIONS, *own]


def first_step(name: str, out: Path, local: bool, quiet: bool = True) -> float:
    """Seconds until the first record is there; the command is waited for.

    Raises:
        ValueError: it ended without one; what it said.
    """
    began, metrics = time.monotonic(), out / name / "metrics.jsonl"
    sink = subprocess.PIPE if quiet else None
    with subprocess.Popen(words(name, out, local), stdout=sink, stderr=subprocess.STDOUT, text=True) as training:
        while training.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        taken = time.monotonic() - began
        said = training.communicate()[0]
    if not metrics.is_file():
        raise ValueError(f"{name}: no first step: {said}")
    return taken


def help_seconds(command: str) -> float:
    """Of a command's help."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / f"{command}.py"), "--help"], check=True, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - began


def against(what: str, seconds: list[float], aim: float) -> Row:
    """Seconds beside the aim."""
    found, shares = statistics.median(seconds), [each / aim for each in seconds]
    numbers = {"ours": found, "theirs": aim, "ratio": found / aim, "low": min(shares), "high": max(shares)}
    return Row(what=what, reference="the aim", unit="s", target=Bound(AT_MOST, 1.0), **numbers)


def figure(quick: bool) -> Iterator[Row | Absent]:
    """Seconds from the command to the first step, by one Ray worker and in one process, and those of each help."""
    os.environ.setdefault("RAY_ADDRESS", "local")
    ways = {"ray": ("first step, one Ray worker", AIM), "local": ("first step, --local", AIM / 3)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        first_step("prepares", Path(folder), local=True)
        for number in range(1 if quick else 5):
            for way, seconds in taken.items():
                seconds.append(first_step(f"{way}-{number}", Path(folder), local=way == "local"))
    for way, (what, aim) in ways.items():
        yield against(what, taken[way], aim)
    for command in COMMANDS:
        yield against(f"{command} --help", [help_seconds(command) for _ in range(1 if quick else 5)], AIM_OF_HELP)


def main() -> None:
    """Prints a training's lines as they come, and how long it took."""
    os.environ.setdefault("RAY_ADDRESS", "local")
    with tempfile.TemporaryDirectory() as folder:
        for name, local in (("prepares", True), ("local", True), ("ray", False)):
            print(f"{name}: {first_step(name, Path(folder), local, quiet=False):.2f} s to the first record", flush=True)


if __name__ == "__main__":
    main()
