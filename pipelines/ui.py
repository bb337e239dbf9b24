"""Browse the experiments in MLflow: `python pipelines/ui.py [--out DIR] [--port N]`, or `make ui OUT=DIR PORT=N`.

MLflow is served on this machine alone, until Ctrl-C, from the store of the output directory: DIR/mlflow.db. The address that is
printed opens the table of the runs. Where MLFLOW_TRACKING_URI names a server, its address is printed, and nothing is served.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import carry_out
from pipelines.config.terminal.help import describe, page
from pipelines.storage.messages import FailedError
from pipelines.storage.outputs import RULE, output_root
from pipelines.storage.paths import local_path
from pipelines.storage.signals import until_signal

END_SECONDS = 5.0
"""How long the server may take to end, before it is killed."""


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """What is served, and where.

    Args:
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        port: Of this machine.
        traceback: Show where an error came from.
    """

    out: str = ""
    port: int = 5000
    traceback: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port={self.port} must be 1 to 65535")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 where the port is taken or there is nothing to show."""
    return until_signal(
        lambda stop: carry_out(argv, _page, _show, stop, words_needed=False),
        "the page is closed; the same command opens it again",
    )


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(UiOptions()))], [f"{RULE}."])


def _show(words: list[str], given: dict[str, str]) -> int:
    if words:
        raise ValueError(f"{words[0]}: no run is named here, the page has all of them; give --out DIR for others")
    wanted = override(UiOptions(), given)
    if wanted.out and not local_path(wanted.out, "--out").is_dir():
        raise ValueError(f"--out {wanted.out}: no such directory; give the one that runs were trained into")
    root, elsewhere = output_root(wanted.out), os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not (root / "mlflow.db").is_file() and not elsewhere:
        raise ValueError(
            f"{root}: no runs in MLflow yet; `make train` makes the first, --out DIR (make ui OUT=DIR) shows another place"
        )
    if not elsewhere.startswith(("http://", "https://")):
        _refuse_taken(wanted.port)
    from pipelines.runs.catalogue import experiment_address
    from pipelines.runs.store import named, reach, tracking_uri
    from pipelines.runs.tracking import EXPERIMENT, close_lost_runs

    try:
        uri = tracking_uri(root)
        reach(uri)
    except ValueError as error:
        raise ValueError(f"the tracking store: {error}; mend it, or set MLFLOW_TRACKING_URI") from None
    close_lost_runs(root)
    if uri.startswith(("http://", "https://")):
        print(f"experiments at {experiment_address(uri, EXPERIMENT, named(uri).rstrip('/'))}")
        return 0
    print(f"starting MLflow on {named(uri)} ...", flush=True)
    with tempfile.TemporaryFile() as said, _server(uri, root / "mlartifacts", wanted.port, said) as server:
        try:
            if _answers(server, wanted.port):
                address = experiment_address(uri, EXPERIMENT, f"http://127.0.0.1:{wanted.port}")
                print(f"experiments at {address} (Ctrl-C ends it)", flush=True)
            status = server.wait()
        finally:
            _end(server)
        said.seek(0)
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise FailedError(f"MLflow's server has ended with status {status}: {last}")


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            other = port + 1 if 1024 <= port < 65535 else 5001
            raise ValueError(
                f"port {port} cannot be had ({error.strerror}); choose another: --port {other} (make ui PORT={other})"
            ) from None


def _server(uri: str, artifacts: Path, port: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The server, in a session of its own: signals come to it through this process. What it says goes to a file. It needs none
    of the processes that carry out jobs, which are of language models."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", uri, "--default-artifact-root", str(artifacts)]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen([*command, *store], env=variables, stdout=said, stderr=said, start_new_session=True)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until the server answers, which takes seconds, or has ended; returns whether it answers."""
    while server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
        time.sleep(0.2)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server with the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
