"""Draw samples of a trained run: `python pipelines/sample.py RUN [--num-samples 64] [--sampler pc] [--out DIR]`.

One seed per sample: sample i is the same for every batch size and number of actors. Images become PNG files
(sample-000000.png, ...) and a grid.png, as they arrive; vectors become samples.npy and a scatter plot. A directory holds the
samples of one sampler, model and seed: beside others, which `--overwrite true` removes, none are drawn.

Of a run with labels `--label 3` draws a class, `--label 0,1,2` several in turn, and `--guidance 2` goes further towards them.

`--translate forward` carries test images of a bridge's first data set to its second, `--translate backward` those of
the second to the first, `--translate` both ways. Each way leaves a grid (sources above, translations below) and prints
how far the translated images are from the data set that they should belong to, beside how far they were before.
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
from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import run_command_on_runs
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.artifacts import log_files
from pipelines.storage.outputs import RULE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    remark = "the samples drawn so far stay where they are; the same command draws all of them again"
    return run_command_on_runs(argv, _page, _sample, remark)


def _page(words: list[str], given: dict[str, str]) -> str:
    return page(__doc__ or "", [("options", describe(SampleOptions()))], [HELP, f"{RULE}."])


def _sample(words: list[str], given: dict[str, str]) -> None:
    if len(words) > 1:
        raise ValueError(f"one run at a time, got {' '.join(words)}; options need --")
    if given.get("translate") == "true":  # given without a direction
        given = given | {"translate": "both"}
    run, wanted = Weights.named(words[0]), override(SampleOptions(), given)
    if wanted.actors:
        check_machine(0, 1.0, wanted.device)
    if wanted.translate != "no":
        _translate(run, wanted)
        return
    from pipelines.evaluation.sampling.run import draw_run

    written = draw_run(run, wanted)
    log_files([run], [written.out / "grid.png"])
    told = f", {written.diverged} of them diverged" if written.diverged else ""
    cost = f"{written.evaluations:.1f} evaluations of the score each"
    of = f" of label {','.join(map(str, wanted.label))}" if wanted.label else ""
    of += f" with guidance {wanted.guidance:g}" if wanted.guidance else ""
    print(f"{written.out}: {wanted.num_samples} samples{of} by {wanted.sampling}, {cost}{told}, grid.png")


def _translate(run: Weights, wanted: SampleOptions) -> None:
    from pipelines.evaluation.sampling.translate import translate_run

    for translation in translate_run(run, wanted):
        print("\n".join(translation.lines()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
