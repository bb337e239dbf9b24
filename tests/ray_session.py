"""What the tests of `pipelines` share: tiny runs, started here or as the user would, and how a refusal must look."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.injection import processes

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = ("--steps", "6", "--pretrain-steps", "3", "--log-every", "1", "--checkpoint-every", "2")
TINY = (
    *("--nf", "8", "--ch-mult", "1", "--num-res-blocks", "1", "--blocks", "2", "--flow.width", "16"),
    *("--batch-size", "16", "--sample-every", "0", "--validate-every", "0", *SCHEDULE),
)
"""Options of digits_vp_nll for a run of a second."""
TINY_2D = ("--backbone.width", "16", "--blocks", "2", "--flow.width", "16", "--batch-size", "16", "--rows", "200")
TINY_2D += ("--sample-every", "0", "--validate-every", "0", *SCHEDULE)


def main_of(script: str) -> Callable[..., int]:
    """The main of a command, for tests that run it in this process; nothing else imports a command."""
    return importlib.import_module(f"{'tune' if script == 'sweep' else 'pipelines'}.{script}").main


def train(*words: str, out: Path, status: int = 0) -> None:
    """Trains in this process, without Ray."""
    assert main_of("train")([*words, "--local", "--threads", "1", "--out", str(out)]) == status


def later_wins(words: Sequence[str]) -> list[str]:
    """Options given twice keep the later value."""
    flags = [word for word in words if word == "--local"]
    words = [word for word in words if word != "--local"]
    recipe, pairs = words[0], dict(zip(words[1::2], words[2::2], strict=True))
    return [recipe, *(part for pair in pairs.items() for part in pair), *flags]


def environment(**variables: str) -> dict[str, str]:
    """Of a command started by a test: one thread, no output directory but the one that the test gives."""
    kept = {name: value for name, value in os.environ.items() if name not in ("INDM_RUNS", "MLFLOW_TRACKING_URI")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"} | variables


def command(script: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *words]


def run_script(script: str, *words: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of pipelines/ as the user would."""
    return subprocess.run(
        command(script, *words), env=environment(**variables), capture_output=True, text=True, timeout=timeout
    )


def one_line(message: str, *parts: str) -> None:
    """A refusal: one line that names the culprit and the remedy."""
    assert "\n" not in message.strip()
    assert "Traceback" not in message
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


def kill_when(due: Callable[[], bool], title: str) -> threading.Thread:
    """Starts a thread that ends one Ray worker of this process's session by SIGKILL once something is due."""

    def wait() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if due() and (found := processes(title, os.getpid())):
                os.kill(found[-1], signal.SIGKILL)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
