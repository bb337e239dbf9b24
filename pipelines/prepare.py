"""Turn a data set into Parquet shards with a card: `python pipelines/prepare.py SOURCE --out DIR [--option value ...]`.

SOURCE is a file, a directory, or the name of an embedded set (see below); training and evaluation read what lies in DIR then.
A table at the end says for each split what it was made from, its rows and classes and what was skipped, and what is in none.

    python pipelines/prepare.py img_align_celeba --out data/celeba --crop 140 --size 64
    python pipelines/prepare.py table.csv --out data/table --test-fraction 0.1 --max-skip 0 --splits train,test
    python pipelines/prepare.py pictures --out data/pictures --split train=good,test=held_out
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import run_command
from pipelines.config.terminal.help import describe, page
from pipelines.data.ingest import prepare
from pipelines.data.readers import formats
from pipelines.data.source import Options
from pipelines.data.summary import summary


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Where a prepared data set goes.

    Args:
        out: Directory of the prepared data set; it must be given.
        traceback: Show where an error came from.
    """

    out: str = ""
    traceback: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 after an error."""
    return run_command(argv, _page, _prepare, "the data set is not prepared; the same command begins again")


def _page(words: list[str], given: dict[str, str]) -> str:
    groups = [("where to", describe(PrepareOptions())), ("how the source is read", describe(Options()))]
    return page(__doc__ or "", groups, [f"Known sources: {formats()}."])


def _prepare(words: list[str], given: dict[str, str]) -> None:
    ours = {option.path for option in options(PrepareOptions())}
    launch = override(PrepareOptions(), {k: v for k, v in given.items() if k in ours})
    wanted = override(Options(), {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    if len(words) > 1:
        raise ValueError(
            f"one source at a time, got {' '.join(words)}; several splits are one word, --splits train,test"
        )
    if not launch.out:
        raise ValueError("--out DIR is missing: the directory of the prepared data set")
    card = prepare(words[0], launch.out, wanted)
    print(f"{card.name}: {card.kind} {card.shape}, levels {card.levels}, {card.num_classes} classes -> {launch.out}")
    print("\n".join(summary(card)))


if __name__ == "__main__":
    sys.exit(main())
