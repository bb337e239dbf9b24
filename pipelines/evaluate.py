"""Measure trained runs: `python pipelines/evaluate.py RUN [RUN ...] [--option value ...]`.

Test NLL (probability-flow ODE, with the residual), NELBO, their gap and the Frechet and kernel distances of samples are
computed concurrently by a pool of actors, which take the models' weights once from the object store. With --collage the same
actors draw canvases of the models' pieces: Frechet distances of their pieces, seams and correlations. All of these share the
actors' time fairly, so that none waits for another one's end; every few seconds a line has the figures as far as they are, and
MLflow their series (test/running). --until-se 0.005 stops a likelihood when its standard error is that small.

Several runs on the same data are measured on the same draws, and compared by differences paired per image. What the tasks give
is kept in RUN as it comes (evaluation.journal): a killed evaluation, given again, goes on where it stopped. A measurement is
kept by its settings in RUN/evaluations; RUN/evaluation.json is the most precise one, whatever was measured after it.

Every figure has a standard error. Of likelihoods: `se`, the estimator's on these very images, from replicates (the same images,
fresh dequantisation, times and noise); `se_images`, over images, which adds what another test set would change. Of the Frechet
distance: a jackknife, with what the finite number of samples adds (indm_core/frechet.py); of the kernel distance: over subsets.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()


from collections.abc import Sequence

from pipelines.cluster.address import check_machine
from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import run_command_on_runs
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.evaluation.settings import EvaluateOptions, Settings
from pipelines.storage.outputs import RULE, check_writable, output_root


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    remark = "the runs are as they were; the same command measures them"
    return run_command_on_runs(argv, _page, _evaluate, remark)


def _page(words: list[str], given: dict[str, str]) -> str:
    groups = [("what is measured, and how exactly", describe(Settings())), ("where", describe(EvaluateOptions()))]
    return page(__doc__ or "", groups, [HELP, f"{RULE}."])


def _evaluate(words: list[str], given: dict[str, str]) -> None:
    ours = {option.path for option in options(EvaluateOptions())}
    launch = override(EvaluateOptions(), {k: v for k, v in given.items() if k in ours})
    settings = override(Settings(), {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    root = output_root(launch.out)
    runs = [Weights.named(word, root) for word in words]
    check_machine(0, 1.0, launch.device)
    from pipelines.cluster.nodes import check_nodes
    from pipelines.cluster.session import connect
    from pipelines.evaluation.measure import evaluate
    from pipelines.evaluation.plan import check
    from pipelines.evaluation.results.legend import legend
    from pipelines.evaluation.results.seeds import seed_lines
    from pipelines.evaluation.results.shares import share_lines
    from pipelines.evaluation.results.table import log, table

    for run in runs:  # refused before a session is started
        check_writable(run.place)
    configs = check(runs, settings, root)
    connect(1, 1.0)
    check_nodes(root)
    document = evaluate(
        runs, settings, root, show=lambda document: print(table(document), flush=True), device=launch.device
    )
    shares = share_lines(document.shares, document.seconds)
    print(seed_lines(document, configs) + shares + legend(document), flush=True)
    log(document, runs, root)


if __name__ == "__main__":
    sys.exit(main())
