"""What there is: `python pipelines/show.py runs`, `python pipelines/show.py RUN`, `python pipelines/show.py recipes [WORD]`.

runs lists the runs below the output directory: state (training, stopped, finished, damaged), steps, the last NELBO on training
rows and on held-out rows, checkpoints and size. RUN lists the checkpoints of one run, under the names by which sample,
evaluate, compare, report, diagnose and --start-from take them. recipes lists what train.py takes (those with WORD in their
name): data, parameters, steps, and how often a training step evaluates each network on a sample.
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

from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import run_command
from pipelines.config.terminal.help import describe, page
from pipelines.runs.overview import checkpoint_lines, checkpoints_of, run_lines, runs_below
from pipelines.storage.outputs import RULE, find_run, output_root


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Where to look.

    Args:
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        traceback: Show where an error came from.
    """

    out: str = ""
    traceback: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command(argv, _page, _show, "nothing was changed")


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(ShowOptions()))], [f"{RULE}."])


def _show(words: list[str], given: dict[str, str]) -> None:
    wanted = override(ShowOptions(), given)
    if words[0] == "recipes" and len(words) <= 2:
        _recipes("".join(words[1:]))
        return
    if len(words) > 1:
        raise ValueError(f"one thing at a time, got {' '.join(words)}; options need --")
    root = output_root(wanted.out)
    if words[0] == "runs":
        runs = list(runs_below(root))
        print("\n".join(run_lines(runs)) if runs else f"{root}: no runs yet; python pipelines/train.py makes the first")
        return
    _checkpoints(find_run(words[0], root))


def _checkpoints(run: Path) -> None:
    found = checkpoints_of(run)
    print("\n".join(checkpoint_lines(found)) if found else f"{run}: no checkpoint yet")
    if (run / "model.safetensors").is_file():
        print(f"{run.name}: the averaged weights that the run ended with")
    if found:
        print(f"averaged weights; {found[-1].name}:raw has those that are not averaged")


def _recipes(word: str) -> None:
    from pipelines.recipes import RECIPES, own_recipes
    from pipelines.recipes.overview import HEAD, Overview

    groups = (RECIPES, *own_recipes().values())
    chosen = {name: recipe for group in groups for name, recipe in group.items() if word in name}
    if not chosen:
        raise ValueError(f"no recipe has {word!r} in its name; python pipelines/show.py recipes lists all")
    print(HEAD, flush=True)
    for name, recipe in chosen.items():
        print(Overview.of(name, recipe).line(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
