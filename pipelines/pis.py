"""Sample a density that is known up to a constant: `python pipelines/pis.py TARGET [--option value ...]`.

A path integral sampler is trained for the target: a control leads a diffusion from 0 to it. Then its weighted samples are
drawn, written (RUN/samples.parquet) and summed up in a row: log Z reweighted and as a bound, with standard errors, the share of
the samples that count (ESS), evaluations of the target, seconds. The same command goes on where a killed run stopped.

TARGET is a name of the list below, each with the settings that suit it, or path.py:name: a function or a class in a file of
your own which, called without an argument, gives an indm_core.pis.Target (`dim`, `log_prob`; where they are known `log_z` and
`sample`). The file is run because you name it here, and never because a run's directory says so.

The batch is one of particles: with several workers each draws its share, by the noise of (seed, step, rank), and gradients are
averaged, as if one had drawn all of them. --variance is T g^2, which must cover the target. A target without a gradient, or one
that is a black box, is sampled by --control nn --loss log-variance.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from indm_core.ranges import check_count, check_not_negative
from pipelines.cluster.address import check_machine
from pipelines.config.pis import PISRun
from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import carry_out
from pipelines.config.terminal.help import describe, fold, page
from pipelines.recipes.densities import DENSITIES, find_density
from pipelines.storage.outputs import RULE, only_one, output_root
from pipelines.storage.signals import Stop, until_signal
from pipelines.training.launch import Workers

if TYPE_CHECKING:
    from pipelines.runs.job import PISJob


@dataclass(frozen=True, kw_only=True)
class Launch(Workers):
    """Where and how a sampler is trained, and how many samples it draws.

    Args:
        start_from: A run of this command, RUN@STEP or the directory of a checkpoint, whose control starts the run.
        num_samples: Weighted samples of a repetition.
        repetitions: Of the drawing, by other noise: the spread of the estimates is over them.
        draw_seed: Of the samples.
    """

    start_from: str = ""
    num_samples: int = 2000
    repetitions: int = 1
    draw_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(num_samples=self.num_samples, repetitions=self.repetitions)
        check_not_negative(draw_seed=self.draw_seed)
        if self.draw_seed >= 2**63:
            raise ValueError(f"draw_seed={self.draw_seed} must lie below 2^63")
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples} must be at least 2: an error is the spread of several")


OURS = {option.path for option in options(Launch())}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 of a training that has diverged, 2 of what was refused."""
    return until_signal(
        lambda stop: carry_out(argv, _page, lambda words, given: _run(words, given, stop), stop, flags=("local",)),
        "nothing is trained yet; the same command begins again",
    )


def _page(words: list[str], given: dict[str, str]) -> str:
    """The help; the options are those of the target, where one is given."""
    run = _configured(words or [next(iter(DENSITIES))], given)
    known = "\n".join(
        fold(f"{name}: {(make.__doc__ or '').strip()}", "  ", "      ") for name, make in DENSITIES.items()
    )
    groups = [
        ("targets", known),
        ("launch", describe(Launch())),
        (f"sampler, of {run.recipe}", describe(run, apart=("recipe", "target", "train"), taken=OURS)),
        (f"target, of {run.recipe}", describe(run, "target", OURS)),
        (f"training, of {run.recipe}", describe(run, "train", OURS)),
    ]
    return page(__doc__ or "", groups, [f"{RULE}."])


def _configured(words: list[str], given: dict[str, str]) -> PISRun:
    """What is trained: the recipe of a target, and the options that were given."""
    if len(words) > 1:
        raise ValueError(f"one target at a time, got {' '.join(words)}; options need --")
    left = {name: text for name, text in given.items() if name not in OURS}
    return override(find_density(words[0])(), left, sorted(OURS))


def _run(words: list[str], given: dict[str, str], stop: Stop) -> int:
    launch = override(Launch(), {name: text for name, text in given.items() if name in OURS})
    run = _configured(words, given)
    root = output_root(launch.out)
    from pipelines.evaluation.weighted import Drawing
    from pipelines.runs.mirror import Mirror
    from pipelines.training.density import job_for, work_on_density
    from pipelines.training.density_end import conclude
    from pipelines.training.local import train_here
    from pipelines.training.watch.progress import saved
    from pipelines.training.watch.summary import summary

    job = job_for(run, launch, root, launch.start_from)
    stop.remark = lambda: saved([job.training])
    with ExitStack() as locks:
        locks.enter_context(only_one(job.directory))
        locks.enter_context(Mirror([job.directory], launch.mirror))
        if launch.local:
            train_here([job], launch, stop, work_on_density)
            print(summary(job.training))
        else:
            _train_on_ray(job, launch, root, stop)
        stop.remark = "the sampler is trained, its weights are saved; the same command draws its samples"
        drawing = Drawing(num_samples=launch.num_samples, repetitions=launch.repetitions, seed=launch.draw_seed)
        conclude(job, drawing, root, launch.device)
    return 0


def _train_on_ray(job: PISJob, launch: Launch, root: Path, stop: Stop) -> None:
    """Trains it by Ray's workers, unless it is trained."""
    from pipelines.runs.job import finished
    from pipelines.training.density import work_on_density

    if finished(job.training):
        print(f"{job.directory.name}: complete, {job.training.train.steps} steps in {job.directory}")
        return
    check_machine(launch.workers, launch.cpus_per_worker, launch.device)
    try:
        from pipelines.training.on_ray.driver import train_on_ray  # Ray and MLflow from here on

        train_on_ray([job], launch, root, stop, work=work_on_density)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; install it, or train in this process: --local") from error


if __name__ == "__main__":
    sys.exit(main())
