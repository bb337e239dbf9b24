"""Sweep over what decides a training: `python tune/sweep.py [SPACE] [--space FIELD=VALUES ...] [--option value ...]`.

SPACE is one or several, joined by commas, of pretraining, weighting, t_m, and files: path.py:function, which returns a mapping
of fields to values, or safe YAML. --space names any field of the recipe: --space train.optimisers.flow.lr=log:1e-4..1e-2. Each
trial is a training by the project's own workers, measured by its own evaluation; all are on one Ray cluster. The recipe and its
options are those of train.py (--recipe X, --model.sde SubVP, ...), its steps are --trial-steps.

`sweep.py sampler RUN [RUN@STEP ...] --space snr=0.1,0.2` searches the samplers of trained runs instead: nothing is trained.
`sweep.py sampler --help` has its options.

The same command goes on with a sweep that was ended, whatever ended it. What it found is printed, and lies in OUT/SWEEP:
sweep.json and sweep.png; the runs are OUT/SWEEP-000, ..., as train.py leaves them. In MLflow they stand below the sweep's own
run, and the best model is in the registry, under the alias `best`.
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

from indm_core.sampling import Sampling
from pipelines.cluster.address import check_machine
from pipelines.config.history import Command
from pipelines.config.run import RunConfig
from pipelines.config.terminal.cli import options, override
from pipelines.config.terminal.command import carry_out
from pipelines.config.terminal.help import describe, page
from pipelines.config.weights import HELP, Weights
from pipelines.recipes import DEFAULT, find
from pipelines.storage.outputs import RULE, check_name, output_root
from pipelines.storage.signals import Stop, until_signal
from tune.named import is_file, read_space, split_fields
from tune.options import Options
from tune.plan import Plan, as_trial
from tune.sampling.options import SamplerOptions
from tune.sampling.plan import SamplerPlan, space_of

SAMPLER = "sampler"
"""The word that samplers are searched by."""
FLAGS = ("flip", "dense", "first_activation", "ema_ramp")
OURS = {option.path for option in options(Options())}
REMARK = "the trials that are done are kept; the same command goes on with the others from their last checkpoints"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 where trials were lost or none was measured, 2 of what was refused."""
    taken = {"flags": FLAGS, "lists": ("space",), "words_needed": False}
    return until_signal(
        lambda stop: carry_out(argv, _page, lambda words, given: _carry_out(words, given, stop), stop, **taken), REMARK
    )


def _carry_out(words: list[str], given: dict[str, str], stop: Stop) -> int:
    if words[:1] == [SAMPLER]:
        stop.remark = "the samples that are drawn are kept; the same command goes on with the others"
        return _sweep_samplers(words[1:], given, stop)
    return _sweep(words, given, stop)


def _page(words: list[str], given: dict[str, str]) -> str:
    """The help; the options of the recipe are those of train.py, those of a sampler are compare.py's."""
    if words[:1] == [SAMPLER]:
        groups = [("sweep", describe(SamplerOptions())), ("options of a sampler, for --space", describe(Sampling()))]
        return page(__doc__ or "", groups, [HELP, f"{RULE}."])
    ours, run = _configured(given)
    groups = [(part, describe(run, part, OURS)) for part in ("data", "model", "train")]
    return page(
        __doc__ or "",
        [("sweep", describe(ours)), *((f"{part}, of {run.recipe}", text) for part, text in groups)],
        [f"{RULE}."],
    )


def _configured(given: dict[str, str]) -> tuple[Options, RunConfig]:
    """How it is swept, and the recipe as a trial."""
    ours = override(Options(), {name: text for name, text in given.items() if name in OURS and name != "space"})
    recipe = find(given.get("recipe", DEFAULT))()
    theirs = {name: text for name, text in given.items() if name not in OURS and name != "recipe"}
    return ours, as_trial(recipe, ours.trial_steps, theirs, sorted(OURS))


def _sweep(words: list[str], given: dict[str, str], stop: Stop) -> int:
    ours, run = _configured(given)
    fields = split_fields(given.get("space", ""))
    space = read_space(words, fields, run)
    name = ours.name or f"{run.recipe}-{'-'.join(d.name.rpartition('.')[2] for d in space.dimensions)}"
    check_name(name)
    root = output_root(ours.out)
    check_machine(ours.workers, ours.cpus_per_worker, ours.device)
    from tune.conduct import conduct  # Ray and MLflow from here on

    ours, command = replace(ours, space=",".join(fields)), Command.of_this_process()
    return conduct(Plan(name=name, run=run, space=space, options=ours, root=root, command=command), stop)


def _sweep_samplers(words: list[str], given: dict[str, str], stop: Stop) -> int:
    fields = split_fields(given.get("space", ""))
    wanted = override(SamplerOptions(), {name: text for name, text in given.items() if name != "space"})
    files = [word for word in words if is_file(word)]
    root = output_root(wanted.out)
    runs = tuple(Weights.named(word, root) for word in words if word not in files)
    if not runs:
        raise ValueError("sampler: of which run? give one or several, for instance sampler digits_vp_nll@best")
    space = space_of(files, fields, runs)
    name = wanted.name or "-".join([runs[0].name.replace("@", "-"), *(d.name for d in space.dimensions)])
    check_name(name)
    check_machine(0, 1.0, wanted.device)
    from tune.sampling.conduct import conduct  # Ray and MLflow from here on

    wanted, command = replace(wanted, space=",".join(fields)), Command.of_this_process()
    plan = SamplerPlan(name=name, runs=runs, space=space, options=wanted, root=root, command=command)
    return conduct(plan, stop)


if __name__ == "__main__":
    sys.exit(main())
