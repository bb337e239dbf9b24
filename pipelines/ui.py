"""Serves the experiments of the output directory on localhost: `python pipelines/ui.py`, or `make ui`."""

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
from contextlib import suppress

from pipelines.runs.catalogue import experiment_address
from pipelines.runs.store import reach, tracking_uri
from pipelines.runs.tracking import EXPERIMENT
from pipelines.storage.outputs import output_root
from pipelines.storage.signals import until_signal

END_SECONDS = 5.0
"""How long the server may take to end, before it is killed."""


def main(port: int = 5000) -> int:
    """Serves the experiments of the output directory on localhost.

    Returns:
        The exit status; 2 where the port is taken or there is nothing to show.
    """
    return until_signal(lambda stop: _serve(port), "the page is closed; `make ui` opens it again")


def _serve(port: int) -> int:
    try:
        root, port = output_root(None), int(os.environ.get("PORT") or port)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not (root / "mlflow.db").is_file() and not os.environ.get("MLFLOW_TRACKING_URI"):
        print(f"{root}: no runs yet; `make train` makes the first", file=sys.stderr)
        return 2
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            print(f"port {port} is in use; choose another: make ui PORT={port + 1}", file=sys.stderr)
            return 2
    try:
        uri = tracking_uri(root)
        reach(uri)
    except ValueError as error:
        print(f"error: the tracking store: {error}; mend it, or set MLFLOW_TRACKING_URI", file=sys.stderr)
        return 2
    address = experiment_address(uri, EXPERIMENT, f"http://127.0.0.1:{port}")
    print(f"experiments at {address} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", uri, "--default-artifact-root", str(root / "mlartifacts")]
    with subprocess.Popen(command + store, start_new_session=True) as server:  # signals come to it through this process
        try:
            return server.wait()
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server with the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
