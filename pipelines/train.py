"""Train a recipe: `python pipelines/train.py [RECIPE] [--option value ...]`.

Without a recipe this is the main job: an INDM on scikit-learn's digits and the linear diffusion that it generalises, from the
same pre-training and for as many steps, both measured and drawn. The same command again goes on where a killed run stopped.
`--local` runs the same steps in this process, without Ray and MLflow.

A recipe is a name of the list below, or path.py:function: a file of your own with a function that takes no argument and
returns a RunConfig (pipelines/config/run.py), for instance `dataclasses.replace` of another recipe. --recipe X says the same as
X. The file may define classes of its own (an SDE, a FlowConfig, a BackboneConfig, a ModelConfig), which the command line then
knows like the others. It is run here and in the workers, which look for it at the same path.

--config RUN/config.json trains a run again: its configuration takes the place of a recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipelines.storage.signals import until_imported

    until_imported()

import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from pipelines.config.cli import describe, options, override, split_arguments
from pipelines.config.modules import HELP
from pipelines.recipes import BASELINES, DEFAULT, RECIPES, chosen, find, trained_before
from pipelines.storage.messages import one_line
from pipelines.storage.outputs import RULE, only_one, output_root
from pipelines.storage.signals import Stop, until_signal
from pipelines.training.jobs import all_jobs
from pipelines.training.launch import FAULTS, Launch
from pipelines.training.local import train_local
from pipelines.training.progress import saved

FLAGS = ("help", "local", "evaluate", "traceback", "flip", "dense", "first_activation", "ema_ramp")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return until_signal(lambda stop: _main(argv, stop), "nothing is trained yet; the same command begins again")


def _main(argv: Sequence[str] | None, stop: Stop) -> int:
    words, given = [], {}
    try:
        words, given = split_arguments(sys.argv[1:] if argv is None else argv, FLAGS)
        if given.pop("help", None) or "-h" in words:
            print(help_text(chosen([word for word in words if word != "-h"], given)))
            return 0
        return _run(words, given, stop)
    except FAULTS as error:
        if stop.requested:  # it is what the signal has led to
            raise
        if given.get("traceback"):
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    """What is said of an error; what the system refused can be mended, and the run goes on."""
    said = one_line(error)
    return f"{said}; mend that and give the same command again" if isinstance(error, OSError) else said


def help_text(recipe: str) -> str:
    """What the command takes; the options are those of a recipe."""
    run = find(recipe)()
    width = max(map(len, RECIPES))
    recipes = "\n".join(f"  {n:<{width}} {(r.__doc__ or '').split(chr(10))[0]}" for n, r in RECIPES.items())
    return (
        f"{__doc__}\nRecipes:\n{recipes}\n\nLaunch options:\n{describe(Launch())}\n\n"
        f"Options of {run.recipe} (any unambiguous ending of a name will do, --steps for --train.steps):\n"
        f"{describe(run)}\n\n{HELP}\n\n{RULE}."
    )


def _run(words: list[str], given: dict[str, str], stop: Stop) -> int:
    ours = {option.path for option in options(Launch())}
    launch = override(Launch(), {k: v for k, v in given.items() if k in ours})
    main_job = not words and "recipe" not in given and not launch.config
    if main_job and "baseline" not in given:
        launch = replace(launch, baseline=BASELINES[DEFAULT])
    begin = trained_before(launch.config, words, given) if launch.config else find(chosen(words, given))()
    run = override(begin, {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    root = output_root(launch.out)
    jobs = all_jobs(run, launch, root)
    stop.remark = lambda: saved([job.training for job in jobs])
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(only_one(job.directory))
        if launch.local:
            train_local(jobs, launch, stop)
            if launch.seeds > 1:
                names = " ".join(str(job.directory) for job in jobs)
                print(f"figures and their spread over seeds: python pipelines/evaluate.py {names}")
            return 0
        try:
            from pipelines.training.conclude import conclude, measurement  # Ray and MLflow from here on
            from pipelines.training.on_ray import train_on_ray
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed; install it, or train in this process: --local") from error
        settings = measurement(jobs) if launch.evaluate else None
        train_on_ray(jobs, launch, root, stop)
        stop.remark = "the runs are trained, their weights are saved; the same command measures them"
        conclude(jobs, settings, root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
