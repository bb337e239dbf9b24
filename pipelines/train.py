"""Train a recipe: `python pipelines/train.py [RECIPE] [--option value ...]`.

Without a recipe this is the main job: an INDM on scikit-learn's digits and the linear diffusion that it generalises, from the
same pre-training and for as many steps, both measured and drawn. The same command again goes on where a killed run stopped.
`--local` runs the same steps in this process, without Ray and MLflow.

A recipe is a name of the list below (`python pipelines/show.py recipes` says of each what it needs and costs), or
path.py:function: a file of your own with a function that takes no argument and returns a RunConfig (pipelines/config/run.py),
for instance `dataclasses.replace` of another recipe. --recipe X says the same as X. The file may define classes of its own (an
SDE, a FlowConfig, a BackboneConfig, a ModelConfig) and readers, as may what --import names.

--config RUN/config.json trains a run again: its configuration takes the place of a recipe.
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
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.cluster.address import check_machine
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import carry_out
from pipelines.config.terminal.help import describe, fold, page
from pipelines.recipes import BASELINES, BY_DATA, DEFAULT, chosen, find, own_recipes, trained_before
from pipelines.storage.outputs import RULE, is_run, only_one, output_root, place_of
from pipelines.storage.signals import Stop, until_signal
from pipelines.training.launch import Launch

if TYPE_CHECKING:
    from pipelines.evaluation.settings import Settings
    from pipelines.runs.job import Job

FLAGS = ("local", "evaluate", "flip", "dense", "first_activation", "ema_ramp")
OURS = {option.path for option in options(Launch())}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 of a training that has diverged, 2 of what was refused."""
    return until_signal(
        lambda stop: carry_out(
            argv, _page, lambda words, given: _run(words, given, stop), stop, flags=FLAGS, words_needed=False
        ),
        "nothing is trained yet; the same command begins again",
    )


def _page(words: list[str], given: dict[str, str]) -> str:
    """The help; the options are those of the recipe, and of the forms that are given."""
    run = _configured(words, given)
    lists = BY_DATA | {f"of {word}": recipes for word, recipes in own_recipes().items()}
    recipes = "\n".join(fold(f"{title}: {', '.join(found)}", "  ", "      ") for title, found in lists.items())
    groups = [(part, describe(run, part, OURS)) for part in ("data", "model", "train")]
    note = f"An option of data, model and train may be named by its whole path too, --train.steps. {RULE}."
    return page(
        __doc__ or "",
        [
            ("recipes", recipes),
            ("launch", describe(Launch())),
            *((f"{part}, of {run.recipe}", text) for part, text in groups),
        ],
        [note],
    )


def _configured(words: list[str], given: dict[str, str]) -> RunConfig:
    """What is trained: a recipe, or what an earlier run was configured as, and the options that were given."""
    file = given.get("config", "")
    begin = trained_before(file, words, given) if file else _recipe(chosen(words, given), given)
    return override(begin, {name: text for name, text in given.items() if name not in OURS}, sorted(OURS))


def _recipe(word: str, given: dict[str, str]) -> RunConfig:
    """What a recipe configures; of the name of a run, how to go on with it is said."""
    try:
        return find(word)()
    except ValueError:
        if not is_run(run := place_of(word, output_root(given.get("out")))):
            raise
        way = f"--config {run} --name {run.name}"
        raise ValueError(
            f"{word} is a run and no recipe: {way} goes on with it, another --name trains it again"
        ) from None


def _run(words: list[str], given: dict[str, str], stop: Stop) -> int:
    launch = override(Launch(), {k: v for k, v in given.items() if k in OURS})
    main_job = not words and "recipe" not in given and not launch.config
    if main_job and "baseline" not in given:
        launch = replace(launch, baseline=BASELINES[DEFAULT])
    run = _configured(words, given)
    root = output_root(launch.out)
    from pipelines.runs.mirror import Mirror
    from pipelines.training.along import measurement_along
    from pipelines.training.jobs import all_jobs
    from pipelines.training.local import train_local
    from pipelines.training.watch.progress import saved

    jobs = all_jobs(run, launch, root)
    stop.remark = lambda: saved([job.training for job in jobs])
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(only_one(job.directory))
        along = measurement_along(jobs, launch.along)
        locks.enter_context(Mirror([job.directory for job in jobs], launch.mirror))
        if not launch.local:
            _train_and_measure(jobs, launch, root, stop, along)
            return 0
        train_local(jobs, launch, stop, root, along)
        if launch.seeds > 1:
            names = " ".join(str(job.directory) for job in jobs)
            print(f"figures and their spread over seeds: python pipelines/evaluate.py {names}")
    return 0


def _train_and_measure(jobs: Sequence[Job], launch: Launch, root: Path, stop: Stop, along: Settings | None) -> None:
    """Trains by Ray's workers what is not trained yet, and measures it."""
    from pipelines.runs.job import finished
    from pipelines.training.brief import measurement

    complete = all(finished(job.training) for job in jobs)
    if not complete:
        check_machine(launch.workers, launch.cpus_per_worker, launch.device)
    settings = measurement(jobs) if launch.evaluate else None
    try:
        if complete:
            from pipelines.training.on_ray.beside import measure_left

            measure_left([job.training for job in jobs], along, root, launch.device, stop)
            for job in jobs:
                print(f"{job.directory.name}: complete, {job.training.train.steps} steps in {job.directory}")
        else:
            from pipelines.training.on_ray.driver import train_on_ray

            train_on_ray(jobs, launch, root, stop, along)
        from pipelines.training.conclude import conclude
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; install it, or train in this process: --local") from error
    stop.remark = "the runs are trained, their weights are saved; the same command measures them"
    conclude(jobs, settings, root)


if __name__ == "__main__":
    sys.exit(main())
