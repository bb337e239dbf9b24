"""How a run came about: the commands that trained it, each with the code that it ran, and the rows that they read.

It lies in config.json beside the configuration, under "history", and nothing is decided by it. A run that is gone on with gains
a command. What is not known is absent: the commit outside a clone, a package that is not installed, and all of it in a run that
an earlier version began.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from indm_core import __version__
from pipelines.config.codec import from_json, to_json
from pipelines.data.card import Card
from pipelines.storage.reading import read_json

__all__ = ["Command", "DataRead", "History", "installed"]

CLONE = Path(__file__).resolve().parents[2]
ENTRY = "history"
GIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that trained.

    Args:
        line: As it was typed; '' where it is not told.
        began: When, in UTC.
        commit: Of the clone that it ran; '' where that is none.
        changed: Whether files of the clone differed from the commit; None where there is none.
        versions: Of Python, this project and the packages that compute and keep a run.
    """

    line: str = ""
    began: str = ""
    commit: str = ""
    changed: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    @cache
    def of_this_process() -> Command:
        """The command that this process is."""
        commit, changed = _commit()
        return Command(
            line=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            began=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            commit=commit,
            changed=changed,
            versions={"indm": __version__, "python": platform.python_version()} | installed("torch", "ray", "mlflow"),
        )

    @property
    def code(self) -> str:
        """The commit as people read it; '' where it is not known."""
        return f"{self.commit}{' and changes that were not committed' if self.changed else ''}"


@dataclass(frozen=True, kw_only=True)
class DataRead:
    """A prepared data set: what it is called, its digest (`Card.digest`) and the rows of each split."""

    name: str
    digest: str
    rows: dict[str, int]

    @staticmethod
    def of(card: Card) -> DataRead:
        rows = {name: split.count for name, split in card.splits.items()}
        return DataRead(name=card.name, digest=card.digest, rows=rows)


@dataclass(frozen=True, kw_only=True)
class History:
    """How a run came about.

    Args:
        commands: That trained it, the first one first; none where that is not known.
        data: That they read, the second set of a bridge behind the first.
    """

    commands: tuple[Command, ...] = ()
    data: tuple[DataRead, ...] = ()

    @staticmethod
    def read(file: Path) -> History:
        """The history in a config.json; one of nothing where it has none, or is not there.

        Raises:
            ValueError: it is no history.
        """
        try:
            document = read_json(file)
        except FileNotFoundError:
            return History()
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: cannot be read ({error}); restore it") from None
        found = document.get(ENTRY) if isinstance(document, dict) else None
        if found is None:
            return History()
        try:
            return from_json(History, found, f"{file}: {ENTRY}")
        except ValueError as error:
            raise ValueError(f"{error}; restore it, or remove {ENTRY} from the file") from None

    def to_document(self) -> dict[str, Any]:
        """What config.json holds of it beside the configuration."""
        return {ENTRY: _said(to_json(self))} if self.commands or self.data else {}

    def with_command(self, command: Command, cards: Sequence[Card]) -> History:
        """It, gone on with by a command on data; a worker that is started again is no other command."""
        again = self.commands[-1:] == (command,)
        data = tuple(map(DataRead.of, cards))
        return History(commands=self.commands if again else (*self.commands, command), data=data)

    def without_lines(self) -> History:
        """It without what was typed, which has paths of a machine."""
        return replace(self, commands=tuple(replace(command, line="") for command in self.commands))

    @property
    def codes(self) -> list[str]:
        """The commits that trained it, as people read them, each once."""
        return list(dict.fromkeys(filter(None, (command.code for command in self.commands))))


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> tuple[str, bool | None]:
    """The commit of the clone, and whether its files differ from it; ('', None) where it is no clone, or there is no git."""
    if not (CLONE / ".git").exists():  # a repository around an installed copy is somebody else's
        return "", None
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    words = ["git", "-C", str(CLONE), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "", None
    commit, _, dirty = found.stdout.strip().partition("-")
    return (commit, bool(dirty)) if found.returncode == 0 and commit else ("", None)


def _said(value: Any) -> Any:
    """JSON without the classes' names, of which there is one in each place, and without what is not known."""
    if isinstance(value, dict):
        return {name: _said(member) for name, member in value.items() if name != "type" and member not in ("", None)}
    return [_said(member) for member in value] if isinstance(value, list) else value
