"""A report of trained runs: `python pipelines/report.py RUN [RUN ...] [--out DIR]`.

Writes report.html, one page that needs nothing beside it, and report.md, its tables: the figures of `evaluate.py` and
`compare.py` beside those of the papers, samples, learning curves, the diagnostics of the INDM paper, configuration and
environment. Every row says its data and hardware: only rows on the same data in the same features are comparable.
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
from pipelines.reporting.options import ReportOptions
from pipelines.runs.artifacts import log_files
from pipelines.storage.outputs import RULE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_command_on_runs(argv, _page, _report, "the report is not written; the same command begins again")


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(ReportOptions()))], [HELP, f"{RULE}."])


def _report(words: list[str], given: dict[str, str]) -> None:
    runs, wanted = [Weights.named(word) for word in words], override(ReportOptions(), given)
    print(f"report of {', '.join(run.name for run in runs)}", flush=True)  # PyTorch takes seconds to come
    from pipelines.reporting.summary import report

    written = report(runs, wanted)
    log_files(runs, [written, written.with_suffix(".md")])
    print(written)


if __name__ == "__main__":
    sys.exit(main())
