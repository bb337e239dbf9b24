"""Samplers compared: `python pipelines/compare.py RUN [RUN ...] [--rows "em:10 em:100 ode"] [--num-samples 5000]`.

A row is a sampler with options, `em:100`, `pc:1000:snr=0.1`, `ode:rtol=1e-5,atol=1e-5`,
`deis:nfe=10,method=iPNDM,grid=edm`: its name, the number of its steps, any option of `Sampling`, and `start=data`, by
which sampling starts from the diffused latents of test data instead of the model's law. `--rows table` is a whole table
of fast samplers at 5 to 50 evaluations of the score, `--rows ablation` the ingredients of DEIS one after the other; what a
model does not allow of a set is left out and told.

Every row of every run draws the same seeds, and is measured by the Frechet and kernel distance to the training data,
the evaluations of the score that a sample takes, and the seconds of one actor. Samples and their features are kept
under RUN/compare/ as they are made: a killed table goes on where it stopped, a larger --num-samples adds to what is
there, and the rows of an earlier table of as many samples stay in RUN/compare.json, which is the table of the most samples.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


from collections.abc import Sequence

from indm_core.sampling import Sampling
from pipelines.cluster.address import check_machine
from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import run_command_on_runs
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.evaluation.sampling.options import CompareOptions
from pipelines.storage.outputs import RULE, check_writable, output_root


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    remark = "the samples drawn so far are kept under RUN/compare; the same command goes on from there"
    return run_command_on_runs(argv, _page, _compare, remark)


def _page(words: list[str], given: dict[str, str]) -> str:
    groups = [("options", describe(CompareOptions())), ("options of a row, without --", describe(Sampling()))]
    return page(__doc__ or "", groups, [HELP, f"{RULE}."])


def _compare(words: list[str], given: dict[str, str]) -> None:
    wanted = override(CompareOptions(), given)
    root = output_root(wanted.out)
    runs = [Weights.named(word, root) for word in words]
    check_machine(0, 1.0, wanted.device)
    from pipelines.cluster.session import connect
    from pipelines.config.store import load
    from pipelines.evaluation.plan import subjects_of
    from pipelines.evaluation.sampling.compare import compare, log
    from pipelines.evaluation.sampling.comparison import table
    from pipelines.evaluation.sampling.rows import choose

    for run in runs:  # refused before a session is started, as is a row that a model does not allow
        check_writable(run.place)
    subjects_of(runs)
    for run in runs:
        for remark in choose(wanted.rows, load(run), run.name).remarks():
            print(f"{run.name}: {remark}", flush=True)
    connect(1, 1.0)
    compare(runs, wanted, root, show=lambda document: print(table(document), flush=True))
    log(runs, root)


if __name__ == "__main__":
    sys.exit(main())
