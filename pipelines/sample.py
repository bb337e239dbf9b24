"""Draw samples of a trained run: `python pipelines/sample.py RUN [--num-samples 64] [--sampler pc] [--out DIR]`.

One seed per sample: sample i is the same for every batch size and number of actors. Images become PNG files
(sample-000000.png, ...) and a grid.png, as they arrive; vectors become samples.npy and a scatter plot. A directory holds the
samples of one sampler, model and seed: beside others, which `--overwrite true` removes, none are drawn.

Of a run with labels `--label 3` draws a class, `--label 0,1,2` several in turn, and `--guidance 2` goes further towards them.

`--collage` draws canvases of any size from a model of their pieces (DiffCollage): `--collage chain --num-factors 64` a strip,
`loop`, `grid`, `corners` (pieces that share quarters) and `cube` (six faces) likewise, into canvas-000000.png, ...; with
`--actors 2` the pieces of each step are scored by Ray actors. `--factor-labels 0,-1,-1,-1,5` leads from one class to another,
`--between test:0,test:17` joins two images, `--known FILE --mask FILE` fills in, and `--start data --strength 0.5` draws again
what a picture, or without a collage a test image, loses by noise.

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
from dataclasses import replace

from pipelines.cluster.address import check_machine
from pipelines.config.terminal.cli import override
from pipelines.config.terminal.command import run_command_on_runs
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.evaluation.collages.layout import sampling_of_canvases
from pipelines.evaluation.settings import SampleOptions
from pipelines.runs.artifacts import log_files
from pipelines.storage.outputs import RULE

NUM_CANVASES = 4


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    remark = "the samples drawn so far stay where they are; the same command draws all of them again"
    return run_command_on_runs(argv, _page, _sample, remark)


def _page(words: list[str], given: dict[str, str]) -> str:
    apart = ("layout", "conditions")
    groups = [
        ("options", describe(SampleOptions(), apart=apart)),
        ("canvases of pieces", describe(SampleOptions(), "layout")),
        ("what is known of canvases", describe(SampleOptions(), "conditions")),
    ]
    return page(__doc__ or "", groups, [HELP, f"{RULE}."])


def _sample(words: list[str], given: dict[str, str]) -> None:
    if len(words) > 1:
        raise ValueError(f"one run at a time, got {' '.join(words)}; options need --")
    if given.get("translate") == "true":  # given without a direction
        given = given | {"translate": "both"}
    run, wanted = Weights.named(words[0]), _wanted(given)
    if wanted.actors:
        check_machine(0, 1.0, wanted.device)
    if wanted.translate != "no":
        _translate(run, wanted)
        return
    if wanted.layout.collage != "none":
        from pipelines.evaluation.collages.run import draw_collages

        written = draw_collages(run, wanted)
    else:
        from pipelines.evaluation.sampling.run import draw_run

        written = draw_run(run, wanted)
    if grid := (written.out / "grid.png").exists():
        log_files([run], [written.out / "grid.png"])
    told = f", {written.diverged} of them diverged" if written.diverged else ""
    cost = f"{written.evaluations:.1f} evaluations of the score each"
    of = f" of label {','.join(map(str, wanted.label))}" if wanted.label else ""
    of += f" with guidance {wanted.guidance:g}" if wanted.guidance else ""
    what = f"canvases of {written.shape}" if wanted.layout.collage != "none" else "samples"
    print(f"{written.out}: {wanted.num_samples} {what}{of} by {wanted.sampling}, {cost}{told}{', grid.png' * grid}")


def _wanted(given: dict[str, str]) -> SampleOptions:
    """The options; canvases have another sampler and another number of samples where none are given."""
    options = SampleOptions()
    if given.get("layout.collage", given.get("collage", "none")) != "none":
        options = replace(options, num_samples=NUM_CANVASES)
        if not given.keys() & {"sampling.sampler", "sampler"}:
            options = replace(options, sampling=sampling_of_canvases(options.layout))
    return override(options, given)


def _translate(run: Weights, wanted: SampleOptions) -> None:
    from pipelines.evaluation.sampling.translate import translate_run

    for translation in translate_run(run, wanted):
        print("\n".join(translation.lines()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
