"""The main of a command: what was typed is taken apart, help is shown, work is done, and an error is told in one line.

A command imports what its help and its options need, and the rest, PyTorch, Ray, MLflow, where its work begins: help and what
is refused of a command line are there at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence

from indm_core.errors import ConvergenceError
from pipelines.config.modules import split_word, use
from pipelines.config.terminal.cli import split_arguments
from pipelines.storage.messages import FailedError, one_line
from pipelines.storage.signals import Stop, until_signal

__all__ = ["Action", "Page", "carry_out", "run_command", "run_command_on_runs"]

Action = Callable[[list[str], dict[str, str]], int | None]
"""A command's work, of its words and its options; it may say the exit status."""
Page = Callable[[list[str], dict[str, str]], str]
"""A command's help, likewise."""


def run_command(argv: Sequence[str] | None, page: Page, action: Action, remark: str) -> int:
    """The main of a script that takes words and options: returns the exit status, and tells an error in one line.

    Args:
        argv: What was typed; None takes the process's arguments.
        page: Its help, shown where it is asked for or no word is given.
        action: Its work.
        remark: Where a signal ends the action: what is saved and how to go on, as the end of a line (see `signals`).
    """
    return until_signal(lambda stop: carry_out(argv, page, action, stop), remark)


def run_command_on_runs(argv: Sequence[str] | None, page: Page, action: Action, remark: str) -> int:
    """The main of a script that reads runs: `run_command`, where --recipe path.py:function, as a run was trained, imports the
    file as --import does.

    Args:
        argv, page, action, remark: As of `run_command`.
    """
    return until_signal(lambda stop: carry_out(argv, page, action, stop, recipes=False), remark)


def carry_out(
    argv: Sequence[str] | None,
    page: Page,
    action: Action,
    stop: Stop,
    *,
    flags: Collection[str] = (),
    lists: Collection[str] = (),
    words_needed: bool = True,
    recipes: bool = True,
) -> int:
    """`run_command` inside `until_signal`.

    Args:
        argv, page, action: As of `run_command`.
        stop: Of `until_signal`.
        flags: Options that are true or false, so that a word may follow them.
        lists: Options that may be given several times; their values are joined by commas.
        words_needed: Whether the command does nothing without a word.
        recipes: Whether --recipe is an option of the command's own.
    """
    given: dict[str, str] = {}
    try:
        words, given = split_arguments(
            sys.argv[1:] if argv is None else argv, ("help", "traceback", *flags), ("import", *lists)
        )
        for module in filter(None, given.pop("import", "").split(",")):
            use(module)
        if not recipes and "recipe" in given:
            use(_file_of(given.pop("recipe")))
        asked = given.pop("help", None) or "-h" in words
        words = [word for word in words if word != "-h"]
        if asked or (words_needed and not words):
            print(page(words, given), flush=True)
            return 0 if asked else 2
        status = action(words, given) or 0
        print(end="", flush=True)  # here, where it is known what to do when nobody reads it
        return status
    except (ValueError, ConvergenceError, FailedError, OSError, ModuleNotFoundError) as error:
        if stop.requested:  # it is what the signal has led to
            raise
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        if given.get("traceback"):
            traceback.print_exc()
        print(f"error: {_said(error)}", file=sys.stderr)
        return 1 if isinstance(error, FailedError) else 2


def _nobody_reads() -> bool:
    """Whether the reader of stdout has gone, as `| head` does; what is still to be written there goes nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return gone


def _said(error: Exception) -> str:
    """An error in one line; what the system refused can be mended, and the work goes on."""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{error.name} is not installed; install it, or `make train`, which installs all that is needed into .venv"
        )
    return (
        f"{one_line(error)}; mend that and give the same command again"
        if isinstance(error, OSError)
        else one_line(error)
    )


def _file_of(word: str) -> str:
    file, _ = split_word(word)
    if not file:
        raise ValueError(
            f"--recipe {word}: the run has its recipe; for a file that defines its classes give --import FILE.py"
        )
    return file
