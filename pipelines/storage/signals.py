"""How a command ends when it is told to: by Ctrl-C (SIGINT), or by SIGTERM, as SLURM, Kubernetes and spot machines send it.

Every command carries out its work by `until_signal`. A signal raises `Stopped` in the main thread, what is open is closed on
the way out, one line on stderr says what is saved and how to go on, and the exit status is 128 + the signal's number: 130 or
143.

Work that ends well only at certain points is a block `with stop.at_boundary()`. There the first signal is a request, which the
work sees in `stop.requested`: training writes a checkpoint after the step that it is in. SIGTERM gives it `GRACE_SECONDS` for
that, because whoever sends it kills half a minute later. A second signal does not wait for the step, a third one for nothing.

`until_imported` is for a script's first lines: until its packages are imported, a signal has nothing to close. The garbage
collector rests as long, and what was imported is no garbage ever after: to look through the modules of PyTorch, at every start
and every end, takes a third of the time that importing them does.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["Stop", "Stopped", "until_imported", "until_signal"]

GRACE_SECONDS = 20.0
UNWIND_SECONDS = 15.0
"""How long closing may take before the process ends without it."""
AGAIN_SECONDS = 0.05
"""After which `Stopped` is raised again where it came up in a callback that lets no exception out."""
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal ends the command."""


class Stop:
    """What a command knows of the signals that it has been sent.

    Args:
        remark: What is saved and how to go on, as the end of a line; the work puts another in its place as it proceeds.
    """

    def __init__(self, remark: str | Callable[[], str]) -> None:
        self.remark = remark
        self.number = 0
        self._waits = self._raised = False
        self._timers: list[threading.Timer] = []

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    @contextmanager
    def at_boundary(self) -> Iterator[None]:
        """A block of work that looks at `requested` and ends by itself; then the block ends the command.

        Raises:
            Stopped: at the block's end, where a signal has come.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.check()

    def check(self) -> None:
        """Ends the command where a signal has come.

        Raises:
            Stopped: one has.
        """
        if self.requested:
            self._raise()

    @property
    def word(self) -> str:
        """What the signal does."""
        return WORDS[signal.Signals(self.number or signal.SIGINT)]

    def line(self) -> str:
        """What the user is told: what was sent, what is saved, and how to go on."""
        return f"{self.word}: {self.remark if isinstance(self.remark, str) else self.remark()}"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The block in which signals are taken: in the main thread, the only one that Python tells, unless they are ignored."""
        kept: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            kept = {number: signal.getsignal(number) for number in WORDS}
        kept = {number: handler for number, handler in kept.items() if handler != signal.SIG_IGN}
        for number in kept:
            signal.signal(number, self._take)
        hook, sys.unraisablehook = sys.unraisablehook, partial(self._unraisable, sys.unraisablehook)
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for timer in self._timers:
                timer.cancel()
            for number, handler in kept.items():
                signal.signal(number, _late if handler is _early else handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        first, self.number = not self.requested, self.number or number
        if self._raised:
            self._give_up()
        if first and self._waits:
            os.write(
                1, b"stopping after this step; a second signal does not wait for it\n"
            )  # print may be in the middle of a line
            if number == signal.SIGTERM:
                self._after(GRACE_SECONDS, lambda: os.kill(os.getpid(), number))
            return
        self._raise()

    def _raise(self) -> None:
        self._raised = True
        self._after(UNWIND_SECONDS, self._give_up)
        raise Stopped

    def _unraisable(self, otherwise: Callable[[Any], None], report: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a weak reference's callback or in __del__; of `Stopped` that must not be the end."""
        if issubclass(report.exc_type, Stopped):
            self._raised = False
            self._after(AGAIN_SECONDS, lambda: os.kill(os.getpid(), self.number))
        else:
            otherwise(report)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append(threading.Timer(seconds, action))
        self._timers[-1].daemon = True
        self._timers[-1].start()

    def _give_up(self) -> None:
        """Ends the process as it is; what is written is whole, because files take their names when they are."""
        os.write(2, f"{self.line()}\n".encode())
        os._exit(128 + self.number)


def until_signal(work: Callable[[Stop], int], remark: str | Callable[[], str]) -> int:
    """Carries out a command's work.

    Args:
        work: Given the `Stop`; returns the exit status.
        remark: See `Stop`.

    Returns:
        The work's exit status, or 128 + the number of the signal that ended it.
    """
    if not gc.isenabled():  # the script's packages are imported
        gc.freeze()
        gc.enable()
    stop = Stop(remark)
    with stop.listening():
        try:
            return work(stop)
        except KeyboardInterrupt:
            stop.number = stop.number or signal.SIGINT
        except Exception:  # a part of the work that the same signal has ended is missed by the others
            if not stop.requested:
                raise
        print(f"\n{stop.line()}" if sys.stderr.isatty() else stop.line(), file=sys.stderr, flush=True)
    return 128 + stop.number


def until_imported() -> None:
    """Takes signals from a script's first line on, until `until_signal` does, and after it; the garbage collector rests."""
    gc.disable()
    for number in WORDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _early)


def _early(number: int, frame: FrameType | None) -> None:
    _end(number, "nothing was begun; give the same command again")


def _late(number: int, frame: FrameType | None) -> None:
    _end(number, "the work had ended")


def _end(number: int, remark: str) -> None:
    os.write(2, f"{WORDS[signal.Signals(number)]}: {remark}\n".encode())
    os._exit(128 + number)
