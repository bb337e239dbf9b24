"""Export a trained run, or a checkpoint, as a model repository: `python pipelines/export.py RUN --to DIR`.

DIR gets model.safetensors, config.json, a model card (README.md) filled from what was measured of the run, and a grid of
samples: the layout of the Hugging Face hub, to which `hf upload OWNER/NAME DIR` brings it. `pipelines.load(DIR)` and
`pipelines.from_pretrained(DIR or OWNER/NAME)` read it. No path of this machine goes along.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


from collections.abc import Sequence

from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import run_command_on_runs
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.reporting.hub.options import ExportOptions
from pipelines.storage.outputs import RULE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command_on_runs(argv, _page, _export, "the export is not complete; the same command writes it again")


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(ExportOptions()))], [HELP, f"{RULE}."])


def _export(words: list[str], given: dict[str, str]) -> None:
    if len(words) > 1:
        raise ValueError(f"one run at a time, got {' '.join(words)}; options need --")
    run, wanted = Weights.named(words[0]), override(ExportOptions(), given)
    from pipelines.reporting.hub.export import export

    out = export(run, wanted)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")


if __name__ == "__main__":
    sys.exit(main())
