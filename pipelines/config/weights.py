"""Which weights of which run: the ones that it ends with, or those of any of its checkpoints, also while it trains.

    RUN             the averaged weights of a finished run, RUN/model.safetensors
    RUN@400         the averaged weights of its checkpoint after step 400
    RUN@last        those of its newest checkpoint
    RUN@best        those of the best checkpoint, of the ones that are kept: the lowest NELBO on held-out rows or, where the
                    training says so (--keep-by), the lowest NLL or Frechet distance that was measured beside it
    RUN@400:raw     the weights themselves in place of their average; RUN@last:raw and RUN@best:raw likewise

RUN is a directory, or a name below the output directory; one that has an @ in its own name is found first. `last` and `best`
are settled where they are read: the name of the weights, in tables and in files, has the step. What commands make of a
checkpoint lies in RUN/@400 (RUN/@400-raw), what they make of the finished run in RUN.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import final

from pipelines.storage import checkpoint
from pipelines.storage.manifest import DamagedError, Manifest
from pipelines.storage.messages import listed
from pipelines.storage.outputs import find_run, is_run, place_of, refuse_foreign_links
from pipelines.storage.paths import local_path
from pipelines.storage.reading import read_json

__all__ = ["HELP", "Weights", "kept_by"]

HELP = (
    "RUN is the directory of a run or its name below the output directory. RUN@400, RUN@last and RUN@best are its checkpoints\n"
    "(best: by the NELBO on held-out rows, or the training's --keep-by), finished or not, with averaged weights; RUN@400:raw\n"
    "has the weights themselves."
)


@final
@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights of which run.

    Args:
        run: Its directory.
        step: Of the checkpoint that they lie in; None: the averaged weights that the finished run ends with.
        raw: Of a checkpoint, the weights themselves in place of their average.
    """

    run: Path
    step: int | None = None
    raw: bool = False

    @staticmethod
    def named(word: str, root: Path | None = None) -> Weights:
        """The weights that a word such as RUN@last names.

        Args:
            root: The output directory, where the run is not named by its path.

        Raises:
            ValueError: no such checkpoint, or none that can be the best; what there is.
        """
        return _chosen(word, lambda path: place_of(path, root), lambda path: find_run(path, root))

    @staticmethod
    def of(given: str | Path | Weights) -> Weights:
        """The weights at a path such as runs/x@last; raises as `named` does."""
        place = partial(local_path, what="run")
        return given if isinstance(given, Weights) else _chosen(str(given), place, place)

    @property
    def name(self) -> str:
        """What they are called in tables: RUN, RUN@400 or RUN@400:raw."""
        return f"{self.run.name}{self._ending}"

    @property
    def _ending(self) -> str:
        return "" if self.step is None else f"@{self.step}{':raw' * self.raw}"

    @property
    def folder(self) -> str:
        """Below the run's directory, where what is made of them lies; '' of a finished run."""
        return self._ending.replace(":", "-")

    @property
    def place(self) -> Path:
        return self.run / self.folder

    def __truediv__(self, name: str) -> Path:
        """Where what is made of them lies under a name."""
        return self.place / name

    def __str__(self) -> str:
        return f"{self.run}{self._ending}"

    @property
    def part(self) -> str:
        """What their tensors are called in a checkpoint, before the network's name."""
        return "model." if self.raw else "ema."

    @property
    def checkpoint(self) -> Path:
        """The directory of their checkpoint.

        Raises:
            ValueError: it is gone.
        """
        kept = checkpoint.kept(self.run)
        if self.step not in kept:
            raise ValueError(f"{self}: there is no checkpoint of step {self.step}; {_what_there_is(self.run)}")
        return kept[self.step]

    @cached_property
    def state(self) -> Manifest:
        """What vouches for their checkpoint, read once: it holds however long it takes, and whatever the training removes.

        Raises:
            ValueError: the checkpoint is gone, or is not what was written.
        """
        try:
            return checkpoint.read_state(self.checkpoint)
        except DamagedError as error:
            raise ValueError(f"{self}: no complete checkpoint ({error}); {_what_there_is(self.run)}") from None


def _chosen(word: str, place: Callable[[str], Path], find: Callable[[str], Path]) -> Weights:
    """The weights that a word names.

    Args:
        place: Where a run of a name lies, if there is one.
        find: Likewise, of a run that must be there.
    """
    before, at, what = word.rpartition("@")
    if not at or is_run(place(word)):
        return Weights(run=find(word))
    run = find(before)
    if not run.is_dir():
        raise ValueError(f"{run}: no readable run here; give the directory of a run")
    refuse_foreign_links(run)
    which, colon, kind = what.partition(":")
    if (colon and kind != "raw") or not (which in ("last", "best") or which.isdecimal()):
        name = run.name
        raise ValueError(
            f"{word}: behind @ stands a step, last or best, and :raw for weights that are not averaged; {name}@last"
        )
    weights = Weights(
        run=run, step={"last": _last, "best": _best}.get(which, lambda run: int(which))(run), raw=bool(colon)
    )
    _ = weights.state  # whether it is there
    return weights


def _last(run: Path) -> int:
    state = checkpoint.newest_state(run)
    if state is None:
        raise ValueError(f"{run.name}@last: {_what_there_is(run)}")
    return state.content["step"]


def _best(run: Path) -> int:
    by = kept_by(run)
    figures = checkpoint.figures_by(run, by)
    measured = {step: figure for step, figure in figures.items() if math.isfinite(figure)}
    if not measured:
        way = (
            "was measured on held-out rows (--validate-every STEPS has them measured)"
            if by == "nelbo"
            else f"has its {by} measured yet, by which they are kept (the training command measures them)"
        )
        raise ValueError(f"{run.name}@best: no checkpoint of it {way}; {_what_there_is(run)}")
    return min(measured, key=lambda step: (measured[step], -step))


def kept_by(run: Path) -> checkpoint.By:
    """What the checkpoints of a run are compared by, as its config.json has it; of a run that does not say, the NELBO."""
    try:
        said = read_json(run / "config.json")["run"]["train"]["keep_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return "nelbo"
    return said if said in typing.get_args(checkpoint.By) else "nelbo"


def _what_there_is(run: Path) -> str:
    """The checkpoints that a run has now, as the end of a message."""
    kept = checkpoint.kept(run)
    if not kept:
        return f"{run} has no checkpoint; train it first, or wait for its first one"
    return f"take one of {listed([f'{run.name}@{step}' for step in sorted(kept)])}, or {run.name}@last"
