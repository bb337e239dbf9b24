"""Why samples are what they are: `python pipelines/diagnose.py RUN [RUN ...] [--images 32] [--out DIR]`.

Draws the figures of the papers that say where a sampler's error comes from, of each run, and of all runs in one where that
compares them: smoothness, straightness and sensitivity (INDM, Figures 1, 2, 4, 6 and 7), the error of N steps, of holding the
score or eps constant and of extrapolating it (Zhang's thesis, Figures 6.2 to 6.4), the basis of a Langevin diffusion (Figures
7.1 and 7.2), and measures the three errors of Theorem 4 of the INDM paper apart. The ablation of Figure 6.5 is
`pipelines/compare.py RUN --rows ablation`.
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
from pipelines.reporting.options import DiagnoseOptions
from pipelines.runs.artifacts import log_files
from pipelines.storage.outputs import RULE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command_on_runs(argv, _page, _diagnose, "the page is not written; the same command begins again")


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(DiagnoseOptions()))], [HELP, f"{RULE}."])


def _diagnose(words: list[str], given: dict[str, str]) -> None:
    runs, wanted = [Weights.named(word) for word in words], override(DiagnoseOptions(), given)
    print(f"diagnostics of {', '.join(run.name for run in runs)}", flush=True)  # PyTorch takes seconds to come
    from pipelines.reporting.diagnostics.page import diagnose_runs

    written = diagnose_runs(runs, wanted)
    log_files(runs, [written, written.with_suffix(".md")])
    print(written)


if __name__ == "__main__":
    sys.exit(main())
