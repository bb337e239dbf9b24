"""What a worker says: RUN/logs/worker-RANK.log, on the run's storage, where it is found after the machine has gone.

    2026-11-27 19:45:01Z  digits_vp_nll 3f2a91c0...  worker 0 of 2  host0:1234  digits_vp_nll  joint  50/1200  nelbo ...

Each line has the time (UTC), the run with its id in MLflow (- where it has none yet), the worker and its process. All that is
printed in the worker is there too, warnings and the error that it ends with included; workers that begin again append.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pipelines.runs.kept import run_id

__all__ = ["WorkerLog"]

FOLDER = "logs"


class WorkerLog:
    """A context in which what this process prints goes to the worker's log as well; a training never ends because of a log.

    Args:
        directory: Of the run.
        rank, world: Of the worker.
        orderly: Errors that end a training in order.
    """

    def __init__(self, directory: Path, rank: int, world: int, orderly: type[Exception]) -> None:
        self.directory, self.orderly = directory, orderly
        self.file = directory / FOLDER / f"worker-{rank}.log"
        self.who = f"worker {rank} of {world}  {socket.gethostname()}:{os.getpid()}"
        self.run_id, self._redirected = "", ExitStack()

    def __enter__(self) -> WorkerLog:
        self.add("begins")
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            both = _Both(stream, self)
            self._redirected.callback(both.end)
            self._redirected.enter_context(redirect(both))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._redirected.close()
        fault = error and not isinstance(error, self.orderly)
        self.add("".join(traceback.format_exception(error)) if fault else "ends")

    def add(self, text: str) -> None:
        """Appends lines; a full disk, say, loses them."""
        self.run_id = self.run_id or run_id(self.directory)  # the command gives a run its id soon after it has begun
        now = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        begin = f"{now}  {self.directory.name} {self.run_id or '-'}  {self.who}"
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write("".join(f"{begin}  {line}\n" for line in text.splitlines() if line.strip()))


class _Both(TextIO):
    """A stream whose whole lines go to a log as well."""

    def __init__(self, stream: TextIO, log: WorkerLog) -> None:
        self.stream, self.log, self.begun = stream, log, ""

    def write(self, text: str, /) -> int:
        lines, _, self.begun = (self.begun + text).rpartition("\n")
        if lines:
            self.log.add(lines)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str], /) -> None:
        self.write("".join(lines))

    def end(self) -> None:
        """Gives the log a last line that has no end."""
        self.log.add(self.begun)
        self.begun = ""

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()
