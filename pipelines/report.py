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

from pipelines.config.cli import describe, override, run_command_on_runs
from pipelines.config.weights import HELP, Weights
from pipelines.reporting.summary import ReportOptions, report
from pipelines.runs.artifacts import log_files
from pipelines.storage.outputs import RULE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    text = f"{__doc__}\n{HELP}\n\nOptions:\n{describe(ReportOptions())}\n\n{RULE}."
    return run_command_on_runs(argv, text, _report, "the report is not written; the same command begins again")


def _report(words: list[str], given: dict[str, str]) -> None:
    runs = [Weights.named(word) for word in words]
    page = report(runs, override(ReportOptions(), given))
    log_files(runs, [page, page.with_suffix(".md")])
    print(page)


if __name__ == "__main__":
    sys.exit(main())
